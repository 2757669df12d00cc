package port

import (
	"io"
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// TryWrite is that of trackedSession. The port takes a piece of up to 32 KiB whole or not at all.
func (s *virtioSession) TryWrite(p []byte) (n int, err error) {
	s.port.writing.Lock()
	defer s.port.writing.Unlock()
	rawErr := s.retry(s.port.raw.Write, func(fd uintptr) bool {
		n, err = s.tryWrite(fd, p)
		return true
	}, s.port.file.SetWriteDeadline)
	if err == nil {
		err = rawErr
	}
	if err == unix.EAGAIN || err == io.ErrClosedPipe { // Write finds out whether the host is gone for good
		return 0, nil
	}
	if err != nil {
		return 0, &fs.PathError{Op: "write", Path: s.port.name, Err: err}
	}
	return n, nil
}

// tryWrite writes once without waiting. A port takes nothing while no host is connected; it is polled only where it takes
// nothing.
func (s *virtioSession) tryWrite(fd uintptr, p []byte) (n int, err error) {
	for {
		if s.closed.Load() {
			return 0, net.ErrClosed
		}
		if n, err = writeNonblock(fd, p); err != unix.EAGAIN {
			return n, err
		}
		switch gone, writable, pollErr := s.port.poll(fd); {
		case pollErr != nil:
			return 0, pollErr
		case gone:
			return 0, io.ErrClosedPipe
		case !writable: // there will be an interrupt when it is
			return 0, unix.EAGAIN
		}
	}
}

// unixSession is a connected unix socket.
type unixSession struct {
	*net.UnixConn
	raw syscall.RawConn

	once func(fd uintptr) bool // writes p, and leaves n and err
	p    []byte
	n    int
	err  error
}

// newUnixSession returns the session of a connection.
func newUnixSession(conn *net.UnixConn) io.ReadWriteCloser {
	raw, err := conn.SyscallConn()
	if err != nil {
		return conn
	}
	s := &unixSession{UnixConn: conn, raw: raw}
	s.once = func(fd uintptr) bool {
		s.n, s.err = rawIO(unix.SYS_WRITE, fd, s.p)
		return true
	}
	return s
}

// TryWrite is that of trackedSession.
func (s *unixSession) TryWrite(p []byte) (n int, err error) {
	s.p = p
	rawErr := s.raw.Write(s.once)
	n, err = s.n, s.err
	s.p, s.n, s.err = nil, 0, nil
	switch {
	case err == unix.EAGAIN:
		return 0, nil
	case err == nil:
		err = rawErr
	}
	return n, err
}
