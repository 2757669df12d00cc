package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

// What the driver of virtio-serial, vioserial of virtio-win, does, as its source says:
//
//	open while another process has the port open   access denied
//	read, no host connected, nothing buffered      fails at once: no system resources
//	read, host connected, nothing buffered         waits; it goes on waiting when the host disconnects
//	write, no host connected, or the queue full    fails at once: cannot wait; in older versions no system resources
//	write otherwise                                waits until the host has taken it
//	write of more than 2 MiB                       fails
//	the port is unplugged                          what waits is cancelled
//	close                                          what the host has sent and was not read is discarded
//
// Nothing completes when a host comes or goes, so the driver is asked.
const (
	maxWrite = 32000 // bytes; a frame whose size we choose is no larger

	ioctlGetInformation = 0x222002 // IOCTL_GET_INFORMATION of the driver's public.h
	hostConnectedOffset = 5        // of the byte in its answer, behind a number of 4 bytes and a flag

	absentPoll   = 500 * time.Millisecond // how often it is asked while no host is connected
	presentPoll  = time.Second            // and while one is connected and sends nothing
	fullPause    = 2 * time.Millisecond   // before a write is tried once more, longer each time
	longestPause = 100 * time.Millisecond
	gonePause    = 250 * time.Millisecond // before a port that fails is given up, to be opened anew
)

// virtioPort is an open virtio-serial port. Reading and writing have an event and a buffer each: a read that waits, as there
// always is one, holds up no write.
type virtioPort struct {
	name   string
	handle windows.Handle
	// present asks whether a host is connected; nil: the channel cannot tell, such as a pipe.
	present func() (bool, error)
	// write is windows.WriteFile, but for tests of what the driver refuses.
	write func(h windows.Handle, p []byte, done *uint32, o *windows.Overlapped) error

	reading, writing sync.Mutex // held by whoever reads or writes
	in, out          transfer

	absent atomic.Bool   // the last read or write failed for want of a host
	gone   atomic.Bool   // the port has failed and must be opened anew
	ended  chan struct{} // closed by Close

	mu            sync.Mutex
	closed        bool
	lastSession   *trackedSession
	unread        []byte // what a session put back with Unread, or did not take; it is read first
	unreadIsFresh bool   // unread did not wait in the port from before that session
}

// transfer is one direction of a port. Its user holds the mutex of that direction.
type transfer struct {
	done       windows.Handle // event, reset by hand: the operation has ended
	wake       windows.Handle // event: who waits looks at its session again
	overlapped windows.Overlapped
	buffer     []byte // the kernel's while an operation waits, so it is no memory of a caller
}

func newTransfer() (transfer, error) {
	done, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return transfer{}, err
	}
	wake, err := windows.CreateEvent(nil, 0, 0, nil)
	if err != nil {
		windows.CloseHandle(done)
		return transfer{}, err
	}
	return transfer{done: done, wake: wake, buffer: make([]byte, maxWrite)}, nil
}

func (t *transfer) close() {
	windows.CloseHandle(t.done)
	windows.CloseHandle(t.wake)
}

// errInterrupted is the error of an operation that was cancelled by its caller's wish.
var errInterrupted = errors.New("interrupted")

// do starts an operation and waits for its end. After each wake, and after each interval, it asks stop, and cancels the
// operation where that says so; what had been transferred by then counts. waited: it did not end at once.
func (t *transfer) do(
	h windows.Handle, start func(*windows.Overlapped) error, interval func() time.Duration, stop func() bool,
) (n int, waited bool, err error) {
	t.overlapped = windows.Overlapped{HEvent: t.done}
	if err := windows.ResetEvent(t.done); err != nil {
		return 0, false, err
	}
	var count uint32
	err = start(&t.overlapped)
	if err != nil && err != windows.ERROR_IO_PENDING {
		return 0, false, err
	}
	waited = err != nil
	interrupted := false
	for {
		event, err := windows.WaitForMultipleObjects([]windows.Handle{t.done, t.wake}, false, milliseconds(interval()))
		if event == windows.WAIT_OBJECT_0 && err == nil {
			break
		}
		if err != nil || stop() {
			interrupted = true
			windows.CancelIoEx(h, &t.overlapped) // it may just have ended
			break
		}
	}
	err = windows.GetOverlappedResult(h, &t.overlapped, &count, true)
	if err == windows.ERROR_OPERATION_ABORTED && interrupted {
		err = errInterrupted
	}
	return int(count), waited, err
}

