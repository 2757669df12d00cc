package process

import (
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxSignal is the highest number of a signal in the contract.
const maxSignal = 64

func canList() bool { return true }
func canKill() bool { return true }

// signalNumber knows the signals that the Go library has names for; 0: there is no such signal. Which of them can be sent
// target.send says.
func signalNumber(name string) syscall.Signal {
	switch name {
	case "SIGHUP":
		return syscall.SIGHUP
	case "SIGINT":
		return syscall.SIGINT
	case "SIGQUIT":
		return syscall.SIGQUIT
	case "SIGABRT":
		return syscall.SIGABRT
	case "SIGKILL":
		return syscall.SIGKILL
	case "SIGTERM":
		return syscall.SIGTERM
	}
	return 0
}

// mayBeSent returns why a signal cannot be sent. Windows knows no request to end that reaches every process, so TERM ends one
// as KILL does.
func mayBeSent(signal syscall.Signal) error {
	switch signal {
	case 0, syscall.SIGKILL, syscall.SIGTERM:
		return nil
	}
	return fault.Unsupported("Windows has no signal %d: KILL and TERM end a process", int(signal))
}
