//go:build !linux

// Command idle is for the guest, which is Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "idle: it is for Linux")
	os.Exit(1)
}
