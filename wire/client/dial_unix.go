//go:build !windows

package client

import (
	"context"
	"io"
	"net"
)

// dialLocal connects to a unix socket.
func dialLocal(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// localChannel returns "": virtual machines have sockets, which are files.
func localChannel(string) string { return "" }

// pipeGone is for Windows alone.
func pipeGone(error) bool { return false }
