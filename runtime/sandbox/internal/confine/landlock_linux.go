package confine

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The rights that each version of Landlock's interface knows, from linux/landlock.h: those on files, and from version 4
// on TCP bind and connect, from 6 on abstract sockets and signals to others.
var fileRights = [...]uint64{1: 1<<13 - 1, 2: 1<<14 - 1, 3: 1<<15 - 1, 4: 1<<15 - 1, 5: 1<<16 - 1}

const (
	tcpRights   = 1<<2 - 1
	scopeRights = 1<<2 - 1
)

// rulesetAttr is struct landlock_ruleset_attr.
type rulesetAttr struct{ files, tcp, scoped uint64 }

// landlockVersion returns the version of the kernel's Landlock interface.
func landlockVersion() (int, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, fmt.Errorf("the kernel does not have it: %w", errno)
	}
	return int(version), nil
}

// landlockMissing returns why Landlock cannot be used. It restricts threads one by one, which a program with C code
// cannot do for all of them.
func landlockMissing() error {
	if _, err := landlockVersion(); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("the agent was built with C: %w", errno)
	}
	return nil
}

// applyLandlock denies every right that Landlock knows, by a ruleset without a rule.
func applyLandlock() error {
	version, err := landlockVersion()
	if err != nil {
		return nil // Layers returns why
	}
	rules := rulesetAttr{files: fileRights[min(version, len(fileRights)-1)]}
	size := unsafe.Sizeof(rules.files)
	if version >= 4 {
		rules.tcp, size = tcpRights, size+unsafe.Sizeof(rules.tcp)
	}
	if version >= 6 {
		rules.scoped, size = scopeRights, size+unsafe.Sizeof(rules.scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size, 0)
	if errno != 0 {
		return errno
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	unix.Close(int(fd))        //nolint:errcheck // nothing was written
	if errno == unix.ENOTSUP { // a program with C code: see landlockMissing
		return nil
	}
	return errnoError(errno)
}
