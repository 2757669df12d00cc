//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "wintest: it needs Wine on Linux; on Windows itself go test does it")
	os.Exit(1)
}
