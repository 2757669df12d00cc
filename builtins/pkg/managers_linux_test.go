package pkg

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
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

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// others is a Debian tree with the package managers of other distributions, as Debian has them. It is made once and kept in the
// user's cache.
func others(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the test binary as root")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("needs a cache directory: ", err)
	}
	dir := filepath.Join(cache, "quantix-kvm-agent", "managers-bookworm-1")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("needs mmdebstrap, and Debian's archive, to make a tree with rpm, dnf, zypper and pacman")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	building, err := os.MkdirTemp(filepath.Dir(dir), "managers-building-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(building)
	made := filepath.Join(building, "tree")
	out, err := exec.Command("mmdebstrap", "--quiet", "--variant=apt", "--skip=output/dev",
		"--include=rpm,dnf,zypper,pacman-package-manager,createrepo-c", "bookworm", made).CombinedOutput()
	if err != nil {
		t.Skipf("needs Debian's archive: %v\n%s", err, out)
	}
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		t.Fatal(err)
	}
	return dir
}

// rpmTree is a tree of rpm packages, with a repository made for the test and no other.
func rpmTree(t testing.TB, manager string) *tree {
	t.Helper()
	tr := overlay(t, others(t))
	for _, gone := range []string{"var/lib/dpkg", "etc/yum.repos.d", "etc/zypp/repos.d"} {
		os.RemoveAll(filepath.Join(tr.dir, gone))
	}
	if manager == "dnf" {
		os.Remove(filepath.Join(tr.dir, "usr/bin/zypper"))
	}
	tr.write("etc/rpm/macros", "%_dbpath /var/lib/rpm\n") // as everywhere but in Debian
	tr.sh("mkdir -p /repo /var/lib/rpm && rpm --initdb")
	tr.write("etc/os-release", "ID=test\nVERSION_ID=1\n")
	tr.rpm("quantix-tiny", "1.0", "")
	tr.rpm("quantix-needy", "1.0", "Requires: quantix-tiny\nProvides: quantix-virtual\nProvides: quantix-shadow\n")
	tr.rpm("quantix-shadow", "1.0", "")
	repo := "[local]\nname=local\nbaseurl=file:///repo\nenabled=1\ngpgcheck=0\nautorefresh=0\ntype=rpm-md\n"
	tr.write("etc/yum.repos.d/local.repo", repo)
	tr.write("etc/zypp/repos.d/local.repo", repo)
	return tr
}

// rpm makes a package of rpm and lists it in the repository.
func (tr *tree) rpm(name, version, more string) {
	tr.Helper()
	tr.write("repo/"+name+".spec", fmt.Sprintf(
		"Name: %s\nVersion: %s\nRelease: 1\nSummary: made for a test\nLicense: none\nVendor: Testers\nBuildArch: noarch\n%s\n%%description\nx\n"+
			"%%install\nmkdir -p %%{buildroot}/usr/share/%s\necho %s > %%{buildroot}/usr/share/%s/file\n%%files\n/usr/share/%s/file\n",
		name, version, more, name, version, name, name))
	tr.sh("rpmbuild --quiet -bb --define '_rpmdir /repo' --define '_topdir /repo/build' /repo/%s.spec >/dev/null 2>&1; createrepo_c -q /repo >/dev/null", name)
}

// cycle is what each manager must do with the packages tiny and needy, which requires it. newer adds tiny 2.0 to what is
// available, and with shadow there is a package of a name that needy provides.
func (tr *tree) cycle(t *testing.T, release string, shadow bool, newer func()) {
	t.Helper()
	v := func(version string) string { return version + release }
	dry := newDryRun(t, tr)
	if changed, err := tr.room.install(t.Context(), dry.call, &pb.PackageInstallArgs{Names: []string{"quantix-needy"}}); err != nil || !changed.Changed {
		t.Fatal(changed, err)
	}
	want(t, "foretold", slices.Sorted(slices.Values(dry.run.changes)),
		[]string{"WOULD installed quantix-needy " + v("1.0"), "WOULD installed quantix-tiny " + v("1.0")})
	if tr.version("quantix-needy") != "-" {
		t.Fatal("a dry run has installed it")
	}
	changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy=" + v("1.0")}})
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED installed quantix-needy " + v("1.0"), "APPLIED installed quantix-tiny " + v("1.0")})
	want(t, "told", r.told, []string{"package.install installed quantix-needy=" + v("1.0")})
	if got := tr.sh("cat /usr/share/quantix-tiny/file"); got != "1.0" {
		t.Error(got)
	}
	for _, name := range []string{"quantix-tiny", "quantix-virtual", "quantix-tiny=" + v("1.0")} {
		if changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{name}}); changed || err != nil || len(r.told) > 0 {
			t.Error(name, changed, r, err)
		}
	}
	for _, name := range []string{"quantix-unknown", "quantix-tiny=9.9-9"} {
		changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{name}})
		if !errors.Is(err, fs.ErrNotExist) || changed || len(r.changes) > 0 || !slices.Contains(r.told, "not begun") {
			t.Error(name, changed, r, err)
		}
	}
	if shadow { // a package has a name that another provides
		if changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-shadow"}}); !changed || err != nil || tr.version("quantix-shadow") == "-" {
			t.Error(changed, r, err)
		}
		if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-shadow"}}); !changed || err != nil {
			t.Error(changed, err)
		}
	}
	newer()
	dry = newDryRun(t, tr)
	changed, r, err = tr.update(&pb.PackageUpdateArgs{Names: []string{"quantix-tiny"}})
	if err != nil || !changed || tr.version("quantix-tiny") != v("2.0") {
		t.Error(changed, tr.version("quantix-tiny"), err)
	}
	lists := "refreshed lists of " + managerOf(t, tr)
	want(t, "changes", r.changes, []string{"APPLIED " + lists + " ", "APPLIED updated quantix-tiny " + v("1.0") + " -> " + v("2.0")})
	if changed, r, err := tr.update(&pb.PackageUpdateArgs{}); changed || err != nil || len(r.told) == 0 || r.told[0] != "package.update "+lists {
		t.Error(changed, r, err)
	}
	if changed, err := tr.room.remove(t.Context(), dry.call, &pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); err != nil || !changed.Changed {
		t.Error(changed, err)
	}
	want(t, "removal", slices.Sorted(slices.Values(dry.run.changes)),
		[]string{"WOULD removed quantix-needy " + v("1.0"), "WOULD removed quantix-tiny " + v("2.0")})
	changed, r, err = tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}})
	if err != nil || !changed {
		t.Error(changed, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED removed quantix-needy " + v("1.0"), "APPLIED removed quantix-tiny " + v("2.0")})
	if got := tr.sh("test -e /usr/share/quantix-tiny/file || echo gone"); got != "gone" {
		t.Error(got)
	}
	if changed, r, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); changed || err != nil || len(r.told) > 0 {
		t.Error(changed, r, err)
	}
}

