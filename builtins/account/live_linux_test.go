package account

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A user who has processes is not removed, and gets no other number, unless that is forced.
func TestUserWithProcesses(t *testing.T) {
	const uid = 54321
	files := map[string]string{}
	for name, content := range debian {
		files[name] = content
	}
	files[passwdFile] += "busy:x:54321:100::/nonexistent:/bin/sh\n"
	g := newTree(t, files)
	g.put(nssFile, "passwd: files\ngroup: files\n")
	sleep := exec.Command("/bin/sleep", "1000")
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: 100}}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { sleep.Process.Kill(); sleep.Wait() }
	defer end()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it is that program
		name, _ := os.ReadFile("/proc/" + strconv.Itoa(sleep.Process.Pid) + "/comm")
		if string(name) == "sleep\n" || time.Now().After(deadline) {
			break
		}
	}
	remove := &pb.AccountRemoveArgs{Name: "busy"}
	renumber := &pb.AccountModifyArgs{Name: "busy", Uid: new(uint32(54322))}
	g.room.guest.Live = true
	words := strconv.Itoa(sleep.Process.Pid) + " (sleep)"
	g.refuses("account.remove", remove, "refused", words)
	g.refuses("account.modify", renumber, "refused", words)
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "busy", Shell: "/bin/false"})
	g.room.guest.Live = false // of a tree that is not booted nobody is logged in
	g.sets("account.modify", renumber)
	g.put(passwdFile, files[passwdFile])
	g.room.guest.Live = true
	remove.Force = true
	g.sets("account.remove", remove)
	g.put(passwdFile, files[passwdFile])
	end()
	remove.Force = false
	g.sets("account.remove", remove)
}

// Users whom the name service has beside the files of the guest are seen, and neither made nor changed. The service here is
// that of the machine that the test runs on, whose users are not those of the tree.
func TestUsersOfADirectoryService(t *testing.T) {
	if out, err := exec.Command("getent", "passwd", "daemon").Output(); err != nil {
		t.Skip("run it where getent finds the user daemon: ", err, string(out))
	}
	g := newTree(t, debian)
	g.room.guest.Live = true
	g.room.guest.Runner = proc.New(proc.Config{Cgroup: "none", JobCgroup: "none"})
	if out, err := g.do("account.exists", &pb.AccountNameArgs{Name: "daemon"}); err != nil || !out.(*pb.AccountExists).Exists {
		t.Error(out, err)
	}
	out, err := g.do("account.get", &pb.AccountNameArgs{Name: "daemon"})
	if a := out.(*pb.Account); err != nil || a.Local || a.Uid != 1 || a.Name != "daemon" {
		t.Error(out, err)
	}
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "daemon"}, "refused", "directory service")
	g.refuses("account.modify", &pb.AccountModifyArgs{Name: "daemon", Shell: "/bin/sh"}, "refused", "directory service")
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "daemon", Force: true}, "refused", "directory service")
	g.refuses("account.password", &pb.AccountPasswordArgs{Name: "daemon", Password: []byte("x")}, "refused", "directory service")
	g.refuses("account.ssh_keys", &pb.AccountKeysArgs{Name: "daemon", Exclusive: true}, "refused", "directory service")
	g.refuses("reset_password", &pb.ResetPasswordRequest{Username: "daemon", NewPassword: "x"}, "refused", "directory service")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice", Uid: new(uint32(1))}, "exists", "directory service")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "tty"}, "exists", "group tty")
	// A system user gets a number that neither has.
	used := map[string]bool{}
	list, err := exec.Command("getent", "passwd").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		used[fieldsOf(line)[2]] = true
	}
	g.sets("account.create", &pb.AccountCreateArgs{Name: "system1", System: true})
	if uid := strings.Split(g.line(passwdFile, "system1"), ":")[2]; used[uid] {
		t.Errorf("the uid %s is another's", uid)
	}
	// The caches are flushed by a change, and by its rollback.
	g.put(caches[0].socket, "")
	for op, in := range map[string]proto.Message{
		"account.create": &pb.AccountCreateArgs{Name: "system2", System: true}, "account.remove": &pb.AccountRemoveArgs{Name: "system1"},
		"account.password": &pb.AccountPasswordArgs{Name: "bob", Password: []byte("y")}, "account.groups": &pb.AccountGroupsArgs{Name: "bob", Exclusive: true},
		"account.modify": &pb.AccountModifyArgs{Name: "bob", Shell: "/bin/x"}, "reset_password": &pb.ResetPasswordRequest{Username: "bob", NewPassword: "x"},
	} {
		if _, err := g.do(op, in); err != nil || g.undos != 1 {
			t.Errorf("%s announced %d inverses, %v", op, g.undos, err)
		}
	}
	if _, err := g.do(inverse, &pb.JournalObject{}); err != nil {
		t.Error(err)
	}
	if out, err := g.do("account.exists", &pb.AccountNameArgs{Name: "nobody-at-all"}); err != nil || out.(*pb.AccountExists).Exists {
		t.Error(out, err)
	}
	// Where all is in files no program is asked.
	g.put(nssFile, "# sources\npasswd:  files\n")
	if out, err := g.do("account.exists", &pb.AccountNameArgs{Name: "daemon"}); err != nil || out.(*pb.AccountExists).Exists {
		t.Error(out, err)
	}
}

// A name service that hangs costs some seconds, and an error that says so.
func TestNameServiceThatHangs(t *testing.T) {
	g := newTree(t, debian)
	names := g.room.names(t.Context(), g.root)
	runner := proc.New(proc.Config{Cgroup: "none", JobCgroup: "none"})
	names.run = runner.Run
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "getent"), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	names.env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
	names.timeout = 300 * time.Millisecond
	if _, err := names.ask("passwd", "alice"); fault.Code(err) != "timeout" || !strings.Contains(err.Error(), "name service") {
		t.Error(err)
	}
	names.env = []string{"PATH=" + t.TempDir()} // a guest without getent
	if line, err := names.ask("passwd", "alice"); err != nil || line != nil {
		t.Error(line, err)
	}
	if !slices.Equal(public, []string{passwdFile, groupFile}) {
		t.Error("a list that is shared was changed: ", public)
	}
}
