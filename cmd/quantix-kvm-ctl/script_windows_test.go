package main

import (
	"path/filepath"
	"testing"
)

// portable are the command line scripts of other systems that need no shell there, and look at no time.
var portable = []string{"help", "machine", "params", "ping", "scripthelp", "usage"}

// scripts returns the command line scripts; guestShell runs a line in the guest.
func scripts(t *testing.T) []string {
	files, err := filepath.Glob("testdata/windows/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no scripts: ", err)
	}
	for _, name := range portable {
		files = append(files, filepath.Join("testdata", "script", name+".txtar"))
	}
	return files
}

var guestShell = []string{"cmd.exe", "/C"}
