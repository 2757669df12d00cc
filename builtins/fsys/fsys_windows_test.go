package fsys_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func hostRoot(t *testing.T) *fsys.Root {
	t.Helper()
	root, err := fsys.Open(`C:\`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func entry(t *testing.T, root *fsys.Root, path string) *fsys.At {
	t.Helper()
	at, err := root.At(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { at.Close() })
	return at
}

func replace(t *testing.T, at *fsys.At, content string) error {
	t.Helper()
	staged, err := at.Stage()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.File.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return staged.Commit(fsys.Attr{}, true)
}

// W-8: paths of servers, devices and streams, names of devices, and names that Windows shortens are refused.
func TestNamesThatAreNoFiles(t *testing.T) {
	root, dir := hostRoot(t), t.TempDir()
	for _, path := range []string{
		`\\server\share\x`, `//server/share/x`, `\\?\C:\Windows\x`, `\\.\C:`, `//./PhysicalDrive0`, `\??\C:\x`,
		`\\.\pipe\x`, dir + `\file:stream`, dir + `\file::$DATA`, `C:\Windows\win.ini:x`, dir + `\CON`, dir + `\nul.txt`,
		dir + `\Com1`, dir + `\lpt9.a.b`, dir + `\CONOUT$`, dir + `\aux .txt`, dir + `\COM` + "\u00b9", dir + `\NUL\x`, dir + `\x.`, dir + `\x `, dir + `\x. .`, dir + `\...`,
		dir + `\a?b`, dir + `\a*`, dir + "\\a\x01b", dir + `\a|b`,
	} {
		if at, err := root.At(path); err == nil {
			t.Errorf("%q is taken for %s", path, at.Path)
			at.Close()
		}
		if _, err := root.Resolve(path, true); err == nil {
			t.Errorf("%q is resolved", path)
		}
	}
	for _, name := range []string{"console", "com", "com10", "nulx", "lpt.txt", "a.con", ".x", "a b", "\u00fc"} {
		if err := replace(t, entry(t, root, filepath.Join(dir, name)), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// All spellings of one path are resolved to the same text, so that a rule about one holds for all.
func TestSpellingsOfOnePath(t *testing.T) {
	root := hostRoot(t)
	want, err := root.Resolve(`C:\windows\system32`, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		`c:/windows/system32`, `C:\WINDOWS\System32\`, `C:\windows\.\x\..\system32`, `\windows\system32`, `/Windows//system32`,
	} {
		got, err := root.Resolve(path, true)
		if err != nil || !fsys.Equal(got, want) || !fsys.Within(got, `c:\WINDOWS`) {
			t.Errorf("%s is %s, %v, and not %s", path, got, err, want)
		}
	}
}

// A file that is replaced keeps its attributes and its access list, and one that is restored has those of before.
func TestAttributesAreKept(t *testing.T) {
	root, path := hostRoot(t), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	name, _ := windows.UTF16PtrFromString(path)
	const special = windows.FILE_ATTRIBUTE_READONLY | windows.FILE_ATTRIBUTE_HIDDEN | windows.FILE_ATTRIBUTE_SYSTEM
	if err := windows.SetFileAttributes(name, special); err != nil {
		t.Fatal(err)
	}
	at := entry(t, root, path)
	before, err := at.Capture()
	if err != nil {
		t.Fatal(err)
	}
	if len(before.Xattrs["windows.security"]) == 0 {
		t.Error("no security descriptor")
	}
	check := func(when, content string) {
		t.Helper()
		now, err := at.Capture()
		got, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || string(got) != content {
			t.Fatalf("%s: %q, %v, %v", when, got, err, readErr)
		}
		for _, x := range []string{"windows.security", "windows.attributes"} {
			if string(now.Xattrs[x]) != string(before.Xattrs[x]) {
				t.Errorf("%s: %s is %q, and was %q", when, x, now.Xattrs[x], before.Xattrs[x])
			}
		}
	}
	if err := replace(t, at, "two"); err != nil {
		t.Fatal(err)
	}
	check("replaced", "two")
	if err := windows.SetFileAttributes(name, windows.FILE_ATTRIBUTE_NORMAL); err != nil {
		t.Fatal(err)
	}
	staged, err := at.Stage()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.File.WriteString("one"); err != nil {
		t.Fatal(err)
	}
	if err := staged.Restore(before, true); err != nil {
		t.Fatal(err)
	}
	check("restored", "one")
	if now, err := at.Stat(); err != nil || now.Mtime != before.Mtime {
		t.Errorf("time of the content is %v, was %v, %v", now.Mtime, before.Mtime, err)
	}
}

// A file that another process has open without sharing it is not replaced, is told as busy, and stays as it is.
func TestFileHeldOpen(t *testing.T) {
	root, path := hostRoot(t), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	name, _ := windows.UTF16PtrFromString(path)
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = replace(t, entry(t, root, path), "two")
	if err == nil {
		t.Fatal("it was replaced")
	}
	if !errors.Is(err, fault.ErrBusy) && !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	windows.CloseHandle(h)
	left, _ := os.ReadDir(filepath.Dir(path))
	if got, _ := os.ReadFile(path); string(got) != "one" || len(left) != 1 {
		t.Errorf("it is %q, beside %v", got, left)
	}
}

// The directory of a root is its root, by each path to it, and nothing leads out of it.
func TestRootOfADirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "root", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := fsys.Open(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{"/", `\`, "/..", `/sub/..`, `C:\`, `/sub/../..`} {
		if at := entry(t, root, path); !at.IsRoot() || at.Path != `\` {
			t.Errorf("%s is %q, the root: %v", path, at.Path, at.IsRoot())
		}
	}
	if _, err := root.ReadFile("/../outside", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	link := filepath.Join(dir, "root", "link")
	if err := os.Symlink(dir, link); err != nil {
		return
	}
	if _, err := os.ReadFile(filepath.Join(link, "outside")); err != nil { // Wine makes a link, and does not follow it
		return
	}
	if _, err := root.ReadFile("/link/outside", 10); !errors.Is(err, fault.ErrRefused) {
		t.Error("by a link: ", err)
	}
}

// In an overlay names have no case, each volume has its root, and nothing of it is in the real files.
func TestOverlay(t *testing.T) {
	root, dir := hostRoot(t), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"File": "one", `Sub\Deep`: "deep", "gone": "x"} {
		if err := os.MkdirAll(filepath.Dir(in(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o, err := root.Overlay(filepath.Join(t.TempDir(), "contents"))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	read := func(path, want string) {
		t.Helper()
		if got, err := o.ReadFile(path, 100); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v, and not %q", path, got, err, want)
		}
	}
	read(in("fILE"), "one")
	if err := replace(t, entry(t, o, in("FILE")), "two"); err != nil {
		t.Fatal(err)
	}
	read(in("file"), "two")
	read(strings.ToLower(dir)+"/file", "two")
	read(in(`sub\..\SUB/deep`), "deep")
	if err := entry(t, o, in("GONE")).Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReadFile(in("gone"), 100); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what was removed:", err)
	}
	if err := replace(t, entry(t, o, in("Gone")), "again"); err != nil {
		t.Fatal(err)
	}
	if err := entry(t, o, in("new")).Make(fsys.Meta{Kind: fsys.Directory, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := entry(t, o, in("NEW")).Make(fsys.Meta{Kind: fsys.Directory, Mode: 0o755}); !errors.Is(err, fs.ErrExist) {
		t.Error("a directory of a name that is there:", err)
	}
	if err := entry(t, o, in("sub")).Rename(entry(t, o, in(`new\moved`)), false); err != nil {
		t.Fatal(err)
	}
	read(in(`NEW\MOVED\deep`), "deep")
	at := entry(t, o, dir)
	d, err := at.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Names(100)
	slices.Sort(names)
	if want := []string{"FILE", "Gone", "new"}; err != nil || !slices.EqualFunc(names, want, strings.EqualFold) {
		t.Errorf("the names are %q, %v, and not %q", names, err, want)
	}
	if meta, err := entry(t, o, `Z:\`).Stat(); err == nil && meta.Kind != fsys.Directory { // under Wine
		t.Errorf("%+v", meta)
	}
	if got, _ := os.ReadFile(in("File")); string(got) != "one" {
		t.Errorf("the real file has %q", got)
	}
	if got, _ := os.ReadFile(in("gone")); string(got) != "x" {
		t.Errorf("what was removed in the overlay has %q", got)
	}
	if _, err := os.Stat(in("new")); err == nil {
		t.Error("what was made in the overlay is there")
	}
}

// A path of more than 260 characters is one like any other.
func TestLongPaths(t *testing.T) {
	root, dir := hostRoot(t), t.TempDir()
	path := dir
	for len(path) < 400 {
		path = filepath.Join(path, strings.Repeat("d", 60))
	}
	path = filepath.Join(path, "file")
	at, _, err := root.MakeParents(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two"} {
		if err := replace(t, entry(t, root, path), content); err != nil {
			t.Fatal(err)
		}
		if got, err := root.ReadFile(path, 10); err != nil || string(got) != content {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// A file with several names is told as one, and not replaced: that would part them.
func TestHardLinks(t *testing.T) {
	root, path := hostRoot(t), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, path+"2"); err != nil {
		t.Skip(err)
	}
	at := entry(t, root, path)
	if meta, err := at.Stat(); err != nil || meta.Links != 2 || meta.Ino == 0 {
		t.Errorf("%+v, %v", meta, err)
	}
	if err := at.CanReplace(); err == nil {
		t.Error("it may be replaced")
	}
}

// A temporary file of an agent that died is swept, and one that is being written is not.
func TestSweepOfTemporaryFiles(t *testing.T) {
	root, dir := hostRoot(t), t.TempDir()
	at := entry(t, root, filepath.Join(dir, "file"))
	staged, err := at.Stage()
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, ".quantix-kvm-0123456789abcdef.tmp")
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := at.Sweep(); n != 1 || err != nil {
		t.Errorf("%d swept, %v", n, err)
	}
	if err := staged.Commit(fsys.Attr{}, true); err != nil {
		t.Errorf("the one that was being written: %v", err)
	}
}

// What was checked is what is used: while an operation is at a path that rules were held against, nobody exchanges the
// directories that lead there, and what was exchanged before is found out.
func TestCheckedDirectoryStays(t *testing.T) {
	root, dir := hostRoot(t), t.TempDir()
	inner, moved := filepath.Join(dir, "a", "b"), filepath.Join(dir, "a", "c")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(inner, "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	checked := root.NewCheckedPaths()
	if found, err := checked.Look(path, false); err != nil || found.Meta.Kind != fsys.File {
		t.Fatalf("%+v, %v", found, err)
	}
	at, err := root.WithChecked(checked).At(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(inner, moved); err == nil {
		t.Error("the directory was renamed")
	}
	if _, err := at.ReadFile(10); err != nil {
		t.Error(err)
	}
	if err := replace(t, at, "y"); err != nil {
		t.Error(err)
	}
	if err := at.Close(); err != nil {
		t.Error(err)
	}
	checked = root.NewCheckedPaths()
	if _, err := checked.Look(path, false); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(inner, moved), os.Mkdir(inner, 0o755), os.WriteFile(path, []byte("z"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if at, err := root.WithChecked(checked).At(path); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("the other directory is %v, %v", at, err)
	}
}