// milliseconds returns what the system's calls want; negative: for ever.
func milliseconds(d time.Duration) uint32 {
	if d < 0 {
		return windows.INFINITE
	}
	return uint32((d + time.Millisecond - 1) / time.Millisecond)
}

// openDevice opens a port, which then stays open. A port can be open once.
func openDevice(path, name string) (Port, error) {
	wide, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, fs.ErrInvalid)
	}
	handle, err := windows.CreateFile(wide, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_OVERLAPPED|windows.SECURITY_SQOS_PRESENT|windows.SECURITY_IDENTIFICATION, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if kind, err := windows.GetFileType(handle); err == nil && kind == windows.FILE_TYPE_DISK {
		windows.CloseHandle(handle)
		return nil, fmt.Errorf("open %s: not a device: %w", path, fs.ErrInvalid)
	}
	v := &virtioPort{name: name, handle: handle, write: windows.WriteFile, ended: make(chan struct{})}
	if v.in, err = newTransfer(); err != nil {
		windows.CloseHandle(handle)
		return nil, err
	}
	if v.out, err = newTransfer(); err != nil {
		v.in.close()
		windows.CloseHandle(handle)
		return nil, err
	}
	if _, err := v.askDriver(); err == nil {
		v.present = v.askDriver
	}
	return v, nil
}

// askDriver asks the driver whether a host is connected.
func (v *virtioPort) askDriver() (bool, error) {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return false, err
	}
	defer windows.CloseHandle(event)
	answer := make([]byte, 512) // the name of the port comes last
	overlapped := &windows.Overlapped{HEvent: event}
	var n uint32
	err = windows.DeviceIoControl(v.handle, ioctlGetInformation, nil, 0, &answer[0], uint32(len(answer)), &n, overlapped)
	if err == windows.ERROR_IO_PENDING {
		err = windows.GetOverlappedResult(v.handle, overlapped, &n, true)
	}
	if err != nil && err != windows.ERROR_MORE_DATA {
		return false, err
	}
	if n <= hostConnectedOffset {
		return false, fmt.Errorf("information about %s: %d bytes", v.name, n)
	}
	return answer[hostConnectedOffset] != 0, nil
}

func (v *virtioPort) Name() string { return v.name }

// Close closes the port; reads and writes end.
func (v *virtioPort) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	close(v.ended)
	windows.SetEvent(v.in.wake)
	windows.SetEvent(v.out.wake)
	v.mu.Unlock()
	v.reading.Lock()
	defer v.reading.Unlock()
	v.writing.Lock()
	defer v.writing.Unlock()
	v.in.close()
	v.out.close()
	return windows.CloseHandle(v.handle)
}

// wakeUp has a reader and a writer look at their session again.
func (v *virtioPort) wakeUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		windows.SetEvent(v.in.wake)
		windows.SetEvent(v.out.wake)
	}
}

// hostPresent reports whether a host is connected. Where the channel cannot tell, one is, unless the last call failed for want
// of one. A driver that fails to answer has lost the port.
func (v *virtioPort) hostPresent() bool {
	if v.present == nil {
		return !v.absent.Load()
	}
	there, err := v.present()
	if err != nil {
		v.gone.Store(true)
	}
	return there
}

// awaitIdle waits until what the end of the last session interrupts has ended.
func (v *virtioPort) awaitIdle() {
	v.reading.Lock()
	defer v.reading.Unlock()
	v.writing.Lock()
	defer v.writing.Unlock()
}

