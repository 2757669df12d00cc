package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"

	"github.com/mdlayher/socket"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Ports that only root can bind, and that services seldom listen on, as rresvport(3) uses them.
const (
	firstReserved = 512
	lastReserved  = 1023
)

// dialVsock connects from a reserved port where the caller may bind one, else from any.
func dialVsock(ctx context.Context, cid, port uint32) (io.ReadWriteCloser, error) {
	start := rand.Uint32()
	for i := range uint32(lastReserved - firstReserved + 1) {
		local := firstReserved + (start+i)%(lastReserved-firstReserved+1)
		c, err := dialVsockFrom(ctx, local, cid, port)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			continue
		case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
			return vsock.DialContext(ctx, cid, port, nil)
		case err != nil:
			return nil, err
		}
		return c, nil
	}
	return vsock.DialContext(ctx, cid, port, nil)
}

// dialVsockFrom connects from a port of this machine.
func dialVsockFrom(ctx context.Context, local, cid, port uint32) (*socket.Conn, error) {
	c, err := socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, "vsock", nil)
	if err != nil {
		return nil, err
	}
	if err := c.Bind(&unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: local}); err != nil {
		c.Close()
		return nil, err
	}
	if _, err := c.Connect(ctx, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
