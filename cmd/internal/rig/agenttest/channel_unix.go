//go:build !windows

package agenttest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// newSocket returns where an agent may listen, and its --device. The path is short: a unix socket's has at most 108 bytes.
func newSocket(t testing.TB) (socket, device string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "qa-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	return socket, "unix:" + socket
}

// isThere reports whether somebody listens.
func isThere(_ testing.TB, socket string) bool {
	_, err := os.Stat(socket)
	return err == nil
}

func listen(_ testing.TB, socket string) (net.Listener, error) { return net.Listen("unix", socket) }

func dial(socket string) (net.Conn, error) { return net.Dial("unix", socket) }

// NeedsFirstConnection is for Windows alone.
func NeedsFirstConnection(testing.TB) {}