// Accept waits until a host has its end open. A port that has failed is given up a moment later, so that one that fails at
// once each time does not keep the agent busy with opening it.
func (v *virtioPort) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	v.mu.Lock()
	last := v.lastSession
	v.mu.Unlock()
	if err := waitClosed(ctx, last); err != nil {
		return nil, err
	}
	v.awaitIdle()
	waited := false
	for {
		select {
		case <-v.ended:
			return nil, ErrGone
		default:
		}
		there := !v.gone.Load() && v.hostPresent()
		if there && !v.gone.Load() {
			break
		}
		waited = true
		pause := absentPoll
		if v.gone.Load() {
			pause = gonePause
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-v.ended:
			return nil, ErrGone
		case <-time.After(pause):
		}
		if v.gone.Load() {
			return nil, ErrGone
		}
		v.absent.Store(false) // where the driver cannot be asked, the next read finds out
	}
	s := &virtioSession{port: v}
	session := &trackedSession{ReadWriteCloser: s, closed: make(chan struct{})}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, ErrGone
	}
	v.unreadIsFresh = v.unreadIsFresh && !waited // its sender may have disconnected long ago
	s.backlog.Store(len(v.unread) == 0 || !v.unreadIsFresh)
	v.lastSession = session
	return struct {
		*trackedSession
		persistentChannel
	}{session, s}, nil
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
	return nil
}

// Backlog reports whether what the last Read returned may have waited in the port since before the session.
func (s *virtioSession) Backlog() bool { return s.backlog.Load() }

// over returns why a read or write must not begin, or go on; nil: it may.
func (s *virtioSession) over() error {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	if s.closed.Load() || s.port.closed {
		return net.ErrClosed
	}
	return nil
}

// late reports whether the time of a read is over.
func (s *virtioSession) late() bool { return !s.readTime.IsZero() && !time.Now().Before(s.readTime) }

// Read returns io.EOF when no host is connected and all that was sent is read.
func (s *virtioSession) Read(p []byte) (int, error) {
	v := s.port
	v.reading.Lock()
	defer v.reading.Unlock()
	if len(p) == 0 {
		return 0, s.over()
	}
	for {
		n, err := s.takeUnread(p)
		if n > 0 || err != nil {
			return n, err
		}
		left := false // the host has disconnected
		n, waited, err := v.in.do(v.handle, func(o *windows.Overlapped) error {
			return windows.ReadFile(v.handle, v.in.buffer[:min(len(p), len(v.in.buffer))], nil, o)
		}, s.untilLook, func() bool {
			left = v.present != nil && !v.hostPresent()
			return left || s.over() != nil || s.late() || v.hasUnread()
		})
		if waited {
			s.backlog.Store(false) // the port was empty
		}
		switch {
		case n > 0:
			return s.deliver(p, v.in.buffer[:n])
		case errors.Is(err, errInterrupted):
			if err := s.over(); err != nil {
				return 0, err
			}
			if left {
				return 0, io.EOF
			}
			if s.late() {
				return 0, os.ErrDeadlineExceeded
			}
		case err == nil:
			return 0, io.EOF
		default:
			return 0, s.failed("read", err)
		}
	}
}

// untilLook returns how long a read waits before it looks whether it is late, and the host is still there.
func (s *virtioSession) untilLook() time.Duration {
	d := time.Duration(-1)
	if s.port.present != nil {
		d = presentPoll
	}
	if !s.readTime.IsZero() {
		if left := max(0, time.Until(s.readTime)); d < 0 || left < d {
			d = left
		}
	}
	return d
}

// takeUnread returns what an earlier session has put back.
func (s *virtioSession) takeUnread(p []byte) (int, error) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	if s.closed.Load() || s.port.closed {
		return 0, net.ErrClosed
	}
	n := copy(p, s.port.unread)
	s.port.unread = s.port.unread[n:]
	return n, nil
}

func (v *virtioPort) hasUnread() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.unread) > 0
}

