package pkg

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What simulations print, where the manager itself is not at hand, or prints it rarely. apk's lines are written by hand, as
// apk-tools 2.14 prints them.
func TestPlans(t *testing.T) {
	for _, c := range []struct {
		name string
		plan func(string) []step
		out  string
		want []string
	}{
		{"apk", apkPlan, "fetch http://x\n(1/5) Installing libfoo (1.2-r0)\n( 2/5) Upgrading foo (1.0-r0 -> 1.1-r3)\n(3/5) Purging old (3)\n" +
			"(4/5) Downgrading bar (2 -> 1)\n(5/5) Reinstalling same (1)\nOK: 9 MiB in 17 packages\n",
			[]string{"libfoo >1.2-r0", "foo 1.0-r0>1.1-r3", "old 3>", "bar 2>1"}},
		{"apt", aptPlan, "NOTE: This is only a simulation!\nInst libc6:i386 (2.36-9 Debian:12.5/stable [i386]) [foo:amd64 ]\n" +
			"Inst foo [1.0] (2.0 Debian:12.5/stable, Other:1 [amd64]) []\nRemv bar [1:3] [baz:amd64 ]\nPurg qux [2]\nConf foo (2.0 Debian [amd64])\n",
			[]string{"libc6 >2.36-9", "foo 1.0>2.0", "bar 1:3>", "qux 2>"}},
		{"dnf", dnfPlan, "Dependencies resolved.\n=====\n Package  Arch  Version  Repository  Size\n=====\nInstalling:\n" +
			" a-package-with-a-name-that-is-longer-than-its-column\n         noarch 1:1.0-1 local 6.1 k\n     replacing  other.noarch 1.0-1\nRemoving unused dependencies:\n" +
			" gone x86_64 2-1 @System 0\nUpgrading:\n up x86_64 3-1 local 1 M\n\nTransaction Summary\n=====\nInstall  1 Package\n Fake a b c\n",
			[]string{"a-package-with-a-name-that-is-longer-than-its-column >1:1.0-1", "gone 2-1>", "up >3-1"}},
		{"zypper", zypperPlan, `<stream><message>x</message><install-summary><to-upgrade><solvable type="package" name="up" edition="2-1" edition-old="1-1" arch="noarch"/>` +
			`</to-upgrade><to-install><solvable type="patch" name="p" edition="1"/></to-install><to-remove><solvable type="package" name="gone" edition="1"/></to-remove></install-summary>`,
			[]string{"up 1-1>2-1", "gone 1>"}},
		{"pacman", pacmanPlan, "foo 1.0-1\n:: a line of words\nbar 2:1-1\n", []string{"foo >1.0-1", "bar >2:1-1"}},
	} {
		for _, out := range []string{c.out, c.out + "\x00\xff garbage (((\n"} {
			var got []string
			for _, s := range c.plan(out) {
				got = append(got, fmt.Sprintf("%s %s>%s", s.name, s.before, s.after))
			}
			want := c.want
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", c.name, got, want)
			}
		}
	}
}

// What managers print when they fail, beside what the tests with them bring about.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		manager, line, code string
		exit                int
	}{
		{"apt-get", "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)", "busy", 100},
		{"apt-get", "E: You don't have enough free space in /var/cache/apt/archives/.", "no_space", 100},
		{"apt-get", "E: Failed to fetch http://x/y.deb  404  Not Found [IP: 1.2.3.4 80]", "not_found", 100},
		{"apt-get", "E: Failed to fetch http://x/y.deb  Temporary failure resolving 'x'", "unreachable", 100},
		{"apt-get", "E: Version '9' for 'foo' was not found", "not_found", 100},
		{"apk", "ERROR: Unable to lock database: temporarily unavailable", "busy", 99},
		{"apk", "ERROR: unable to select packages:\n  foo (no such package):\n    required by: world[foo]", "not_found", 1},
		{"apk", "WARNING: fetching http://x: temporary error (try again later)", "unreachable", 1},
		{"apk", "ERROR: foo-1: No space left on device", "no_space", 1},
		{"dnf", "Error: Unable to find a match: foo", "not_found", 1},
		{"dnf", "Curl error (6): Couldn't resolve host name for http://x [Could not resolve host: x]", "unreachable", 1},
		{"dnf", "  - At least 12MB more space needed on the / filesystem.", "no_space", 1},
		{"zypper", "System management is locked by the application with pid 7 (zypper).", "busy", 7},
		{"zypper", "in words that nobody knows", "not_found", 104},
		{"pacman", "error: failed to init transaction (unable to lock database)", "busy", 1},
		{"pacman", "error: target not found: foo", "not_found", 1},
		{"pacman", "error: Partition / too full: 1 blocks needed, 0 blocks free\nerror: not enough free disk space", "no_space", 1},
		{"pacman", "error: failed retrieving file 'x' from y : Could not resolve host: y", "unreachable", 1},
		{"pacman", "error: something else", "command_failed", 1},
	} {
		m := named(t, c.manager)
		err := m.judge(&proc.Result{Code: c.exit, Stderr: []byte("a line before\n" + c.line + "\n")}, false)
		if fault.Code(err) != c.code {
			t.Errorf("%s: %q is %s: %v", c.manager, c.line, fault.Code(err), err)
		}
	}
}

// A lock that dnf has waited for until its time was up is a lock, and not merely an end of time.
func TestFailuresByTime(t *testing.T) {
	m := named(t, "dnf")
	for line, code := range map[string]string{"Waiting for process with pid 7 to finish.": "busy", "Could not resolve host": "timeout", "": "timeout"} {
		if err := m.judge(&proc.Result{Code: 143, TimedOut: true, Stdout: []byte(line)}, false); fault.Code(err) != code {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// named returns a manager.
func named(t testing.TB, name string) *manager {
	t.Helper()
	for _, m := range managers() {
		if m.name == name {
			return &m
		}
	}
	t.Fatal("no manager ", name)
	return nil
}
