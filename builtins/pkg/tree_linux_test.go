package pkg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const ownMounts = "QUANTIX_TEST_MOUNTS"

// TestMain runs the tests as root in a mount namespace of their own, so that no mount outlives them.
func TestMain(m *testing.M) {
	if proc.ChildMain() {
		return
	}
	if os.Getuid() != 0 || os.Getenv(ownMounts) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), ownMounts+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(c.ProcessState.ExitCode())
}

// tree is a system below a directory, and the room for it.
type tree struct {
	testing.TB
	dir  string
	room *Room
}

// overlay is a tree that is what lower is, and can be written to without a trace in that.
func overlay(t testing.TB, lower string) *tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the test binary as root")
	}
	base := t.TempDir()
	// A file system of its own: an overlay cannot be on another overlay, which / may be.
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "tree")
	for _, name := range []string{"upper", "work", "tree"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		unix.Unmount(base, unix.MNT_DETACH)
	})
	options := "lowerdir=" + lower + ",upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		t.Skipf("needs overlayfs: %v", err)
	}
	for _, name := range []string{"dev", "tmp"} { // /dev/null and random numbers, and what a bare machine has
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("/dev", filepath.Join(dir, "dev"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "dev"), unix.MNT_DETACH) })
	tr := &tree{TB: t, dir: dir}
	tr.open()
	return tr
}

func (tr *tree) open() {
	files, err := fsys.Open(tr.dir)
	if err != nil {
		tr.Fatal(err)
	}
	runner := proc.New(proc.Config{Name: fmt.Sprintf("test%d", os.Getpid()), Reexec: true, Cgroup: "none", JobCgroup: "none"})
	tr.room = New(&guest.Guest{Files: files, Dir: tr.dir, Runner: runner})
	tr.Cleanup(func() {
		if err := errors.Join(runner.Release(), files.Close()); err != nil {
			tr.Error(err)
		}
	})
}

// sh runs a line of shell in the tree.
func (tr *tree) sh(line string, args ...any) string {
	tr.Helper()
	c := exec.Command("chroot", tr.dir, "/bin/sh", "-ec", fmt.Sprintf(line, args...))
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root"}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		tr.Fatalf("%s: %v\n%s%s", line, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func (tr *tree) write(name, content string) {
	tr.Helper()
	path := filepath.Join(tr.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tr.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tr.Fatal(err)
	}
}

// journal notes what it is told, and sees that the packages are not touched before.
type journal struct {
	builtins.Tx
	told  []string
	check func()
	err   error
}

func (j *journal) Irreversible(_ context.Context, change *pb.Change) error {
	if j.check != nil {
		j.check()
	}
	j.told = append(j.told, change.Op+" "+change.Action+" "+change.Target)
	return j.err
}

func (*journal) HeldNames(fsys.Meta) uint32                { return 0 }
func (*journal) Kept(path string) (builtins.Touched, bool) { return txtest.Kept("/", path) }

func (j *journal) NotBegun() { j.told = append(j.told, "not begun") }

func (j *journal) Before(context.Context, ...string) error { return nil }

// run is one call, and what it told.
type run struct {
	changes []string
	told    []string
}

func (tr *tree) call(j *journal) (*builtins.Call, *run) {
	r := &run{}
	return &builtins.Call{Tx: j, Changed: func(c *pb.Change) {
		r.changes = append(r.changes, strings.TrimPrefix(c.State.String(), "CHANGE_STATE_")+" "+c.Action+" "+c.Target+" "+c.Diff)
		if c.Reversible {
			tr.Errorf("%v is said to be reversible", c)
		}
	}}, r
}

func (tr *tree) install(in *pb.PackageInstallArgs) (bool, *run, error) {
	j := &journal{}
	call, r := tr.call(j)
	out, err := tr.room.install(context.Background(), call, in)
	r.told = j.told
	return out.GetChanged(), r, err
}

