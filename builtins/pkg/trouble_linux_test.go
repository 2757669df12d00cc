package pkg

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What goes wrong is told apart by its code, and where nothing was done the journal is told so.
func TestAptTrouble(t *testing.T) {
	tr := apt(t)
	tr.sh("apt-get -qq update")

	// A name that is not there, also one that apt would take for a pattern, a request to remove, or a version.
	for _, name := range []string{"quantix-unknown", "quantix.tiny", "quantix-tiny+", "quantix-tiny=9.9", "quantix-virtual2"} {
		changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{name}})
		var told *fault.Error
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &told) || told.Hint == "" || changed || len(r.told)+len(r.changes) > 0 {
			t.Error(name, changed, r, err)
		}
	}
	if _, _, err := tr.update(&pb.PackageUpdateArgs{Names: []string{"quantix-unknown"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}

	// A package that cannot be set up: what did change is told, and it is not installed.
	changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-broken", "quantix-tiny"}})
	if fault.Code(err) != "command_failed" || changed || len(r.told) != 1 || tr.version("quantix-broken") != "-" {
		t.Error(changed, r, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED installed quantix-tiny 1.0", "APPLIED left half-configured quantix-broken "})
	if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-broken"}}); err != nil || !changed ||
		tr.sh("dpkg-query -W -f '${db:Status-Status}' quantix-broken || true") == "half-configured" {
		t.Error(changed, err)
	}

	// Nobody answers where packages come from.
	tr.write("etc/apt/sources.list", "deb [trusted=yes] http://127.0.0.1:9/ ./\n")
	_, r, err = tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy"}, Refresh: true})
	if !errors.Is(err, syscall.ENETUNREACH) || fault.Code(err) != "unreachable" || len(r.told) > 0 {
		t.Error(r, err)
	}
	tr.write("etc/apt/sources.list", "deb [trusted=yes] file:/repo ./\n")

	// The journal cannot take the announcement: nothing is installed.
	j := &journal{err: fault.ErrBusy}
	call, _ := tr.call(j)
	if _, err := tr.room.install(t.Context(), call, &pb.PackageInstallArgs{Names: []string{"quantix-needy"}}); !errors.Is(err, fault.ErrBusy) ||
		tr.version("quantix-needy") != "-" || len(j.told) != 1 {
		t.Error(err, j.told)
	}

	// The directories of packages are read-only.
	dpkg := filepath.Join(tr.dir, "var/lib/dpkg")
	if err := errors.Join(unix.Mount(dpkg, dpkg, "", unix.MS_BIND, ""), unix.Mount("", dpkg, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	_, _, err = tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy"}})
	if !errors.Is(err, syscall.EROFS) {
		t.Error(err)
	}
	if err := unix.Unmount(dpkg, 0); err != nil {
		t.Fatal(err)
	}

	// A dpkg that was interrupted is not mended behind anybody's back.
	tr.write("var/lib/dpkg/updates/0001", "Package: quantix-tiny\nStatus: install ok half-configured\nVersion: 1.0\nArchitecture: all\nMaintainer: x\nDescription: x\n\n")
	if got := tr.version("quantix-tiny"); got != "-" {
		t.Errorf("a package whose newest state is half-configured has the version %s", got)
	}
	_, _, err = tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy"}})
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(fault.Detail(err).Details["hint"], "dpkg --configure -a") {
		t.Error(err, fault.Detail(err))
	}
}

// A file system that is full.
func TestAptNoSpace(t *testing.T) {
	tr := apt(t)
	small := filepath.Join(tr.dir, "usr/share/quantix-full")
	if err := errors.Join(os.MkdirAll(small, 0o755), unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	tr.write("/repo/build/quantix-full_1.0/usr/share/quantix-full/large", strings.Repeat("x", 1<<20))
	tr.deb("quantix-full", "1.0", "", nil)
	tr.sh("apt-get -qq update")
	changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-full"}})
	if !errors.Is(err, syscall.ENOSPC) || fault.Code(err) != "no_space" || changed || tr.version("quantix-full") != "-" || len(r.told) != 1 {
		t.Error(changed, r, err)
	}
}

// lock holds a lock of dpkg or apt as another program does, by fcntl, until release.
func lock(t *testing.T, path string) (release func()) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3, which holds a lock")
	}
	c := exec.Command("python3", "-c", "import fcntl,sys\nf=open(sys.argv[1],'a')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()", path)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	released := false
	release = func() {
		if !released {
			released = true
			stdin.Close()
			c.Wait()
		}
	}
	t.Cleanup(release)
	return release
}

// A lock that another program holds is waited for, within the timeout; after that it is an error that says so.
func TestAptLocks(t *testing.T) {
	tr := apt(t)
	tr.sh("apt-get -qq update")
	for _, name := range []string{"var/lib/dpkg/lock-frontend", "var/cache/apt/archives/lock"} {
		release := lock(t, filepath.Join(tr.dir, name))
		_, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Timeout: 2})
		if fault.Code(err) != "busy" || len(r.changes) > 0 || len(r.told) != 2 || r.told[1] != "not begun" {
			t.Error(name, r, err)
		}
		// The caller's own time counts as well.
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		call, _ := tr.call(&journal{})
		_, err = tr.room.install(ctx, call, &pb.PackageInstallArgs{Names: []string{"quantix-tiny"}})
		if fault.Code(err) != "busy" || ctx.Err() != nil {
			t.Error(name, err)
		}
		cancel()
		time.AfterFunc(1500*time.Millisecond, release)
		changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Timeout: 60})
		if err != nil || !changed || len(r.told) != 1 {
			t.Error(name, changed, r, err)
		}
		release()
		if _, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); err != nil {
			t.Fatal(err)
		}
	}
	release := lock(t, filepath.Join(tr.dir, "var/lib/apt/lists/lock"))
	if _, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Refresh: true, Timeout: 2}); fault.Code(err) != "busy" {
		t.Error(err)
	}
	release()
}

