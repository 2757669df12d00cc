//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
)

// buildAll builds all packages of a version into a new directory.
func buildAll(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := vmtest.Packages(ctx, dir, version); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The same sources give the same packages, and those who look for faults in packages find none.
func TestPackages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	first, second := buildAll(t, present), buildAll(t, present)
	list, err := filepath.Glob(first + "/*")
	if err != nil || len(list) != 7 {
		t.Fatal(list, err)
	}
	for _, path := range list {
		a, errA := os.ReadFile(path)
		b, errB := os.ReadFile(filepath.Join(second, filepath.Base(path)))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is another one the second time: %v %v", filepath.Base(path), errA, errB)
		}
	}
	lint := func(name string, args ...string) {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Logf("%s is not there", name)
			return
		}
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	glob := func(pattern string) []string {
		list, _ := filepath.Glob(filepath.Join(first, pattern))
		return list
	}
	lint("lintian", append([]string{"--allow-root", "--fail-on", "error,warning"}, glob("*.deb")...)...)
	lint("rpmlint", append([]string{"-c", "../../../quantix-kvm-agent/package/rpmlint.toml"}, glob("*.rpm")...)...)

	t.Run("tarball", func(t *testing.T) { tarball(t, glob("*.tar.gz")[0]) })
	t.Run("rpm", func(t *testing.T) { rpmRoot(t, glob("quantix-kvm-agent-*.rpm")[0]) })
}

// tarball installs the agent into trees with systemd and with OpenRC, over a configuration that is there, and removes it.
func tarball(t *testing.T, file string) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xzf", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	install := filepath.Join(dir, "quantix-kvm-agent-"+present, "install.sh")
	for name, c := range map[string]struct {
		has   []string
		links []string
	}{
		"systemd": {
			[]string{"usr/lib/systemd/systemd"},
			[]string{"etc/systemd/system/sysinit.target.wants/quantix-kvm-agent-recover.service"},
		},
		"openrc": {
			[]string{"sbin/openrc-run", "lib/systemd/system/of-others.service"},
			[]string{"etc/runlevels/default/quantix-kvm-agent", "etc/runlevels/boot/quantix-kvm-agent-recover", "etc/init.d/quantix-kvm-agent"},
		},
	} {
		if _, err := exec.LookPath("systemctl"); err != nil && name == "systemd" {
			t.Log("systemctl is not there, which enables units of a tree")
			continue
		}
		tree := t.TempDir()
		for _, file := range append(c.has, "etc/quantix-kvm/agent.yaml") {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tree, file), []byte("# mine\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		run := func(args ...string) {
			cmd := exec.Command(install, args...)
			cmd.Env = append(os.Environ(), "DESTDIR="+tree)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s %q: %v\n%s", name, args, err, out)
			}
		}
		there := func(file string) bool {
			_, err := os.Lstat(filepath.Join(tree, file))
			return err == nil
		}
		run()
		run()
		for _, file := range append(c.links, "usr/bin/quantix-kvm-agent", "etc/quantix-kvm/scripts.d") {
			if !there(file) {
				t.Errorf("%s: no %s", name, file)
			}
		}
		run("--uninstall")
		for _, file := range append(c.links, "usr/bin/quantix-kvm-agent") {
			if there(file) {
				t.Errorf("%s: %s is left", name, file)
			}
		}
		if text, err := os.ReadFile(filepath.Join(tree, "etc/quantix-kvm/agent.yaml")); err != nil || string(text) != "# mine\n" {
			t.Errorf("%s: the configuration is %q: %v", name, text, err)
		}
	}
}

// rpmRoot installs, upgrades and removes the package in a tree of its own, and notes what is asked of systemd.
func rpmRoot(t *testing.T, old string) {
	rpm, err := exec.LookPath("rpm")
	if err != nil {
		t.Skip("needs rpm")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root, and a static busybox for the tree's shell")
	}
	tree := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(tree, "bin"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "dev"), 0o755)) // where scripts make a null of their own
	shell, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(tree, "bin/busybox"), shell, 0o755))
	for _, name := range []string{"sh", "mv", "grep"} {
		must(t, os.Symlink("busybox", filepath.Join(tree, "bin", name)))
	}
	must(t, os.WriteFile(filepath.Join(tree, "bin/systemctl"), []byte("#!/bin/sh\necho \"$@\" >>/calls\n"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "usr/local/bin"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "usr/local/bin/quantix-kvm-agent"), []byte("old"), 0o755))
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(rpm, append([]string{"--root", tree, "--nodeps"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("rpm %q: %v\n%s", args, err, out)
		}
		calls, _ := os.ReadFile(filepath.Join(tree, "calls"))
		must(t, os.RemoveAll(filepath.Join(tree, "calls")))
		return strings.TrimSpace(string(calls))
	}
	const enabled = "quantix-kvm-agent.service quantix-kvm-agent-recover.service"
	if calls := run("-i", old); calls != "enable "+enabled {
		t.Errorf("an installation asks systemd: %q", calls)
	}
	if kept, err := os.ReadFile(filepath.Join(tree, "usr/local/bin/quantix-kvm-agent.bak")); string(kept) != "old" {
		t.Error("what stood before it is gone:", err)
	}
	config := filepath.Join(tree, "etc/quantix-kvm/agent.yaml")
	must(t, os.WriteFile(config, []byte("# mine\n"), 0o644))
	must(t, os.MkdirAll(filepath.Join(tree, "var/lib/quantix-kvm/tx/open"), 0o700))
	list, err := filepath.Glob(buildAll(t, newer) + "/quantix-kvm-agent-*.rpm")
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if calls := run("-U", list[0]); calls != "" { // nothing runs in a tree, and who disabled it is not overruled
		t.Errorf("an upgrade asks systemd: %q", calls)
	}
	if text, _ := os.ReadFile(config); string(text) != "# mine\n" {
		t.Errorf("after the upgrade the configuration is %q", text)
	}
	if calls := run("-e", "quantix-kvm-agent"); calls != "disable "+enabled {
		t.Errorf("a removal asks systemd: %q", calls)
	}
	for _, file := range []string{"usr/bin/quantix-kvm-agent", "usr/lib/systemd/system/quantix-kvm-agent.service"} {
		if _, err := os.Stat(filepath.Join(tree, file)); err == nil {
			t.Errorf("%s is left", file)
		}
	}
	if text, _ := os.ReadFile(config + ".rpmsave"); string(text) != "# mine\n" {
		t.Errorf("the configuration that was changed is %q", text)
	}
	if _, err := os.Stat(filepath.Join(tree, "var/lib/quantix-kvm/tx/open")); err != nil {
		t.Error(err)
	}
}
