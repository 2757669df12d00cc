package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// become replaces this process by a program, with arguments of which the first is its name. It returns only where it cannot.
func become(program string, argv ...string) error { return unix.Exec(program, argv, os.Environ()) }
