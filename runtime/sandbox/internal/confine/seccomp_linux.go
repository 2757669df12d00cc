package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowedCalls are the system calls that the Go runtime makes in a program that only computes and uses open
// descriptors.
var allowedCalls = [...]uintptr{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_TGKILL,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_RESTART_SYSCALL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL, unix.SYS_GETRANDOM,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE,
}

// failingCalls are the system calls that fail with an error and do not kill the process: the runtime names its memory
// with prctl and works without, and a C library falls back from clone3 to clone, whose flags a filter can see.
var failingCalls = map[uintptr]uint32{
	unix.SYS_PRCTL:  uint32(unix.EINVAL),
	unix.SYS_CLONE3: uint32(unix.ENOSYS),
}

// Offsets into struct seccomp_data. Both architectures are little endian, so the low half of an argument comes first.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArg0   = 16
)

// buildFilter returns the filter: our architecture only, listed calls pass, new threads pass and new processes do not,
// and everything else kills the process.
func buildFilter() []unix.SockFilter {
	const kill, allow, fail = unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	// A test jumps over the instructions after it where it does not hold.
	when := func(code uint16, k uint32, then ...unix.SockFilter) []unix.SockFilter {
		return append([]unix.SockFilter{{Code: unix.BPF_JMP | code | unix.BPF_K, K: k, Jf: uint8(len(then))}}, then...)
	}
	ret := func(what uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what}
	}
	p := []unix.SockFilter{load(offsetArch)}
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch, Jt: 1}, ret(kill), load(offsetNumber))
	// On amd64 the numbers of the x32 interface have this bit; nothing of ours uses them, on arm64 they do not exist.
	p = append(p, when(unix.BPF_JGE, 0x40000000, ret(kill))...)
	for _, number := range append(allowedCalls[:], allowedArchCalls[:]...) {
		p = append(p, when(unix.BPF_JEQ, uint32(number), ret(allow))...)
	}
	for number, errno := range failingCalls {
		p = append(p, when(unix.BPF_JEQ, uint32(number), ret(fail|errno))...)
	}
	p = append(p, when(unix.BPF_JEQ, unix.SYS_CLONE,
		append(append([]unix.SockFilter{load(offsetArg0)}, when(unix.BPF_JSET, unix.CLONE_THREAD, ret(allow))...), ret(kill))...)...)
	return append(append(p, archRules(when, load, ret)...), ret(kill))
}

// seccompMissing returns why the kernel does not support the action that the filter needs.
func seccompMissing() error {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return fmt.Errorf("the kernel does not have it: %w", errno)
	}
	return nil
}

// installSeccomp installs the filter on all threads.
func installSeccomp() error {
	if seccompMissing() != nil {
		return nil
	}
	filter := buildFilter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog)))
	if errno == 0 && tid != 0 {
		return fmt.Errorf("thread %d has a filter of its own", tid)
	}
	return errnoError(errno)
}
