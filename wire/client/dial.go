package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// vsockPort is the default port number of an agent; port.VsockPort is the same on the guest's side.
const vsockPort = 9443

// Dial connects to a unix socket, as QEMU makes one for a virtio-serial port, on Windows also to a named pipe, or to
// vsock:CID:NUMBER, the vsock port of the guest with that context id; without a number it is 9443. A file whose name begins
// with vsock: is reached as ./vsock:…, a pipe is \\.\pipe\NAME or pipe:NAME.
// The guest of a vsock has to answer before ctx ends, or within the kernel's two seconds. A caller with the right to do so
// connects from a port below 1024: an agent accepts no other unless its configuration says so.
func Dial(ctx context.Context, path string, options Options) (*Client, error) {
	channel, err := dial(ctx, path)
	if errors.Is(err, syscall.EAGAIN) {
		return nil, fault.Wrapf(fault.ErrBusy, "connect %s: other clients hold the socket", path)
	}
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", path, fault.Cause(unwrapNet(err)))
	}
	return New(channel, options), nil
}

func dial(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	address, found := strings.CutPrefix(path, "vsock:")
	if !found {
		return dialLocal(ctx, path)
	}
	cid, number, numbered := strings.Cut(address, ":")
	if !numbered {
		number = strconv.Itoa(vsockPort)
	}
	c, cidErr := strconv.ParseUint(cid, 10, 32)
	n, portErr := strconv.ParseUint(number, 10, 32)
	if cidErr != nil || portErr != nil {
		return nil, fault.Wrapf(fs.ErrInvalid, "it is vsock:CID:NUMBER, both of them numbers below 2^32")
	}
	return dialVsock(ctx, uint32(c), uint32(n))
}

func unwrapNet(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
