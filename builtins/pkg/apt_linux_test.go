package pkg

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func want(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// Packages come, are brought up to date and go; dpkg says the same; what is so already starts nothing; what cannot be taken
// back is announced before, and told after.
func TestAptInstallsUpdatesAndRemoves(t *testing.T) {
	tr := apt(t)
	changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy"}, Refresh: true})
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED refreshed lists of apt-get ", "APPLIED installed quantix-needy 1.0", "APPLIED installed quantix-tiny 1.0"})
	want(t, "told", r.told, []string{"package.install refreshed lists of apt-get", "package.install installed quantix-needy"})
	if got := tr.sh("dpkg-query -W -f '${Status} ${Version}\n' quantix-needy quantix-tiny; cat /usr/share/quantix-tiny/file"); got !=
		"install ok installed 1.0\ninstall ok installed 1.0\n1.0" {
		t.Error(got)
	}
	if got := tr.version("quantix-tiny") + tr.version("quantix-none") + tr.version("quantix-virtual"); got != "1.0--" {
		t.Error(got)
	}

	before := tr.sh("stat -c %%Y.%%i /var/log/apt/history.log; cat /var/log/apt/history.log")
	for _, names := range [][]string{{"quantix-tiny"}, {"quantix-needy", "quantix-tiny=1.0"}, {"quantix-tiny:all"}, {"quantix-virtual"},
		{"quantix-tiny:" + tr.sh("dpkg --print-architecture")}} {
		if changed, r, err := tr.install(&pb.PackageInstallArgs{Names: names, Refresh: true}); changed || err != nil || len(r.told)+len(r.changes) > 0 {
			t.Error(names, changed, r, err)
		}
	}
	if changed, r, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-none", "quantix-virtual"}, Purge: true}); changed || err != nil || len(r.told) > 0 {
		t.Error(changed, r, err)
	}
	if after := tr.sh("stat -c %%Y.%%i /var/log/apt/history.log; cat /var/log/apt/history.log"); after != before {
		t.Error("what is so already has started apt:", after)
	}

	tr.deb("quantix-tiny", "2.0", "", nil)
	if changed, r, err := tr.update(&pb.PackageUpdateArgs{Names: []string{"quantix-tiny"}, Refresh: new(bool)}); changed || err != nil || len(r.told) > 0 {
		t.Error("a version that the lists do not have:", changed, r, err)
	}
	changed, r, err = tr.update(&pb.PackageUpdateArgs{Names: []string{"quantix-tiny"}})
	if err != nil || !changed || tr.version("quantix-tiny") != "2.0" {
		t.Error(changed, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED refreshed lists of apt-get ", "APPLIED updated quantix-tiny 1.0 -> 2.0"})
	if changed, r, err := tr.update(&pb.PackageUpdateArgs{}); changed || err != nil || len(r.changes) > 0 || !slices.Equal(r.told, []string{"package.update refreshed lists of apt-get", "not begun"}) {
		t.Error("nothing to update:", changed, r, err)
	}
	changed, r, err = tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny=1.0"}})
	if err != nil || !changed || tr.version("quantix-tiny") != "1.0" {
		t.Error("a version that is older:", changed, err)
	}
	want(t, "told", r.told, []string{"package.install installed quantix-tiny=1.0"})

	changed, r, err = tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}})
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	want(t, "changes", r.changes, []string{"APPLIED removed quantix-needy 1.0", "APPLIED removed quantix-tiny 1.0"})
	if got := tr.sh("test ! -e /usr/share/quantix-tiny/file && test ! -e /usr/sbin/policy-rc.d && echo gone"); got != "gone" {
		t.Error(got)
	}
	if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); changed || err != nil {
		t.Error(changed, err)
	}
	changed, _, err = tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-extra"}})
	if err != nil || !changed || tr.version("quantix-tiny") != "-" {
		t.Error("what is recommended came as well:", changed, err)
	}
}

// Configuration that was changed stays, and goes with purge alone.
func TestAptConfiguration(t *testing.T) {
	tr := apt(t)
	for _, version := range []string{"1", "2"} {
		tr.write("/repo/build/quantix-conf_"+version+"/etc/quantix.conf", "of version "+version+"\n")
		tr.write("/repo/build/quantix-conf_"+version+"/DEBIAN/conffiles", "/etc/quantix.conf\n")
		tr.deb("quantix-conf", version, "", nil)
		if version == "1" {
			if _, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-conf"}, Refresh: true}); err != nil {
				t.Fatal(err)
			}
			tr.write("etc/quantix.conf", "mine\n")
		}
	}
	if changed, _, err := tr.update(&pb.PackageUpdateArgs{}); !changed || err != nil || tr.sh("cat /etc/quantix.conf") != "mine" {
		t.Error(changed, err)
	}
	if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-conf"}}); !changed || err != nil {
		t.Error(changed, err)
	}
	if got := tr.sh("cat /etc/quantix.conf; dpkg-query -W -f '${db:Status-Status}' quantix-conf"); got != "mine\nconfig-files" || tr.version("quantix-conf") != "-" {
		t.Error(got)
	}
	if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-conf"}}); changed || err != nil {
		t.Error(changed, err)
	}
	if changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-conf"}, Purge: true}); !changed || err != nil ||
		tr.sh("test ! -e /etc/quantix.conf && echo gone") != "gone" {
		t.Error(changed, err)
	}
}

