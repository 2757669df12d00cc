package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// allowedHere are calls that only this architecture has, or that its runtime prefers.
var allowedHere = [...]uintptr{}

// archTests has nothing to add: threads set their pointer without the kernel.
func archTests(
	func(uint16, uint32, ...unix.SockFilter) []unix.SockFilter, func(uint32) unix.SockFilter, func(uint32) unix.SockFilter,
) []unix.SockFilter {
	return nil
}
