package helper

import (
	"bytes"
	"errors"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	channelFD = 3 // of the socketpair; the agent opens no other

	// memory is the most that a helper uses, in bytes: the pixels of one image, of which 64 MiB at most are converted, its PNG
	// or BMP form, and content of 15 MiB that is kept, read and sent at the same time. The kernel holds the address space to
	// it, and to what Go reserves beside (64 MiB each time it grows).
	memory   = 256 << 20
	reserved = 128 << 20
)

// openChannel returns the channel to the agent, after the process has given up what rights it could still gain.
func openChannel() (*os.File, error) {
	if kind, err := unix.GetsockoptInt(channelFD, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || kind != unix.AF_UNIX {
		return nil, fault.Invalid("this is started by the agent alone")
	}
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == unix.ENOTSUP { // a program with C code, such as one with the race detector
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, fault.On("no_new_privs", err)
		}
	} else if errno != 0 {
		return nil, fault.On("no_new_privs", errno)
	}
	if err := limitMemory(); err != nil {
		return nil, fault.On("memory limit", err)
	}
	unix.CloseOnExec(channelFD)
	if err := unix.SetNonblock(channelFD, true); err != nil {
		return nil, err
	}
	return os.NewFile(channelFD, "agent"), nil
}

func limitMemory() error {
	debug.SetMemoryLimit(memory - ipc.MaxContent)
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	pages, _, _ := bytes.Cut(text, []byte(" "))
	n, err := strconv.ParseUint(string(pages), 10, 64)
	if err != nil {
		return errors.New("/proc/self/statm is not understood")
	}
	size := n*uint64(os.Getpagesize()) + memory + reserved
	return unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: size, Max: size})
}
