package port

import (
	"io"
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// TryWrite is that of once. The port takes a piece of up to 32 KiB whole or not at all.
func (s *virtioSession) TryWrite(p []byte) (n int, err error) {
	rawErr := s.port.raw.Write(func(fd uintptr) bool {
		n, err = s.attempt(fd, p)
		return true
	})
	if err == nil {
		err = rawErr
	}
	if err == unix.EAGAIN || err == io.ErrClosedPipe { // Write knows whether the host is gone for good
		return 0, nil
	}
	if err != nil {
		return 0, &fs.PathError{Op: "write", Path: s.port.name, Err: err}
	}
	return n, nil
}

// attempt writes once. A port takes nothing while no host is there: only then is it asked whether that is why.
func (s *virtioSession) attempt(fd uintptr, p []byte) (n int, err error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	if n, err = writeNow(fd, p); err == unix.EAGAIN {
		switch gone, pollErr := hostGone(fd); {
		case pollErr != nil:
			return 0, pollErr
		case gone:
			return 0, io.ErrClosedPipe
		}
	}
	return n, err
}

// unixSession is a connected unix socket.
type unixSession struct {
	*net.UnixConn
	raw syscall.RawConn
}

// unixChannel makes a session of a connection.
func unixChannel(conn *net.UnixConn) io.ReadWriteCloser {
	raw, err := conn.SyscallConn()
	if err != nil {
		return conn
	}
	return &unixSession{conn, raw}
}

// TryWrite is that of once.
func (s *unixSession) TryWrite(p []byte) (n int, err error) {
	rawErr := s.raw.Write(func(fd uintptr) bool {
		n, err = writeNow(fd, p)
		return true
	})
	switch {
	case err == unix.EAGAIN:
		return 0, nil
	case err == nil:
		err = rawErr
	}
	return n, err
}
