package proc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"time"

	"golang.org/x/sys/unix"
)

// withConfinement runs a test with a Runner that can confine, for both ways to make mounts read-only.
func withConfinement(t *testing.T, f func(t *testing.T, r *Runner, with func(...string) *Confine)) {
	for name, perMount := range map[string]bool{"tree": false, "per mount": true, "in a group": false} {
		t.Run(name, func(t *testing.T) {
			config := Config{Cgroup: "none", JobCgroup: "none"}
			if name == "in a group" {
				config = Config{}
			}
			r := newRunner(t, config)
			if how := r.Confinement(); how != "mount-namespace" {
				t.Skipf("%s: run as root, where mount namespaces may be made", how)
			}
			r.platform.perMount = perMount
			f(t, r, func(paths ...string) *Confine { return &Confine{Writable: paths} })
		})
	}
}

func TestConfinedCommandCannotWrite(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := t.TempDir()
		line := "cd " + dir + "; for f in x /tmp/quantix-x /etc/quantix-x /dev/shm/quantix-x /run/quantix-x /proc/sys/kernel/hostname; do (echo x >$f) 2>/dev/null && echo wrote $f; done; " +
			"echo x >/dev/null && echo null; echo x >$TMPDIR/y && cat $TMPDIR/y"
		result := run(t, r, Spec{Argv: sh(line), Confine: with(), Tied: true})
		if got := string(result.Stdout); got != "null\nx\n" {
			t.Errorf("%q %s", got, result.Stderr)
		}
		if entries, _ := os.ReadDir(scratchDir); len(entries) > 0 {
			t.Errorf("the scratch of the command shows outside: %v", entries)
		}
	})
}

// A confined root has no way out by what the kernel lets only root do.
func TestConfinedRootCannotLeave(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := t.TempDir()
		outside := exec.Command("sleep", "60") // root with all capabilities, in the agent's mount namespace
		if err := outside.Start(); err != nil {
			t.Fatal(err)
		}
		defer outside.Wait()
		defer outside.Process.Kill()
		pid := strconv.Itoa(outside.Process.Pid)
		for _, way := range []string{
			"echo x >/proc/" + pid + "/root" + dir + "/x", "echo x >/proc/" + pid + "/cwd" + dir + "/x", "echo x >/proc/1/root" + dir + "/x",
			"nsenter -t " + pid + " -m touch " + dir + "/x", "mount -o remount,rw,bind / && touch " + dir + "/x",
			"mount -t tmpfs tmpfs /mnt", "cat /proc/" + pid + "/environ | grep -q .", "unshare -m true", "mknod $TMPDIR/d b 254 0",
			"unshare -rm sh -c 'mount -o remount,rw,bind / && touch " + dir + "/x'",
		} {
			if result := run(t, r, Spec{Argv: sh(way), Confine: with(), Tied: true}); result.Code == 0 {
				t.Errorf("%s works", way)
			}
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("written outside: %v", entries)
		}
	})
}

func TestWritable(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := t.TempDir()
		for _, name := range []string{"etc/hosts", "etc/other", "etc/sub/deep", "tree/a", "tree/sub/b", "far/away"} {
			os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
			os.WriteFile(filepath.Join(dir, name), []byte("old\n"), 0o644)
		}
		os.Symlink(dir+"/etc", dir+"/link")
		spec := Spec{Dir: dir, Tied: true, Confine: with(dir+"/link/hosts", dir+"/tree", dir+"/new/dir/file")}
		try := func(line string, works bool) {
			t.Helper()
			spec.Argv = sh(line)
			if result := run(t, r, spec); (result.Code == 0) != works {
				t.Errorf("%s: %d %s", line, result.Code, result.Stderr)
			}
		}
		try("echo new >etc/hosts", true)
		try("sed -i s/new/newer/ etc/hosts && grep newer etc/hosts", true) // replaces it by renaming
		try("rm etc/hosts && echo again >etc/hosts", true)
		try("echo new >etc/other", false)
		try("rm etc/other", false)
		try("mv etc/other etc/another", false)
		try("echo new >etc/sub/deep", false)
		try("echo new >tree/sub/b; rm tree/a; mkdir tree/c && mv tree/sub tree/d", true)
		try("mkdir -p new/dir && echo new >new/dir/file", true)
		try("echo new >far/away", false)
		try("echo new >/var/quantix-x", false)
		if text, _ := os.ReadFile(dir + "/etc/hosts"); string(text) != "again\n" {
			t.Errorf("%q", text)
		}
	})
}

