package lua

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// agentConn is the connection to the agent, on connFD. It uses plain blocking calls, which are twice as fast as the
// runtime's poller.
type agentConn struct{}

// connFD is the descriptor that the agent passes to a runner.
const connFD = 3

func (agentConn) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(connFD, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (agentConn) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := unix.Write(connFD, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(b), nil
}

// onInterrupt calls stop whenever the agent asks a runner to stop its script, by SIGUSR1.
func onInterrupt(stop func()) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() { // ends with the process
		for range asked {
			stop()
		}
	}()
}
