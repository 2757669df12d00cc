package core

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What an agent left that died in the middle is taken back by the next, also by one that runs no scripts, and what was to come
// after its commit is done.
func TestRecoveryNeedsNoScripts(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	open := func() *Core {
		t.Helper()
		core, err := Open(Config{Root: root, State: state, BootID: func() string { return "boot" }, MachineID: func() string { return "machine" }})
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	leaves := func(name string, end func(context.Context, *journal.Tx) error) {
		t.Helper()
		core := open()
		tx, err := core.Journal.Begin(t.Context(), journal.Header{MessageID: name})
		if err == nil {
			err = tx.Before(t.Context(), "/"+name)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), []byte("new"), 0o644)
		}
		if err == nil {
			err = end(t.Context(), tx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := core.Close(); err != nil { // as the death of the agent: the transaction stays open
			t.Fatal(err)
		}
	}
	left := func() []string {
		t.Helper()
		core := open()
		events, err := core.Recover(t.Context())
		if err != nil || len(events) != 1 || events[0].Severity != pb.ErrorSeverity_ERROR_SEVERITY_WARNING {
			t.Errorf("%v, %v", events, err)
		}
		if err := core.Close(); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	leaves("open", func(context.Context, *journal.Tx) error { return nil })
	if got := left(); len(got) > 0 {
		t.Errorf("of an open transaction stays %q", got)
	}
	leaves("done", func(ctx context.Context, tx *journal.Tx) error {
		reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
		return tx.Commit(ctx, reply, journal.Action{Op: "file.move", Args: &pb.FromToArgs{From: "/done", To: "/after"}})
	})
	if got := left(); !slices.Equal(got, []string{"after"}) {
		t.Errorf("of a transaction that committed stays %q", got)
	}
}

// What a command of an earlier agent left running has ended before anything of it is taken back, also where the first try to
// end it fails.
func TestNothingIsTakenBackBeforeTheSweep(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	name := fmt.Sprintf("core-test%d", os.Getpid())
	open := func() *Core {
		t.Helper()
		core, err := Open(Config{Root: root, State: state, Rooms: all.Config{Name: name},
			BootID: func() string { return "boot" }, MachineID: func() string { return "machine" }})
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	core := open()
	tx, err := core.Journal.Begin(t.Context(), journal.Header{MessageID: "x"})
	if err == nil {
		err = tx.Before(t.Context(), "/file")
	}
	if err = errors.Join(err, os.WriteFile(filepath.Join(root, "file"), []byte("new"), 0o644)); err != nil {
		t.Fatal(err)
	}
	// As the earlier agent's runner marks a command that has no control group.
	text := "QUANTIX_KVM_RUN=" + name + ".tied.1-1.x.1."
	mac := hmac.New(sha256.New, core.secret())
	mac.Write([]byte("mark of a command\x00" + text))
	cmd := exec.Command("sleep", "300")
	cmd.Env = []string{text + hex.EncodeToString(mac.Sum(nil)[:16])}
	if err := errors.Join(core.Close(), cmd.Start()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()

	core = open()
	defer core.Close()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if _, err := core.Recover(gone); err == nil {
			t.Error("a recovery that cannot end what runs has ended well")
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "file")); err != nil {
		t.Error("it is taken back while what made it may run: ", err)
	}
	if events, err := core.Recover(t.Context()); err != nil || len(events) != 1 {
		t.Error(events, err)
	}
	if err := <-ended; err == nil {
		t.Error("the command ended by itself")
	}
	if _, err := os.Lstat(filepath.Join(root, "file")); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// The key of the state directory stays where a script has written another machine ID: what asks for it before that is taken
// back, and after, gets the same.
func TestTheKeyOutlivesScripts(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	path := filepath.Join(root, "etc/machine-id")
	id := func(c string) []byte { return []byte(strings.Repeat(c, 32) + "\n") }
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, id("1"), 0o644)); err != nil {
		t.Fatal(err)
	}
	open := func() *Core {
		t.Helper()
		core, err := Open(Config{Root: root, State: state, BootID: func() string { return "boot" }})
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	core := open()
	key := core.secret()
	tx, err := core.Journal.Begin(t.Context(), journal.Header{})
	if err == nil {
		err = tx.Before(t.Context(), "/etc/machine-id")
	}
	if err = errors.Join(err, os.WriteFile(path, id("2"), 0o644), core.Close()); err != nil || len(key) != keyLength {
		t.Fatal(key, err)
	}
	core = open()
	if !bytes.Equal(core.secret(), key) {
		t.Error("what is interrupted has changed the key")
	}
	if events, err := core.Recover(t.Context()); err != nil || len(events) != 1 {
		t.Error(events, err)
	}
	if !bytes.Equal(core.secret(), key) {
		t.Error("the recovery has changed the key")
	}
	// Of a script that commits, the guest keeps it as well.
	tx, err = core.Journal.Begin(t.Context(), journal.Header{})
	if err == nil {
		err = tx.Before(t.Context(), "/etc/machine-id")
	}
	if err = errors.Join(err, os.WriteFile(path, id("2"), 0o644)); err != nil {
		t.Fatal(err)
	}
	reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
	if err := errors.Join(tx.Commit(t.Context(), reply), tx.Close(t.Context(), nil), core.Close()); err != nil {
		t.Fatal(err)
	}
	core = open()
	if !bytes.Equal(core.secret(), key) {
		t.Error("a script has changed the key")
	}
	core.Close()
	if err := os.WriteFile(path, id("3"), 0o644); err != nil { // as in a clone
		t.Fatal(err)
	}
	core = open()
	defer core.Close()
	if bytes.Equal(core.secret(), key) {
		t.Error("a clone has the same key")
	}
}
