package packages

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// reader is one of a directory, which write fills.
func reader(t testing.TB, files map[string]string) (*Reader, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, dir, name, content)
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return &Reader{Files: root}, dir
}

func write(t testing.TB, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, r *Reader, kind string) (list []Package, warnings []string) {
	t.Helper()
	list, warnings, err := r.Read(t.Context(), kind)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.Name+a.Arch, b.Name+b.Arch) })
	return list, warnings
}

// On this machine the list is that of dpkg-query, with the same states, sizes and maintainers.
func TestDpkgAgainstItsOwnQuery(t *testing.T) {
	out, err := exec.Command("dpkg-query", "-W", "-f", `${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\t${Installed-Size}\t${Maintainer}\n`).Output()
	if err != nil {
		t.Skip("needs a Debian machine: ", err)
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	list, warnings := read(t, &Reader{Files: root}, Deb)
	var got []string
	for _, p := range list {
		state := p.State
		got = append(got, fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s", p.Name, p.Version, p.Arch, state, p.Size>>10, p.Publisher))
		if p.State == StateInstalled && (p.Installed.IsZero() || p.Installed.After(time.Now())) {
			t.Errorf("%s was installed at %v", p.Name, p.Installed)
		}
	}
	var want []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if fields[4] == "" {
			fields[4] = "0"
		}
		want = append(want, strings.Join(fields, "\t"))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(got) < 50 || len(warnings) > 0 {
		t.Errorf("%d packages, and dpkg-query has %d; %q", len(got), len(want), warnings)
	}
}

const status = `Package: fine
Status: install ok installed
Installed-Size: 3
Maintainer: Somebody <s@example.org>
Architecture: amd64
Version: 1:2.0-1
Provides: other (= 2), another
Description: what it is
 and more of that
 Package: not this

Package: fine
Status: install ok installed
Architecture: i386
Version: 1:2.0-1

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: waiting
Status: install ok triggers-pending
Architecture: all
Version: 1

Package: half
Status: install ok half-configured
Architecture: all
Version: 1
`

// States are told apart, continued lines are none of fields, and what a dpkg has not merged yet counts.
func TestDpkgStates(t *testing.T) {
	r, dir := reader(t, map[string]string{
		"var/lib/dpkg/status": status, "var/lib/dpkg/info/fine:i386.list": "", "var/lib/dpkg/info/half.list": "",
	})
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "var/lib/dpkg/info/fine:i386.list"), at, at); err != nil {
		t.Fatal(err)
	}
	list, warnings := read(t, r, Deb)
	var got []string
	for _, p := range list {
		got = append(got, p.Name+" "+p.Arch+" "+p.Version+" "+p.State)
	}
	want := []string{"fine amd64 1:2.0-1 installed", "fine i386 1:2.0-1 installed", "half all 1 half-configured", "removed all 1 config-files", "waiting all 1 installed"}
	if !slices.Equal(got, want) || len(warnings) > 0 {
		t.Errorf("%q %q", got, warnings)
	}
	if p := list[0]; p.Size != 3<<10 || p.Publisher != "Somebody <s@example.org>" || p.Summary != "what it is" || !slices.Equal(p.Provides, []string{"other", "another"}) {
		t.Errorf("%+v", p)
	}
	if !list[1].Installed.Equal(at) {
		t.Error(list[1].Installed)
	}
	write(t, dir, "var/lib/dpkg/updates/0001", "Package: half\nStatus: install ok unpacked\nArchitecture: all\nVersion: 2\n")
	write(t, dir, "var/lib/dpkg/updates/0002", "Package: half\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n")
	write(t, dir, "var/lib/dpkg/updates/tmp.i", "Package: half\nStatus: install ok half-installed\nArchitecture: all\nVersion: 3\n")
	if list, _ = read(t, r, Deb); list[2].State != StateInstalled || list[2].Version != "2" {
		t.Errorf("%+v", list[2])
	}
}

