package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// named lists the virtio-serial ports of this machine by name. It reads sysfs, so it needs no udev, and never guesses a
// port by its number, which may belong to another agent.
func named() ([]device, error) {
	const class = "/sys/class/virtio-ports"
	entries, err := os.ReadDir(class)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []device
	for _, entry := range entries {
		name, err := os.ReadFile(filepath.Join(class, entry.Name(), "name"))
		if err != nil {
			continue // it was unplugged
		}
		if name = bytes.TrimSpace(name); len(name) > 0 {
			list = append(list, device{string(name), filepath.Join("/dev", entry.Name())})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	return list, nil
}

// virtio is an open virtio-serial port.
type virtio struct {
	name string
	file *os.File
	raw  syscall.RawConn

	mu    sync.Mutex
	last  *once
	left  []byte // what a session gave back; it is read first
	fresh bool   // left did not wait in the port from before that session
}

// openDevice opens a port for good. A port has one opener: EBUSY says that somebody else has it.
func openDevice(path, name string) (Port, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&fs.ModeCharDevice == 0 {
		err = fmt.Errorf("open %s: not a character device: %w", path, fs.ErrInvalid)
	}
	var raw syscall.RawConn
	if err == nil {
		raw, err = file.SyscallConn()
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &virtio{name: name, file: file, raw: raw}, nil
}

func (v *virtio) Name() string { return v.name }
func (v *virtio) Close() error { return v.file.Close() }

// Accept waits until a host has its end open. The kernel tells that as POLLHUP being gone, and wakes a writer then.
func (v *virtio) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	v.mu.Lock()
	last := v.last
	v.mu.Unlock()
	if err := waitFor(ctx, last); err != nil {
		return nil, err
	}
	v.file.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { v.file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var pollErr error
	waited := false
	err := v.raw.Write(func(fd uintptr) bool {
		var gone bool
		if gone, pollErr = hostGone(fd); gone && pollErr == nil {
			pollErr = unplugged(fd)
		}
		waited = waited || gone
		return pollErr != nil || !gone
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err == nil {
		err = pollErr
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrClosed) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("wait for a host on %s: %w", v.name, err)
	}
	s := &virtioSession{port: v}
	session := &once{ReadWriteCloser: s, ended: make(chan struct{})}
	v.mu.Lock()
	v.fresh = v.fresh && !waited // whoever sent it may have left long ago
	s.backlog.Store(len(v.left) == 0 || !v.fresh)
	v.last = session
	v.mu.Unlock()
	return struct {
		*once
		follower
	}{session, s}, nil
}

// follower is what a session has where one host follows the other on a channel that stays.
type follower interface {
	Backlog() bool
	Back() bool
	Unread(p []byte)
}

// hostGone asks the kernel whether a host has its end open. A port that was unplugged is an error.
func hostGone(fd uintptr) (bool, error) {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(set, 0)
		if err == unix.EINTR {
			continue
		}
		if err == nil && set[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			err = unix.ENODEV
		}
		return set[0].Revents&unix.POLLHUP != 0, err
	}
}

// unplugged tells a port that was taken away from one that nobody is at: of the former the kernel lets nobody read, be it
// nothing, and nothing is what is read.
func unplugged(fd uintptr) error {
	for {
		_, err := unix.Read(int(fd), nil)
		switch err {
		case unix.EINTR:
			continue
		case unix.ENODEV:
			return err
		}
		return nil
	}
}

// virtioSession is the time from a host's coming to its leaving.
type virtioSession struct {
	port    *virtio
	backlog atomic.Bool
	closed  atomic.Bool
}

// Backlog says that what the last Read gave may have waited in the port since before the session.
func (s *virtioSession) Backlog() bool { return s.backlog.Load() }

// Read gives io.EOF when no host is there and all that was sent is read.
func (s *virtioSession) Read(p []byte) (n int, err error) {
	waited := false
	rawErr := s.port.raw.Read(func(fd uintptr) bool {
		if n, err = s.attemptRead(fd, p); err == unix.EAGAIN {
			waited = true
		}
		return err != unix.EAGAIN
	})
	if waited {
		s.backlog.Store(false) // the port was empty
	}
	switch {
	case n > 0:
		return n, nil
	case s.closed.Load():
		return 0, net.ErrClosed
	case rawErr != nil:
		return 0, rawErr
	case err != nil:
		return 0, &fs.PathError{Op: "read", Path: s.port.name, Err: err}
	}
	return 0, io.EOF
}

// attemptRead reads once, what an earlier session gave back before all else. Only one session reads at a time, and one that
// has been closed keeps nothing from the next.
func (s *virtioSession) attemptRead(fd uintptr, p []byte) (n int, err error) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(s.port.left) > 0 {
		n = copy(p, s.port.left)
		s.port.left = s.port.left[n:]
		return n, nil
	}
	return readNow(fd, p)
}

// Unread gives back what Read gave, to be read in the next session.
func (s *virtioSession) Unread(p []byte) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	s.port.left = slices.Concat(p, s.port.left)
	s.port.fresh = !s.backlog.Load()
}

// How long a host that is gone may just be a change of hosts that the guest hears of late, and how often Back looks. The
// kernel tells of the next host by an event that only a writer hears.
const (
	backWithin = 250 * time.Millisecond
	backLook   = 5 * time.Millisecond
)

// Back waits a little until a host is there; false: none is, or the session is closed.
func (s *virtioSession) Back() bool {
	for start := time.Now(); !s.closed.Load(); time.Sleep(backLook) {
		var gone bool
		var pollErr error
		err := s.port.raw.Control(func(fd uintptr) { gone, pollErr = hostGone(fd) })
		if err != nil || pollErr != nil || gone && time.Since(start) > backWithin {
			return false
		}
		if !gone {
			return true
		}
	}
	return false
}

// Write takes all of p, or fails when the host leaves: what is not written by then must not reach the next one. It does not
// begin while no host is there, and fails when none comes back at once.
func (s *virtioSession) Write(p []byte) (done int, err error) {
	for done < len(p) {
		var n int
		rawErr := s.port.raw.Write(func(fd uintptr) bool {
			n, err = s.attempt(fd, p[done:])
			return err != unix.EAGAIN
		})
		if err == nil {
			err = rawErr
		}
		if err == io.ErrClosedPipe && done == 0 && s.Back() {
			continue
		}
		if err != nil {
			return done, &fs.PathError{Op: "write", Path: s.port.name, Err: err}
		}
		done += n
	}
	return done, nil
}

// Close ends the session and leaves the port open.
func (s *virtioSession) Close() error {
	s.port.mu.Lock() // what is being read still counts as read
	s.closed.Store(true)
	s.port.mu.Unlock()
	return s.port.file.SetDeadline(time.Unix(1, 0))
}

// listenPrivate makes the socket with mode 0600 from its first moment: in a private directory beside its place.
func listenPrivate(path string) (*net.UnixListener, error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".sock-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	inner := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: inner, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(inner, 0o600); err == nil {
		err = os.Rename(inner, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// checkPeer lets root and the agent's own user in.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		peer, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if sockErr != nil {
		return sockErr
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fault.Wrapf(fs.ErrPermission, "peer has user id %d", peer.Uid)
	}
	return nil
}

func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// isOverrun says that messages of the kernel were lost because nobody read them in time.
func isOverrun(err error) bool { return errors.Is(err, unix.ENOBUFS) }