func managerOf(t *testing.T, tr *tree) string {
	t.Helper()
	m, err := tr.room.manager(&builtins.Call{})
	if err != nil {
		t.Fatal(err)
	}
	return m.name
}

func TestDNF(t *testing.T) {
	tr := rpmTree(t, "dnf")
	tr.cycle(t, "-1", true, func() { tr.rpm("quantix-tiny", "2.0", "") })
	tr.write("etc/yum.repos.d/local.repo", "[local]\nname=local\nbaseurl=http://127.0.0.1:9/\ngpgcheck=0\n")
	tr.sh("rm -rf /var/cache/dnf")
	if _, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Refresh: true}); fault.Code(err) != "unreachable" {
		t.Error(err)
	}
}

func TestZypper(t *testing.T) {
	tr := rpmTree(t, "zypper")
	tr.rpm("quantix-base", "1.0", "")
	tr.sh("rpm -i /repo/noarch/quantix-base-1.0-1.noarch.rpm") // it does not read a database without packages
	tr.sh("zypper --non-interactive refresh")
	tr.cycle(t, "-1", true, func() { tr.rpm("quantix-tiny", "2.0", "") })
}

// pacmanPackage makes a package of pacman, and lists it in the repository of the tree. The programs of pacman that do this are
// not in Debian; the formats are those of PKGINFO(5) and of a repository's database.
func (tr *tree) pacmanPackage(name, version string, more ...string) {
	tr.Helper()
	info := fmt.Sprintf("pkgname = %s\npkgbase = %s\npkgver = %s\npkgdesc = made for a test\npackager = Tester\narch = any\nsize = 4\n", name, name, version)
	desc := fmt.Sprintf("%%NAME%%\n%s\n\n%%VERSION%%\n%s\n\n%%ARCH%%\nany\n\n%%FILENAME%%\n%s-%s-any.pkg.tar.gz\n\n", name, version, name, version)
	for _, line := range more {
		key, value, _ := strings.Cut(line, "=")
		info += key + " = " + value + "\n"
		desc += "%" + map[string]string{"depend": "DEPENDS", "provides": "PROVIDES"}[key] + "%\n" + value + "\n\n"
	}
	content, _, _ := strings.Cut(version, "-")
	pack := archive(tr, map[string]string{".PKGINFO": info, "usr/share/" + name + "/file": content + "\n"})
	desc += fmt.Sprintf("%%CSIZE%%\n%d\n\n%%ISIZE%%\n4\n\n", len(pack))
	tr.write("repo/"+name+"-"+version+"-any.pkg.tar.gz", string(pack))
	old, _ := filepath.Glob(filepath.Join(tr.dir, "repo/db", name+"-*"))
	for _, path := range old {
		os.RemoveAll(path)
	}
	tr.write("repo/db/"+name+"-"+version+"/desc", desc)
	// pacman takes a database of the same second for the one that it has.
	tr.sh("cd /repo/db && tar -czf /repo/test.db * && touch -d \"+$(ls /repo | wc -l) minutes\" /repo/test.db")
}

func archive(t testing.TB, files map[string]string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	names := []string{}
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))})
		if _, e := w.Write([]byte(files[name])); err != nil || e != nil {
			t.Fatal(err, e)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPacman(t *testing.T) {
	tr := overlay(t, others(t))
	os.RemoveAll(filepath.Join(tr.dir, "var/lib/dpkg"))
	tr.write("etc/pacman.conf", "[options]\nArchitecture = auto\nSigLevel = Never\nHookDir = /none\n[test]\nServer = file:///repo\n")
	tr.sh("mkdir -p /var/lib/pacman/local /var/cache/pacman/pkg")
	tr.pacmanPackage("quantix-tiny", "1.0-1")
	tr.pacmanPackage("quantix-needy", "1.0-1", "depend=quantix-tiny", "provides=quantix-virtual")
	tr.sh("pacman -Sy >/dev/null")
	tr.cycle(t, "-1", false, func() { tr.pacmanPackage("quantix-tiny", "2.0-1") })
	tr.write("var/lib/pacman/db.lck", "")
	if _, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny"}, Timeout: 2}); fault.Code(err) != "busy" || len(r.changes) > 0 {
		t.Error(r, err)
	}
}
