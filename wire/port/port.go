// Package port opens the channel to the host.
//
//	virtio-serial port ─┐
//	unix socket ────────┼─► Port.Accept ─► one session an io.ReadWriteCloser ─► wire.Conn
//	(listen or connect) │       └◄──── the host left: read gives io.EOF ◄────┘
//	vsock ──────────────┘
//
// A virtio-serial port stays open for as long as it is plugged in: a read of nothing means that no host is there, and an
// edge of the poller tells when one comes. It is never reopened to clean it, which would not clean it. One that is
// unplugged is ErrGone; the kernel announces another.
//
// Not here: frames, what to do with a session, and retrying, but for waiting until a host or a device is there.
package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Names of virtio-serial ports that an agent serves, each followed by a number; the legacy one is second choice.
const (
	NamePrefix       = "org.quantix.agent."
	LegacyNamePrefix = "org.limiquantix.agent."
)

// Port is one channel on which hosts come and go.
type Port interface {
	// Name says which it is, for logs and policy: the name of a virtio-serial port, or unix:PATH.
	Name() string
	// Accept waits for a host and gives its session. Read gives io.EOF when the host has left; Close ends the session
	// and unblocks Read and Write. Where a channel has room for one host, Accept waits for the end of the last session.
	// It returns the cause of ctx when that ends, and ErrGone where no host can come any more.
	Accept(ctx context.Context) (io.ReadWriteCloser, error)
	// Close gives the channel back; Accept and the sessions end.
	Close() error
}

// ErrGone is a channel that was taken away: a port that was unplugged. It is closed, and may be opened anew when it is there
// again.
var ErrGone = errors.New("the port is gone")

// Open opens what a device specification names:
//
//	auto                   every virtio-serial port named org.quantix.agent.N, else the legacy name
//	PATH                   that device
//	unix:PATH              a unix socket to listen on, mode 0600
//	unix-connect:PATH      a unix socket to connect to, again and again
//	vsock:NUMBER           a vsock port to listen on for the host, VsockPort where it is empty
//	vsock:NUMBER:CID,CID…  and for no others than these
//
// Ports that serves knows by their names are open already, and left out. What can be opened is given also where something
// else cannot, with the error. auto without any port is fs.ErrNotExist.
func Open(spec string, serves func(name string) bool) ([]Port, error) {
	kind, path, found := strings.Cut(spec, ":")
	name := spec
	if found && kind == "vsock" { // whose name is without those who may connect
		number, _, _ := strings.Cut(path, ":")
		name = "vsock:" + number
		if number == "" {
			name += strconv.Itoa(VsockPort)
		}
	}
	var one Port
	var err error
	switch {
	case spec == "" || spec == "auto":
		return openNamed(serves)
	case serves(name):
		return nil, nil
	case found && kind == "vsock":
		one, err = listenVsock(path)
	case found && kind == "unix":
		one, err = listenUnix(path)
	case found && kind == "unix-connect":
		one = &connector{path: path}
	default:
		one, err = openDevice(spec, spec)
	}
	if err != nil {
		return nil, err
	}
	return []Port{one}, nil
}

// openNamed opens the ports that carry one of our names.
func openNamed(serves func(name string) bool) ([]Port, error) {
	devices, err := named()
	if err != nil {
		return nil, err
	}
	for _, prefix := range []string{NamePrefix, LegacyNamePrefix} {
		var ports []Port
		var failed []error
		found := false
		for _, d := range devices {
			if !strings.HasPrefix(d.name, prefix) {
				continue
			}
			if found = true; serves(d.name) {
				continue
			}
			p, err := openDevice(d.path, d.name)
			switch {
			case errors.Is(err, syscall.EBUSY):
				failed = append(failed, fmt.Errorf("open %s (%s): another process has it open: %w", d.path, d.name, err))
			case err != nil:
				failed = append(failed, err)
			default:
				ports = append(ports, p)
			}
		}
		if found {
			return ports, errors.Join(failed...)
		}
	}
	return nil, fmt.Errorf("no virtio-serial port is named %s0: %w", NamePrefix, fs.ErrNotExist)
}

// device is a virtio-serial port of this machine.
type device struct{ name, path string }

// listener is a unix socket that hosts' tools connect to; many at a time.
type listener struct {
	path string
	l    *net.UnixListener
	made fs.FileInfo // the socket
	open atomic.Int32
}

// maxSessions bounds the hosts' tools on one socket: what they send and have not finished costs memory.
const maxSessions = 32

// listenUnix makes a socket of mode 0600. One that a dead process left is taken over; one that answers is not.
func listenUnix(path string) (Port, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen %s: another process answers there: %w", path, fs.ErrExist)
	} else if info, statErr := os.Lstat(path); statErr == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("listen %s: something that is no socket is there: %w", path, fs.ErrExist)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, err
	}
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &listener{path: path, l: l, made: made}, nil
}

func (l *listener) Name() string { return "unix:" + l.path }

// Close also takes the socket away, unless another one has its place.
func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
		os.Remove(l.path)
	}
	return l.l.Close()
}

func (l *listener) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	l.l.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { l.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := l.l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil, context.Cause(ctx)
		case err != nil:
			return nil, err
		}
		if err := checkPeer(conn); err != nil || l.open.Load() >= maxSessions {
			conn.Close()
			continue
		}
		l.open.Add(1)
		return &once{ReadWriteCloser: unixChannel(conn), ended: make(chan struct{}), over: func() { l.open.Add(-1) }}, nil
	}
}

// connector is a unix socket that somebody else listens on.
type connector struct {
	path   string
	mu     sync.Mutex
	last   *once
	closed bool
}

func (c *connector) Name() string { return "unix-connect:" + c.path }

func (c *connector) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.last != nil {
		return c.last.Close()
	}
	return nil
}

// Accept tries again every second: somebody else's socket sends no event when it appears.
func (c *connector) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := waitFor(ctx, c.lastSession()); err != nil {
		return nil, err
	}
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			return c.enter(conn)
		}
		if !errors.Is(err, fs.ErrNotExist) && !isRefused(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

func (c *connector) lastSession() *once {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *connector) enter(conn net.Conn) (io.ReadWriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	c.last = &once{ReadWriteCloser: unixChannel(conn.(*net.UnixConn)), ended: make(chan struct{})}
	return c.last, nil
}

// once is a session whose first Close tells that it is over.
type once struct {
	io.ReadWriteCloser
	first sync.Once
	ended chan struct{}
	over  func() // nil: nothing is to be done at the end
}

func (o *once) Close() (err error) {
	o.first.Do(func() { // a later one must not touch what the next session uses by then
		err = o.ReadWriteCloser.Close()
		if o.over != nil {
			o.over()
		}
		close(o.ended)
	})
	return err
}

func waitFor(ctx context.Context, o *once) error {
	if o == nil {
		return nil
	}
	select {
	case <-o.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
