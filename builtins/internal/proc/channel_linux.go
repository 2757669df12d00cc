package proc

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// NewChannel makes a channel to a process that is started with stdin and stdout, which may be one file. The caller closes all.
func NewChannel() (ours Channel, stdin, stdout *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil, fault.Cause(err)
	}
	_ = unix.SetNonblock(pair[0], true) // for its deadlines; the other end has flags of its own
	theirs := os.NewFile(uintptr(pair[1]), "agent")
	return os.NewFile(uintptr(pair[0]), "process"), theirs, theirs, nil
}
