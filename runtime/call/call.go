// Package call is the executor of operations: what hosts, scripts and the journal ask for runs through it, so that policy, dry
// runs, undo and audit are in one place.
//
//	native request ─► Executor.Execute ─┐
//	script's call ──► Run.Call ─────────┼─► refuse? ─► dry run, transaction or as it is ─► Op ─► audit
//	journal ────────► Executor.Undo ────┘   policy, rights, readonly,   (mark, revert,
//	                                        an open transaction         commit, roll back)
//
// Not here: what an operation does, how a policy decides, and how a transaction is kept.
package call

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Policy decides who may do what. policy.Current implements it.
type Policy interface {
	// Check returns why a request from a host on a port is refused; nil: it is not.
	Check(port string, op *builtins.Op, in proto.Message, access builtins.Access) error
	// Denies reports whether every request to a row is refused on a port, so that it is not announced there.
	Denies(port string, op *builtins.Op) bool
	// Sees reports whether hosts on a port may see and cancel what hosts on another port, the owner, began.
	Sees(port, owner string) bool
}

// Remotes are the network and FUSE file systems, which may hang.
type Remotes interface {
	// HasRemotes reports whether one is mounted.
	HasRemotes() bool
	// CheckRemotes returns an error if a request would meet one that does not answer.
	CheckRemotes(ctx context.Context, access builtins.Access) error
}

// Frozen is the file systems that hosts have frozen for a snapshot. A write there would hang until the thaw, so a call waits for
// it, or is refused with fault.ErrBusy.
type Frozen interface {
	// Check returns why a request cannot be served at present.
	Check(access builtins.Access) error
	// Await waits within ctx until it can.
	Await(ctx context.Context, access builtins.Access) error
	// Enter begins a change of a host, and EnterScript one of a script, which writes to the journal as well. A freeze waits
	// until leave is called. Both wait within ctx while a file system is frozen, except Enter without wait.
	Enter(ctx context.Context, access builtins.Access, wait bool) (leave func(), err error)
	EnterScript(ctx context.Context, access builtins.Access) (leave func(), err error)
}

// Config is what an executor is made of.
type Config struct {
	// Table is the operations. Required.
	Table *builtins.Table
	// Files is the file system that calls act on, by which paths are compared. Nil: no rule is about paths.
	Files *fsys.Root
	// Policy is asked before each call, except for those that undo something. Nil: everything is allowed.
	Policy Policy
	// Halt is closed when rollbacks must stop because the agent does; its next start goes on with them. Nil: never.
	Halt <-chan struct{}
	// Remotes finds file systems whose servers do not answer. Nil: none is looked for.
	Remotes Remotes
	// Frozen knows which file systems are frozen. Nil: none.
	Frozen Frozen
	// Audit is called after each call, except for Routine ones that succeeded. Optional.
	Audit func(Entry)
	// Panicked is called after a panic in an operation, which the caller sees as an internal error. Optional.
	Panicked func(op *builtins.Op, value any, stack []byte)
	// Unconfirmed is called for each transaction that was rolled back because nobody confirmed it in time. Optional.
	Unconfirmed func(*pb.ErrorEvent)
}

// Executor runs operations. It is safe for concurrent use.
type Executor struct {
	config   Config
	journal  *journal.Journal // nil: there are no transactions
	confirms *confirmations   // nil without a journal
}

// New returns an executor without a journal. A journal runs inverse operations by its Undo.
func New(config Config) *Executor { return &Executor{config: config} }

// WithJournal returns a copy of the executor with a journal and another table. The caller closes it before the journal.
func (x *Executor) WithJournal(j *journal.Journal, table *builtins.Table) *Executor {
	with := &Executor{config: x.config, journal: j, confirms: newConfirmations(x.config.Unconfirmed)}
	with.config.Table = table
	return with
}

// WithRoom returns a copy of the executor with the operations of one more room. The copy shares the transaction that awaits its
// confirmation.
func (x *Executor) WithRoom(room builtins.Room) *Executor {
	with := *x
	with.config.Table = x.config.Table.WithRoom(room)
	return &with
}

