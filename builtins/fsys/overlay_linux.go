package fsys

import (
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// modesTellRights says that the bits of a mode are who may do what.
const modesTellRights = true

// withVolume returns the path: there are no volumes.
func withVolume(path string) string { return path }

// longName returns the name: there are no others beside it.
func longName(_, name string) string { return name }

// agentIDs returns the user and the group that the agent runs as.
func agentIDs() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

func checkWriteAt(dir handle, name string) error {
	return unix.Faccessat(dir, name, unix.W_OK, unix.AT_EACCESS)
}

// checkChown returns why the agent could not give an object to another owner.
func checkChown(m *Meta, uid, gid uint32) error {
	own, group := agentIDs()
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
