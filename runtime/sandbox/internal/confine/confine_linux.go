package confine

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Seal closes the process off for good. Whatever the program needs to open must be open before.
func Seal(limits Limits) error {
	// Where the threads cannot all be told at once, seccomp must be asked for by the one that gave up its privileges.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	steps := []struct {
		name string
		do   func() error
	}{
		{"close descriptors", closeRest},
		{"dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		{"no new privileges", noNewPrivileges},
		{"resource limits", func() error { return setLimits(limits) }},
		{"landlock", denyFiles},
		{"descriptor limit", noDescriptors},
		{"seccomp", filterCalls},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// All lists the walls of this machine.
func All() []Wall {
	return []Wall{
		{"resource limits", ""}, {"landlock", missing(landlockMissing())}, {"seccomp", missing(seccompMissing())},
	}
}

func missing(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// first is the number of the first descriptor that a runner has no use for, after the standard ones and its connection.
const first = 4

// closeRest closes what the agent may have passed on by mistake. The runtime's own poller stays.
func closeRest() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd < first {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			unix.Close(fd) //nolint:errcheck // it is gone either way
		}
	}
	return nil
}

// noNewPrivileges holds for each thread by itself, so all are told; a program with C in it cannot, and then seccomp
// does it, which takes the threads along.
func noNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == unix.ENOTSUP {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return errnoError(errno)
}

func errnoError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func setLimits(limits Limits) error {
	size, err := addressSpace()
	if err != nil {
		return err
	}
	for _, l := range []struct {
		resource   int
		soft, hard uint64
	}{
		// The kernel counts whole ticks here, and on a busy machine a tenth more than there was (measured): what stands behind
		// the agent must not come before it.
		{unix.RLIMIT_CPU, 2*limits.CPU + 1, 2*limits.CPU + 2},
		{unix.RLIMIT_CORE, 0, 0},
		{unix.RLIMIT_FSIZE, 0, 0},
		{unix.RLIMIT_MEMLOCK, 0, 0},
		{unix.RLIMIT_MSGQUEUE, 0, 0},
		{unix.RLIMIT_AS, size + limits.AddressSpace + slack, size + limits.AddressSpace + slack},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}); err != nil {
			return fmt.Errorf("%d: %w", l.resource, err)
		}
	}
	return nil
}

// noDescriptors leaves what is open. It comes after Landlock, which takes one for a moment.
func noDescriptors() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{}) }

// addressSpace is the size of the process now, in bytes.
func addressSpace() (uint64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseUint(strings.Fields(string(statm))[0], 10, 64)
	return pages * uint64(os.Getpagesize()), err
}
