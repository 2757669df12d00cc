package fsys

import (
	"os"
	"path/filepath"
	"testing"
)

// Others exchange what is in a directory that they may write to, but for what is root's in a sticky one.
func TestExchangeable(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"own/below", "open/own", "sticky/own"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"open": 0o777, "sticky": 0o777 | os.ModeSticky} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]bool{
		"/own/below/file": false, "/own/none/file": false, "/open/file": true, "/open/own/file": true, "/open/none/file": true,
		"/sticky/own/file": false, "/sticky/own/none/file": false, "/sticky/file": true, "/sticky/none/file": true,
	} {
		if got, err := root.Exchangeable(path); got != want || err != nil {
			t.Error(path, got, err)
		}
	}
}
