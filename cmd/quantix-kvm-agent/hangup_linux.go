package main

import "golang.org/x/sys/unix"

// hangUp has the agent of a process number read its configuration again.
func hangUp(pid int) error { return unix.Kill(pid, unix.SIGHUP) }
