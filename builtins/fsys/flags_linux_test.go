package fsys_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// flagged sets a flag of chattr(1) until the end of the test. Where that cannot be the test is skipped.
func flagged(t *testing.T, path string, flag int) {
	t.Helper()
	set := func(flag int) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		now, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		const both = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND // the numbers of the flags themselves
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(now)&^both|flag)
	}
	if err := set(flag); err != nil {
		t.Skip("needs root and a file system with the flags of chattr, such as ext4: ", err)
	}
	t.Cleanup(func() { _ = set(0) })
}

func setAttr(entry *fsys.At, attr fsys.Attr) error {
	old, err := entry.Capture()
	if err != nil {
		return err
	}
	return entry.SetAttrOf(old, attr)
}

// An overlay says of an object with a flag of chattr(1), and of the names in such a directory, what the kernel says.
func TestAnOverlayKnowsWhatFlagsForbid(t *testing.T) {
	steps := []struct {
		what string
		do   func(r *fsys.Root, dir string) error
	}{
		{"mkdir", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/d").Mkdir(fsys.Attr{}) }},
		{"symlink", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/l").Symlink("x") }},
		{"mode of a file", func(r *fsys.Root, dir string) error {
			return setAttr(at(t, r, dir+"/file"), fsys.Attr{Mode: new(uint32(0o600))})
		}},
		{"mode of a directory", func(r *fsys.Root, dir string) error {
			return setAttr(at(t, r, dir), fsys.Attr{Mode: new(uint32(0o700))})
		}},
		{"owner", func(r *fsys.Root, dir string) error {
			return setAttr(at(t, r, dir), fsys.Attr{UID: new(uint32(1))})
		}},
		{"rename into", func(r *fsys.Root, dir string) error { return at(t, r, "/free/a").Rename(at(t, r, dir+"/a"), false) }},
		{"rename over", func(r *fsys.Root, dir string) error { return at(t, r, "/free/b").Rename(at(t, r, dir+"/old"), true) }},
		{"rename in it", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/file").Rename(at(t, r, dir+"/n"), false) }},
		{"rename out of", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/file").Rename(at(t, r, "/free/n"), false) }},
		{"rename itself", func(r *fsys.Root, dir string) error { return at(t, r, dir).Rename(at(t, r, dir+"2"), false) }},
		{"remove", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/old").Remove() }},
		{"remove all", func(r *fsys.Root, dir string) error { return at(t, r, dir+"/sub").RemoveAll(t.Context()) }},
		{"remove itself", func(r *fsys.Root, dir string) error { return at(t, r, "/empty").Remove() }},
	}
	for name, flag := range map[string]int{"immutable": unix.STATX_ATTR_IMMUTABLE, "append only": unix.STATX_ATTR_APPEND} {
		var results [2]string
		for i := range results {
			dir := scratch(t)
			for _, sub := range []string{"/free", "/empty", "/locked/sub"} {
				must(t, os.MkdirAll(dir+sub, 0o755))
			}
			for _, file := range []string{"/free/a", "/free/b", "/locked/file", "/locked/old", "/locked/sub/file"} {
				write(t, dir+file, "content")
			}
			flagged(t, dir+"/locked", flag)
			flagged(t, dir+"/empty", flag)
			r := root(t, dir)
			if i == 1 {
				r = overlaid(t, r)
			}
			for _, s := range steps {
				err := s.do(r, "/locked")
				results[i] += fmt.Sprintf("%s: %v %v\n", s.what, err, errors.Is(err, os.ErrPermission))
			}
		}
		if results[0] != results[1] {
			t.Errorf("%s: the file system:\n%s\nthe overlay:\n%s", name, results[0], results[1])
		}
	}
}

// What flags of chattr(1) keep from being removed goes with the tree that it is in, and nothing of that is left.
func TestATreeIsRemovedWithWhatFlagsForbid(t *testing.T) {
	for name, flag := range map[string]int{"immutable": unix.STATX_ATTR_IMMUTABLE, "append only": unix.STATX_ATTR_APPEND} {
		dir := scratch(t)
		must(t, os.MkdirAll(dir+"/tree/sub/empty", 0o755))
		for _, file := range []string{"/tree/file", "/tree/sub/file", "/tree/sub/other"} {
			write(t, dir+file, "content")
		}
		for _, path := range []string{"/tree/file", "/tree/sub/file", "/tree/sub/empty"} {
			flagged(t, dir+path, flag)
		}
		write(t, dir+"/tree/sub/linked", "content")
		must(t, os.Link(dir+"/tree/sub/linked", dir+"/other"))
		flagged(t, dir+"/other", flag)
		flagged(t, dir+"/tree/sub", flag)
		r := root(t, dir)
		must(t, at(t, r, "/tree").RemoveAll(t.Context()))
		if got := listing(t, dir); !slices.Equal(got, []string{"other"}) {
			t.Errorf("%s: %q is left", name, got)
		}
		if meta, err := at(t, r, "/other").Stat(); err != nil || !meta.Immutable && !meta.AppendOnly {
			t.Errorf("%s: another name has lost its flag: %+v, %v", name, meta, err)
		}
	}
}
