package file_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func mkfifo(t *testing.T, path string) {
	t.Helper()
	must(t, unix.Mkfifo(path, 0o600))
}

// tmpfs is an empty small file system.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	dir += "/mnt"
	must(t, os.Mkdir(dir, 0o755))
	mountTmpfs(t, dir, options)
	return dir
}

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	needRoot(t, "a tmpfs has to be mounted")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options+",mode=755"); err != nil {
		t.Skipf("mount a tmpfs: %v; run where mounting is allowed", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
}

// asOther does something with the file access of another user, on a thread that is thrown away afterwards.
func asOther(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		if err := unix.Setfsgid(12345); err != nil {
			result <- err
			return
		}
		if err := unix.Setfsuid(12345); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}
