// Package port opens the channel to the host.
//
//	virtio-serial port ─┐
//	unix socket ────────┼─► Port.Accept ─► one session an io.ReadWriteCloser ─► wire.Conn
//	(listen or connect) │       └◄──── the host left: Read returns io.EOF ◄──┘
//	named pipe ─────────┤
//	vsock ──────────────┘
//
// A virtio-serial port stays open for as long as it is plugged in: a read of zero bytes means that no host is connected, and
// the poller wakes up when one connects. It is never reopened to discard what is in it, which would discard nothing. A port
// that was unplugged is ErrGone; the kernel sends a uevent when one is plugged in.
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
	"time"
)

// Names of virtio-serial ports that an agent serves, each followed by a number; the legacy one is second choice.
const (
	NamePrefix       = "org.quantix.agent."
	LegacyNamePrefix = "org.limiquantix.agent."
)

// Port is one channel to which hosts connect and from which they disconnect.
type Port interface {
	// Name identifies it in logs and policy: the name of a virtio-serial port, or unix:PATH.
	Name() string
	// Accept waits for a host and returns its session. Read returns io.EOF when the host has disconnected; Close ends the
	// session and unblocks Read and Write. Where a channel has room for one host, Accept waits for the end of the last session.
	// It returns the cause of ctx when that ends, and ErrGone where no host can connect any more.
	Accept(ctx context.Context) (io.ReadWriteCloser, error)
	// Close closes the channel; Accept and the sessions end.
	Close() error
}

// ErrGone is the error of a port that was unplugged. It must be closed, and may be opened again when it is plugged in again.
var ErrGone = errors.New("the port is gone")

// Open opens what a device specification names:
//
//	auto                   every virtio-serial port named org.quantix.agent.N, else the legacy name
//	PATH                   that device
//	unix:PATH              a unix socket to listen on, mode 0600
//	pipe:NAME              a named pipe of Windows to listen on, for administrators and the agent's own user
//	unix-connect:PATH      a unix socket to connect to, again and again
//	vsock:NUMBER           a vsock port to listen on for the host, VsockPort where it is empty
//	vsock:NUMBER:CID,CID…  and for no others than these
//	…:unprivileged         also from ports of 1024 and above, which any user of their machine can use
//
// A port for which isOpen returns true, by its name, is left out. The ports that could be opened are returned also together
// with an error about others. auto without any port is fs.ErrNotExist.
func Open(spec string, isOpen func(name string) bool) ([]Port, error) {
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
		return openByName(isOpen)
	case isOpen(name):
		return nil, nil
	case found && kind == "vsock":
		one, err = listenVsock(path)
	case found && kind == "unix":
		one, err = listenUnix(path)
	case found && kind == "pipe":
		one, err = listenPipe(path)
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

// openByName opens the ports that carry one of our names.
func openByName(isOpen func(name string) bool) ([]Port, error) {
	devices, err := listDevices()
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
			if found = true; isOpen(d.name) {
				continue
			}
			p, err := openDevice(d.path, d.name)
			switch {
			case isHeld(err):
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

// listener is a unix socket to which hosts' tools connect, several at a time.
type listener struct {
	path       string
	name       string
	l          *net.UnixListener
	socketInfo fs.FileInfo // the socket
	sessions   atomic.Int32
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
	return &listener{path: path, name: "unix:" + path, l: l, socketInfo: made}, nil
}

func (l *listener) Name() string { return l.name }

// Close also takes the socket away, unless another one has its place.
func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.socketInfo) {
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
		if err := checkPeer(conn); err != nil || l.sessions.Load() >= maxSessions {
			conn.Close()
			continue
		}
		l.sessions.Add(1)
		return &trackedSession{ReadWriteCloser: newUnixSession(conn), closed: make(chan struct{}), onClose: func() { l.sessions.Add(-1) }}, nil
	}
}

// connector is a unix socket on which another process listens.
type connector struct {
	path   string
	mu     sync.Mutex
	last   *trackedSession
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

// Accept tries again every second: there is no event when the socket of another process appears.
func (c *connector) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := waitClosed(ctx, c.lastSession()); err != nil {
		return nil, err
	}
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			return c.newSession(conn)
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

func (c *connector) lastSession() *trackedSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *connector) newSession(conn net.Conn) (io.ReadWriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	c.last = &trackedSession{ReadWriteCloser: newUnixSession(conn.(*net.UnixConn)), closed: make(chan struct{})}
	return c.last, nil
}

// persistentChannel is what a session has beyond Read, Write and Close on a channel that stays open while hosts change.
type persistentChannel interface {
	Backlog() bool
	AwaitHost() bool
	Unread(p []byte)
}

// hostReturnTimeout is how long AwaitHost waits: the guest may learn late that a host disconnected, when the next one is
// connecting. hostPollInterval is how often it polls, since the kernel wakes up only who waits to write when a host connects.
const (
	hostReturnTimeout = 250 * time.Millisecond
	hostPollInterval  = 5 * time.Millisecond
)

// trackedSession is a session that signals its first Close.
type trackedSession struct {
	io.ReadWriteCloser
	closeOnce sync.Once
	closed    chan struct{}
	onClose   func() // nil: nothing to do
}

// SetReadDeadline is that of net.Conn.
func (o *trackedSession) SetReadDeadline(t time.Time) error {
	session, can := o.ReadWriteCloser.(interface{ SetReadDeadline(time.Time) error })
	if !can {
		return errors.ErrUnsupported
	}
	return session.SetReadDeadline(t)
}

func (o *trackedSession) Close() (err error) {
	o.closeOnce.Do(func() { // a later one must not touch what the next session uses by then
		err = o.ReadWriteCloser.Close()
		if o.onClose != nil {
			o.onClose()
		}
		close(o.closed)
	})
	return err
}

func waitClosed(ctx context.Context, o *trackedSession) error {
	if o == nil {
		return nil
	}
	select {
	case <-o.closed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
