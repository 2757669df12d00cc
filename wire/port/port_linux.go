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

// listDevices lists the virtio-serial ports of this machine by name. It reads sysfs, so it needs no udev, and never guesses a
// port by its number, which may belong to another agent.
func listDevices() ([]device, error) {
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

// virtioPort is an open virtio-serial port.
type virtioPort struct {
	name string
	file *os.File
	raw  syscall.RawConn

	reading, writing sync.Mutex // held by whoever waits to read or to write

	mu            sync.Mutex
	lastSession   *trackedSession
	unread        []byte // what a session put back with Unread; it is read first
	unreadIsFresh bool   // unread did not wait in the port from before that session
}

// openDevice opens a port, which then stays open. A port can be open once: EBUSY means that another process has it.
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
	return &virtioPort{name: name, file: file, raw: raw}, nil
}

func (v *virtioPort) Name() string { return v.name }
func (v *virtioPort) Close() error { return v.file.Close() }

// Accept waits until a host has its end open. The kernel clears POLLHUP then, and wakes up who waits to write.
func (v *virtioPort) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	v.mu.Lock()
	last := v.lastSession
	v.mu.Unlock()
	if err := waitClosed(ctx, last); err != nil {
		return nil, err
	}
	// A read or write that the end of the last session has interrupted would go on if its deadline were gone before it runs.
	v.reading.Lock()
	v.writing.Lock()
	v.file.SetDeadline(time.Time{})
	v.writing.Unlock()
	v.reading.Unlock()
	stop := context.AfterFunc(ctx, func() { v.file.SetWriteDeadline(interrupt) })
	defer stop()
	var pollErr error
	waited := false
	connected := func(fd uintptr) bool {
		var gone bool
		if gone, _, pollErr = v.poll(fd); gone && pollErr == nil {
			pollErr = unplugged(fd)
		}
		waited = waited || gone
		return pollErr != nil || !gone || ctx.Err() != nil // whose interrupt may have been cleared
	}
	err := v.raw.Write(connected)
	for errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil { // by the end of the last session
		v.file.SetWriteDeadline(time.Time{})
		err = v.raw.Write(connected)
	}
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
	session := &trackedSession{ReadWriteCloser: s, closed: make(chan struct{})}
	v.mu.Lock()
	v.unreadIsFresh = v.unreadIsFresh && !waited // its sender may have disconnected long ago
	s.backlog.Store(len(v.unread) == 0 || !v.unreadIsFresh)
	v.lastSession = session
	v.mu.Unlock()
	return struct {
		*trackedSession
		persistentChannel
	}{session, s}, nil
}

// poll asks the kernel whether a host has its end open, and whether the port takes a write. A port that was unplugged is an
// error.
//
// For each poll the kernel fetches what the host has sent and what it has taken, whatever the caller asked for. The interrupts
// for these would have woken up a reader and a writer, and are then dropped. So who polls has to act for both: the caller is
// the writer or wakes it, and the reader is woken here.
func (v *virtioPort) poll(fd uintptr) (gone, writable bool, err error) {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT | unix.POLLIN}}
	for {
		_, err := unix.Poll(set, 0)
		if err == unix.EINTR {
			continue
		}
		if err == nil && set[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			err = unix.ENODEV
		}
		if set[0].Revents&unix.POLLIN != 0 {
			v.file.SetReadDeadline(interrupt)
		}
		gone = set[0].Revents&unix.POLLHUP != 0
		return gone, !gone && set[0].Revents&unix.POLLOUT != 0, err
	}
}

// interrupt is a deadline that has passed: a read or write that waits ends, and is tried once more unless its session is
// closed.
var interrupt = time.Unix(1, 0)

// retry makes calls of a raw connection until one was not interrupted while the session is open.
func (s *virtioSession) retry(call func(func(fd uintptr) bool) error, try func(fd uintptr) bool, clear func(time.Time) error) error {
	for {
		err := call(try)
		if !errors.Is(err, os.ErrDeadlineExceeded) || s.closed.Load() || clear(time.Time{}) != nil {
			return err
		}
	}
}

// unplugged returns ENODEV for a port that was unplugged, and nil for one to which no host is connected. It reads zero bytes,
// which the kernel refuses for the former alone.
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

