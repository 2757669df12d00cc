package fsys_test

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// laden makes a file with n attributes of 64 KiB each, which takes a file system that bears so many.
func laden(t *testing.T, path string, n int) {
	t.Helper()
	write(t, path, "old")
	for i := range n {
		if err := unix.Setxattr(path, fmt.Sprintf("user.%d", i), make([]byte, 64<<10), 0); err != nil {
			t.Skipf("no large attributes here: %v", err)
		}
	}
}

func TestAttributesBeyondABoundAreNotRead(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "fsys-test-")
	if err != nil {
		t.Skipf("no file system in memory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	laden(t, dir+"/f", 3)
	few := at(t, host(t), dir+"/f")
	if meta, err := few.Capture(); err != nil || len(meta.Xattrs) != 3 {
		t.Errorf("192 KiB: %d attributes, %v", len(meta.Xattrs), err)
	}
	laden(t, dir+"/g", 20)
	must(t, os.Chmod(dir+"/g", 0o604))
	entry := at(t, host(t), dir+"/g")
	meta, err := entry.Capture()
	if !errors.Is(err, fault.ErrTooLarge) || meta.Kind != fsys.File || meta.Mode != 0o604 || meta.Size != 3 {
		t.Errorf("%+v, %v", meta, err)
	}
	read := 0
	for _, value := range meta.Xattrs {
		read += len(value)
	}
	if read > 256<<10 || len(meta.Xattrs) == 0 {
		t.Errorf("%d attributes with %d bytes were read", len(meta.Xattrs), read)
	}
	must(t, entry.CanReplace())
	staged, err := entry.Stage()
	must(t, err)
	if err := staged.Commit(fsys.Attr{}, false); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("attributes that were not read are kept: %v", err)
	}
	if got := content(t, dir+"/g"); got != "old" {
		t.Errorf("%q", got)
	}
	want := meta
	want.Xattrs = map[string][]byte{"user.0": []byte("kept")}
	must(t, entry.Apply(want))
	if meta, err := entry.Capture(); err != nil || !reflect.DeepEqual(meta.Xattrs, want.Xattrs) {
		t.Errorf("%d attributes, %v", len(meta.Xattrs), err)
	}
	laden(t, dir+"/h", 20)
	over := at(t, host(t), dir+"/h")
	if staged, err = over.Stage(); err == nil {
		err = staged.Restore(want, false)
	}
	must(t, err)
	if meta, err := over.Capture(); err != nil || !reflect.DeepEqual(meta.Xattrs, want.Xattrs) {
		t.Errorf("restored: %d attributes, %v", len(meta.Xattrs), err)
	}
}
