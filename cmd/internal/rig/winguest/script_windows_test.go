package winguest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// scriptFile writes a script of a test, in which DIR is a directory, and returns its path.
func scriptFile(t *testing.T, dir, source string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "site.lua")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(source, "DIR", filepath.ToSlash(dir))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A script that writes files and runs commands does all of it, or after an error nothing: new files are gone, replaced ones
// have their content and their attributes again, and the command that it declared takes back what a command did.
func TestScriptIsWholeOrNothing(t *testing.T) {
	_, h := guest(t, "org.quantix.agent.5")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) {
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const source = `
		file.write("DIR/new", "new")
		file.write("DIR/old", "changed")
		file.mkdir("DIR/sub")
		file.write("DIR/sub/x", "x")
		file.remove("DIR/gone")
		local out = exec.run({"cmd.exe", "/C", "echo touched>DIR/touched"}, {touches = {"DIR/touched"}})
		exec.sh("mkdir made", {cwd = "DIR", undo = {"cmd.exe", "/C", "rmdir made"},
			undo_if = {"cmd.exe", "/C", "if not exist made exit 1"}})
	`
	write("old", "of before")
	write("gone", "still needed")
	write("touched", "not yet")
	state := func() string {
		var all []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			content, _ := os.ReadFile(path)
			all = append(all, d.Name()+"="+strings.TrimSpace(string(content)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(all, " ")
	}
	before := state()
	out, errs, status := Ctl(t, h, "run", scriptFile(t, dir, source+` error("enough")`))
	if status == 0 || !strings.Contains(out+errs, "enough") {
		t.Fatalf("status %d\n%s%s", status, out, errs)
	}
	if after := state(); after != before {
		t.Errorf("after the rollback there is %s\nbefore there was %s\n%s%s", after, before, out, errs)
	}
	ctl(t, h, "run", scriptFile(t, dir, source))
	const want = "made= new=new old=changed sub= x=x touched=touched"
	if after := state(); after != want {
		t.Errorf("there is %s\nwanted %s", after, want)
	}
	if _, err := os.Stat(in("gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
