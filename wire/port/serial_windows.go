package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	hostConnectedOffset = 5        // of the byte in its answer, after a number of 4 bytes and a flag

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
	// present asks whether a host is connected; nil: the channel does not know, such as a pipe.
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

// hostPresent reports whether a host is connected. Where the channel does not know, one is, unless the last call failed for
// want of one. A driver that fails to answer has lost the port.
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
