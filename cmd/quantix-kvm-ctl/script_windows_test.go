package main

// scriptDir has the command line scripts, and guestShell runs a line in the guest.
const scriptDir = "testdata/windows"

var guestShell = []string{"cmd.exe", "/C"}
