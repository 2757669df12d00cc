package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// mountedTree is a tree that an agent sees as the root of the running machine, in a mount namespace that outlives the agent.
type mountedTree struct {
	dir    string // the tree
	holder string // the process id of who holds the namespace
	binary string // starts an agent in there
	disk   string // an image of ext4, which has a file "there"
}

func newMountedTree(t *testing.T) *mountedTree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount namespace: run the test binary as root")
	}
	for _, tool := range []string{"unshare", "nsenter", "mount", "mkfs.ext4", "chroot"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	agent, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	m := &mountedTree{dir: t.TempDir()}
	m.disk, m.binary = filepath.Join(m.dir, "disk"), filepath.Join(t.TempDir(), "agent")
	for _, dir := range []string{"usr", "etc", "proc", "sys", "dev", "tmp", "root", "run", "open"} {
		if err := os.Mkdir(filepath.Join(m.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(m.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --mount=/proc/$(cat %s.pid)/ns/mnt chroot %s %s \"$@\"\n", m.binary, m.dir, agent)
	setup := `set -e
		mount --make-rprivate /
		mount --bind "$T" "$T"
		cd "$T"
		mount --bind /usr usr; mount --rbind /dev dev; mount -t proc none proc; mount --rbind /sys sys
		mount --bind /tmp tmp
		echo ready
		exec sleep infinity`
	err = errors.Join(os.WriteFile(m.binary, []byte(script), 0o755),
		os.WriteFile(filepath.Join(m.dir, "etc/fstab"), []byte("# the file systems\nnone /elsewhere tmpfs noauto 0 0\n"), 0o644),
		os.WriteFile(filepath.Join(m.dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644),
		os.Chmod(filepath.Join(m.dir, "open"), 0o777), os.Symlink("/root", filepath.Join(m.dir, "open/link")),
		os.Lchown(filepath.Join(m.dir, "open/link"), 12345, 12345))
	if err != nil {
		t.Fatal(err)
	}
	seed := t.TempDir()
	if err := os.WriteFile(filepath.Join(seed, "there"), []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-L", "data", "-d", seed, m.disk, "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	holder := exec.Command("unshare", "--mount", "sh", "-c", setup)
	holder.Env = append(os.Environ(), "T="+m.dir)
	holder.Stderr = os.Stderr
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if n, _ := out.Read(make([]byte, 16)); n == 0 {
		t.Skip("cannot mount here: run as root of the machine")
	}
	m.holder = fmt.Sprint(holder.Process.Pid)
	if err := os.WriteFile(m.binary+".pid", []byte(m.holder), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// shell runs a line in the tree.
func (m *mountedTree) shell(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--mount=/proc/"+m.holder+"/ns/mnt", "chroot", m.dir, "sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v %s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// state is all that a rollback must give back: files with their times, what is mounted, and what is on the disk, which is
// mounted when the kernel has ended the mount of whatever was killed: writable, since a mount(8) that is killed in the system
// call may leave a journal that says it is to be recovered.
func (m *mountedTree) state(t *testing.T) string {
	t.Helper()
	return m.shell(t, `find / -xdev -name usr -prune -o -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -path /tmp -prune -o \
			-path /disk -prune -o -path /run -prune -o -path /root -prune -o -printf '%p %y %m %U %T@ %l\n' | sort
		cat /etc/fstab; grep -o ' /\(srv\|mnt\)[^ ]* ' /proc/self/mountinfo || true
		at="/srv/data dir/x"; mountpoint -q "$at" || {
			mkdir -p /run/look; at=/run/look; n=0
			until mount -o loop /disk $at 2>/run/error; do test $((n += 1)) -lt 100 || { cat /run/error; exit 1; }; sleep 0.1; done
		}
		cd "$at"; find . -printf '%P %y %m %s\n' | grep -v lost | sort; cat there; cd /; test "$at" != /run/look || umount -l /run/look`)
}

func (m *mountedTree) start(t *testing.T, state string) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, agenttest.Options{Binary: m.binary, State: state})
}

func (m *mountedTree) run(t *testing.T, a *agenttest.Agent, source string) *pb.RunScriptResponse {
	t.Helper()
	return m.request(t, a, &pb.RunScriptRequest{Source: []byte(source)})
}

func (m *mountedTree) request(t *testing.T, a *agenttest.Agent, request *pb.RunScriptRequest) *pb.RunScriptResponse {
	t.Helper()
	c := a.Client(t, client.Options{})
	defer c.Close() // an agent has so many at most
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, request)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// What the script changes before, below and after its own mount.
const mountScript = `
	file.mkdir("/srv")
	file.write("/srv/below", "before\n")
	assert(host.mount{source = "/disk", target = "/srv/data dir/x", fstype = "ext4", options = "loop,nodev"})
	assert(file.read("/srv/data dir/x/there") == "old\n")
	file.write("/srv/data dir/x/there", "new\n")
	file.mkdir("/srv/data dir/x/sub")
	file.write("/srv/data dir/x/sub/made", "x\n")
`

func TestMountInScript(t *testing.T) {
	m := newMountedTree(t)
	a := m.start(t, "")
	before := m.state(t)
	work := mountScript

	dry := m.request(t, a, &pb.RunScriptRequest{Source: []byte(work), DryRun: true})
	if s := fmt.Sprint(dry.Changes); !strings.Contains(s, `+/disk /srv/data\\040dir/x ext4 loop,nodev 0 0`) || !strings.Contains(s, "CHANGE_STATE_UNKNOWN") {
		t.Error(dry)
	}
	if now := m.state(t); now != before {
		t.Errorf("the dry run changed\n%s\ninto\n%s", before, now)
	}
	if r := m.run(t, a, work+`error("no")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	if now := m.state(t); now != before {
		t.Errorf("rolled back to\n%s\nfrom\n%s", now, before)
	}
	if r := m.run(t, a, `return pcall(host.mount, {source = "/no-disk", target = "/srv/x", fstype = "ext4"})`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if now := m.state(t); now != before {
		t.Errorf("a mount that failed left\n%s\nof\n%s", now, before)
	}
	if r := m.run(t, a, work); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(r)
	}
	if got := m.shell(t, `tail -1 /etc/fstab; cat "/srv/data dir/x/sub/made"; findmnt -no FSTYPE "/srv/data dir/x"`); got != "/disk /srv/data\\040dir/x ext4 loop,nodev 0 0\nx\next4" {
		t.Errorf("%q", got)
	}
	again := m.run(t, a, `return host.mount{source = "/disk", target = "/srv/./data dir/x/", fstype = "ext4", options = "loop,nodev"}`)
	if again.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || again.Result.GetBoolValue() || len(again.Changes) > 0 {
		t.Error(again)
	}
	other := m.run(t, a, `host.mount{source = "/disk", target = "/srv/data dir/x", fstype = "ext4", options = "loop,nodev,noatime"}`)
	if s := fmt.Sprint(other.Log); other.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || !strings.Contains(s, "stays mounted as it is") {
		t.Error(other)
	}
	if r := m.run(t, a, `host.mount{source = "/disk", target = "/srv/data dir/x", fstype = "ext4", options = "loop,nodev"}`); r.Error != nil {
		t.Error(r)
	}
	m.refusals(t, a)
	m.unmounts(t, a)
}

// refusals are of what is mounted already as something else, and of what must stay reachable.
func (m *mountedTree) refusals(t *testing.T, a *agenttest.Agent) {
	mounted := m.state(t)
	for source, want := range map[string]string{
		`host.mount{source = "none", target = "/srv/data dir/x", fstype = "tmpfs"}`:               "is mounted there",
		`host.mount{source = "/no-disk", target = "/srv/y", fstype = "ext4", options = "nofail"}`: "there is no /no-disk",
		`host.mount{source = "none", target = "/usr", fstype = "tmpfs"}`:                          "",
		`host.mount{source = "none", target = "` + a.State + `", fstype = "tmpfs"}`:               "agent's own",
		`host.mount{source = "none", target = "/tmp", fstype = "tmpfs"}`:                          "agent's own",
		`host.mount{source = "none", target = "/open/link/x", fstype = "tmpfs"}`:                  "is not followed",
		`host.unmount("` + a.State + `")`:                                                         "agent's own",
		`host.mount{source = "none", target = "/etc/fstab", fstype = "tmpfs"}`:                    "",
		`host.mount{source = "none", target = "/srv/a", fstype = "tmpfs", options = "x\ny"}`:      "control character",
	} {
		r := m.run(t, a, source)
		if r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(r.Error.GetMessage(), want) {
			t.Errorf("%s: %v", source, r)
		}
	}
	if now := m.state(t); now != mounted {
		t.Errorf("changed\n%s\nto\n%s", mounted, now)
	}
}

// unmounts undoes an unmount, sees one that is in use fail, and then unmounts.
func (m *mountedTree) unmounts(t *testing.T, a *agenttest.Agent) {
	mounted := m.state(t)
	if r := m.run(t, a, `assert(host.unmount("/srv/data dir/x")); file.write("/srv/data dir/x/bare", "b") error("no")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	if now := m.state(t); now != mounted {
		t.Errorf("rolled back to\n%s\nfrom\n%s", now, mounted)
	}
	use := exec.Command("nsenter", "--mount=/proc/"+m.holder+"/ns/mnt", "chroot", m.dir, "sh", "-c", `cd "/srv/data dir/x" && echo in && exec sleep 1000`)
	out, err := use.StdoutPipe()
	if err == nil {
		err = use.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 8))
	if r := m.run(t, a, `host.unmount("/srv/data dir/x")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || r.Error.GetCode() != "busy" {
		t.Error(r)
	}
	_, _ = use.Process.Kill(), use.Wait()
	if now := m.state(t); now != mounted {
		t.Errorf("left\n%s\nof\n%s", now, mounted)
	}
	for range 2 {
		if r := m.run(t, a, `return host.unmount("/srv/data dir/x")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			t.Error(r)
		}
	}
	if got := m.shell(t, `tail -1 /etc/fstab; ls "/srv/data dir/x"`); got != "none /elsewhere tmpfs noauto 0 0" {
		t.Errorf("%q", got)
	}
}

// A mount that is in use when it shall be undone stays, and is named; the rest is undone.
func TestMountBusyInRollback(t *testing.T) {
	m := newMountedTree(t)
	a := m.start(t, "")
	r := m.run(t, a, `host.mount{source = "/disk", target = "/srv", fstype = "ext4", options = "loop"}
		host.mount{source = "none", target = "/mnt", fstype = "tmpfs"}
		exec.run({"sh", "-c", "mkdir /srv/sub; mount -t tmpfs none /srv/sub"}, {irreversible = true})
		error("no")`)
	if r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED && r.Status != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL {
		t.Error(r)
	}
	if s := fmt.Sprint(r.NotUndone, r.Error); !strings.Contains(s, "/srv") || !strings.Contains(s, "in use") {
		t.Error(r)
	}
	if got := m.shell(t, `cat /etc/fstab; grep -c ' /mnt ' /proc/self/mountinfo || true; findmnt -no FSTYPE /srv`); got != "# the file systems\nnone /elsewhere tmpfs noauto 0 0\n0\next4" {
		t.Errorf("%q", got)
	}
}

// An agent that is killed somewhere in the script is followed by one that gives everything back.
func TestMountKilled(t *testing.T) {
	m := newMountedTree(t)
	before := m.state(t)
	state := filepath.Join(t.TempDir(), "state")
	work := mountScript
	for _, after := range []time.Duration{0, 5, 10, 20, 30, 40, 60, 80, 100, 150} {
		a := m.start(t, state)
		c := a.Client(t, client.Options{})
		called := make(chan struct{})
		go func() {
			defer close(called)
			_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(work + "while true do end")})
		}()
		time.Sleep(after * time.Millisecond)
		if after == 150 { // for sure after all of it
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(m.shell(t, `cat "/srv/data dir/x/sub/made" 2>&1 || true`), "x") && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
		}
		a.Kill()
		<-called
		a = m.start(t, state)
		awaitEnded(t, a.Client(t, client.Options{}))
		if r := m.run(t, a, "return 1"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			t.Error(r)
		}
		a.Stop()
		if now := m.state(t); now != before {
			t.Fatalf("killed after %d ms, it left\n%s\nof\n%s", after, now, before)
		}
	}
}

// A mount(8) that is killed with its agent in the middle of a system call may still mount something when the call ends. The
// rollback waits for that: here the image is on a file system that is frozen, so that nothing is written to it.
func TestMountKilledInSystemCall(t *testing.T) {
	m := newMountedTree(t)
	m.shell(t, `mkdir /mnt /outer; truncate -s 32M /tmp/outer.$$; mkfs.ext4 -q /tmp/outer.$$; mount -o loop /tmp/outer.$$ /outer
		rm /tmp/outer.$$; cp /disk /outer/disk`)
	before := m.state(t)
	state := filepath.Join(t.TempDir(), "state")
	a := m.start(t, state)
	c := a.Client(t, client.Options{})
	m.shell(t, `fsfreeze -f /outer`)
	thaw := func() {
		_ = exec.Command("nsenter", "--mount=/proc/"+m.holder+"/ns/mnt", "fsfreeze", "-u", m.dir+"/outer").Run()
	}
	t.Cleanup(thaw)
	called := make(chan struct{})
	go func() {
		defer close(called)
		_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{
			Source: []byte(`host.mount{source = "/outer/disk", target = "/mnt", fstype = "ext4", options = "loop"}`),
		})
	}()
	waits := func() bool {
		return exec.Command("sh", "-c", `for p in /proc/[0-9]*; do
			grep -qx mount $p/comm && grep -q "^State:.D" $p/status && grep -qzx /mnt $p/cmdline && exit
		done 2>/dev/null
		exit 1`).Run() == nil
	}
	for deadline := time.Now().Add(time.Minute); !waits(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("mount(8) does not wait for the frozen file system")
		}
	}
	a.Kill()
	<-called
	a = m.start(t, state)
	c = a.Client(t, client.Options{})
	ready := func() bool {
		r, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte("return 1")})
		if err != nil && !errors.Is(err, fault.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil && r.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	}
	if ready() || !waits() {
		t.Error("the rollback did not wait for mount(8)")
	}
	thaw()
	for deadline := time.Now().Add(3 * time.Minute); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the rollback did not end")
		}
	}
	a.Stop()
	if now := m.state(t); now != before {
		t.Errorf("it left\n%s\nof\n%s", now, before)
	}
}
