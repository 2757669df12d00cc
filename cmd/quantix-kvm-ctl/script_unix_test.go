//go:build !windows

package main

// scriptDir has the command line scripts, and guestShell runs a line in the guest.
const scriptDir = "testdata/script"

var guestShell = []string{"/bin/sh", "-c"}
