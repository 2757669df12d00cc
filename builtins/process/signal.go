package process

import (
	"strconv"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// sendsNothing says that a request only asks whether a signal could be sent.
func sendsNothing(in *pb.KillProcessRequest) bool {
	number, err := signalOf(in)
	return err == nil && number == 0
}

// signalOf returns the signal that a request asks for: by name, by number, or, where it says nothing, TERM.
func signalOf(in *pb.KillProcessRequest) (syscall.Signal, error) {
	if in.SignalName == "" {
		if in.Signal < 0 || in.Signal > maxSignal {
			return 0, fault.Invalid("there is no signal %d", in.Signal)
		}
		if in.Signal == 0 {
			return syscall.SIGTERM, nil
		}
		return syscall.Signal(in.Signal), nil
	}
	number, ok := parseSignal(in.SignalName)
	if !ok {
		return 0, fault.Invalid("there is no signal %.40q", in.SignalName)
	}
	if in.Signal != 0 && syscall.Signal(in.Signal) != number {
		return 0, fault.Invalid("signal is %d, and signal_name %s is %d", in.Signal, in.SignalName, number)
	}
	return number, nil
}

// parseSignal reads the name of a signal, with or without SIG and in any case, or a number.
func parseSignal(name string) (syscall.Signal, bool) {
	if number, err := strconv.ParseUint(name, 10, 8); err == nil {
		return syscall.Signal(number), number <= maxSignal
	}
	number := signalNumber("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	return number, number != 0
}
