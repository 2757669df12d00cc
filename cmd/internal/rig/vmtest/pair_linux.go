package vmtest

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// unixPair returns the two ends of a unix socket.
func unixPair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	near, nearErr := adopt(fds[0])
	far, farErr := adopt(fds[1])
	return near, far, errors.Join(nearErr, farErr)
}

// adopt makes a connection of a socket's descriptor, which it closes.
func adopt(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close()
	return net.FileConn(f)
}