// Nothing that is no name reaches a program.
func TestNamesThatAreNone(t *testing.T) {
	r := &Room{}
	bad := []string{
		"", "-h", "--help", "a\nb", "a b", "/etc/passwd", "./x", "../x", "a/b", "a;b", "$(x)", "*", "a*", "a?", "[a]", "a-", "@group",
		"a:", "a:B", "a\x00", strings.Repeat("x", 4096), "a=", "a=-1", "a=1 2", "a=1\n", "a=" + strings.Repeat("1", 4096), "ä", "a=b=c",
	}
	for _, name := range bad {
		_, err := r.install(t.Context(), &builtins.Call{}, &pb.PackageInstallArgs{Names: []string{"fine", name}})
		if !errors.Is(err, fs.ErrInvalid) || len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	for _, names := range [][]string{nil, {"a=1"}, {"a", "-b"}} {
		if _, err := r.remove(t.Context(), &builtins.Call{}, &pb.PackageRemoveArgs{Names: names}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", names, err)
		}
	}
	if _, err := r.update(t.Context(), &builtins.Call{}, &pb.PackageUpdateArgs{Names: []string{"a=1"}}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.installed(t.Context(), &builtins.Call{}, &pb.PackageArgs{Name: "a=1"}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.install(t.Context(), &builtins.Call{}, &pb.PackageInstallArgs{Names: []string{"a=1", "a=2"}}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.install(t.Context(), &builtins.Call{}, &pb.PackageInstallArgs{Names: make([]string, maxNames+1)}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	for _, name := range []string{"a", "g++", "libstdc++6", "libc6:i386", "python3.11", "glibc.x86_64", "Xaw3d", "7zip", "foo_bar@1"} {
		if _, err := parse([]string{name, name + "2=1:2.0~rc1+b2-3^4"}, true); err != nil {
			t.Error(err)
		}
	}
}

// A tree without a package manager says so.
func TestNoManager(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: run the test binary as root")
	}
	tr := &tree{TB: t, dir: t.TempDir()}
	tr.open()
	_, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"x"}})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	// The database is there, and the program, which cannot be run: of another system.
	tr.write("var/lib/dpkg/status", "Package: y\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n")
	tr.write("usr/bin/apt-get", "\x7fELF of another processor")
	if err := os.Chmod(filepath.Join(tr.dir, "usr/bin/apt-get"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := tr.version("y"); got != "1" {
		t.Errorf("the version is %s", got)
	}
	if changed, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"y"}}); changed || err != nil {
		t.Error(changed, err)
	}
	_, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"x"}})
	if !errors.Is(err, errors.ErrUnsupported) || len(r.told) > 0 {
		t.Error(r, err)
	}
	tr.write("var/lib/dpkg/status", "no status\nat all\n")
	if _, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"y"}}); !errors.Is(err, fault.ErrCorrupt) {
		t.Error(err)
	}
}
