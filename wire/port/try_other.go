//go:build !linux

package port

import (
	"io"
	"net"
)

func unixChannel(conn *net.UnixConn) io.ReadWriteCloser { return conn }