// A damaged status is an error where nothing of it makes sense, and a warning where something does.
func TestDamagedDatabases(t *testing.T) {
	for _, c := range []struct{ kind, path, content string }{
		{Deb, "var/lib/dpkg/status", "\x00\x01\xff\xfe"},
		{Deb, "var/lib/dpkg/status", strings.Repeat("x", 1<<20)},
		{Deb, "var/lib/dpkg/status", "Package: a\nVersion: 1\n"},
		{APK, "lib/apk/db/installed", "garbage\n\nmore\n"},
	} {
		r, _ := reader(t, map[string]string{c.path: c.content})
		if _, _, err := r.Read(t.Context(), c.kind); !errors.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%.20q: %v", c.content, err)
		}
	}
	r, _ := reader(t, map[string]string{"var/lib/dpkg/status": status + "\nPackage: torn\nStatus: install ok inst"})
	torn, _ := read(t, r, Deb)
	if at := slices.IndexFunc(torn, func(p Package) bool { return p.Name == "torn" }); len(torn) != 6 || torn[at].State == StateInstalled {
		t.Errorf("%+v", torn)
	}
	r, _ = reader(t, map[string]string{"var/lib/dpkg/status": status + "\nthis is no field\n"})
	if list, warnings := read(t, r, Deb); len(list) != 5 || len(warnings) != 1 || !strings.Contains(warnings[0], "1 entries") {
		t.Error(len(list), warnings)
	}
	r, _ = reader(t, map[string]string{"var/lib/dpkg/status": "Package: a\xff\x1b\nVersion: " + strings.Repeat("9", 1<<17) + "\nStatus: install ok installed\n"})
	list, _ := read(t, r, Deb)
	if len(list) != 1 || !utf8.ValidString(list[0].Name) || len(list[0].Version) > maxField {
		t.Errorf("%+v", list)
	}
}

