package agenttest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const pipePrefix = `\\.\pipe\`

var pipes atomic.Int32

// newSocket returns the pipe where an agent may listen, and its --device.
func newSocket(testing.TB) (socket, device string) {
	name := fmt.Sprintf("agenttest-%d-%d", os.Getpid(), pipes.Add(1))
	return pipePrefix + name, "pipe:" + name
}

// isThere reports whether somebody listens. It keeps a connection for as long as the test runs: under Wine the first one has
// nobody at the other end.
func isThere(t testing.TB, socket string) bool {
	timeout := time.Second
	conn, err := winio.DialPipe(socket, &timeout)
	if err != nil {
		return false
	}
	if !Wine() {
		conn.Close()
		return true
	}
	t.Cleanup(func() { conn.Close() })
	return true
}

// startedAlone is how an agent is started that can be asked to end: as the first one of a group.
func startedAlone() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

func askToEnd(t testing.TB, p *os.Process) {
	if Wine() {
		t.Skip("Ctrl+Break reaches no process of Wine without a console; stops of the service are tested with it")
	}
	if err := windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.Pid)); err != nil {
		t.Error("Ctrl+Break:", err)
	}
}

// Wine says that this is no real Windows.
func Wine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

// NeedsFirstConnection skips a test in which another program connects to a new pipe before all others.
func NeedsFirstConnection(t testing.TB) {
	if Wine() {
		t.Skip("under Wine the first connection to a new pipe has nobody at the other end")
	}
}

func listen(t testing.TB, socket string) (net.Listener, error) {
	l, err := winio.ListenPipe(socket, &winio.PipeConfig{InputBufferSize: 1 << 16, OutputBufferSize: 1 << 16})
	if err == nil && !isThere(t, socket) {
		l.Close()
		err = errors.New("nobody listens on " + socket)
	}
	return l, err
}

func dial(socket string) (net.Conn, error) { return winio.DialPipe(socket, nil) }

// NeedsAPlaceForAnother skips a test that puts the socket of another agent in the place of one's.
func NeedsAPlaceForAnother(t testing.TB) {
	t.Skip("a pipe is no file that another can take the place of")
}
