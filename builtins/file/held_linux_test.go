package file_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// heldBelow counts the descriptors of this process that are files below a directory.
func heldBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

// A file is held open between two chunks, so what its path leads to is looked at for each.
func TestWhatTakesThePlaceOfAHeldFileIsSeen(t *testing.T) {
	content := strings.Repeat("1", 100_000)
	for name, c := range map[string]struct {
		change func(dir string) error
		code   string
	}{
		"the file is removed":  {func(dir string) error { return os.Remove(dir + "/a/b/f") }, "not_found"},
		"the file is replaced": {func(dir string) error { return os.Rename(dir+"/other", dir+"/a/b/f") }, "changed"},
		"a directory above is another": {func(dir string) error {
			if err := os.Rename(dir+"/a", dir+"/was"); err != nil {
				return err
			}
			return os.Rename(dir+"/else", dir+"/a")
		}, "changed"},
		"a directory above is gone":          {func(dir string) error { return os.Rename(dir+"/a", dir+"/was") }, "not_found"},
		"the file has become a link":         {func(dir string) error { return replaceByLink(dir+"/a/b/f", "/other") }, "changed"},
		"the file has become a directory":    {func(dir string) error { return replaceByDir(dir + "/a/b/f") }, "is_directory"},
		"the file has become a link to none": {func(dir string) error { return replaceByLink(dir+"/a/b/f", "/none") }, "not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, file.Config{})
			must(t, os.MkdirAll(g.dir+"/a/b", 0o755))
			must(t, os.MkdirAll(g.dir+"/else/b", 0o755))
			for _, path := range []string{"/a/b/f", "/else/b/f", "/other"} {
				g.write(path, content)
			}
			out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/a/b/f"})
			must(t, err)
			if heldBelow(t, g.dir) == 0 {
				t.Fatal("no file is held open, so this test says nothing")
			}
			must(t, c.change(g.dir))
			g.refused(c.code, "", &pb.FileReadRequest{Path: "/a/b/f", Offset: uint64(len(out.Data))})
		})
	}
}

func replaceByLink(path, target string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func replaceByDir(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o755)
}

// What is held is let go: at the end of the file, after a while without a chunk, and at most a few at a time.
func TestHeldFilesAreLetGo(t *testing.T) {
	g := newGuest(t, file.Config{})
	for i := range 20 {
		path := "/" + string(rune('a'+i))
		g.write(path, strings.Repeat("1", 40_000))
		_, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: path})
		must(t, err)
	}
	if n := heldBelow(t, g.dir); n > 8 {
		t.Errorf("%d files are held", n)
	}
	for deadline := time.Now().Add(20 * time.Second); heldBelow(t, g.dir) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a file is held for ever: ", heldBelow(t, g.dir))
		}
	}
	g.download("/a", 0)
	if n := heldBelow(t, filepath.Clean(g.dir)); n > 0 {
		t.Errorf("%d files are held after the end was read", n)
	}
}
