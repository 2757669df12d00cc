package fsys_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"errors"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// A path that ends with a slash names a directory. What is none is an error, and is not touched.
func TestASlashAtTheEndNamesADirectory(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644), os.Mkdir(filepath.Join(dir, "dir"), 0o755),
		os.Symlink("dir", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{"/file/", "/file//", "/link/"} {
		if at, err := root.At(path); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v, %v", path, at, err)
		}
	}
	if at, err := root.Follow("/file/"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("followed: %v, %v", at, err)
	}
	at, err := root.Follow("/link/")
	if err != nil || at.Path != "/dir" {
		t.Fatalf("a followed link: %v, %v", at, err)
	}
	at.Close()
	fresh, err := root.At("/new/")
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if staged, err := fresh.Stage(); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file is staged: %v, %v", staged, err)
	}
	if err := fresh.Symlink("dir"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a link is made: %v", err)
	}
	file, err := root.At("/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Rename(fresh, false); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file is renamed: %v", err)
	}
	if err := fresh.Mkdir(fsys.Attr{}); err != nil {
		t.Errorf("no directory is made: %v", err)
	}
}
