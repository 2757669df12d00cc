package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// While a file system that a script had changed is not mounted, the agent serves all that needs no transaction, and says in
// replies, status and events what it waits for. When it is mounted all is taken back, without a restart.
func TestRecoveryWaitsForMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	dir, disk, state := t.TempDir(), t.TempDir(), t.TempDir()
	point := filepath.Join(dir, "srv")
	mount := func() {
		if err := errors.Join(os.MkdirAll(point, 0o755), unix.Mount(disk, point, "", unix.MS_BIND, "")); err != nil {
			t.Skipf("cannot mount here (run as root of the machine): %v", err)
		}
	}
	mount()
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	a := agenttest.Start(t, agenttest.Options{State: state})
	c := a.Client(t, client.Options{})
	source := strings.ReplaceAll(`file.write("$/new", "half") while true do end`, "$", point)
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source)})
	}()
	eventually(t, "the file", func() bool { _, err := os.Stat(filepath.Join(disk, "new")); return err == nil })
	a.Kill()
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the early recovery", func() bool { // a runner that was being started has the journal's lock for a moment
		out, err := tool(t, "recover", "--early", "--state", state)
		return err == nil && strings.Contains(out, "waiting for "+point+" (")
	})
	told := make(chan *pb.ErrorEvent, 10)
	b := agenttest.Start(t, agenttest.Options{State: state})
	early := b.Client(t, client.Options{})
	eventually(t, "the status", func() bool {
		s, err := client.Call[*pb.GetStatusResponse](ctxFor(t, 20*time.Second), early, &pb.GetStatusRequest{})
		return err == nil && s.State == pb.AgentState_AGENT_STATE_RECOVERING && strings.HasPrefix(s.Reason, "waiting for "+point+" (")
	})
	awaitRecovered(t, early)
	d := b.Client(t, client.Options{Event: eventsTo(told)})
	if reply := runIn(t, d, dir, `file.write("$/other", "x")`); !strings.Contains(reply.GetError().GetMessage(), "waiting for "+point+" (") {
		t.Error(reply)
	}
	if reply := runIn(t, d, dir, `return script {name = "look", readonly = true, run = function() return file.exists("$/srv") end}`); reply.GetError() != nil {
		t.Error(reply)
	}
	if e := <-told; !strings.Contains(e.Message, "waiting for "+point+" (") {
		t.Error(e)
	}
	mount()
	eventually(t, "the rollback", func() bool {
		return runIn(t, d, dir, `file.write("$/other", "x")`).Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	})
	if _, err := os.Stat(filepath.Join(disk, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A rollback that takes longer than its caller waits goes on in the background; then scripts run again.
func TestRollbackGoesOnInBackground(t *testing.T) {
	root := scratch(t)
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	inside, err := core.Open(core.Config{Root: root, State: t.TempDir(), Rooms: all.Config{}, Pool: pool, Library: script.NewLibrary(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	ctx, stop := context.WithCancel(t.Context())
	changed := make(chan struct{}, 10)
	r, ended := newRecovery(inside.Journal, func() { changed <- struct{}{} }), make(chan struct{})
	go func() { r.run(ctx, inside, zap.NewNop()); close(ended) }()
	defer func() { stop(); <-ended }()
	<-changed
	tx, err := inside.Journal.Begin(ctx, journal.Header{})
	if err == nil {
		err = tx.Before(ctx, "/etc/new")
	}
	if err = errors.Join(err, os.WriteFile(filepath.Join(root, "etc/new"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if report := tx.Rollback(over); !report.Halted {
		t.Fatalf("%+v", report)
	}
	if err := tx.Close(ctx, &pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "runtime", Message: "mine"}}); err != nil {
		t.Fatal(err)
	}
	<-changed
	if _, err := os.Stat(filepath.Join(root, "etc/new")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	next, err := inside.Journal.Begin(ctx, journal.Header{})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(ctx, nil); err != nil {
		t.Fatal(err)
	}
	entry, err := inside.Journal.Stored(journal.Ref{ID: tx.ID()})
	if err != nil || entry.Reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || entry.Reply.GetError().GetMessage() != "mine" {
		t.Error(entry, err)
	}
}

// A recovery that takes long, such as by commands, closes the gate for a moment alone.
func TestGateOpensBeforeALongRecoveryEnds(t *testing.T) {
	r := newRecovery(&journal.Journal{}, func() {})
	if err := r.gate(t.Context()); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	r.open()
	if err := r.gate(t.Context()); err != nil {
		t.Error(err)
	}
}

// A state directory that cannot be written keeps the agent from nothing but what changes files: commands and reads are served,
// the reason is told in replies, status and events, and it ends without a restart.
func TestReadOnlyState(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	disk, state, dir := t.TempDir(), t.TempDir(), t.TempDir()
	if err := unix.Mount(disk, state, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	remount := func(flags uintptr) {
		if err := unix.Mount("", state, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	told := make(chan *pb.ErrorEvent, 10)
	c := agenttest.Start(t, agenttest.Options{State: state}).Client(t, client.Options{Event: eventsTo(told)})
	const why = "the state directory cannot be used: "
	if e := <-told; !strings.Contains(e.Message, why) || !strings.Contains(e.Message, "read-only file system") {
		t.Error(e)
	}
	awaitRecovered(t, c)
	ran, err := client.Call[*pb.ExecuteResponse](ctxFor(t, 20*time.Second), c, &pb.ExecuteRequest{Command: "echo", Args: []string{"served"}, WaitForExit: true})
	if err != nil || string(ran.Stdout) != "served\n" {
		t.Error(ran, err)
	}
	_, err = client.Call[*pb.FileWriteResponse](ctxFor(t, 20*time.Second), c, &pb.FileWriteRequest{Path: filepath.Join(dir, "pushed"), Data: []byte("x"), Eof: true})
	if !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
	if reply := runIn(t, c, dir, `file.write("$/new", "x")`); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || !strings.Contains(reply.GetError().GetMessage(), why) {
		t.Error(reply)
	}
	if reply := runIn(t, c, dir, `return script {name = "look", readonly = true, run = function() return file.exists("$") end}`); reply.GetError() != nil {
		t.Error(reply)
	}
	s, err := client.Call[*pb.GetStatusResponse](ctxFor(t, 20*time.Second), c, &pb.GetStatusRequest{})
	if err != nil || s.State != pb.AgentState_AGENT_STATE_REFUSING || !strings.Contains(s.Reason, why) {
		t.Error(s, err)
	}
	remount(0)
	eventually(t, "the end of it", func() bool {
		return runIn(t, c, dir, `file.write("$/new", "x")`).Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	})
}