// Native returns the row for a request of a host; nil where nothing serves it.
func (x *Executor) Native(in proto.Message) *builtins.Op { return x.config.Table.Native(in) }

// Table returns the operations.
func (x *Executor) Table() *builtins.Table { return x.config.Table }

// Capabilities returns the capabilities of the native rows that the policy does not deny on a port, sorted, each once.
func (x *Executor) Capabilities(port string) []string {
	return x.config.Table.Capabilities(func(op *builtins.Op) bool {
		return x.config.Policy != nil && x.config.Policy.Denies(port, op)
	})
}

// Execute runs a native row for a host. A row with a transaction of its own has ended it when this returns: it committed, or
// all is as it was and the error says why. An error names the operation, as in "file_write /etc/motd: read-only file system".
func (x *Executor) Execute(ctx context.Context, call *builtins.Call, op *builtins.Op, in proto.Message) (proto.Message, error) {
	d := &decision{Executor: x, own: *call, op: op, in: in, files: x.config.Files}
	d.call = &d.own
	if x.config.Policy != nil {
		d.own.Sees = func(owner string) bool { return x.config.Policy.Sees(call.Port, owner) }
	}
	return d.audited(func() (proto.Message, error) {
		if err := d.checkFrozen(); err != nil {
			return nil, d.refusedBy(err)
		}
		if err := d.checkRemotes(ctx); err != nil { // first: all else resolves paths
			return nil, err
		}
		if err := d.check(ctx); err != nil {
			return nil, d.refusedBy(err)
		}
		if op.Transacts(in) {
			return d.inTransaction(ctx)
		}
		leave, err := d.enter(ctx)
		if err != nil {
			return nil, d.refusedBy(err)
		}
		defer leave()
		return d.run(ctx)
	})
}

// Undo runs an internal row or a script row by its name, for the journal: an inverse in a rollback, or an action after a commit.
// idle reports that it had nothing to undo. No policy is asked: what it undoes was allowed, and a rollback must not depend on
// the configuration.
func (x *Executor) Undo(ctx context.Context, name string, args proto.Message) (idle bool, err error) {
	op := x.config.Table.Script(name)
	if op == nil {
		return false, fault.Unsupported("%s is not supported by this agent", name)
	}
	d := &decision{Executor: x, call: &builtins.Call{ID: "journal", Undo: true}, op: op, in: args}
	d.hide = hideOf(ctx)
	_, err = d.audited(func() (proto.Message, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		return d.run(ctx)
	})
	return d.call.Idle, err
}

// Subject returns a name, for people, of what an operation with these arguments is about; empty: it is not known.
func (x *Executor) Subject(name string, args proto.Message) string {
	op := x.config.Table.Script(name)
	if op == nil || op.In.ProtoReflect().Descriptor() != args.ProtoReflect().Descriptor() {
		return ""
	}
	return op.AccessOf(args).Subject()
}

// decision is one call from its check to its audit.
type decision struct {
	*Executor
	call   *builtins.Call
	own    builtins.Call // what call points to for a request of a host
	op     *builtins.Op
	files  *fsys.Root          // where rules resolve paths; nil: no rule is about paths
	in     proto.Message       // the request; nil until a script's arguments are bound
	access builtins.Access     // of in
	tx     string              // id of the transaction; empty: none
	cause  string              // why the executor refused the call; empty: it did not
	hide   func(string) string // removes secrets from the audit entry; nil: there are none

	routine bool // op.Routine says that only a failure is audited
}

// refusedBy notes for the audit why the call is refused, and returns that error.
func (d *decision) refusedBy(err error) error {
	d.cause = err.Error()
	return err
}

// setChecked makes what resolves the paths of the request once, for the rules and for the operation.
func (d *decision) setChecked() {
	if d.files != nil && len(d.access.Reads)+len(d.access.Writes)+len(d.access.Patterns) > 0 {
		d.access.Checked = d.files.NewCheckedPaths(slices.Concat(d.access.Reads, d.access.Writes)...)
		d.call.Checked = d.access.Checked
	}
}

