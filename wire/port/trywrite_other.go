//go:build !linux

package port

import (
	"io"
	"net"
)

func newUnixSession(conn *net.UnixConn) io.ReadWriteCloser { return conn }
