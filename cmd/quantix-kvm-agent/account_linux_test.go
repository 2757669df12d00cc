package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// accountTree is an image with accounts.
func accountTree(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("run it as root: files get other owners")
	}
	root := t.TempDir()
	for path, content := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n",
		"etc/group":   "root:x:0:\nsudo:x:27:bob\nbob:x:1000:\n",
		"etc/shadow":  "root:*:19000:0:99999:7:::\nbob:!:19000:0:99999:7:::\n",
		"etc/gshadow": "root:*::\nsudo:*::bob\nbob:!::\n",
		"etc/subuid":  "bob:100000:65536\n", "etc/subgid": "bob:100000:65536\n",
		"etc/skel/.profile": "umask 022\n", "etc/skel/.config/a": "deep\n", "home/bob/file": "bob's\n",
		"etc/group-": "old\n", "etc/passwd+": "half",
	} {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for path, owner := range map[string]int{"home/bob": 1000, "home/bob/file": 1000, "etc/shadow": 0, "etc/gshadow": 0} {
		if err := os.Chown(filepath.Join(root, path), owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"etc/shadow", "etc/gshadow"} {
		if err := os.Chmod(filepath.Join(root, path), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// ownedPicture is picture with owners.
func ownedPicture(t *testing.T, root string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cd "+root+" && find . -printf '%p %U:%G\n' | sort").Output()
	if err != nil {
		t.Fatal(err)
	}
	return picture(t, root) + string(out)
}

const accountChanges = `
account.create("alice", {groups = {"sudo"}, comment = "Alice"})
account.password("alice", "a password to look for", {expire = true})
account.ssh_keys("alice", {"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIARER9kPRRfMMiaiY3YqIfG3d8Wp98dADazEEroM8LRE alice"})
account.create("daemon1", {system = true})
file.write("/home/alice/large", ("x"):rep(2000000), {owner = "alice"})
account.modify("alice", {uid = 1600, shell = "/bin/bash"})
account.modify("alice", {home = "/srv/people/alice", move_home = true})
account.modify("bob", {home = "/home/robert", move_home = true, uid = 1700})
account.remove("bob", {home = true})
account.groups("alice", {}, {exclusive = true})
`

// A script that fails after all that an account can be leaves every file and directory as it was.
func TestAccountsAreTakenBack(t *testing.T) {
	root := accountTree(t)
	a := agenttest.Start(t, agenttest.Options{Root: root, Args: []string{"--log-level", "debug"}})
	c := a.Client(t, client.Options{})
	run := func(source string) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(source)})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	before := ownedPicture(t, root)
	reply := run(accountChanges + `error("no")`)
	if after := ownedPicture(t, root); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(reply.NotUndone) > 0 || after != before {
		t.Errorf("%v: it was\n%s\nand is\n%s", reply, before, after)
	}
	reply = run(`local ok = pcall(account.create, "alice", {groups = {"sudo", "missing"}}) return ok`)
	if after := ownedPicture(t, root); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || after != before || len(reply.Changes) > 0 {
		t.Errorf("%v: it was\n%s\nand is\n%s", reply, before, after)
	}
	for round, want := range []bool{true, false} {
		reply = run(`local changed = false
for _, c in ipairs({account.create("alice", {groups = {"sudo"}}), account.password("alice", "a password to look for"), account.remove("bob", {home = true})}) do changed = changed or c end
return {changed = changed, groups = account.groups("alice"), exists = account.exists("bob"), uid = account.get("alice").uid}`)
		got := reply.Result.GetStructValue().AsMap()
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || got["changed"] != want || got["exists"] != false || got["uid"] != 1001.0 || fmt.Sprint(got["groups"]) != "[sudo]" {
			t.Errorf("round %d: %v", round, reply)
		}
	}
	if text := fmt.Sprint(reply) + a.Log(); strings.Contains(text, "password to look for") || strings.Contains(text, "$6$") {
		t.Error("a password is told: ", text)
	}
}

// Passwords are set by a host, in a transaction of its own, and neither they nor their hashes are in the log, in the audit or
// in what the transaction tells.
func TestResetPasswordOfAHost(t *testing.T) {
	root := accountTree(t)
	a := agenttest.Start(t, agenttest.Options{
		Root: root, Args: []string{"--log-level", "debug"}, Config: "security:\n  audit_logging: true\n",
	})
	c := a.Client(t, client.Options{})
	can, err := client.Call[*pb.GetCapabilitiesResponse](ctxFor(t, time.Minute), c, &pb.GetCapabilitiesRequest{})
	if err != nil || !strings.Contains(strings.Join(can.Capabilities, " "), "reset_password") || can.Features["reset_password"] != "crypted" {
		t.Error(can, err)
	}
	for _, expire := range []bool{true, false} {
		reply, err := c.ResetPassword(ctxFor(t, time.Minute), &pb.ResetPasswordRequest{Username: "bob", NewPassword: "a password to look for", Expire: expire})
		if err != nil || !reply.Success || reply.MustChange != expire {
			t.Error(reply, err)
		}
	}
	shadow, _ := os.ReadFile(filepath.Join(root, "etc/shadow"))
	for _, in := range []*pb.ResetPasswordRequest{
		{Username: "bob", NewPassword: "a password to look for\nroot:evil"}, {Username: "bob\nroot:evil", NewPassword: "a password to look for"},
		{Username: "bob:evil", NewPassword: "a password to look for"}, {Username: "--help", NewPassword: "a password to look for"},
	} {
		_, asked := client.Call[*pb.ResetPasswordResponse](ctxFor(t, time.Minute), c, in)
		_, not := c.ResetPassword(ctxFor(t, time.Minute), in)
		for _, err := range []error{asked, not} {
			if fault.Code(err) != "invalid" || strings.Contains(err.Error(), "look for") {
				t.Errorf("%q: %v", in.Username, err)
			}
		}
	}
	if now, err := os.ReadFile(filepath.Join(root, "etc/shadow")); err != nil || string(now) != string(shadow) {
		t.Errorf("shadow is now %s, %v", now, err)
	}
	_, err = c.ResetPassword(ctxFor(t, time.Minute), &pb.ResetPasswordRequest{Username: "nobody-here", NewPassword: "a password to look for"})
	if fault.Code(err) != "not_found" {
		t.Error(err)
	}
	told, err := client.Call[*pb.TransactionsResponse](ctxFor(t, time.Minute), c, &pb.TransactionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if log := a.Log(); !strings.Contains(log, `"op":"reset_password"`) || !strings.Contains(log, "account:bob") {
		t.Errorf("the audit has %s", log)
	}
	for what, text := range map[string]string{"log": a.Log(), "transactions": fmt.Sprint(told)} {
		if strings.Contains(text, "look for") || strings.Contains(text, "$6$") {
			t.Errorf("the %s tells the password: %s", what, text)
		}
	}
}

// Whenever the agent is killed while it changes accounts: after its next start all is as it was, or done.
func TestKilledAgentLeavesAccountsWhole(t *testing.T) {
	rounds := 10
	if n, err := strconv.Atoi(os.Getenv("QUANTIX_ROUNDS")); err == nil {
		rounds = n
	}
	interrupted := 0
	for round := range rounds {
		root, state := accountTree(t), t.TempDir()
		before := ownedPicture(t, root)
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{})
		begun := make(chan bool)
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			source := `file.write("/etc/begun", "") ` + accountChanges
			reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source), Params: &structpb.Struct{}})
			answered <- reply
		}()
		go func() {
			defer close(begun)
			for range 20_000 {
				if _, err := os.Stat(filepath.Join(root, "etc/begun")); err == nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		<-begun
		time.Sleep(time.Duration(rand.IntN(60_000)) * time.Microsecond) // anywhere in the run
		a.Kill()
		reply := <-answered
		b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		d := b.Client(t, client.Options{})
		awaitEnded(t, d)
		after := ownedPicture(t, root)
		passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
		locks, _ := filepath.Glob(filepath.Join(root, "etc/[a-z]*.lock"))
		done := strings.Contains(string(passwd), "alice:x:1600:") && !strings.Contains(string(passwd), "bob")
		switch {
		case err != nil || len(locks) > 0:
			t.Fatal(err, locks)
		case after == before && reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
			interrupted++
		case !done:
			t.Fatalf("round %d: neither before nor after: %v\n%s\n%s", round, reply, before, after)
		}
		b.Kill()
	}
	t.Logf("%d of %d runs were taken back", interrupted, rounds)
}

