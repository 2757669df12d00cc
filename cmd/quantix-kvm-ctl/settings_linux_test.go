package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Who may not look into the directory of the settings, as with sudo -u, has none, and neither has who has a file in its place.
// Settings that are there and cannot be read are an error.
func TestSettingsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	place, path := filepath.Join(dir, filepath.Dir(settingsFile)), filepath.Join(dir, settingsFile)
	if err := os.WriteFile(place, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := readSettings(); err != nil || s != (settings{}) {
		t.Error("a file in place of the directory:", s, err)
	}
	if err := errors.Join(os.Remove(place), os.Mkdir(place, 0o700), os.WriteFile(path, []byte("vm = web\n"), 0)); err != nil {
		t.Fatal(err)
	}
	mode := func(bits fs.FileMode) { // of the directory, for who is not root
		if err := os.Chmod(place, bits); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (settings, error) { return readSettings() }
	if os.Geteuid() == 0 {
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		runtime.LockOSThread() // whose rights are others while it reads
		defer runtime.UnlockOSThread()
		read = func() (settings, error) {
			defer unix.Setfsuid(0)
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
			return readSettings()
		}
	}
	mode(0)
	if s, err := read(); err != nil || s != (settings{}) {
		t.Error("a directory of somebody else:", s, err)
	}
	mode(0o755)
	if s, err := read(); !errors.Is(err, fs.ErrPermission) {
		t.Error("a file of somebody else:", s, err)
	}
}
