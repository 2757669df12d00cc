package lua

import (
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

// agentConn is the connection to the agent: a pipe for both directions, which is the standard input.
type agentConn struct{}

func (agentConn) Read(b []byte) (int, error) {
	var n uint32
	err := windows.ReadFile(windows.Stdin, b, &n, nil)
	if errors.Is(err, windows.ERROR_BROKEN_PIPE) || err == nil && n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return int(n), err
}

func (agentConn) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		var n uint32
		if err := windows.WriteFile(windows.Stdin, b[done:], &n, nil); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(b), nil
}

// onInterrupt calls stop whenever the agent sets the event that it passes to a runner. Without one it does nothing.
func onInterrupt(stop func()) {
	number, err := strconv.ParseUint(os.Getenv(confine.EventVariable), 10, 64)
	if err != nil {
		return
	}
	go func() { // ends with the process
		for {
			what, err := windows.WaitForSingleObject(windows.Handle(number), windows.INFINITE)
			if err != nil || what != windows.WAIT_OBJECT_0 {
				return
			}
			stop()
		}
	}()
}
