package account

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A home directory moves with the entry in passwd, once, with all that is in it.
func TestHomeMoves(t *testing.T) {
	g := newTree(t, debian)
	before, err := os.Stat(g.path("/home/bob"))
	if err != nil {
		t.Fatal(err)
	}
	move := &pb.AccountModifyArgs{Name: "bob", Home: "/srv/people/bob", MoveHome: true}
	g.sets("account.modify", move)
	after, err := os.Stat(g.path("/srv/people/bob"))
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("%v: it was %v and is %v", err, before, after)
	}
	if _, err := os.Lstat(g.path("/home/bob")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if got := g.line(passwdFile, "bob"); got != "bob:x:1000:1000:Bob,,,:/srv/people/bob:/bin/bash" {
		t.Error(got)
	}
	g.owned("/srv/people", 0o755, 0, 0)
	g.owned("/srv/people/bob/.bashrc", 0o644, 1000, 1000)

	// The owner of what is in it changes in the same call.
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "bob", Home: "/home/bob", MoveHome: true, Uid: new(uint32(1700))})
	g.owned("/home/bob/.bashrc", 0o644, 1700, 1000)

	// It has been moved already: passwd follows, and the owners as well.
	if err := os.Rename(g.path("/home/bob"), g.path("/home/robert")); err != nil {
		t.Fatal(err)
	}
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "bob", Home: "/home/robert", MoveHome: true, Uid: new(uint32(1701))})
	g.owned("/home/robert/.bashrc", 0o644, 1701, 1000)

	// The new place is the old one by another name.
	if err := os.Symlink("home", g.path("/users")); err != nil {
		t.Fatal(err)
	}
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "bob", Home: "/users/robert", MoveHome: true})
	g.owned("/home/robert/.bashrc", 0o644, 1701, 1000)

	// There is none at all.
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "nobody", Home: "/srv/nobody", MoveHome: true})
	if _, err := os.Lstat(g.path("/srv/nobody")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestHomeIsNotMoved(t *testing.T) {
	g := newTree(t, debian)
	g.put("/srv/there/x", "")
	g.put("/var/www/index", "")
	modify := func(name, home string) *pb.AccountModifyArgs {
		return &pb.AccountModifyArgs{Name: name, Home: home, MoveHome: true}
	}
	g.refuses("account.modify", modify("bob", ""), "invalid", "move_home")
	g.refuses("account.modify", modify("bob", "relative"), "invalid", "clean path")
	g.refuses("account.modify", modify("bob", "/home/bob/inside"), "invalid", "inside /home/bob")
	g.refuses("account.modify", modify("bob", "/srv/there"), "exists", "/home/bob")
	g.put(passwdFile, g.read(passwdFile)+"slash:x:1001:100::/home/./slash:/bin/sh\n")
	g.refuses("account.modify", modify("slash", "/srv/slash"), "refused", "no clean path")
	g.refuses("account.modify", modify("www-data", "/srv/www"), "refused", "belongs to user 0")
}

// Nothing is copied to another file system, and no mount is moved, nor what has one below it.
func TestHomeStaysOnItsFileSystem(t *testing.T) {
	g := newTree(t, debian)
	mount := func(path string) {
		t.Helper()
		if err := os.MkdirAll(g.path(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", g.path(path), "tmpfs", 0, ""); err != nil {
			t.Skip("run it where tmpfs can be mounted: ", err)
		}
		t.Cleanup(func() { unix.Unmount(g.path(path), unix.MNT_DETACH) })
	}
	mount("/srv")
	move := &pb.AccountModifyArgs{Name: "bob", Home: "/srv/people/bob", MoveHome: true}
	g.refuses("account.modify", move, "unsupported", "another file system")
	overlay, err := g.root.Overlay(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	g.call.Tx, g.call.DryRun = nil, &builtins.DryRun{Files: overlay}
	g.refuses("account.modify", move, "unsupported", "another file system")
	g.call.Tx, g.call.DryRun = keeper{tree: g}, nil
	mount("/home/bob/mnt")
	move.Home = "/home/robert"
	g.refuses("account.modify", move, "refused", "mount")
}

// A rollback moves back what was moved, and nothing else; it can be repeated.
func TestMoveIsTakenBack(t *testing.T) {
	g := newTree(t, debian)
	home := func(path string) fsys.Meta {
		t.Helper()
		at, err := g.root.At(path)
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
		meta, err := at.Capture()
		if err != nil {
			t.Fatal(err)
		}
		return meta
	}
	was := home("/home/bob")
	back := &pb.JournalObject{
		Path: "/home/bob", MovedTo: "/home/robert", State: &pb.JournalState{Kind: string(was.Kind), Ino: was.Ino},
	}
	undo := func(changed bool) {
		t.Helper()
		g.call.Idle = false
		out, err := g.do(inverse, back)
		if err != nil || out.(*pb.Changed).Changed != changed || g.call.Idle == changed || home("/home/bob").Ino != was.Ino {
			t.Error(out, err, g.call.Idle)
		}
	}
	undo(false) // the move never happened
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "bob", Home: "/home/robert", MoveHome: true})
	undo(true)
	undo(false)
	g.put("/home/robert/of-somebody", "x") // who made it meanwhile
	undo(false)

	// Somebody made another directory at the former place.
	err := errors.Join(os.RemoveAll(g.path("/home/robert")), os.Rename(g.path("/home/bob"), g.path("/home/robert")))
	if err != nil {
		t.Fatal(err)
	}
	g.put("/home/bob/of-somebody", "x")
	undo(true)
	if got := g.read("/home/bob.quantix-conflict/of-somebody"); got != "x" {
		t.Error(got)
	}
	g.put("/home/robert/of-somebody", "x") // before the number of the other directory is free
	if err := os.RemoveAll(g.path("/home/bob")); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"", "/home/robert"} { // it is at neither place
		if gone != "" {
			if err := os.RemoveAll(g.path(gone)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.do(inverse, back); fault.Code(err) != "changed" {
			t.Error(err)
		}
	}
}

// A home directory moves while its user has processes, and the reply says so.
func TestHomeOfBusyUserMoves(t *testing.T) {
	const uid = 54322
	files := map[string]string{nssFile: "passwd: files\ngroup: files\n", "/home/busy/x": ""}
	for name, content := range debian {
		files[name] = content
	}
	files[passwdFile] += "busy:x:54322:100::/home/busy:/bin/sh\n"
	g := newTree(t, files)
	if err := os.Chown(g.path("/home/busy"), uid, 100); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("/bin/sleep", "1000")
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: 100}}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	var warned []string
	g.call.Warned = func(text string) { warned = append(warned, text) }
	g.room.guest.Live = true
	deadline := time.Now().Add(10 * time.Second)
	for running := ""; !strings.Contains(running, "sleep") && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		running, _ = g.room.processes(uid)
	}
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "busy", Home: "/srv/busy", MoveHome: true})
	if len(warned) != 1 || !strings.Contains(warned[0], "(sleep)") || !strings.Contains(warned[0], "/home/busy") {
		t.Error(warned)
	}
}
