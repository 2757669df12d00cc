//go:build !windows

package agenttest

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
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

// startedAlone is how an agent is started that can be asked to end.
func startedAlone() *syscall.SysProcAttr { return nil }

func askToEnd(t testing.TB, p *os.Process) {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}

// NeedsFirstConnection is for Windows alone.
func NeedsFirstConnection(testing.TB) {}

// Wine is for Windows alone.
func Wine() bool { return false }

// NeedsAPlaceForAnother is for Windows alone.
func NeedsAPlaceForAnother(testing.TB) {}
