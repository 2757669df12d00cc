package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// allowedArchCalls are system calls that only this architecture has, or that its runtime prefers.
var allowedArchCalls = [...]uintptr{unix.SYS_EPOLL_WAIT}

// archRules lets a new thread set its thread pointer (arch_prctl, ARCH_SET_FS), and nothing else of that call.
func archRules(
	when func(uint16, uint32, ...unix.SockFilter) []unix.SockFilter,
	load, ret func(uint32) unix.SockFilter,
) []unix.SockFilter {
	const setFS = 0x1002
	return when(unix.BPF_JEQ, unix.SYS_ARCH_PRCTL,
		append([]unix.SockFilter{load(offsetArg0)}, when(unix.BPF_JEQ, setFS, ret(unix.SECCOMP_RET_ALLOW))...)...)
}
