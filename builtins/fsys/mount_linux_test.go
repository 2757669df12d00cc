package fsys

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Each change of the mounts is told.
func TestWatchMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	changed, err := WatchMounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	disk, point := t.TempDir(), filepath.Join(t.TempDir(), "point")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	told := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatal(what, " is not told")
		}
	}
	for range 200 {
		for len(changed) > 0 { // of others
			<-changed
		}
		if err := unix.Mount(disk, point, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("cannot mount here (run as root of the machine): %v", err)
		}
		told("a mount")
		if err := unix.Unmount(point, 0); err != nil {
			t.Fatal(err)
		}
		told("an unmount")
	}
}
