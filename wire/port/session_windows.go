package port

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

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
