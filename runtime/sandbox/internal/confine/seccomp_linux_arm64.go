package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// allowedArchCalls are system calls that only this architecture has, or that its runtime prefers.
var allowedArchCalls = [...]uintptr{}

// archRules adds nothing: threads set their pointer without the kernel.
func archRules(
	func(uint16, uint32, ...unix.SockFilter) []unix.SockFilter, func(uint32) unix.SockFilter, func(uint32) unix.SockFilter,
) []unix.SockFilter {
	return nil
}