// Nothing is written where somebody has exchanged what was kept, or a directory on the way to it.
func TestWritableIsExchanged(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := t.TempDir()
		for _, name := range []string{"d/f", "other/f", "tree/a", "trees/a"} {
			os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
			os.WriteFile(filepath.Join(dir, name), []byte("old\n"), 0o644)
		}
		inode := func(name string) uint64 {
			var stat unix.Stat_t
			if err := unix.Lstat(dir+"/"+name, &stat); err != nil {
				t.Fatal(err)
			}
			return stat.Ino
		}
		file, tree, none := inode("d/f"), inode("tree"), uint64(0)
		try := func(what, name string, kept uint64, works bool) {
			t.Helper()
			c := with(dir + "/" + name)
			c.Inodes = map[string]uint64{c.Writable[0]: kept}
			result, err := r.Run(t.Context(), Spec{Dir: "/", Tied: true, Confine: c, Argv: sh("echo new >>" + dir + "/other/f; echo new >>" + dir + "/trees/a; true")})
			var start *StartError
			if works && (err != nil || result.Code != 0) || !works && (!errors.As(err, &start) || start.Stage != "confinement") {
				t.Errorf("%s: %v %v", what, result, err)
			}
		}
		try("a file", "d/f", file, true)
		try("a tree", "tree", tree, true)
		try("nothing", "d/new", none, true)
		try("something where nothing was", "d/f", none, false)
		try("nothing where something was", "d/new", file, false)
		exchange := func(a, b string) {
			if err := unix.Renameat2(-1, dir+"/"+a, -1, dir+"/"+b, unix.RENAME_EXCHANGE); err != nil {
				t.Fatal(err)
			}
		}
		exchange("d", "other")
		exchange("tree", "trees")
		try("a file in another directory", "d/f", file, false)
		try("another tree", "tree", tree, false)
		exchange("d", "other")
		if err := errors.Join(os.Rename(dir+"/d", dir+"/moved"), os.Symlink("other", dir+"/d")); err != nil {
			t.Fatal(err)
		}
		try("a file behind a link", "d/f", inode("other/f"), false)
		for _, name := range []string{"other/f", "tree/a", "trees/a"} {
			if text, _ := os.ReadFile(dir + "/" + name); string(text) != "old\n" {
				t.Errorf("%s: %q", name, text)
			}
		}
	})
}

// What cannot be made read-only is no reason to leave it writable.
func TestWritableInADirectoryWithTooManyEntries(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	if how := r.Confinement(); how != "mount-namespace" {
		t.Skipf("%s: run as root, where mount namespaces may be made", how)
	}
	dir := t.TempDir()
	for n := range maxSiblings + 2 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(n)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec := Spec{Argv: sh("echo x >" + dir + "/1"), Confine: &Confine{Writable: []string{dir + "/0"}}, Tied: true}
	_, err := r.Run(t.Context(), spec)
	var start *StartError
	if !errors.As(err, &start) || start.Stage != "confinement" || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
	spec.Confine.Writable = []string{dir}
	if result := run(t, r, spec); result.Code != 0 {
		t.Errorf("the directory as a whole: %d %s", result.Code, result.Stderr)
	}
}

func TestConfinedCommandUser(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		user := &User{Name: "guest", UID: 54321, GID: 54322, Groups: []uint32{54400}}
		result := run(t, r, Spec{Argv: sh("id -u; id -G; grep -c . /proc/self/status >/dev/null; exit 5"), User: user, Confine: with(), Tied: true})
		if string(result.Stdout) != "54321\n54322 54400\n" || result.Code != 5 {
			t.Errorf("%+v", result)
		}
	})
}

func TestConfinedCommandTimeout(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		dir := t.TempDir()
		result := run(t, r, Spec{Argv: sh("echo $$ >" + dir + "/a; sleep 300; true"), Confine: with(dir), Tied: true, Timeout: time.Second})
		if !result.TimedOut || alive(t, dir+"/a") {
			t.Errorf("%+v", result)
		}
	})
}

