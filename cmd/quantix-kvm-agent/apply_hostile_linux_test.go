package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// What else lies in the directory of --state, and above it, stays; one where names of a state are another's is refused.
func TestApplyKeepsWhatLiesInState(t *testing.T) {
	_, dir, apply := makeTree(t)
	site, state := filepath.Join(dir, "site.lua"), filepath.Join(dir, "mine", "state")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(state, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("thesis/one.txt", "mine\n")
	for _, port := range []string{"666", "80"} { // it fails, and it does not
		if out, code := apply(site, "--state", state, "-p", "port="+port); code != map[string]int{"666": 5, "80": 0}[port] {
			t.Fatalf("%d %s", code, out)
		}
		if left := picture(t, state); strings.Count(left, "\n") != 3 || !strings.Contains(left, "thesis/one.txt") {
			t.Errorf("left are\n%s", left)
		}
	}
	for _, name := range []string{"key", "tx/open/a", "overlays/a", "jobs/a", "mounted"} {
		write(name, "not of an apply\n")
		before := picture(t, state)
		out, code := apply(site, "--state", state)
		if top, _, _ := strings.Cut(name, "/"); code != 1 || !strings.Contains(out, "has a "+top) || picture(t, state) != before {
			t.Errorf("%s: %d %s", name, code, out)
		}
		if err := os.RemoveAll(filepath.Join(state, strings.Split(name, "/")[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if out, code := apply(site, "--state", state); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "mine")); err != nil || len(list) > 0 {
		t.Errorf("the state, or what it lay in: %v %v", list, err)
	}
}

// What the image says of itself leads to no file of this machine, to no file system twice, and to none of another disk.
func TestApplyDistrustsImages(t *testing.T) {
	dir := t.TempDir()
	image, script, state := diskWithSystem(t, dir, "raw"), filepath.Join(dir, "image.lua"), filepath.Join(dir, "state")
	if err := os.WriteFile(script, []byte(imageScript), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := func(image string, args ...string) (string, error) {
		return tool(t, append([]string{"apply", "--image", image, "--state", state, script}, args...)...)
	}
	refused := func(image, why string) {
		t.Helper()
		if out, err := apply(image); err == nil || !strings.Contains(out, why) {
			t.Errorf("instead of %q: %v %s", why, err, out)
		}
		leftNothing(t, dir)
	}
	debugfs := func(image string, commands ...string) {
		t.Helper()
		list := filepath.Join(t.TempDir(), "commands")
		if err := os.WriteFile(list, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "debugfs", "-w", "-f", list, image+"?offset=1048576")
	}
	copied := func(commands ...string) string {
		t.Helper()
		to := filepath.Join(t.TempDir(), "disk.raw")
		must(t, "cp", "--sparse=always", image, to)
		debugfs(to, commands...)
		return to
	}
	fstab := func(text string) []string {
		path := filepath.Join(t.TempDir(), "fstab")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"cd /etc", "rm fstab", "write " + path + " fstab"}
	}
	const boot = "UUID=11111111-2222-3333-4444-555555555555 /boot ext4 "

	other := copied(fstab("/dev/vda1 / ext4\n" + boot + "defaults\n/dev/vdb2 /data ext4\n")...)
	if out, err := apply(other); err != nil || !strings.Contains(out, "left out: /dev/vdb2 at /data") {
		t.Errorf("another disk: %v %s", err, out)
	}
	refused(copied(fstab(boot+"defaults\n/dev/vda2 /etc ext4\n")...), "partition 2 is mounted already, at /boot")
	refused(copied(fstab(boot+"defaults\n/dev/vda1 /etc ext4\n")...), "partition 1 is mounted already, at /")
	refused(copied(fstab(boot+"subvol=@boot\n")...), "subvol=@boot")
	refused(copied(fstab("/dev/vda1 / btrfs subvolid=5\n")...), "subvolid=5")
	refused(copied("rm /boot/.hidden", "rmdir /boot", "symlink boot /"), "through a link to /")
	refused(copied("cd /etc", "rm os-release", "mknod os-release p"), "no file system has an os-release")
	refused(copied("cd /etc", "rm os-release", "mknod os-release c 1 5"), "no file system has an os-release")
	refused(copied("cd /etc", "rm fstab", "mknod fstab p"), "no regular file")
	refused(copied(fstab("#"+strings.Repeat("x", 1<<20))...), "more than")

	victim, thin := filepath.Join(dir, "victim"), filepath.Join(dir, "thin.qcow2")
	must(t, "cp", image, victim)
	before := sum(t, victim)
	must(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", victim, thin)
	refused(thin, "has a backing file")
	must(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "new")+",data_file_raw=on", thin, "64M")
	must(t, "mv", filepath.Join(dir, "new"), filepath.Join(dir, "moved"))
	must(t, "cp", victim, filepath.Join(dir, "new"))
	refused(thin, "has an external data file")
	if sum(t, victim) != before || sum(t, filepath.Join(dir, "new")) != before {
		t.Error("a file that the image names was changed")
	}
}

// Dry runs on one image do not take each other's directories, and one after a kill refuses to repair.
func TestApplyDryRunsOfOneImage(t *testing.T) {
	dir := t.TempDir()
	image, script, state := diskWithSystem(t, dir, "qcow2"), filepath.Join(dir, "image.lua"), filepath.Join(dir, "state")
	if err := os.WriteFile(script, []byte(imageScript), 0o600); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			out, err := tool(t, "apply", "--image", image, "--state", state, script, "-n")
			// Where the machine is slow, one may have waited too long for the others.
			if err != nil && !strings.Contains(out, "another apply works with it") {
				t.Errorf("%v %s", err, out)
			}
		})
	}
	all.Wait()
	leftNothing(t, dir)

	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, markName), nil, 0o600); err != nil { // as one leaves it that was killed
		t.Fatal(err)
	}
	before := sum(t, image)
	for _, flag := range []string{"--dry-run", "--drift"} {
		out, err := tool(t, "apply", "--image", image, "--state", state, script, flag)
		if _, exited := err.(*exec.ExitError); !exited || !strings.Contains(out, "once without --dry-run") || sum(t, image) != before {
			t.Errorf("%s after a kill: %v %s", flag, err, out)
		}
	}
	if out, err := tool(t, "apply", "--image", image, "--state", state, script); err != nil {
		t.Errorf("%v %s", err, out)
	}
	leftNothing(t, dir)
}
