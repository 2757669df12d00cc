package exec

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// signalNumber knows signals by their names, SIGTERM and the like; 0: there is none.
func signalNumber(name string) syscall.Signal { return unix.SignalNum(name) }
