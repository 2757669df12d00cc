//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// windowChanges gives a value when the terminal may have another size.
func windowChanges() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}
