// Package core wires the parts of an agent that do not depend on how hosts reach it:
//
//	files ─► rooms ─► executor ─► journal ─► executor ─► scripts ─► executor
//	                  for undo               with a                 with the operations
//	                                         journal                of scripts as well
//
// A rollback runs the inverse operations of rooms, so the journal needs an executor; the operations of scripts need the
// journal. So each executor is made from the one before. The service, apply, the recovery at early boot and the tests
// of scripts differ in their Config alone.
//
// Not here: flags, configuration files, logging, and channels.
package core

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config is what a core is made of.
type Config struct {
	// Root is the directory whose files are acted on. Required; "/" is the running system.
	Root string
	// State is the directory for what must survive a crash. It is made, with mode 0700. Required.
	State string
	// Tolerant lets Open succeed with a State that cannot be used. What needs it is refused until a recovery finds it usable.
	Tolerant bool
	// Rooms are the settings of rooms; Files, Dir, Lock, Secret and OpenTransaction are filled in here.
	Rooms all.Config
	// Pool runs scripts, and Library finds them by name. Without a pool there are none.
	Pool    *sandbox.Pool
	Library *script.Library
	// Disabled keeps scripts from hosts; what one left unfinished is recovered all the same.
	Disabled bool
	// Policy is asked before each call. Nil: everything is allowed.
	Policy *policy.Current
	// Audit is called after each call, and Panicked after a panic in one. Optional.
	Audit    func(call.Entry)
	Panicked func(op *builtins.Op, value any, stack []byte)
	// Unconfirmed is called for each transaction that was rolled back because nobody confirmed it in time. Optional.
	Unconfirmed func(*pb.ErrorEvent)
	// Halt is closed when rollbacks must stop since the agent does: its next start goes on with them. Nil: never.
	Halt <-chan struct{}
	// MachineID and BootID identify this guest and this boot: a clone has another machine ID. Nil: those of the guest.
	MachineID, BootID func() string
	// MachineChanged is called when a script that committed has changed the machine ID; key is that of its run. Optional.
	MachineChanged func(key, from, to string) error
	// Key keys the fingerprints of requests, and the marks of commands. Nil: one that is kept in State.
	Key []byte
	// LockWait is how long a journal that another process has open is waited for; 0: not at all.
	LockWait time.Duration
}

// Core is an opened agent without its channels.
type Core struct {
	// Files is the file system that is acted on.
	Files *fsys.Root
	// Rooms are the rooms.
	Rooms *all.Rooms
	// Journal is where transactions are.
	Journal *journal.Journal
	// Scripts runs scripts; nil without a pool.
	Scripts *script.Manager
	// Calls runs what hosts ask for.
	Calls *call.Executor

	table *builtins.Table // of the rooms
	key   atomic.Pointer[[]byte]
	swept atomic.Bool // no process of an earlier agent's scripts is left
}

