//go:build !linux

// Command probe runs in the test guest, which is a Linux machine.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "probe runs in the Linux test guest only")
	os.Exit(1)
}
