package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A log is written to a file of its own: not through a link, nor where any user could plant one.
func TestLogFileIsNoLink(t *testing.T) {
	dir, open := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Symlink("/etc/motd", filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, "log"), nil, 0o600),
		os.Mkdir(filepath.Join(dir, "dir"), 0o700), os.Chmod(open, 0o777|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	for path, fine := range map[string]bool{
		filepath.Join(dir, "log"): true, filepath.Join(dir, "new"): true, filepath.Join(dir, "none/new"): true,
		filepath.Join(dir, "link"): false, filepath.Join(dir, "dir"): false, filepath.Join(open, "new"): false,
	} {
		if err := checkLogFile(path); (err == nil) != fine {
			t.Errorf("%s: %v", path, err)
		}
	}
}