// The agent is killed as soon as a home directory has moved: after its next start the directory is where passwd says, with all
// that is in it, and the tree is as before or as after.
func TestKilledAgentLeavesMovedHomeWhole(t *testing.T) {
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("QUANTIX_ROUNDS")); err == nil {
		rounds = n
	}
	takenBack := 0
	for round := range rounds {
		root, state := accountTree(t), t.TempDir()
		before := ownedPicture(t, root)
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{})
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			source := `account.modify("bob", {home = "/srv/people/bob", move_home = true, uid = 1700})`
			reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source)})
			answered <- reply
		}()
		for range 20_000 {
			if _, err := os.Stat(filepath.Join(root, "srv/people/bob")); err == nil {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		a.Kill()
		reply := <-answered
		b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		awaitEnded(t, b.Client(t, client.Options{}))
		after := ownedPicture(t, root)
		passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(root, "srv/people/bob/file"))
		_, former := os.Lstat(filepath.Join(root, "home/bob"))
		moved := strings.Contains(string(passwd), "bob:x:1700:1000::/srv/people/bob:") && err == nil && string(content) == "bob's\n" &&
			errors.Is(former, os.ErrNotExist)
		switch {
		case after == before && reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
			takenBack++
		case !moved:
			t.Fatalf("round %d: neither before nor after: %v\n%s\n%s", round, reply, before, after)
		}
		b.Kill()
	}
	t.Logf("%d of %d runs were taken back", takenBack, rounds)
}