// A dry run tells what the real run does then, later calls see it, and nothing is changed.
func TestAptDryRun(t *testing.T) {
	tr := apt(t)
	tr.sh("apt-get -qq update")
	files := tr.sh("cat /var/lib/dpkg/status | sha256sum; find /var/lib/apt /var/lib/dpkg -newer /etc/apt/sources.list -type f | sort | xargs -r stat -c '%%n %%Y %%i'")
	dry := newDryRun(t, tr)
	changed, err := tr.room.install(t.Context(), dry.call, &pb.PackageInstallArgs{Names: []string{"quantix-needy"}})
	if err != nil || !changed.Changed {
		t.Fatal(changed, err)
	}
	has, err := tr.room.installed(t.Context(), dry.call, &pb.PackageArgs{Name: "quantix-tiny"})
	if err != nil || !has.Installed {
		t.Error("it is not pretended:", has, err)
	}
	if again, err := tr.room.install(t.Context(), dry.call, &pb.PackageInstallArgs{Names: []string{"quantix-tiny"}}); err != nil || again.Changed {
		t.Error(again, err)
	}
	if now := tr.sh("cat /var/lib/dpkg/status | sha256sum; find /var/lib/apt /var/lib/dpkg -newer /etc/apt/sources.list -type f | sort | xargs -r stat -c '%%n %%Y %%i'"); now != files {
		t.Errorf("a dry run has changed %s\nto %s", files, now)
	}
	foretold := slices.Sorted(slices.Values(dry.run.changes))
	_, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-needy"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.changes {
		r.changes[i] = strings.Replace(r.changes[i], "APPLIED", "WOULD", 1)
	}
	want(t, "foretold", foretold, r.changes)

	dry = newDryRun(t, tr)
	if changed, err := tr.room.remove(t.Context(), dry.call, &pb.PackageRemoveArgs{Names: []string{"quantix-tiny"}}); err != nil || !changed.Changed {
		t.Error(changed, err)
	}
	want(t, "removal", slices.Sorted(slices.Values(dry.run.changes)), []string{"WOULD removed quantix-needy 1.0", "WOULD removed quantix-tiny 1.0"})
	if has, err := tr.room.installed(t.Context(), dry.call, &pb.PackageArgs{Name: "quantix-needy"}); err != nil || has.Installed {
		t.Error(has, err)
	}

	dry = newDryRun(t, tr)
	_, err = tr.room.install(t.Context(), dry.call, &pb.PackageInstallArgs{Names: []string{"quantix-unknown"}})
	if !errors.Is(err, fs.ErrNotExist) || dry.call.DryRun.Ended != nil {
		t.Error(err)
	}
	// Where the lists would be other ones, nobody knows.
	_, err = tr.room.install(t.Context(), dry.call, &pb.PackageInstallArgs{Names: []string{"quantix-unknown"}, Refresh: true})
	if err == nil || dry.call.DryRun.Ended == nil || !slices.Equal(dry.run.changes, []string{"UNKNOWN installed quantix-unknown "}) {
		t.Error(err, dry.run.changes)
	}
}

// The running agent does not end itself: neither by name, nor where everything is brought up to date. In a tree it is a package
// like any other.
func TestTheAgentsOwnPackage(t *testing.T) {
	tr := apt(t)
	if tr.version(agentPackage) != "-" {
		t.Skip("needs a machine without the agent")
	}
	tr.deb(agentPackage, "1.0", "", nil)
	if changed, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{agentPackage}, Refresh: true}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	tr.deb(agentPackage, "2.0", "", nil)
	tr.sh("apt-get -qq update")
	tr.room.guest.Live = true // with a root directory of its own, for the test alone
	for _, try := range []func() (bool, *run, error){
		func() (bool, *run, error) { return tr.update(&pb.PackageUpdateArgs{Refresh: new(bool)}) },
		func() (bool, *run, error) { return tr.remove(&pb.PackageRemoveArgs{Names: []string{agentPackage}}) },
	} {
		if changed, r, err := try(); changed || !errors.Is(err, fault.ErrRefused) || len(r.told) > 0 || tr.version(agentPackage) != "1.0" {
			t.Error(changed, r, err)
		}
	}
}

// A name that another package provides is one of a package all the same, where there is one that has it.
func TestAptRealAndProvided(t *testing.T) {
	tr := apt(t)
	tr.deb("quantix-real", "1.0", "", nil)
	tr.deb("quantix-other", "1.0", "Provides: quantix-real, quantix-shared\n", nil)
	tr.deb("quantix-third", "1.0", "Provides: quantix-shared\n", nil)
	tr.sh("apt-get -qq update")
	if changed, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-other"}}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-shared"}}); changed || err != nil || len(r.told) > 0 {
		t.Error("a name of no package: ", changed, r, err)
	}
	for _, first := range []bool{true, false} {
		changed, r, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-real", "quantix-shared"}})
		if changed != first || err != nil || tr.version("quantix-real") != "1.0" {
			t.Error(changed, r, err)
		}
	}
	arch := tr.sh("dpkg --print-architecture")
	for _, first := range []bool{true, false} {
		changed, _, err := tr.install(&pb.PackageInstallArgs{Names: []string{"quantix-tiny:" + arch}})
		if changed != first || err != nil {
			t.Error(changed, err)
		}
	}
	for _, first := range []bool{true, false} {
		changed, _, err := tr.remove(&pb.PackageRemoveArgs{Names: []string{"quantix-tiny:" + arch}})
		if changed != first || err != nil || tr.version("quantix-tiny") != "-" {
			t.Error(changed, err)
		}
	}
}
