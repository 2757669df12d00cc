package exec

import "syscall"

// signalNumber knows the signals that end something; 0: there is no such signal.
func signalNumber(name string) syscall.Signal {
	switch name {
	case "SIGTERM":
		return syscall.SIGTERM
	case "SIGKILL":
		return syscall.SIGKILL
	}
	return 0
}
