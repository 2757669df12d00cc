//go:build !linux

// Command rawport runs in the test guest, which is a Linux machine.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "rawport runs in the Linux test guest only")
	os.Exit(1)
}
