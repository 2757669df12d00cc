//go:build !windows

package main

import (
	"path/filepath"
	"testing"
)

// scripts returns the command line scripts; guestShell runs a line in the guest.
func scripts(t *testing.T) []string {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no scripts: ", err)
	}
	return files
}

var guestShell = []string{"/bin/sh", "-c"}