func (tr *tree) remove(in *pb.PackageRemoveArgs) (bool, *run, error) {
	j := &journal{}
	call, r := tr.call(j)
	out, err := tr.room.remove(context.Background(), call, in)
	r.told = j.told
	return out.GetChanged(), r, err
}

func (tr *tree) update(in *pb.PackageUpdateArgs) (bool, *run, error) {
	j := &journal{}
	call, r := tr.call(j)
	out, err := tr.room.update(context.Background(), call, in)
	r.told = j.told
	return out.GetChanged(), r, err
}

// version is that of an installed package; "-" where it is not.
func (tr *tree) version(name string) string {
	tr.Helper()
	out, err := tr.room.version(context.Background(), &builtins.Call{}, &pb.PackageArgs{Name: name})
	if err != nil {
		tr.Fatal(err)
	}
	if out.Version == nil {
		return "-"
	}
	return *out.Version
}

// deb makes a package of dpkg in the repository of the tree, and lists it there.
func (tr *tree) deb(name, version, control string, scripts map[string]string) {
	tr.Helper()
	dir := fmt.Sprintf("/repo/build/%s_%s", name, version)
	tr.write(dir+"/DEBIAN/control", fmt.Sprintf(
		"Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Tester <t@example.org>\nDescription: made for a test\n%s", name, version, control))
	for script, content := range scripts {
		tr.write(dir+"/DEBIAN/"+script, "#!/bin/sh\n"+content+"\n")
		tr.sh("chmod 755 %s/DEBIAN/%s", dir, script)
	}
	tr.write(dir+"/usr/share/"+name+"/file", version+"\n")
	file := fmt.Sprintf("%s_%s.deb", name, version)
	tr.sh("dpkg-deb -b --root-owner-group %s /repo/%s", dir, file)
	content, err := os.ReadFile(filepath.Join(tr.dir, "repo", file))
	if err != nil {
		tr.Fatal(err)
	}
	list := filepath.Join(tr.dir, "repo/Packages")
	have, _ := os.ReadFile(list)
	have = append(have, fmt.Sprintf("%s\nFilename: ./%s\nSize: %d\nSHA256: %x\n\n",
		tr.sh("dpkg-deb -f /repo/%s", file), file, len(content), sha256.Sum256(content))...)
	if err := os.WriteFile(list, have, 0o644); err != nil {
		tr.Fatal(err)
	}
}

// apt is this machine's own system, with a repository of packages made for the test and no other.
func apt(t testing.TB) *tree {
	t.Helper()
	if _, err := os.Stat("/usr/bin/apt-get"); err != nil {
		t.Skip("needs a Debian machine")
	}
	tr := overlay(t, "/")
	os.RemoveAll(filepath.Join(tr.dir, "etc/apt/sources.list.d"))
	os.RemoveAll(filepath.Join(tr.dir, "var/lib/apt/lists"))
	os.Remove(filepath.Join(tr.dir, "usr/sbin/policy-rc.d"))
	tr.write("etc/apt/sources.list", "deb [trusted=yes] file:/repo ./\n")
	tr.write("etc/apt/apt.conf.d/99test", `APT::Sandbox::User "root";`+"\n")
	tr.sh("mkdir -p /var/lib/apt/lists/partial")
	tr.deb("quantix-tiny", "1.0", "", nil)
	tr.deb("quantix-needy", "1.0", "Depends: quantix-tiny\nProvides: quantix-virtual\n", nil)
	tr.deb("quantix-extra", "1.0", "Recommends: quantix-tiny\n", nil)
	tr.deb("quantix-broken", "1.0", "", map[string]string{"postinst": "echo cannot be set up >&2; exit 1"})
	return tr
}

// dryRun is a call in a dry run of the tree.
type dryRun struct {
	call *builtins.Call
	run  *run
}

func newDryRun(t testing.TB, tr *tree) *dryRun {
	t.Helper()
	files, err := tr.room.guest.Files.Overlay(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	call, r := tr.call(nil)
	call.Tx, call.DryRun = nil, &builtins.DryRun{Files: files}
	return &dryRun{call, r}
}
