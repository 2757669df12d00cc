package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The agent's own files cannot be removed through it, also where they lie below --root under another name.
func TestOwnFilesAreGuardedBelowARoot(t *testing.T) {
	root := t.TempDir()
	state := filepath.Join(root, "var/lib/quantix-kvm")
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	c := a.Client(t, client.Options{})
	for _, path := range []string{"/var/lib/quantix-kvm", "/var/lib/quantix-kvm/tx", "/var", "/var/lib/../lib/quantix-kvm"} {
		_, err := client.Call[*pb.FileDeleteResponse](ctxFor(t, 20*time.Second), c, &pb.FileDeleteRequest{Path: path, Recursive: true})
		if !errors.Is(err, fault.ErrRefused) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(state, "tx")); err != nil {
		t.Error(err)
	}
}

// Relative paths on the command line mean what they mean to the shell.
func TestRelativePathsOfTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("tree", 0o755); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: "tree", State: "state"})
	c := a.Client(t, client.Options{})
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(`return file.write("/x", "y")`)})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(reply, err)
	}
	if content, err := os.ReadFile("tree/x"); err != nil || string(content) != "y" {
		t.Error(string(content), err)
	}
}

// What a script declares counts however the declaration is written.
func TestDeclarationCannotBeHidden(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	for _, source := range []string{
		"return --[[x]] script {name='x', readonly=true, run=function() file.write('/b','y') end}",
		"return --x\nscript {name='x', readonly=true, run=function() file.write('/b','y') end}",
		"return (script)({name='x', readonly=true, run=function() file.write('/b','y') end})",
	} {
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(source)})
		if err != nil || reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			t.Errorf("%s: %v, %v", source, reply, err)
		}
		if _, err := os.Stat(filepath.Join(root, "b")); err == nil {
			t.Fatalf("%s: written", source)
		}
	}
}

// Two hosts that write one file do not mix: each file is the whole of one of them.
func TestUploadsOfTwoHostsDoNotMix(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	done := make(chan error, 2)
	for _, letter := range []string{"A", "B"} {
		c := a.Client(t, client.Options{})
		go func() {
			_, err := c.Push(context.Background(), "/file", strings.NewReader(strings.Repeat(letter, 2_000_000)), client.PushOptions{})
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	content, err := os.ReadFile(filepath.Join(root, "file"))
	if err != nil || len(content) != 2_000_000 || bytes.Contains(content, []byte("AB")) || bytes.Contains(content, []byte("BA")) {
		t.Errorf("%d bytes, %v", len(content), err)
	}
}

// Uploads of a host that left are dropped with it.
func TestUploadsEndWithTheirHost(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	gone := a.Client(t, client.Options{})
	for i := range 64 {
		path := "/half-" + string(rune('a'+i/8)) + string(rune('a'+i%8))
		if _, err := client.Call[*pb.FileWriteResponse](ctxFor(t, 20*time.Second), gone, &pb.FileWriteRequest{Path: path, Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	gone.Close()
	c := a.Client(t, client.Options{})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, err := os.ReadDir(root)
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files are left (%v)", len(left), err)
		}
	}
	if _, err := c.Push(ctxFor(t, 20*time.Second), "/whole", strings.NewReader("whole"), client.PushOptions{}); err != nil {
		t.Error(err)
	}
}

// A host that does not read does not hold up the end of the agent.
func TestStopWithAHostThatDoesNotRead(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	conn, err := agenttest.Dial(a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const commands = 30
	ended := filepath.Join(t.TempDir(), "ended")
	for i := range commands {
		request := &pb.ExecuteRequest{Command: "head -c 1000000 /dev/zero | tr '\\0' x; echo >>" + ended, WaitForExit: true}
		if err := wire.WriteMessage(conn, wire.Plain, wire.Wrap("exec-"+string(rune('a'+i)), request)); err != nil {
			t.Fatal(err)
		}
	}
	if runtime.GOOS == "windows" { // the command is none there, and fails at once
		a.AwaitLog(t, `"op":"execute"`, commands)
	}
	for deadline := time.Now().Add(time.Minute); runtime.GOOS != "windows"; time.Sleep(20 * time.Millisecond) {
		if lines, _ := os.ReadFile(ended); len(lines) == commands {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the commands do not end")
		}
	}
	if took := a.Stop(); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

// A script that SIGTERM meets is rolled back before the agent ends, and the host hears it.
func TestSIGTERMRollsBack(t *testing.T) {
	root := scratch(t)
	before := picture(t, root)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	done := make(chan *pb.RunScriptResponse, 1)
	go func() {
		reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(changes + "while true do end")})
		done <- reply
	}()
	a.AwaitLog(t, `"op":"file.move"`, 1)
	a.Stop()
	reply := <-done
	if reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.GetError().GetKind() != "cancelled" {
		t.Error(reply)
	}
	if after := picture(t, root); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// An agent that starts ends nothing that belongs to another agent on the same machine.
func TestStartOfAnotherAgentLeavesCommandsAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the command is one of sh")
	}
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	marker := filepath.Join(t.TempDir(), "started")
	done := make(chan *pb.RunScriptResponse, 1)
	go func() {
		reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(
			`return exec.run({"sh", "-c", "touch ` + marker + `; sleep 1; echo survived"}, {touches = {"` + marker + `"}, unconfined = true}).stdout`)})
		done <- reply
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(marker); err == nil || time.Now().After(deadline) {
			break
		}
	}
	other := agenttest.Start(t, agenttest.Options{})
	awaitRecovered(t, other.Client(t, client.Options{}))
	if reply := <-done; reply.GetResult().GetStringValue() != "survived\n" {
		t.Error(reply)
	}
}

// A move that is taken back leaves the times of both directories as they were.
func TestMoveTakenBackLeavesNoTrace(t *testing.T) {
	root := scratch(t)
	before := picture(t, root)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	for _, move := range []string{`"/etc/hosts", "/srv/hosts"`, `"/srv/a", "/a"`, `"/etc/app.conf", "/etc/moved"`} {
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(`file.move(` + move + `) error("no")`)})
		if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatal(reply, err)
		}
		if after := picture(t, root); after != before {
			t.Fatalf("%s: before:\n%s\nafter:\n%s", move, before, after)
		}
	}
}
