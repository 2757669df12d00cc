package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A user to whom a directory on the way belongs does not have anything mounted at another place by exchanging it for a link,
// and what is mounted nobody says to be gone.
func TestMountWhereAUserExchangesDirectories(t *testing.T) {
	m := newMountedTree(t)
	home := filepath.Join(m.dir, "home")
	err := errors.Join(os.MkdirAll(home+"/m/t", 0o755), os.MkdirAll(m.dir+"/victim/t", 0o755), os.Symlink("/victim", home+"/x"))
	for _, path := range []string{home, home + "/m", home + "/m/t", home + "/x"} {
		err = errors.Join(err, os.Lchown(path, 12345, 12345))
	}
	if err != nil {
		t.Fatal(err)
	}
	a := m.start(t, t.TempDir())
	const mount = `host.mount({source = "exchanged", target = "/home/m/t", fstype = "tmpfs", options = "size=1m"}) `
	mounted := func() string { return m.shell(t, "grep exchanged /proc/self/mountinfo || true") }
	check := func(what, source string, status pb.ScriptStatus, there bool) {
		t.Helper()
		reply := m.run(t, a, source)
		if reply.Status != status || (mounted() != "") != there || there && !strings.Contains(mounted(), " /home/m/t ") {
			t.Errorf("%s: %v, %s", what, reply, mounted())
		}
	}
	check("taken back", mount+`error("x")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, false)
	check("mounted", mount, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, true)
	check("again", mount, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, true)
	check("unmounted", `host.unmount("/home/m/t")`, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, false)

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(700 * time.Microsecond):
				_ = unix.Renameat2(-1, home+"/m", -1, home+"/x", unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 20 {
		reply := m.run(t, a, mount+`error("x")`)
		seen := mounted()
		if strings.Contains(seen, "/victim") || seen != "" && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%v, %s", reply, seen)
		}
		if seen != "" { // it was told
			return
		}
	}
}

// What an agent had mounted aside when it was killed is gone after the next start, and the transaction is rolled back. What is
// of an agent that lives, or nobody's of that kind, stays.
func TestKilledWhileItMountsAside(t *testing.T) {
	m := newMountedTree(t)
	home := filepath.Join(m.dir, "home")
	if err := errors.Join(os.MkdirAll(home+"/t", 0o755), os.Lchown(home, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	m.shell(t, `mount -t tmpfs none /usr/sbin
		printf '#!/bin/sh\nmount -i -t tmpfs "$1" "$2" && sleep 1000\n' >/usr/sbin/mount.slow; chmod 755 /usr/sbin/mount.slow
		cd /run; mkdir -m 700 quantix-kvm-mount-1 quantix-kvm-mount-x quantix-kvm-mount-3; mkdir -m 755 quantix-kvm-mount-2
		chown 12345 quantix-kvm-mount-3`)
	other, err := os.Open(m.dir + "/run/quantix-kvm-mount-1")
	if err == nil {
		err = unix.Flock(int(other.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	before := m.shell(t, "ls -l /run; cat /etc/fstab; stat -c %y /home")
	state := t.TempDir()
	a := m.start(t, state)
	c := a.Client(t, client.Options{})
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](t.Context(), c, &pb.RunScriptRequest{
			Source: []byte(`host.mount({source = "slowly", target = "/home/t", fstype = "slow"})`),
		})
	}()
	await := func(there bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); (m.shell(t, "grep slowly /proc/self/mountinfo || true") != "") != there; {
			if time.Now().After(end) {
				t.Fatalf("mounted: %v", !there)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	await(true)
	a.Kill()
	a = m.start(t, state)
	awaitEnded(t, a.Client(t, client.Options{}))
	if reply := m.run(t, a, "return 1"); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(reply)
	}
	await(false)
	if now := m.shell(t, "ls -l /run; cat /etc/fstab; stat -c %y /home"); now != before {
		t.Errorf("left\n%s\nof\n%s", now, before)
	}
	if kept, _ := os.ReadDir(state + "/tx/kept"); len(kept) > 0 {
		t.Errorf("the transaction was not rolled back: %v", kept)
	}
}

// What is bound is the directory that the source led to when it was judged, or nothing: never another one that a user puts
// there.
func TestBindMountOfAnExchangedDirectory(t *testing.T) {
	m := newMountedTree(t)
	home := filepath.Join(m.dir, "home")
	err := errors.Join(os.MkdirAll(home+"/m/src", 0o755), os.MkdirAll(m.dir+"/victim", 0o700), os.MkdirAll(m.dir+"/shown", 0o755),
		os.MkdirAll(home+"/x", 0o755), os.WriteFile(m.dir+"/victim/secret", nil, 0o600), os.Symlink("/victim", home+"/x/src"))
	for _, path := range []string{home, home + "/m", home + "/m/src", home + "/x", home + "/x/src"} {
		err = errors.Join(err, os.Lchown(path, 12345, 12345))
	}
	if err != nil {
		t.Fatal(err)
	}
	a := m.start(t, t.TempDir())
	const mount = `host.mount({source = "/home/m/src", target = "/shown", fstype = "none", options = "bind"})`
	if reply := m.run(t, a, mount); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(reply)
	}
	if reply := m.run(t, a, `host.unmount("/shown")`); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(reply)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				_ = unix.Renameat2(-1, home+"/m", -1, home+"/x", unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for n := range 25 {
		reply := m.run(t, a, mount)
		if seen := m.shell(t, "ls /shown"); seen != "" {
			t.Fatalf("after %d: %s is shown, %v", n, seen, reply)
		}
		if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			m.run(t, a, `host.unmount("/shown")`)
		}
	}
}