// CheckState returns an error where another user than root and the agent's own could exchange what lies in a state directory.
// One that is not there is none of them.
func CheckState(state, root string) error {
	if err := checkOwners(state, root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Open wires everything. The caller closes what it returns.
func Open(c Config) (*Core, error) {
	if err := CheckState(c.State, c.Root); err != nil {
		return nil, err
	}
	files, err := fsys.Open(c.Root)
	if err != nil {
		return nil, err
	}
	core := &Core{Files: files}
	c.Rooms.Files, c.Rooms.Dir = files, c.Root
	c.Rooms.Lock = func(ctx context.Context) (func(), error) { return core.Journal.Lock(ctx) } // which is there before a call is
	c.Rooms.Secret = core.secret
	c.Rooms.OpenTransaction = func() *pb.TransactionInfo { return core.Journal.Status().Open }
	c.Rooms.Update.Scripts = func() int {
		if core.Scripts == nil {
			return 0
		}
		return core.Scripts.Running()
	}
	c.Rooms.State, c.Rooms.Spool, c.Rooms.RunScript = c.State, c.overlays(), core.runHook
	core.Rooms = all.New(c.Rooms)
	if err := core.open(c); err != nil {
		return nil, errors.Join(err, core.Close())
	}
	return core, nil
}

func (core *Core) open(c Config) (err error) {
	core.table = builtins.NewTable(core.Rooms.List()...)
	config := call.Config{
		Table: core.table, Files: core.Files, Audit: c.Audit, Panicked: c.Panicked, Remotes: core.Rooms, Halt: c.Halt,
		Unconfirmed: c.Unconfirmed, Frozen: core.Rooms.Frozen(),
	}
	if c.Policy != nil {
		config.Policy = c.Policy
	}
	inverses := call.New(config)
	if c.MachineID == nil {
		c.MachineID = core.Rooms.MachineID
	}
	if c.BootID == nil {
		c.BootID = core.Rooms.BootID
	}
	core.Journal, err = openJournal(journal.Config{
		Dir: c.journalDir(), Root: core.Files, Version: c.Rooms.Version,
		MachineID: c.MachineID, BootID: c.BootID, Run: inverses.Undo, Subject: inverses.Subject, Enter: core.Rooms.Frozen().EnterOwn,
		Tolerant: c.Tolerant, Prepare: func() error { return core.prepareState(c) }, Ready: func() error { return core.ready(c) },
		MachineChanged: c.machineChanged,
	}, c.LockWait)
	if err != nil {
		return err
	}
	core.Calls = inverses.WithJournal(core.Journal, core.table)
	core.Calls = core.Calls.WithRoom(core.Calls.Room())
	if c.Pool == nil {
		return nil
	}
	core.Scripts = script.New(script.Config{
		Pool: c.Pool, Library: c.Library, Journal: core.Journal, Calls: core.Calls, Secret: core.secret, Files: core.Files, Unsupported: all.Unsupported,
		Spool: c.overlays(), Enter: core.Rooms.Frozen().EnterOwn,
		Overlay: func() (*fsys.Root, error) { return core.Files.Overlay(filepath.Join(c.overlays(), rand.Text())) },
	})
	if c.Disabled {
		return nil
	}
	core.Calls = core.Calls.WithRoom(core.Scripts.Room())
	return nil
}

// runHook runs a freeze hook that is a script, for the host that a call came from.
func (core *Core) runHook(ctx context.Context, from *builtins.Call, name string, source []byte, phase string) error {
	request := &pb.RunScriptRequest{Name: name, Source: source, Key: rand.Text()}
	op := core.Calls.Native(request)
	if op == nil {
		return fault.Unsupported("scripts are not enabled")
	}
	var err error
	if request.Params, err = structpb.NewStruct(map[string]any{"phase": phase}); err != nil {
		return err
	}
	id := "hook-" + rand.Text()
	out, err := core.Calls.Execute(ctx, &builtins.Call{ID: id, Port: from.Port, Session: from.Session, Event: from.Event}, op, request)
	if err != nil {
		return err
	}
	reply := out.(*pb.RunScriptResponse)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		status := strings.ToLower(strings.TrimPrefix(reply.Status.String(), "SCRIPT_STATUS_"))
		return fault.Wrapf(fault.ErrOutput, "%s: %s", status, reply.GetError().GetMessage())
	}
	return nil
}

// Close ends what is running. A transaction that is open stays as it is on disk.
func (core *Core) Close() (err error) {
	if core.Calls != nil {
		core.Calls.Close()
	}
	if core.Journal != nil {
		err = core.Journal.Close()
	}
	return errors.Join(err, core.Rooms.Close(), core.Files.Close())
}

// openJournal waits for a journal that seems to be in use: a runner that is just being started has its lock too, from the
// fork to the exec.
func openJournal(c journal.Config, wait time.Duration) (*journal.Journal, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(2 * time.Millisecond) {
		j, err := journal.Open(c)
		if !errors.Is(err, fault.ErrBusy) || !time.Now().Before(deadline) {
			return j, err
		}
	}
}

// Recover first ends what scripts of an earlier agent left running, and then commits or rolls back what that agent left
// unfinished. It returns an event for each transaction that it found. Called again, it goes on with what it had to leave: a
// rollback that took too long, or that waits for a mount.
func (core *Core) Recover(ctx context.Context) ([]*pb.ErrorEvent, error) {
	if !core.swept.Load() {
		if err := core.Rooms.Sweep(ctx); err != nil {
			return nil, err
		}
		core.swept.Store(true)
	}
	scripts := core.Scripts
	if scripts == nil { // what an earlier agent left is taken back by one that runs none, too
		scripts = script.New(script.Config{Journal: core.Journal, Calls: core.Calls})
	}
	return scripts.Recover(ctx)
}

// RecoverEarly takes back what needs nothing but the file system, early at boot. restored bounds the calls of the rooms'
// Restored that follow.
func (core *Core) RecoverEarly(ctx, restored context.Context) ([]journal.Recovered, error) {
	found, err := core.Journal.Recover(ctx, func(name string) (later bool) {
		op := core.table.Script(name)
		return op == nil || !op.Early
	})
	var paths []string
	for _, r := range found {
		for _, step := range r.Report.Steps {
			if step.Target != "" && step.Err == nil {
				paths = append(paths, step.Target)
			}
		}
	}
	return found, errors.Join(err, core.Rooms.Restored(restored, paths))
}
