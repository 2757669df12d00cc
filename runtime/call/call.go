// Package call is the executor behind every way in: what hosts, scripts and the journal ask for runs through it, and what is
// refused, foretold, undone and audited is decided in one place.
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

// Policy says who may do what. policy.Current is one.
type Policy interface {
	// Check says why a request from a host on a port is refused; nil: it is not.
	Check(port string, op *builtins.Op, in proto.Message, access builtins.Access) error
	// Denies says whether every request to a row is refused on a port, so that nothing announces it there.
	Denies(port string, op *builtins.Op) bool
	// Sees says whether hosts on a port may see, and end, what those on another began.
	Sees(port, owner string) bool
}

// Remotes are the file systems of the network and of user space, which may hang.
type Remotes interface {
	// HasRemotes reports whether one is mounted.
	HasRemotes() bool
	// CheckRemotes returns an error if a request would meet one that does not answer.
	CheckRemotes(ctx context.Context, access builtins.Access) error
}

// Frozen is what hosts have frozen for a snapshot. What would write there hangs until the thaw, so that it waits, or is refused
// with an error of cause fault.ErrBusy.
type Frozen interface {
	// Check returns why a request cannot be served at present.
	Check(access builtins.Access) error
	// Await waits within ctx until it can.
	Await(ctx context.Context, access builtins.Access) error
	// Enter begins a change, which a freeze that comes meanwhile waits for; EnterScript one of a script, which is in the
	// journal as well. Both wait within ctx, but for an Enter without wait.
	Enter(ctx context.Context, access builtins.Access, wait bool) (leave func(), err error)
	EnterScript(ctx context.Context, access builtins.Access) (leave func(), err error)
}

// Config is what an executor is made of.
type Config struct {
	// Table is what there is to call. Required.
	Table *builtins.Table
	// Files is the file system that calls act on, by which paths are compared. Nil: no rule is about paths.
	Files *fsys.Root
	// Policy is asked before each call but those that take something back. Nil: it allows everything.
	Policy Policy
	// Halt is closed when rollbacks must stop since the agent does: its next start goes on with them. Nil: never.
	Halt <-chan struct{}
	// Remotes knows the file systems whose servers may not answer. Nil: none is looked for.
	Remotes Remotes
	// Frozen knows what is frozen. Nil: nothing ever is.
	Frozen Frozen
	// Audit is told of each call after it ended, but for Routine ones that succeeded. Optional.
	Audit func(Entry)
	// Panicked is told of a panic in an operation, which the caller sees as an internal error. Optional.
	Panicked func(op *builtins.Op, value any, stack []byte)
	// Unconfirmed is told of each transaction that was taken back since nobody confirmed it in time. Optional.
	Unconfirmed func(*pb.ErrorEvent)
}

// Executor runs operations. It is safe for concurrent use.
type Executor struct {
	config   Config
	journal  *journal.Journal // nil: there are no transactions
	confirms *confirmations   // nil without a journal
}

// New makes an executor without a journal. Its Undo is what a journal runs inverses by.
func New(config Config) *Executor { return &Executor{config: config} }

// With returns an executor that has a journal, and other operations in its table, and is else the same. The caller closes it
// before the journal.
func (x *Executor) With(j *journal.Journal, table *builtins.Table) *Executor {
	with := &Executor{config: x.config, journal: j, confirms: newConfirmations(x.config.Unconfirmed)}
	with.config.Table = table
	return with
}

// Having returns an executor that has another table, and is else the same: what awaits its confirmation is that of both.
func (x *Executor) Having(table *builtins.Table) *Executor {
	with := *x
	with.config.Table = table
	return &with
}

// Plus returns an executor that has the operations of one more room, and is else the same.
func (x *Executor) Plus(room builtins.Room) *Executor { return x.Having(x.config.Table.With(room)) }

// Native returns the row for a request of a host; nil where nothing serves it.
func (x *Executor) Native(in proto.Message) *builtins.Op { return x.config.Table.Native(in) }

// Table is what there is to call.
func (x *Executor) Table() *builtins.Table { return x.config.Table }

// Capabilities are what the native rows that are not denied on a port announce, each once, sorted.
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
		if err := d.frozen(); err != nil {
			return nil, d.because(err)
		}
		if err := d.hangs(ctx); err != nil { // first: all else resolves paths
			return nil, err
		}
		if err := d.refused(ctx); err != nil {
			return nil, d.because(err)
		}
		if op.Transacts(in) {
			return d.inTransaction(ctx)
		}
		leave, err := d.enter(ctx)
		if err != nil {
			return nil, d.because(err)
		}
		defer leave()
		return d.run(ctx)
	})
}

