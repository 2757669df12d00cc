package proc

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// runDir returns a new directory in /run, which is root's.
func runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "quantix-view-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func listen(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
}

// A private view has the real sockets and pipes of directories that root alone can write to, and no others: a user who can
// exchange a directory could have them mounted over any file.
func TestViewTakesSocketsOfRootAlone(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := runDir(t)
		for name, mode := range map[string]os.FileMode{"root": 0o755, "user": 0o755, "group": 0o775, "sticky": 0o777 | os.ModeSticky, "user/in": 0o755} {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, mode), unix.Mkfifo(path+"/pipe", 0o600)); err != nil {
				t.Fatal(err)
			}
			listen(t, path+"/socket")
		}
		if err := errors.Join(os.Chown(dir+"/user", 54321, 54321), os.Symlink("root", dir+"/link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir+"/user/in", 0, 0); err != nil { // of root, in a directory of a user
			t.Fatal(err)
		}
		listen(t, dir+"/link/linked") // which is made in the directory root
		result := run(t, r, Spec{Argv: sh("echo x >/run/quantix-view-written && cat /proc/self/mountinfo"), Confine: &Confine{Private: true}, Tied: true})
		if result.Code != 0 {
			t.Skipf("no private view here: %s", result.Stderr)
		}
		got := map[string]bool{}
		for line := range strings.Lines(string(result.Stdout)) {
			if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir) {
				got[strings.TrimPrefix(fields[4], dir)] = strings.HasPrefix(fields[5], "ro")
			}
		}
		if len(got) != 3 || !got["/root/socket"] || !got["/root/pipe"] || !got["/root/linked"] {
			t.Errorf("mounted, and read-only: %v", got)
		}
	})
}

// What is at a path is opened only where root alone can change that.
func TestOpenSure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who owns the directories")
	}
	dir := runDir(t)
	for _, name := range []string{"root/file", "user/in/file", "group/file"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o666), os.Chmod(path, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Chown(dir+"/user", 54321, 0), os.Chmod(dir+"/group", 0o775), os.Symlink("root", dir+"/link"), os.Symlink("file", dir+"/root/link"))
	if err != nil {
		t.Fatal(err)
	}
	top, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(top)
	for path, want := range map[string]error{
		"/root/file": nil, "/root": nil, "/user": nil, // what is in it is not sure, but itself is
		"/user/in": fault.ErrRefused, "/user/in/file": fault.ErrRefused, "/group/file": fault.ErrRefused,
		"/link/file": fault.ErrRefused, "/root/link": unix.ELOOP, "/root/../root/file": unix.EINVAL, "/root/none": unix.ENOENT,
		"/root/file/x": fault.ErrRefused,
	} {
		var stat unix.Stat_t
		fd, err := openSure(top, dir+path, &stat)
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("%s: %v", path, err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

// A layer whose place is not there any more, or is another, is left out, and nothing is mounted; one of the view's own
// directories is an error.
func TestLayerThatFindsNoPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who owns the directories")
	}
	dir := runDir(t)
	if err := errors.Join(os.Mkdir(dir+"/user", 0o755), os.Symlink("/etc", dir+"/user/link"), os.Chown(dir+"/user", 54321, 0), os.Symlink("/etc", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + "/link/hostname", dir + "/user/link/hostname", dir + "/none", dir + "/link"} {
		for _, own := range []bool{false, true} {
			fd, err := unix.Open("/dev/null", unix.O_PATH, 0) // stands for a mount, and is none
			if err != nil {
				t.Fatal(err)
			}
			v := &view{layers: []layer{{path: path, fd: fd, readOnly: true}}}
			if own {
				v.dirs = []string{path}
			}
			if err := v.mount(); (err != nil) != own {
				t.Errorf("%s, own %v: %v", path, own, err)
			}
		}
	}
}

// A directory that stays writable is mounted over itself alone, whatever its user does with its name.
func TestWritableDirIsExchanged(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"d", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := &writableDir{dir: dir + "/d"}
	for _, step := range []struct {
		do   func() error
		want error
	}{
		{func() error { return nil }, nil},
		{func() error { return nil }, nil},
		{func() error { return unix.Renameat2(-1, dir+"/d", -1, dir+"/other", unix.RENAME_EXCHANGE) }, fault.ErrChanged},
		{func() error { return errors.Join(os.Remove(dir+"/d"), os.Symlink("other", dir+"/d")) }, unix.ELOOP},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		fd, err := o.open()
		if !errors.Is(err, step.want) || (err == nil) != (step.want == nil) {
			t.Error(err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}