// virtioSession lasts from a host's connect to its disconnect.
type virtioSession struct {
	port     *virtioPort
	backlog  atomic.Bool
	closed   atomic.Bool
	readTime time.Time // when a read ends; zero: never. Its reader's own
}

// SetReadDeadline is that of net.Conn. It must not be called while another goroutine reads.
func (s *virtioSession) SetReadDeadline(t time.Time) error {
	s.readTime = t
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.port.file.SetReadDeadline(t)
}

// clearRead has a read that was interrupted go on, unless its time is over.
func (s *virtioSession) clearRead(time.Time) error {
	if !s.readTime.IsZero() && !time.Now().Before(s.readTime) {
		return os.ErrDeadlineExceeded
	}
	return s.port.file.SetReadDeadline(s.readTime)
}

// Backlog reports whether what the last Read returned may have waited in the port since before the session.
func (s *virtioSession) Backlog() bool { return s.backlog.Load() }

// Read returns io.EOF when no host is connected and all that was sent is read.
func (s *virtioSession) Read(p []byte) (n int, err error) {
	s.port.reading.Lock()
	defer s.port.reading.Unlock()
	waited := false
	try := func(fd uintptr) bool {
		if n, err = s.tryRead(fd, p); err == unix.EAGAIN {
			waited = true
		}
		return err != unix.EAGAIN
	}
	rawErr := s.retry(s.port.raw.Read, try, s.clearRead)
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

// tryRead reads once without waiting; what an earlier session put back comes first. Only one session reads at a time, and one
// that is closed takes nothing from the next.
func (s *virtioSession) tryRead(fd uintptr, p []byte) (n int, err error) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(s.port.unread) > 0 {
		n = copy(p, s.port.unread)
		s.port.unread = s.port.unread[n:]
		return n, nil
	}
	return readNonblock(fd, p)
}

// Unread puts back what Read returned, to be read in the next session.
func (s *virtioSession) Unread(p []byte) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	s.port.unread = slices.Concat(p, s.port.unread)
	s.port.unreadIsFresh = !s.backlog.Load()
	if s.closed.Load() { // the next session may wait for something to read already
		s.port.file.SetReadDeadline(interrupt)
	}
}

// AwaitHost waits for a short time until a host is connected; false: none is, or the session is closed.
func (s *virtioSession) AwaitHost() bool {
	for start := time.Now(); !s.closed.Load(); time.Sleep(hostPollInterval) {
		var gone bool
		var pollErr error
		err := s.port.raw.Control(func(fd uintptr) { gone, _, pollErr = s.port.poll(fd) })
		if err != nil || pollErr != nil || gone && time.Since(start) > hostReturnTimeout {
			return false
		}
		if !gone {
			s.port.file.SetWriteDeadline(interrupt)
			return true
		}
	}
	return false
}

// Write takes all of p, or fails when the host leaves: what is not written by then must not reach the next one. It does not
// begin while no host is connected, and fails when none connects again at once.
func (s *virtioSession) Write(p []byte) (done int, err error) {
	s.port.writing.Lock()
	defer s.port.writing.Unlock()
	for done < len(p) {
		var n int
		rawErr := s.retry(s.port.raw.Write, func(fd uintptr) bool {
			n, err = s.tryWrite(fd, p[done:])
			return err != unix.EAGAIN
		}, s.port.file.SetWriteDeadline)
		if err == nil || err == unix.EAGAIN {
			err = rawErr
		}
		if err == io.ErrClosedPipe && done == 0 && s.AwaitHost() {
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
	s.port.mu.Lock() // a read that is under way still succeeds
	s.closed.Store(true)
	s.port.mu.Unlock()
	return s.port.file.SetDeadline(interrupt)
}

// listenPrivate creates the socket with mode 0600 from the first moment: in a private directory, from where it is renamed.
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

// isHeld reports whether a device was not opened since another process has it open.
func isHeld(err error) bool { return errors.Is(err, unix.EBUSY) }

// isOverrun reports whether the kernel dropped messages because they were not read in time.
func isOverrun(err error) bool { return errors.Is(err, unix.ENOBUFS) }

// haveVsock is whether the system may have vsock.
const haveVsock = true
