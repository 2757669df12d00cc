package call

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Run is one run of a script: what its calls may do, and the transaction or the dry run that they share. Its calls come one at
// a time.
type Run struct {
	executor *Executor
	config   RunConfig
	made     []made             // calls that may have changed something, in their order
	before   []builtins.Pending // that they want done before the commit
	after    []journal.Action   // that they want done after it

	mu       sync.Mutex
	changes  []*pb.Change
	held     held // of changes, before and after
	contents contents
}

// RunConfig is what a run is made of.
type RunConfig struct {
	// Call is the request that began the run: its id, port and session are those of each call. Required.
	Call *builtins.Call
	// Attachment returns the content of a file that came with the script; see builtins.Call.
	Attachment func(name string) ([]byte, error)
	// Warned receives warnings that the reply must carry. Optional.
	Warned func(text string)
	// Rights are the bounds within all of which each call must be.
	Rights []*policy.Rights
	// Readonly refuses every call that changes something.
	Readonly bool
	// Tx is the transaction. DryRun is what is changed instead of the guest. Without both, nothing takes a change back.
	Tx     *journal.Tx
	DryRun *builtins.DryRun
	// Hide takes secrets out of a text that is stored. Nil: there are none.
	Hide func(string) string
}

// made is a call: the steps after the mark and the changes from a number on are its own, up to those of the next call.
type made struct {
	mark  journal.Mark
	first int
}

// Begin begins a run.
func (x *Executor) Begin(config RunConfig) *Run {
	return &Run{executor: x, config: config}
}

// Call runs a script row by its name; bind makes the request. An error names the operation.
func (r *Run) Call(ctx context.Context, name string, bind func(*builtins.Op) (proto.Message, error)) (*builtins.Op, proto.Message, error) {
	op := r.executor.config.Table.Script(name)
	if op == nil || op.Internal {
		d := r.decide(&builtins.Op{Name: name[:min(len(name), longestName)]})
		_, err := d.audited(func() (proto.Message, error) {
			return nil, d.refusedBy(fault.Unsupported("%s is not supported by this agent", name))
		})
		return nil, nil, err
	}
	d := r.decide(op)
	out, err := d.audited(func() (out proto.Message, err error) {
		if d.in, err = bind(op); err != nil {
			return nil, err
		}
		if err := d.findAccess(); err != nil {
			return nil, err
		}
		if op.Changes(d.in) && r.full() {
			return nil, d.refusedBy(errHeld)
		}
		leave, err := d.enterScript(ctx, r.config.DryRun != nil || op.Changes(d.in))
		if err != nil {
			return nil, err
		}
		defer leave()
		if err := d.checkRemotes(ctx); err != nil { // first: all else resolves paths
			return nil, err
		}
		if err := r.check(ctx, d); err != nil {
			return nil, d.refusedBy(err)
		}
		return r.serve(ctx, d)
	})
	return op, out, err
}

// serve does what was decided on.
func (r *Run) serve(ctx context.Context, d *decision) (proto.Message, error) {
	switch {
	case r.config.DryRun != nil:
		return r.predict(ctx, d)
	case r.config.Tx != nil && d.op.Changes(d.in):
		return r.change(ctx, d)
	}
	return d.run(ctx)
}

// longestName is how much of an unknown operation's name is audited, in bytes: a runner may make up any.
const longestName = 64

// decide begins a call of the run.
func (r *Run) decide(op *builtins.Op) *decision {
	d := &decision{Executor: r.executor, call: r.newCall(), op: op, files: r.files(), hide: r.config.Hide}
	if r.config.Tx != nil {
		d.tx = r.config.Tx.ID()
	}
	return d
}

// newCall is what one call knows of the run.
func (r *Run) newCall() *builtins.Call {
	from := r.config.Call
	return &builtins.Call{
		ID: from.ID, Port: from.Port, Session: from.Session, Attachment: r.config.Attachment, DryRun: r.config.DryRun,
		Warned: r.config.Warned, Changed: r.changed, Contents: r.edited, Changes: r.Changes, AfterReply: from.AfterReply,
	}
}

// check returns why the script may not make a call: it is declared readonly, its rights, or decision.check.
func (r *Run) check(ctx context.Context, d *decision) error {
	if r.config.Readonly && d.op.Changes(d.in) {
		return fault.Refuse("the script is declared readonly")
	}
	for _, rights := range r.config.Rights {
		if err := rights.Check(r.files(), d.op, d.access); err != nil {
			return err
		}
	}
	return d.check(ctx)
}

// files is the file system that calls act on.
func (r *Run) files() *fsys.Root {
	if r.config.DryRun != nil {
		return r.config.DryRun.Files
	}
	return r.executor.config.Files
}

