package proc

import (
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func openTerminal(*Terminal, *User) (master, slave *os.File, err error) {
	return nil, nil, fault.Unsupported("a terminal for a command is not supported on Windows")
}

func resizeTerminal(*os.File, uint16, uint16) error { return errNoTerminal }

// signal ends the job on SIGKILL and SIGTERM; Windows has no other signals.
func (c *child) signal(signal syscall.Signal) error {
	if signal != syscall.SIGKILL && signal != syscall.SIGTERM {
		return fault.Unsupported("signal %s is not supported on Windows", signal)
	}
	return c.terminate(0, killWait)
}
