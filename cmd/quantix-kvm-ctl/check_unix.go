//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// shell runs the line behind it.
var shell = []string{"/bin/sh", "-c"}

// ownGroup has the end of a command be the end of all that it started, unless that has made a group of its own.
func ownGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
}