// predict serves one call of a dry run.
func (r *Run) predict(ctx context.Context, d *decision) (proto.Message, error) {
	dry := r.config.DryRun
	if dry.Ended != nil {
		return nil, d.refusedBy(dry.Ended)
	}
	if d.op.Changes(d.in) && !d.op.Predictable {
		return nil, d.refusedBy(dry.End(d.call, &pb.Change{Op: d.op.Name, Action: "ran"}))
	}
	before := len(r.changes)
	scope := &scope{op: d.op, table: d.config.Table, room: r.room()}
	d.call.Deferred, d.call.Pending = scope.deferred, scope.pending
	out, err := d.run(ctx)
	if err != nil && dry.Planned && dry.Ended == nil && ofGuest(err) && context.Cause(ctx) == nil {
		r.forget(before)
		return r.unknown(d)
	}
	if err != nil && !d.op.Partial && dry.Ended == nil {
		r.forget(before) // as a run takes it back
	}
	if err == nil {
		r.keep(scope)
	}
	dry.Changed = dry.Changed || len(r.changes) > before
	return out, err
}

// ofGuest reports whether an error is about the state of the guest, which something that was planned may have changed.
func ofGuest(err error) bool {
	if errors.Is(err, fsys.ErrNoAccount) {
		return true
	}
	switch fault.Code(err) {
	case "not_found", "not_empty", "exists", "is_directory", "not_directory", "command_failed":
		return true
	}
	return false
}

// unknown serves a call of a dry run that failed for want of something that a planned command may make. If it changes
// something and says no more than that, it is reported with the state UNKNOWN, and the prediction goes on; else it ends.
func (r *Run) unknown(d *decision) (proto.Message, error) {
	change := &pb.Change{Op: d.op.Name, Target: d.target(), Action: "changed", State: pb.ChangeState_CHANGE_STATE_UNKNOWN}
	out := d.op.Out.ProtoReflect().New()
	field := out.Descriptor().Fields().ByName("changed")
	if !d.op.Changes(d.in) || d.op.Script.Result != "changed" || field == nil {
		if !d.op.Changes(d.in) {
			change.Action = "read"
		}
		return nil, d.refusedBy(r.config.DryRun.End(d.call, change))
	}
	out.Set(field, protoreflect.ValueOfBool(true))
	d.call.Report(change)
	return out.Interface(), nil
}

// target is what a call is about, for people; empty: nothing that has a name.
func (d *decision) target() string {
	for _, paths := range [][]string{d.access.Writes, d.access.Trees, d.access.Reads} {
		if len(paths) > 0 {
			return paths[len(paths)-1]
		}
	}
	if len(d.access.Objects) > 0 {
		return d.access.Objects[0].Name
	}
	return ""
}

// change serves one call that may change something, in the transaction. One that fails is taken back before the script sees
// the error, but for what is Partial.
func (r *Run) change(ctx context.Context, d *decision) (proto.Message, error) {
	tx := r.config.Tx
	if err := tx.Err(); err != nil {
		return nil, fault.Wrapf(fault.ErrInternal, "the undo journal has failed: %v", err)
	}
	scope := &scope{tx: tx, op: d.op, table: d.config.Table, hide: r.config.Hide, room: r.room()}
	d.call.Tx, d.call.Deferred, d.call.Pending = scope, scope.deferred, scope.pending
	mark, before := tx.Mark(), len(r.changes)
	r.made = append(r.made, made{mark, before})
	out, err := d.run(ctx)
	if err != nil && !d.op.Partial {
		end, cancel := r.executor.Ending(WithHide(ctx, r.config.Hide))
		defer cancel()
		if undo := tx.Revert(end, mark); undo == nil {
			r.forget(before)
		}
		r.keepOutliving(scope)
		return out, err
	}
	tx.Mark() // what others change from now on is theirs
	r.keep(scope)
	return out, err
}

// After are the actions that calls want done after the commit.
func (r *Run) After() []journal.Action { return r.after }

// Changes are those that were made so far, not to be written to.
func (r *Run) Changes() []*pb.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

func (r *Run) changed(change *pb.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held.add(change)
	r.changes = append(r.changes, change)
	if change.Action != "modified" && change.Action != "created" || change.Diff == "" {
		r.contents.other(change)
	}
}

// edited notes what a change made of a file.
func (r *Run) edited(told builtins.Contents) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contents.add(told)
}

// forget drops the changes of a call that was taken back.
func (r *Run) forget(from int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, change := range slices.Backward(r.changes[from:]) {
		r.held.remove(change)
		r.contents.forget(change)
	}
	r.changes = r.changes[:from]
}

// Refused reports whether an error is of what a policy or the rights of the script refused.
func Refused(err error) bool { return errors.Is(err, builtins.ErrPolicy) }
