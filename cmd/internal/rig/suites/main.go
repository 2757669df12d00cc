// Command suites gets the test suites of others into a directory, at the commits that the lists of expected differences
// were made for:
//
//	go run ./cmd/internal/rig/suites /tmp/suites
//	QUANTIX_SUITES=/tmp/suites go test -run TestSuite ./runtime/sandbox/lua
//
// They are JSONTestSuite (MIT) and the YAML Test Suite (MIT). Nothing of them is part of this source tree.
//
// Not here: what is done with them.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// suites are repositories, with the commit and the directory that is wanted of it.
var suites = []struct{ name, url, commit, dir string }{
	{"json", "https://github.com/nst/JSONTestSuite", "1ef36fa01286573e846ac449e8683f8833c5b26a", "test_parsing"},
	{"yaml", "https://github.com/yaml/yaml-test-suite", "ccfa74e56afb53da960847ff6e6976c0a0825709", "src"},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: suites DIRECTORY")
		os.Exit(2)
	}
	for _, s := range suites {
		if err := get(filepath.Join(os.Args[1], s.name), s.url, s.commit, s.dir); err != nil {
			fmt.Fprintf(os.Stderr, "suites: %s: %v\n", s.url, err)
			os.Exit(1)
		}
	}
}

// get makes a directory hold one directory of a repository at a commit. It needs git.
func get(to, url, commit, dir string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"init", "-q"},
		{"fetch", "-q", "--depth=1", url, commit},
		{"checkout", "-q", "FETCH_HEAD", "--", dir},
	} {
		git := exec.Command("git", append([]string{"-C", to}, args...)...)
		git.Stderr = os.Stderr
		if err := git.Run(); err != nil {
			return fmt.Errorf("git %s: %w", args[0], err)
		}
	}
	return nil
}
