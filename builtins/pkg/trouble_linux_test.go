package pkg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
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
	if !errors.Is(err, syscall.ENETUNREACH) || fault.Code(err) != "unreachable" || len(r.told) != 2 || r.told[1] != "not begun" || len(r.changes) > 0 {
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
	begun := time.Now()
	if _, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); err != nil {
		t.Fatal(err)
	}
	most := 2*time.Second + 2*time.Since(begun) // the lock is what takes all of it, also on a slow machine
	for _, name := range []string{"var/lib/dpkg/lock-frontend", "var/cache/apt/archives/lock"} {
		release := lock(t, filepath.Join(tr.dir, name))
		_, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Timeout: most.Seconds()})
		if fault.Code(err) != "busy" || len(r.changes) > 0 || len(r.told) != 2 || r.told[1] != "not begun" {
			t.Error(name, r, err)
		}
		// The caller's own time counts as well.
		ctx, cancel := context.WithTimeout(context.Background(), most+2*time.Second)
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
	_, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Refresh: true, Timeout: most.Seconds()})
	if fault.Code(err) != "busy" {
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

// A script of a package that fails may have done anything, and print anything: what it prints is neither taken for the
// manager's word, nor for a proof that nothing was begun, nor for a lock that is to be waited for.
func TestAptScriptsSayWhatTheyLike(t *testing.T) {
	tr := apt(t)
	says := func(text string) string {
		return "echo ran >> /etc/quantix-ran; echo '" + text + "' | tee /dev/stderr; exit 1"
	}
	texts := []string{
		"x: Could not connect to database", "x: Could not get lock /x", "Failed to connect to bus: No such file or directory",
		"E: Unable to locate package x", "E: Could not get lock /x", "no such package", "x: Temporary failure in name resolution",
	}
	for i, text := range texts {
		tr.deb(fmt.Sprintf("quantix-pre%d", i), "1.0", "", map[string]string{"preinst": says(text)})
		tr.deb(fmt.Sprintf("quantix-rm%d", i), "1.0", "", map[string]string{"prerm": says(text)})
	}
	tr.sh("apt-get -qq update")
	check := func(name, text string, changed bool, r *run, err error) {
		t.Helper()
		ran, _ := os.ReadFile(filepath.Join(tr.dir, "etc/quantix-ran"))
		if err == nil || changed || len(r.told) != 1 || !strings.HasSuffix(r.told[0], " "+name) || string(ran) != "ran\n" {
			t.Errorf("%s says %q: changed %v, told %q, the script has run %q: %v", name, text, changed, r.told, ran, err)
		}
		if fault.Code(err) != "command_failed" && !strings.HasPrefix(text, "E: ") || errors.Is(err, fault.ErrBusy) {
			t.Errorf("%s says %q, which is told as %v", name, text, err)
		}
		if !slices.ContainsFunc(r.changes, func(c string) bool { return strings.Contains(c, name) }) {
			t.Errorf("%s is not named in %q", name, r.changes)
		}
		os.Remove(filepath.Join(tr.dir, "etc/quantix-ran"))
	}
	for i, text := range texts {
		name := fmt.Sprintf("quantix-pre%d", i)
		changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{name}, Timeout: 30})
		check(name, text, changed, r, err)
		name = fmt.Sprintf("quantix-rm%d", i)
		tr.sh("dpkg -i /repo/%s_1.0.deb", name)
		changed, r, err = tr.remove(&pb.PackageRemoveArgs{Names: []string{name}, Timeout: 30})
		check(name, text, changed, r, err)
	}

	// So do hooks of apt, which run before dpkg.
	tr.write("etc/apt/apt.conf.d/98hook", `DPkg::Pre-Invoke { "echo ran > /etc/quantix-ran; echo Failed to connect to bus >&2; exit 1"; };`+"\n")
	changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}})
	check("quantix-tiny", "Failed to connect to bus", changed, r, err)
}

// What managers print before and after scripts of packages may have run, as they print it on the supported distributions.
func TestWhenScriptsMayHaveRun(t *testing.T) {
	for _, m := range managers() {
		said := map[string][2]string{
			"apt-get": {"Reading package lists...\nThe following NEW packages will be installed:\n  x\nE: Could not get lock /var/lib/dpkg/lock-frontend.", "Preparing to unpack .../x_1_all.deb ..."},
			"zypper":  {"Loading repository data...\nRetrieving: x-1-1.noarch (local) (1/1), 6.1 KiB\nChecking for file conflicts: [done]", "(1/1) Installing: x-1-1.noarch [..done]"},
			"dnf":     {"Downloading Packages:\nRunning transaction check\nTransaction check succeeded.\nRunning transaction test\nTransaction test succeeded.", "Running transaction\n  Preparing        : 1/1"},
			"apk":     {"fetch http://x/APKINDEX.tar.gz\nERROR: unable to select packages:", "(1/2) Installing x (1.0)"},
			"pacman":  {"resolving dependencies...\nchecking keyring...\nchecking package integrity...", ":: Processing package changes...\ninstalling x..."},
		}[m.name]
		before := &proc.Result{Code: 1, Stdout: []byte(said[0])}
		if acted, certain := m.acted(before); acted || !certain {
			t.Error(m.name, acted, certain)
		}
		for _, r := range []proc.Result{{Code: 1, Truncated: true}, {Signal: syscall.SIGKILL}, {TimedOut: true}} {
			r.Stdout = before.Stdout
			if acted, certain := m.acted(&r); acted || certain {
				t.Error(m.name, "cut short: ", acted, certain)
			}
		}
		after := &proc.Result{Code: 1, Stdout: []byte(said[0] + "\n" + said[1] + "\nFailed to connect to bus\n"), Stderr: []byte("x: Could not get lock /x\n")}
		acted, certain := m.acted(after)
		if err := m.judge(after, acted); !acted || !certain || fault.Code(err) != "command_failed" {
			t.Error(m.name, acted, certain, err)
		}
	}
}

// What keeps services from starting in a tree is taken away again, but not what a package has put in its place.
func TestAptPolicyOfAPackage(t *testing.T) {
	const own = "#!/bin/sh\nexit 0 # of the package\n"
	scripts := map[string]string{
		"replaced": "printf '%s' \"$text\" > /usr/sbin/new && chmod 755 /usr/sbin/new && mv /usr/sbin/new /usr/sbin/policy-rc.d",
		"written":  "printf '%s' \"$text\" > /usr/sbin/policy-rc.d",
		"longer":   "echo '# more' >> /usr/sbin/policy-rc.d",
		"same":     "cp -p /usr/sbin/policy-rc.d /usr/sbin/new && mv /usr/sbin/new /usr/sbin/policy-rc.d",
		"removed":  "rm /usr/sbin/policy-rc.d",
		"nothing":  ":",
	}
	tr := apt(t)
	for name, script := range scripts {
		tr.deb("quantix-"+name, "1.0", "", map[string]string{"postinst": "text='" + own + "'\n" + script})
	}
	tr.sh("apt-get -qq update")
	for name := range scripts {
		if changed, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-" + name}}); !changed || err != nil {
			t.Error(name, changed, err)
		}
		have, err := os.ReadFile(filepath.Join(tr.dir, policyFile))
		want := map[string]string{"replaced": own, "written": own, "longer": "#!/bin/sh\nexit 101\n# more\n", "same": "#!/bin/sh\nexit 101\n"}[name]
		if string(have) != want || (want == "") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q %v, want %q", name, have, err, want)
		}
		os.Remove(filepath.Join(tr.dir, policyFile))
	}
}