// Undo runs an internal row, or one that scripts call, by its name: an inverse in a rollback, or an action after a commit. No
// policy is asked: what is taken back was allowed when it was done, and a rollback must not depend on a configuration.
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

// Subject returns what an operation with these arguments is about, as people call it; empty: it is not known.
func (x *Executor) Subject(name string, args proto.Message) string {
	op := x.config.Table.Script(name)
	if op == nil || op.In.ProtoReflect().Descriptor() != args.ProtoReflect().Descriptor() {
		return ""
	}
	return op.AccessOf(args).Subject()
}

// decision is one call on its way.
type decision struct {
	*Executor
	call   *builtins.Call
	own    builtins.Call // where it is that of a request
	op     *builtins.Op
	files  *fsys.Root          // in which rules look paths up; nil: none is judged
	in     proto.Message       // nil as long as it is not made
	access builtins.Access     // of in
	tx     string              // the transaction that it is in; empty: none
	cause  string              // why the executor refused it; empty: it did not
	hide   func(string) string // takes secrets out of what is audited; nil: there are none

	routine bool // it only goes on with what was audited
}

// because takes note of why the call is refused, for the audit.
func (d *decision) because(err error) error {
	d.cause = err.Error()
	return err
}

// judge has rules look paths up once, for the operation too.
func (d *decision) judge() {
	if d.files != nil && len(d.access.Reads)+len(d.access.Writes)+len(d.access.Patterns) > 0 {
		d.access.Judged = d.files.Judge(slices.Concat(d.access.Reads, d.access.Writes)...)
		d.call.Judged = d.access.Judged
	}
}

// refused says why the call may not run.
func (d *decision) refused(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if d.config.Policy != nil {
		if err := d.config.Policy.Check(d.call.Port, d.op, d.in, d.access); err != nil {
			return err
		}
	}
	return d.kept()
}

// kept refuses a native change of what an open transaction has kept: it would be lost, or in its way. A request with a
// transaction of its own waits for the open one instead.
func (d *decision) kept() error {
	if d.journal == nil || d.config.Files == nil || d.op.Script != nil || d.op.Transacts(d.in) || !d.op.Changes(d.in) {
		return nil
	}
	if err := d.journal.Unusable(); err != nil && len(d.access.Writes) > 0 && len(d.access.Commands) == 0 {
		return err // a command may be what repairs it
	}
	d.call.Kept = d.keptPath
	for _, text := range d.access.Writes {
		path, err := d.config.Files.Resolve(text, false)
		if err != nil {
			continue // the operation itself will say so
		}
		if err := d.keptPath(path); err != nil {
			return err
		}
	}
	return nil
}

// keptPath refuses the change of a resolved path that an open transaction has kept.
func (d *decision) keptPath(path string) error {
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

// guarded returns what f does; a panic in it becomes an internal error.
func (d *decision) guarded(f func() (proto.Message, error)) (out proto.Message, err error) {
	defer func() {
		if value := recover(); value != nil {
			out, err = nil, d.panicked(value, debug.Stack())
		}
	}()
	return f()
}

// panicked tells of a panic in the operation, and returns its error.
func (d *decision) panicked(value any, stack []byte) error {
	if d.config.Panicked != nil {
		d.config.Panicked(d.op, value, stack)
	}
	return fault.Wrapf(fault.ErrInternal, "internal error: %v", value)
}

// audited runs f once it is known what the request is about, names the operation in its error, and tells the audit of it.
// What a row computes of a request may panic as well as what it does.
func (d *decision) audited(f func() (proto.Message, error)) (proto.Message, error) {
	start := time.Now()
	out, err := d.guarded(func() (proto.Message, error) {
		if err := d.look(); err != nil {
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

// look finds out what the request is about, if there is one already.
func (d *decision) look() error {
	if d.in == nil {
		return nil
	}
	if is, want := d.in.ProtoReflect().Descriptor(), d.op.In.ProtoReflect().Descriptor(); is != want {
		return fault.Invalid("the request is a %s, not a %s", is.Name(), want.Name())
	}
	d.access, d.routine = d.op.AccessOn(d.files, d.in), d.op.Routine != nil && d.op.Routine(d.in)
	d.judge()
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
