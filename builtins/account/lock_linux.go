package account

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// lockFile locks a file as lckpwdf does, without waiting. Where that is fault.ErrBusy holder is the process that has the lock,
// and 0 where the kernel does not say. The lock is of the open file and not of the process, so that closing another one keeps
// it.
func lockFile(file *os.File) (holder int, err error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
	switch {
	case err == nil:
		return 0, nil
	case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
		return 0, fault.On(passwordLock, err)
	}
	lock = unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK {
		holder = max(int(lock.Pid), 0)
	}
	return holder, fault.ErrBusy
}

// alive reports whether there is a process with a pid, as shadow-utils find out.
func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// processName is what a process calls itself; empty where that cannot be read.
func processName(pid int) string {
	name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return strings.TrimSpace(string(name))
}