func TestConfinedCommandStartErrors(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		for _, c := range []struct {
			stage string
			spec  Spec
			cause error
		}{
			{"program", Spec{Argv: []string{"/no/such"}}, fs.ErrNotExist},
			{"program", Spec{Argv: []string{"no-such-program"}}, fs.ErrNotExist},
			{"directory", Spec{Argv: sh("true"), Dir: "/no/such"}, fs.ErrNotExist},
			{"directory", Spec{Argv: sh("true"), Dir: "/root", User: &User{UID: 54321, GID: 54321}}, fs.ErrPermission},
			{"confinement", Spec{Argv: sh("true"), Confine: with("relative")}, nil},
		} {
			if c.spec.Confine == nil {
				c.spec.Confine = with()
			}
			_, err := r.Run(context.Background(), c.spec)
			var start *StartError
			if !errors.As(err, &start) || start.Stage != c.stage || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("%+v: %v", c.spec, err)
			}
		}
	})
}

// newImage returns a root directory with a shell.
func newImage(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "run", "tmp"} {
		os.Mkdir(filepath.Join(root, dir), 0o755)
	}
	for _, program := range []string{"/bin/sh", "/bin/cat"} {
		libraries, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		copyFile(t, root+program, libraries)
	}
	r := New(Config{Cgroup: "none", JobCgroup: "none"})
	out, err := r.Output(context.Background(), nil, "ldd", "/bin/sh")
	if err != nil {
		t.Skipf("no ldd: %v", err)
	}
	for _, field := range strings.Fields(string(out)) {
		if content, err := os.ReadFile(field); filepath.IsAbs(field) && err == nil {
			copyFile(t, root+field, content)
		}
	}
	return root
}

func copyFile(t *testing.T, path string, content []byte) {
	t.Helper()
	os.MkdirAll(filepath.Dir(path), 0o755)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestCommandUnderRoot(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		root := newImage(t)
		os.WriteFile(root+"/etc/issue", []byte("the image\n"), 0o644)
		result := run(t, r, Spec{Argv: []string{"cat", "/etc/issue"}, Root: root})
		if string(result.Stdout) != "the image\n" {
			t.Errorf("%+v", result)
		}
		spec := Spec{Argv: sh("echo x >$TMPDIR/y && cat $TMPDIR/y"), Root: root, Confine: with()}
		if result := run(t, r, spec); string(result.Stdout) != "x\n" {
			t.Errorf("%+v", result)
		}
		if entries, _ := os.ReadDir(root + "/run"); len(entries) > 0 {
			t.Errorf("%v stays behind in the image", entries)
		}
		spec = Spec{Argv: sh("echo new >/etc/issue"), Root: root, Confine: with()}
		if result := run(t, r, spec); result.Code == 0 {
			t.Error("a read-only command wrote")
		}
		spec.Confine = with("/etc/issue")
		if result := run(t, r, spec); result.Code != 0 {
			t.Errorf("%s", result.Stderr)
		}
		if text, _ := os.ReadFile(root + "/etc/issue"); string(text) != "new\n" {
			t.Errorf("%q", text)
		}
	})
}

// A command in an image has a /dev and a /proc where the image has a place for them, and nothing of them is left.
func TestCommandUnderRootHasDevices(t *testing.T) {
	withConfinement(t, func(t *testing.T, r *Runner, with func(...string) *Confine) {
		root := newImage(t)
		spec := Spec{Argv: sh("test ! -e /dev && test ! -e /proc && echo none"), Root: root}
		if result := run(t, r, spec); string(result.Stdout) != "none\n" {
			t.Errorf("%+v", result)
		}
		for _, dir := range []string{"dev", "proc"} {
			if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		spec.Argv = sh("echo x >/dev/null && test -c /dev/urandom && test -c /dev/pts/ptmx && read -r name </proc/self/comm && echo $name")
		for _, confine := range []*Confine{nil, with()} {
			spec.Confine = confine
			if result := run(t, r, spec); string(result.Stdout) != "sh\n" {
				t.Errorf("%s %s", result.Stdout, result.Stderr)
			}
		}
		for _, dir := range []string{"dev", "proc"} {
			if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) > 0 {
				t.Error(left, err)
			}
		}
	})
}

func TestRootNeedsRoot(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: run the test binary as one")
	}
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	if _, err := r.Run(context.Background(), Spec{Argv: sh("true"), Root: t.TempDir()}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if how := r.Confinement(); how != "none: the agent is not root" {
		t.Error(how)
	}
}
