package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// allowedHere are calls that only this architecture has, or that its runtime prefers.
var allowedHere = [...]uintptr{unix.SYS_EPOLL_WAIT}

// archTests lets a new thread set its thread pointer (arch_prctl, ARCH_SET_FS), and nothing else of that call.
func archTests(
	unless func(uint16, uint32, ...unix.SockFilter) []unix.SockFilter,
	load, end func(uint32) unix.SockFilter,
) []unix.SockFilter {
	const setFS = 0x1002
	return unless(unix.BPF_JEQ, unix.SYS_ARCH_PRCTL,
		append([]unix.SockFilter{load(atArg0)}, unless(unix.BPF_JEQ, setFS, end(unix.SECCOMP_RET_ALLOW))...)...)
}
