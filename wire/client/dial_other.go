//go:build !linux

package client

import (
	"context"
	"io"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// dialVsock fails: this system has no vsock.
func dialVsock(context.Context, uint32, uint32) (io.ReadWriteCloser, error) {
	return nil, fault.Unsupported("a vsock is reached from a Linux host alone")
}
