package fsys_test

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// What links below a root name is below the root, and what is no file is not waited for.
func TestDirFSStaysBelowItsRoot(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/img/etc", 0o755))
	must(t, os.Mkdir(dir+"/img/inside", 0o755))
	must(t, os.WriteFile(dir+"/img/inside/x.lua", []byte("inside"), 0o644))
	must(t, os.WriteFile(dir+"/x.lua", []byte("outside"), 0o644))
	must(t, os.Symlink("/inside", dir+"/img/etc/scripts.d"))
	must(t, os.Symlink(dir, dir+"/img/etc/out"))
	must(t, os.Symlink("../../x.lua", dir+"/img/inside/up.lua"))
	must(t, os.Symlink(dir+"/x.lua", dir+"/img/inside/abs.lua"))
	must(t, syscall.Mkfifo(dir+"/img/inside/fifo.lua", 0o644))
	scripts := fsys.DirFS(dir+"/img", "/etc/scripts.d")
	if data, err := fs.ReadFile(scripts, "x.lua"); err != nil || string(data) != "inside" {
		t.Errorf("%q, %v", data, err)
	}
	for _, name := range []string{"up.lua", "abs.lua", "fifo.lua", "not.lua", "../x.lua"} {
		if data, err := fs.ReadFile(scripts, name); err == nil {
			t.Errorf("%s: %q", name, data)
		}
	}
	if list, err := fs.ReadDir(scripts, "."); err != nil || len(list) != 4 {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := fs.ReadDir(fsys.DirFS(dir+"/img", "/etc/out"), "."); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, %v", list, err)
	}
}