// check returns why the call may not run: its context has ended, the policy, or an open transaction.
func (d *decision) check(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if d.config.Policy != nil {
		if err := d.config.Policy.Check(d.call.Port, d.op, d.in, d.access); err != nil {
			return err
		}
	}
	return d.checkKept()
}

// checkKept refuses a native change of what an open transaction has changed: a rollback would lose it, or fail because of it. A
// request with a transaction of its own waits for the open one instead.
func (d *decision) checkKept() error {
	if d.journal == nil || d.config.Files == nil || d.op.Script != nil || d.op.Transacts(d.in) || !d.op.Changes(d.in) {
		return nil
	}
	if err := d.journal.Unusable(); err != nil && len(d.access.Writes) > 0 && len(d.access.Commands) == 0 {
		return err // a command may be what repairs it
	}
	d.call.Kept = d.checkKeptPath
	for _, text := range d.access.Writes {
		path, err := d.config.Files.Resolve(text, false)
		if err != nil {
			continue // the operation itself will say so
		}
		if err := d.checkKeptPath(path); err != nil {
			return err
		}
	}
	return nil
}

// checkKeptPath refuses the change of a resolved path that an open transaction has changed.
func (d *decision) checkKeptPath(path string) error {
	if id, owned := d.journal.Owns(path); owned {
		return &fault.Error{
			Object: path, Err: fault.Wrapf(fault.ErrBusy, "busy: transaction %s has changed it and is still open", id),
			Details: map[string]string{"transaction_id": id},
		}
	}
	return nil
}

// run runs the operation. A panic in it becomes an internal error.
func (d *decision) run(ctx context.Context) (proto.Message, error) {
	return d.guarded(func() (proto.Message, error) {
		if d.config.Remotes != nil && !d.op.Changes(d.in) && !d.op.Transient && d.config.Remotes.HasRemotes() {
			return d.runDetached(ctx)
		}
		return d.op.Call(ctx, d.call, d.in)
	})
}

// guarded calls f. A panic in it becomes an internal error.
func (d *decision) guarded(f func() (proto.Message, error)) (out proto.Message, err error) {
	defer func() {
		if value := recover(); value != nil {
			out, err = nil, d.panicked(value, debug.Stack())
		}
	}()
	return f()
}

// panicked reports a panic in the operation, and returns its error.
func (d *decision) panicked(value any, stack []byte) error {
	if d.config.Panicked != nil {
		d.config.Panicked(d.op, value, stack)
	}
	return fault.Wrapf(fault.ErrInternal, "internal error: %v", value)
}

// audited computes the access of the request, runs f, names the operation in its error, and writes the audit entry. A panic in
// either becomes an internal error.
func (d *decision) audited(f func() (proto.Message, error)) (proto.Message, error) {
	start := time.Now()
	out, err := d.guarded(func() (proto.Message, error) {
		if err := d.findAccess(); err != nil {
			return nil, err
		}
		return f()
	})
	err = named(d.op.Name, err)
	if d.config.Audit != nil && (err != nil || !d.routine) {
		d.config.Audit(d.entry(out, err, time.Since(start)))
	}
	return out, err
}

// findAccess computes what the request would read, change and run. Without a request yet it does nothing.
func (d *decision) findAccess() error {
	if d.in == nil {
		return nil
	}
	if is, want := d.in.ProtoReflect().Descriptor(), d.op.In.ProtoReflect().Descriptor(); is != want {
		return fault.Invalid("the request is a %s, not a %s", is.Name(), want.Name())
	}
	d.access, d.routine = d.op.AccessOn(d.files, d.in), d.op.Routine != nil && d.op.Routine(d.in)
	d.setChecked()
	return nil
}

// named puts the operation's name on an error that does not have one.
func named(op string, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return &fault.Error{Op: op, Err: err}
	}
	if f.Op != "" {
		return err
	}
	with := *f
	with.Op = op
	if error(f) != err { // words around it stay
		with.Err = fmt.Errorf("%w", err)
		with.Object = ""
	}
	return &with
}
