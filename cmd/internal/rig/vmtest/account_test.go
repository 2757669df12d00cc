//go:build vm

package vmtest_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// scripted runs a script and gives its reply.
func scripted(t *testing.T, c *client.Client, source string) *pb.RunScriptResponse {
	t.Helper()
	reply, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(source)})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// Users and passwords as the guest's own C library, PAM and shadow-utils see them.
func TestAccounts(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	reply := scripted(t, c, `account.create("alice", {comment = "Alice", groups = {"adm"}})
account.ssh_keys("alice", {"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIARER9kPRRfMMiaiY3YqIfG3d8Wp98dADazEEroM8LRE alice"})
account.create("web1", {system = true})
return account.get("alice").uid`)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Result.GetNumberValue() != 1000 {
		t.Fatal(reply)
	}
	for line, want := range map[string]string{
		"getent passwd alice": "alice:x:1000:1000:Alice:/home/alice:/bin/sh",
		"id -nG alice":        "alice adm",
		"stat -c '%a %U %G' /home/alice /home/alice/.ssh /home/alice/.ssh/authorized_keys": "755 alice alice\n700 alice alice\n600 alice alice",
		"diff -r /etc/skel /home/alice | grep -v .ssh || true":                             "",
		"chage -l alice | sed -n 's/^Password expires.*: //p'":                             "never",
		"pwck -r -q | grep -e alice -e web1 | grep -v home || true":                        "",
		"grpck -r | grep -e alice -e web1 || true":                                         "",
		"test $(id -u web1) -lt 1000 && test ! -e /home/web1 && echo system":               "system",
	} {
		if got := vm.Must(t, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}

	check := func(password string) string { // by the helper of PAM that compares passwords
		return vm.Must(t, "printf '"+password+"\\0' | unix_chkpwd alice nonull >/dev/null 2>&1 && echo yes || echo no")
	}
	if got := check("first secret"); got != "no" {
		t.Error("a password that was never set is right")
	}
	for _, expire := range []bool{false, true} {
		done, err := c.ResetPassword(limited(t, time.Minute), &pb.ResetPasswordRequest{Username: "alice", NewPassword: "first secret", Expire: expire})
		if err != nil || done.MustChange != expire || check("first secret") != "yes" || check("second secret") != "no" {
			t.Error(expire, done, err)
		}
		last := vm.Must(t, "LC_ALL=C chage -l alice | sed -n 's/^Last password change.*: //p'")
		if strings.Contains(last, "must be changed") != expire {
			t.Errorf("expire is %v, and chage says %q", expire, last)
		}
	}
	hash := vm.Must(t, `perl -e 'print crypt("second secret", q($6$saltsalt$))'`)
	if _, err := c.ResetPassword(limited(t, time.Minute), &pb.ResetPasswordRequest{Username: "alice", NewPassword: hash, Crypted: true}); err != nil || check("second secret") != "yes" {
		t.Error(err)
	}

	// While the user has a process, and while another tool holds the lock.
	vm.Must(t, "setpriv --reuid=1000 --clear-groups sleep 1000 </dev/null >/dev/null 2>&1 & sleep 0.2")
	reply = scripted(t, c, `account.remove("alice", {home = true})`)
	if reply.Error.GetCode() != "refused" || !strings.Contains(reply.Error.GetMessage(), "(sleep)") || vm.Must(t, "id -u alice") != "1000" {
		t.Error(reply)
	}
	vm.Must(t, `perl -MFcntl -e 'open my $f, ">>", "/etc/.pwd.lock"; my $l = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 0, 0); fcntl($f, F_SETLK, $l) or die $!; sleep 1000' </dev/null >/dev/null 2>&1 & sleep 1; pgrep -x perl`)
	ctx := limited(t, 30*time.Second)
	began := time.Now()
	_, err := c.ResetPassword(ctx, &pb.ResetPasswordRequest{Username: "alice", NewPassword: "third secret"})
	if fault.Code(err) != "busy" || !strings.Contains(err.Error(), "(perl)") {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	vm.Must(t, "pkill -x perl; pkill -x sleep; true")
	reply = scripted(t, c, `account.remove("web1") return account.remove("alice", {home = true})`)
	if !reply.Result.GetBoolValue() || vm.Must(t, "getent passwd alice web1 || true; ls /home; grep -c alice /etc/group /etc/gshadow /etc/shadow /etc/subuid /etc/subgid | grep -v ':0' || true") != "" {
		t.Error(reply)
	}
}

const (
	accountFiles   = "/etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid /etc/subgid"
	accountPicture = "(ls -d " + accountFiles + " /etc/[a-z]*.lock /etc/.quantix* 2>/dev/null; find /home) | xargs -d '\\n' stat -c '%n %F %a %u %g %s %y' | sort; sha256sum " + accountFiles
	accountScript  = `account.create("alice", {groups = {"adm"}, comment = "Alice"})
account.password("alice", "secret")
account.ssh_keys("alice", {"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIARER9kPRRfMMiaiY3YqIfG3d8Wp98dADazEEroM8LRE alice"})
account.create("web1", {system = true})`
)

// The guest loses its power while a user is made, and boots again: there is the user with all that belongs to it, or nothing of
// it.
func TestPowerLossDuringAccountCreate(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	rounds, takenBack := rounds(1), 0
	for round := range rounds {
		before := vm.Must(t, accountPicture)
		vm.Must(t, "sync")
		c := served(t, vm)
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			reply, _ := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(accountScript)})
			answered <- reply
		}()
		time.Sleep(time.Duration(50+rand.IntN(700)) * time.Millisecond) // into the run
		if err := vm.Kill(); err != nil {
			t.Fatal(err)
		}
		reply := <-answered
		c.Close()
		if err := vm.PowerOn(limited(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		c = served(t, vm)
		after, committed := vm.Must(t, accountPicture), reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		switch {
		case after == before && !committed:
			takenBack++
			c.Close()
			continue
		case after == before:
			t.Fatalf("round %d: the host heard COMMITTED, and the user is gone", round)
		}
		if reply := scripted(t, c, accountScript); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Changes) > 0 {
			t.Fatalf("round %d: neither before nor after: %v\n%s\nbefore:\n%s", round, reply.Changes, after, before)
		}
		scripted(t, c, `account.remove("alice", {home = true}) account.remove("web1")`)
		c.Close()
	}
	t.Logf("%d of %d runs were taken back", takenBack, rounds)
}
