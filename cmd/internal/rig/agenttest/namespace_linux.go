package agenttest

import (
	"os/exec"
	"syscall"
)

// asOwnKernel has a command run with processes and mounts of its own, which its /proc shows: as in a guest, which sees no
// others.
func asOwnKernel(cmd *exec.Cmd) {
	const script = `mount --make-rprivate / && mount -t proc proc /proc && exec "$@"`
	cmd.Args = append([]string{"sh", "-c", script, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
}
