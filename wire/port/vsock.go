package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mdlayher/vsock"
)

// VsockPort is the default port number of a vsock listener, to which this protocol's hosts connect.
const VsockPort = 9443

// hostCID is the address of the hypervisor's machine, VMADDR_CID_HOST of linux/vm_sockets.h.
const hostCID = 2

// firstUnprivileged is the first port number that any user of a machine may connect from, after LAST_RESERVED_PORT of
// net/vmw_vsock/af_vsock.c.
const firstUnprivileged = 1024

// vsockListener is a vsock port that the host, or who else is allowed, connects to.
type vsockListener struct {
	port         uint32
	allow        []uint32
	unprivileged bool // peers may connect from any port: an ordinary user of the host can
	l            *vsock.Listener
	sessions     atomic.Int32
}

// listenVsock listens on NUMBER, NUMBER:CID,CID… or NUMBER:CID,CID…:unprivileged: the port, the context ids that may connect,
// by default the host's alone, and whether they may do so from any port; by default only from those that root alone can bind.
func listenVsock(spec string) (Port, error) {
	if !haveVsock {
		return nil, fmt.Errorf("listen vsock:%s: %w", spec, errors.ErrUnsupported)
	}
	number, cids, listed := strings.Cut(spec, ":")
	v := &vsockListener{port: VsockPort, allow: []uint32{hostCID}}
	cids, v.unprivileged = strings.CutSuffix(cids, ":unprivileged")
	if number != "" {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("vsock:%s: %q is no port number", spec, number)
		}
		v.port = uint32(n)
	}
	if listed {
		v.allow = nil
		for cid := range strings.SplitSeq(cids, ",") {
			n, err := strconv.ParseUint(cid, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("vsock:%s: %q is no context id", spec, cid)
			}
			v.allow = append(v.allow, uint32(n))
		}
	}
	var err error
	if v.l, err = vsock.Listen(v.port, nil); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *vsockListener) Name() string { return "vsock:" + strconv.FormatUint(uint64(v.port), 10) }
func (v *vsockListener) Close() error { return v.l.Close() }

// allowed reports whether a peer may connect.
func (v *vsockListener) allowed(peer *vsock.Addr) bool {
	return slices.Contains(v.allow, peer.ContextID) && (v.unprivileged || peer.Port < firstUnprivileged)
}

// Accept closes connections of peers that are not allowed.
func (v *vsockListener) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := v.l.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = v.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := v.l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil, context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return nil, ErrGone
		case err != nil:
			return nil, err
		}
		peer, ok := conn.RemoteAddr().(*vsock.Addr)
		if !ok || !v.allowed(peer) || v.sessions.Load() >= maxSessions {
			conn.Close()
			continue
		}
		v.sessions.Add(1)
		return &trackedSession{ReadWriteCloser: conn, closed: make(chan struct{}), onClose: func() { v.sessions.Add(-1) }}, nil
	}
}
