//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// windowChanges returns a channel that gets a value when the terminal may have another size, and the function that stops it.
func windowChanges() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}