// deliver gives what was read to the reader; where its session was closed meanwhile, or something was put back, it comes next.
func (s *virtioSession) deliver(p, came []byte) (int, error) {
	v := s.port
	v.absent.Store(false)
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.closed.Load() || v.closed {
		v.unread = slices.Concat(v.unread, came)
		v.unreadIsFresh = !s.backlog.Load()
		return 0, net.ErrClosed
	}
	if len(v.unread) == 0 {
		return copy(p, came), nil
	}
	all := slices.Concat(v.unread, came)
	n := copy(p, all)
	v.unread = all[n:]
	return n, nil
}

// failed returns the error of a read or write. What does not mean that no host is there means that the port must be opened
// anew.
func (s *virtioSession) failed(op string, err error) error {
	switch err {
	case windows.ERROR_NO_SYSTEM_RESOURCES, windows.ERROR_CANT_WAIT:
		s.port.absent.Store(true)
	case windows.ERROR_BROKEN_PIPE, windows.ERROR_PIPE_NOT_CONNECTED, windows.ERROR_NO_DATA, windows.ERROR_HANDLE_EOF:
		s.port.gone.Store(true)
	default:
		s.port.gone.Store(true)
		return &fs.PathError{Op: op, Path: s.port.name, Err: err}
	}
	if op == "read" {
		return io.EOF
	}
	return io.ErrClosedPipe
}

// Unread puts back what Read returned, to be read in the next session.
func (s *virtioSession) Unread(p []byte) {
	v := s.port
	v.mu.Lock()
	v.unread = slices.Concat(p, v.unread)
	v.unreadIsFresh = !s.backlog.Load()
	v.mu.Unlock()
	v.wakeUp() // the next session may wait for something to read already
}

// AwaitHost waits for a short time until a host is connected; false: none is, or the session is closed.
func (s *virtioSession) AwaitHost() bool {
	for start := time.Now(); s.over() == nil && !s.port.gone.Load(); time.Sleep(hostPollInterval) {
		if s.port.hostPresent() {
			return !s.port.gone.Load()
		}
		if time.Since(start) > hostReturnTimeout {
			return false
		}
	}
	return false
}

// Write takes all of p, or fails when the host leaves: what is not written by then must not reach the next one. It does not
// begin while no host is connected, and fails when none connects again at once.
func (s *virtioSession) Write(p []byte) (done int, err error) {
	v := s.port
	v.writing.Lock()
	defer v.writing.Unlock()
	pause := fullPause
	for done < len(p) {
		if err := s.over(); err != nil {
			return done, err
		}
		piece := v.out.buffer[:copy(v.out.buffer, p[done:])]
		n, _, err := v.out.do(v.handle, func(o *windows.Overlapped) error { return v.write(v.handle, piece, nil, o) },
			func() time.Duration { return -1 }, func() bool { return s.over() != nil })
		done += n
		switch {
		case errors.Is(err, errInterrupted):
			return done, net.ErrClosed
		case err == windows.ERROR_CANT_WAIT || err == windows.ERROR_NO_SYSTEM_RESOURCES:
			if v.present == nil || v.hostPresent() { // its queue is full
				s.sleep(pause)
				pause = min(2*pause, longestPause)
				continue
			}
			if done > 0 || !s.AwaitHost() {
				return done, &fs.PathError{Op: "write", Path: v.name, Err: io.ErrClosedPipe}
			}
		case err != nil:
			return done, s.failed("write", err)
		default:
			pause = fullPause
		}
	}
	return done, nil
}

// sleep waits for a time, or until the session is closed.
func (s *virtioSession) sleep(d time.Duration) {
	_, _ = windows.WaitForSingleObject(s.port.out.wake, milliseconds(d))
}

// Close ends the session and leaves the port open.
func (s *virtioSession) Close() error {
	s.port.mu.Lock() // a read that is under way still succeeds
	s.closed.Store(true)
	s.port.mu.Unlock()
	s.port.wakeUp()
	return nil
}
