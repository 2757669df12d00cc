//go:build !linux

package client

import (
	"context"
	"io"

	"github.com/mdlayher/vsock"
)

// dialVsock returns the package's error: this system has no vsock.
func dialVsock(ctx context.Context, cid, port uint32) (io.ReadWriteCloser, error) {
	return vsock.DialContext(ctx, cid, port, nil)
}