// 40,000 packages are read, and a call that ends stops reading.
func TestManyPackages(t *testing.T) {
	var b strings.Builder
	for i := range 40000 {
		fmt.Fprintf(&b, "Package: package-%d\nStatus: install ok installed\nArchitecture: all\nVersion: 1.%d\nDescription: one of many\n\n", i, i)
	}
	r, _ := reader(t, map[string]string{"var/lib/dpkg/status": b.String()})
	if list, _ := read(t, r, Deb); len(list) != 40000 {
		t.Error(len(list))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := r.Read(ctx, Deb); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Alpine's database, written by hand as apk-tools documents it.
func TestAPK(t *testing.T) {
	const installed = "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nS:407278\nI:667648\nT:the musl c library (libc) implementation\nU:https://musl.libc.org/\nL:MIT\n" +
		"o:musl\nm:Timo <t@example.org>\nt:1712000000\nc:abc\np:so:libc.musl-x86_64.so.1=1 libc=1\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\nZ:Q1y=\n\n" +
		"P:busybox\nV:1.36.1-r15\nA:x86_64\nI:1000\n\n"
	for _, path := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		r, _ := reader(t, map[string]string{path: installed})
		list, warnings := read(t, r, APK)
		if len(list) != 2 || len(warnings) > 0 || !slices.Equal(r.Known(), []string{APK}) {
			t.Fatal(list, warnings)
		}
		if p := list[1]; p.Name != "musl" || p.Version != "1.2.5-r0" || p.Arch != "x86_64" || p.Size != 667648 || p.Publisher != "Timo <t@example.org>" ||
			p.State != StateInstalled || !p.Installed.IsZero() || !slices.Contains(p.Provides, "libc") {
			t.Errorf("%+v", p)
		}
	}
}

// Pacman's, which the tests of the package room have written by pacman itself as well.
func TestPacman(t *testing.T) {
	r, _ := reader(t, map[string]string{
		"var/lib/pacman/local/ALPM_DB_VERSION":   "9\n",
		"var/lib/pacman/local/bash-5.2-1/desc":   "%NAME%\nbash\n\n%VERSION%\n5.2-1\n\n%ARCH%\nx86_64\n\n%DESC%\nThe shell\n\n%INSTALLDATE%\n1700000000\n\n%PACKAGER%\nSomebody\n\n%SIZE%\n9000\n\n%PROVIDES%\nsh\n\n%NAMES%\nno\n",
		"var/lib/pacman/local/broken-1-1/desc":   "%NAME%\n",
		"var/lib/pacman/local/nothing-1-1/files": "",
	})
	list, warnings := read(t, r, Pacman)
	if len(list) != 1 || len(warnings) != 2 {
		t.Fatal(list, warnings)
	}
	if p := list[0]; p.Name != "bash" || p.Version != "5.2-1" || p.Size != 9000 || p.Installed.Unix() != 1700000000 || p.Publisher != "Somebody" || p.Provides[0] != "sh" {
		t.Errorf("%+v", p)
	}
}

// rpm is asked; what it prints may be anything. The tests of the package room have it itself.
func TestRPM(t *testing.T) {
	r, _ := reader(t, map[string]string{"usr/lib/sysimage/rpm/rpmdb.sqlite": ""})
	if _, _, err := r.Read(t.Context(), RPM); !errors.Is(err, errors.ErrUnsupported) || !slices.Equal(r.Known(), []string{RPM}) {
		t.Error(err)
	}
	r.Query = func(_ context.Context, argv ...string) ([]byte, error) {
		return []byte("bash\t5.2-1\tx86_64\t900\t1700000000\t(none)\tThe shell\ngpg-pubkey\t1\t(none)\t0\t1\t(none)\tkey\nhalf\t1\n"), nil
	}
	list, warnings := read(t, r, RPM)
	if len(list) != 1 || len(warnings) != 1 || list[0].Publisher != "" || list[0].Size != 900 || list[0].Installed.Unix() != 1700000000 {
		t.Error(list, warnings)
	}
}

// flatpak's and snapd's directories, written by hand as their sources describe them.
func TestFlatpakAndSnap(t *testing.T) {
	deploy := []byte("flathub\x00commit\x00")
	ends := []byte{8, 15, 15}
	for len(deploy)%8 != 0 {
		deploy = append(deploy, 0)
	}
	deploy = binary.BigEndian.AppendUint64(deploy, 123456)
	deploy = append(deploy, ends[2], ends[1], ends[0])
	app := "var/lib/flatpak/app/org.example.App/x86_64/stable/0123"
	r, dir := reader(t, map[string]string{
		app + "/deploy": string(deploy),
		app + "/files/share/metainfo/org.example.App.metainfo.xml": `<component><summary xml:lang="de">Eins</summary><developer><name>Makers</name></developer>` +
			`<releases><release version="3.1"/><release version="3.0"/></releases></component>`,
		"var/lib/flatpak/runtime/org.example.Platform/x86_64/23.08/4567/deploy": "x",
		"var/lib/snapd/snaps/hello_42.snap":                                     "12345",
		"snap/hello/42/meta/snap.yaml":                                          "name: hello\nversion: '2.10'\nsummary: says it\napps:\n  version: no\n",
		"snap/README":                                                           "",
	})
	for link, to := range map[string]string{
		"var/lib/flatpak/app/org.example.App/x86_64/stable/active":         "0123",
		"var/lib/flatpak/app/org.example.App/current":                      "x86_64/stable",
		"var/lib/flatpak/runtime/org.example.Platform/x86_64/23.08/active": "4567",
		"snap/hello/current": "42",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Known(); !slices.Equal(got, []string{Flatpak, Snap}) {
		t.Fatal(got)
	}
	list, warnings := read(t, r, Flatpak)
	if len(list) != 2 || len(warnings) > 0 {
		t.Fatal(list, warnings)
	}
	if p := list[0]; p.Name != "org.example.App" || p.Version != "3.1" || p.Arch != "x86_64" || p.Size != 123456 || p.Publisher != "Makers" || p.Installed.IsZero() {
		t.Errorf("%+v", p)
	}
	if p := list[1]; p.Name != "org.example.Platform" || p.Version != "23.08" || p.Size != 0 {
		t.Errorf("%+v", p)
	}
	list, warnings = read(t, r, Snap)
	if len(list) != 1 || len(warnings) > 0 || list[0].Version != "2.10" || list[0].Size != 5 || list[0].Summary != "says it" {
		t.Error(list, warnings)
	}
}

// FuzzStanzas: whatever stands in a database, what is read can be sent.
func FuzzStanzas(f *testing.F) {
	f.Add(status)
	f.Add("Package:\x00\n\n \n: \n")
	f.Fuzz(func(t *testing.T, content string) {
		err := parseStanzas(context.Background(), strings.NewReader(content), func(s *stanza) error {
			out := &result{}
			if err := out.add(s.toPackage(nil)); err != nil {
				return err
			}
			for _, field := range []string{out.list[0].Name, out.list[0].Version, out.list[0].Publisher} {
				if !utf8.ValidString(field) || len(field) > maxField {
					t.Errorf("%q", field)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
