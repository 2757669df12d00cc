package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// become replaces this process by a program, without arguments. It returns only where it cannot.
func become(program string) error { return unix.Exec(program, []string{program}, os.Environ()) }
