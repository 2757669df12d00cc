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

// Seal confines the process for good. Whatever the program needs to open must be open before.
func Seal(limits Limits) error {
	// Where the flag cannot be set on all threads, seccomp must be installed by the thread that has it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	steps := []struct {
		name string
		do   func() error
	}{
		{"close descriptors", closeInheritedFDs},
		{"dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		{"no new privileges", noNewPrivileges},
		{"resource limits", func() error { return setResourceLimits(limits) }},
		{"landlock", applyLandlock},
		{"descriptor limit", setDescriptorLimit},
		{"seccomp", installSeccomp},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Layers returns the layers of confinement, with the reason for each that this machine lacks.
func Layers() []Layer {
	return []Layer{
		{"resource limits", ""}, {"landlock", reason(landlockMissing())}, {"seccomp", reason(seccompMissing())},
	}
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// firstExtraFD is the first descriptor that a runner has no use for, after the standard ones and its connection.
const firstExtraFD = 4

// closeInheritedFDs closes the descriptors that the agent may have passed on by mistake. Those of the runtime's poller
// stay.
func closeInheritedFDs() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd < firstExtraFD {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			unix.Close(fd) //nolint:errcheck // it is closed either way
		}
	}
	return nil
}

// NoNewPrivileges sets the flag on this thread. What it starts has it from its first instruction on, and cannot drop it.
func NoNewPrivileges() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

// inheritedNoNewPrivileges reports whether the program was started with the flag, as all threads then have it: the flag is a
// thread's own, and copied to those that it makes. It is asked before anything sets it here.
var inheritedNoNewPrivileges = func() bool {
	set, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	return errno == 0 && set == 1
}()

// noNewPrivileges sets the flag on all threads, since it holds for each by itself. A program with C code cannot do
// that; there the seccomp filter sets it on all threads. Where all of them have it there is nothing to do: to stop them all
// takes milliseconds on a busy machine.
func noNewPrivileges() error {
	if inheritedNoNewPrivileges {
		return nil
	}
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

func setResourceLimits(limits Limits) error {
	size, err := currentAddressSpace()
	if err != nil {
		return err
	}
	for _, l := range []struct {
		resource   int
		soft, hard uint64
	}{
		// The kernel counts whole ticks here, and on a busy machine a tenth too much (measured): this limit must not be reached
		// before the agent's own.
		{unix.RLIMIT_CPU, 2*limits.CPU + 1, 2*limits.CPU + 2},
		{unix.RLIMIT_CORE, 0, 0},
		{unix.RLIMIT_FSIZE, 0, 0},
		{unix.RLIMIT_MEMLOCK, 0, 0},
		{unix.RLIMIT_MSGQUEUE, 0, 0},
		{unix.RLIMIT_AS, size + limits.AddressSpace + extraAddressSpace, size + limits.AddressSpace + extraAddressSpace},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}); err != nil {
			return fmt.Errorf("%d: %w", l.resource, err)
		}
	}
	return nil
}

// setDescriptorLimit forbids new descriptors; open ones stay. It comes after Landlock, which opens one for a moment.
func setDescriptorLimit() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{}) }

// currentAddressSpace returns the size of the process now, in bytes.
func currentAddressSpace() (uint64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseUint(strings.Fields(string(statm))[0], 10, 64)
	return pages * uint64(os.Getpagesize()), err
}
