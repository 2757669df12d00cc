package fsys

import (
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const crossDevice = unix.EXDEV

// self is who the agent is.
func self() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

// access says why the agent could not write to what is here; a directory: change names in it.
func (a *At) access() error {
	return unix.Faccessat(a.dir, a.Name, unix.W_OK, unix.AT_EACCESS)
}

// mayGive says why the agent could not give an object of its own to others.
func mayGive(m *Meta, uid, gid uint32) error {
	own, group := self()
	if own == 0 {
		return nil
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	if uid != m.UID || gid != m.GID && gid != group && !slices.Contains(groups, int(gid)) {
		return syscall.EPERM
	}
	return nil
}
