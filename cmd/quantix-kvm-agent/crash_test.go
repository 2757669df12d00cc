package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// picture describes a tree: what a rollback must bring back.
func picture(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %v", strings.TrimPrefix(path, root), info.Mode(), info.ModTime().UnixNano())
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(content))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			b.WriteString(" " + target)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func scratch(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range map[string]string{"etc/app.conf": "old\n", "etc/hosts": "127.0.0.1 localhost\n", "srv/a/b/c": "deep\n"} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const changes = `
for i = 1, 20 do file.write("/etc/new-" .. i, ("x"):rep(i * 1000)) end
file.write("/etc/app.conf", "new\n", {mode = "0600"})
file.remove("/srv/a", {recursive = true})
file.mkdir("/opt/x/y", {parents = true})
file.symlink("/nowhere", "/opt/x/link")
file.move("/etc/hosts", "/etc/hosts.moved")
`

// Whenever the agent is killed while a script runs: after its next start the tree is as it was, or, where the host had
// heard COMMITTED, wholly changed. The host is told of what was interrupted.
func TestKilledAgentLeavesAllOrNothing(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	interrupted := 0
	for round := range rounds {
		root, state := scratch(t), t.TempDir()
		before := picture(t, root)
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{})
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(changes)})
			answered <- reply
		}()
		time.Sleep(time.Duration(rand.IntN(30000)) * time.Microsecond) // anywhere in the run
		a.Kill()
		reply := <-answered
		told := make(chan *pb.ErrorEvent, 10)
		b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		d, err := client.Dial(context.Background(), b.Socket, client.Options{Event: eventsTo(told)})
		if err != nil {
			t.Fatal(err)
		}
		awaitEnded(t, d)
		d.Close()
		after := picture(t, root)
		switch {
		case reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
			if after == before {
				t.Fatal("committed, and then gone")
			}
		case after != before:
			if _, err := os.Stat(filepath.Join(root, "etc/hosts.moved")); err != nil {
				t.Fatalf("round %d: neither before nor after:\n%s", round, after)
			}
			// The commit was durable, and only the reply was lost.
		default:
			interrupted++
		}
		b.Kill()
	}
	t.Logf("%d of %d runs were taken back", interrupted, rounds)
}

func eventsTo(told chan<- *pb.ErrorEvent) func(string, proto.Message) {
	return func(_ string, event proto.Message) {
		if e, ok := event.(*pb.ErrorEvent); ok {
			select {
			case told <- e:
			default:
			}
		}
	}
}

// awaitRecovered waits until the agent serves again. A recovery that takes long goes on then: see awaitEnded.
func awaitRecovered(t *testing.T, c *client.Client) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := client.Call[*pb.FileStatResponse](ctxFor(t, 20*time.Second), c, &pb.FileStatRequest{Path: "/"})
		if err == nil {
			return
		}
		if !errors.Is(err, fault.ErrBusy) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// awaitEnded waits until the agent serves again and a recovery, if there is one, has ended.
func awaitEnded(t *testing.T, c *client.Client) {
	t.Helper()
	awaitRecovered(t, c)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s, err := client.Call[*pb.GetStatusResponse](ctxFor(t, 20*time.Second), c, &pb.GetStatusRequest{})
		if err == nil && s.Journal.GetError() == "" {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatal(err, s.GetJournal().GetError())
		}
	}
}

// A script that is run once more under its key gives the stored reply; another one under that key is refused.
func TestOnceByKey(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	run := func(c *client.Client, request *pb.RunScriptRequest) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, request)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	c := a.Client(t, client.Options{})
	append1 := &pb.RunScriptRequest{Key: "append-1", Source: []byte(`file.append("/etc/app.conf", "line\n") return 7`), Secrets: map[string]string{"a": "1", "b": "2", "c": "3"}}
	first := run(c, append1)
	if first.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || first.Replayed {
		t.Fatal(first)
	}
	for range 3 {
		again := run(c, append1)
		if !again.Replayed || again.TransactionId != first.TransactionId || again.Result.GetNumberValue() != 7 {
			t.Fatal(again)
		}
	}
	other := run(c, &pb.RunScriptRequest{Key: "append-1", Source: []byte(`return 8`)})
	if other.GetError().GetKind() != "key_conflict" || other.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED {
		t.Fatal(other)
	}
	failing := &pb.RunScriptRequest{Key: "fails", Source: []byte(`file.write("/etc/x", "y") error("no")`)}
	if reply := run(c, failing); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatal(reply)
	}
	if reply := run(c, failing); reply.Replayed {
		t.Error("a rollback was replayed for a new message id")
	}
	a.Kill()
	b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	d := b.Client(t, client.Options{})
	awaitEnded(t, d)
	if again := run(d, append1); !again.Replayed || again.TransactionId != first.TransactionId {
		t.Error("after a restart:", again)
	}
	if content, _ := os.ReadFile(filepath.Join(root, "etc/app.conf")); string(content) != "old\nline\n" {
		t.Errorf("%q", content)
	}
	list, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{})
	if err != nil || len(list.Transactions) < 2 {
		t.Fatal(list, err)
	}
	shown, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{TransactionId: first.TransactionId})
	if err != nil || shown.Transactions[0].Reply.GetResult().GetNumberValue() != 7 {
		t.Error(shown, err)
	}
}

// A script that is named may be another one, or none, when its request is sent again: that runs nothing all the same.
func TestOnceOfAScriptThatChangesItself(t *testing.T) {
	root := scratch(t)
	dir := filepath.Join(root, scriptDirs[0])
	inLua := filepath.ToSlash(scriptDirs[0])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]string{
		"remove":  `file.remove("` + inLua + `/remove.lua")`,
		"replace": `file.write("` + inLua + `/replace.lua", "return 2")`,
	} {
		source := []byte(change + ` file.append("/etc/app.conf", "line\n") return 1`)
		if err := os.WriteFile(filepath.Join(dir, name+".lua"), source, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	run := func(id string, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
		return client.CallID[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, id, request)
	}
	for _, name := range []string{"remove", "replace"} {
		for _, replayed := range []bool{false, true} {
			reply, err := run(name, &pb.RunScriptRequest{Name: name})
			if err != nil || reply.Replayed != replayed || reply.Result.GetNumberValue() != 1 {
				t.Errorf("%s, sent again %v: %v, %v", name, replayed, reply, err)
			}
		}
		reply, err := run(name, &pb.RunScriptRequest{Name: name, ExpectSha256: "00"})
		if err != nil || reply.GetError().GetKind() != "policy" {
			t.Errorf("%s, another digest expected: %v, %v", name, reply, err)
		}
	}
	if content, _ := os.ReadFile(filepath.Join(root, "etc/app.conf")); string(content) != "old\nline\nline\n" {
		t.Errorf("%q", content)
	}
}

// A builtin that fails is taken back before the script sees the error; a script that goes on keeps the rest.
func TestFailedCallLeavesNothing(t *testing.T) {
	root := scratch(t)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(`
		file.write("/etc/one", "1")
		local ok, e = pcall(file.write, "/srv/made/for/nothing\0", "x", {parents = true})
		assert(not ok)
		local ok, e = pcall(file.copy, "/etc/none", "/etc/two")
		assert(not ok and e.code == "not_found", tostring(e))
		file.write("/etc/three", "3")`)})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Changes) != 2 {
		t.Fatal(reply, err)
	}
	if _, err := os.Stat(filepath.Join(root, "srv/made")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
