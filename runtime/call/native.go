package call

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rollbackTime is how long the caller waits for the end of a transaction.
const rollbackTime = 5 * time.Minute

// Ending returns the context for the end of a transaction, which must not depend on whether somebody still waits for it: only
// on the time for it, and on the agent's own end. What is left when it ends is left to journal.Recover.
func (x *Executor) Ending(ctx context.Context) (context.Context, context.CancelFunc) {
	halted, halt := context.WithCancelCause(context.WithoutCancel(ctx))
	late := fmt.Errorf("it takes longer than %v and goes on in the background", rollbackTime)
	end, cancel := context.WithTimeoutCause(halted, rollbackTime, late)
	if x.config.Halt != nil {
		go func() {
			select {
			case <-x.config.Halt:
				halt(builtins.ErrStopping)
			case <-end.Done():
			}
		}()
	}
	return end, func() { cancel(); halt(nil) }
}

// inTransaction runs a native row in a transaction of its own, and ends that one way or the other, or lets it await its
// confirmation where the row says so.
func (d *decision) inTransaction(ctx context.Context) (proto.Message, error) {
	if d.journal == nil {
		return nil, fault.Unsupported("there is no journal")
	}
	ref := &pb.ScriptRef{Name: d.op.Name}
	tx, err := d.journal.Begin(ctx, journal.Header{MessageID: d.call.ID, Port: d.call.Port, Script: ref})
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			_ = tx.Close(context.WithoutCancel(ctx), nil) // which does something after a panic alone
		}
	}()
	d.tx = tx.ID()
	scope := &scope{tx: tx, op: d.op, table: d.config.Table, room: maxHeld}
	run := &Run{executor: d.Executor, made: []made{{}}} // whose one call this is
	d.call.Tx, d.call.Deferred, d.call.Changed = scope, scope.deferred, run.changed
	var confirm confirmWish
	d.call.Confirm = confirm.set
	out, err := d.runWhole(ctx)
	if err == nil {
		err = tx.Err()
	}
	reply := &pb.RunScriptResponse{TransactionId: tx.ID(), Script: ref, Stats: &pb.ScriptStats{Calls: 1}, Changes: run.Changes()}
	if err == nil && confirm.within > 0 && (tx.Began() || len(scope.after) > 0) {
		err = d.Keep(ctx, Await{
			Tx: tx, Reply: reply, Within: confirm.within, After: scope.after, Undone: run.Undone, Event: d.call.Event,
		})
		if kept = err == nil; kept {
			confirm.told(tx.ID(), reply.ConfirmUntil.AsTime())
			return out, nil
		}
	} else if err == nil {
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		err = tx.Commit(ctx, reply, scope.after...)
	}
	end, cancel := d.Ending(ctx)
	defer cancel()
	if err != nil {
		out, err = nil, run.rollBack(end, tx, reply, err)
	} else {
		reply.AfterCommit = tx.After(end)
	}
	closed := tx.Close(end, proto.Clone(reply).(*pb.RunScriptResponse)) // it is stored while the caller goes on
	if err != nil && closed != nil {
		err = fmt.Errorf("%w; the end of transaction %s could not be stored: %w", err, tx.ID(), closed)
	}
	return out, err
}

// confirmWish is that of a native row for a confirmation.
type confirmWish struct {
	within time.Duration
	told   func(id string, until time.Time)
}

func (c *confirmWish) set(within time.Duration, told func(id string, until time.Time)) error {
	if err := CheckConfirm(within); err != nil {
		return err
	}
	c.within, c.told = within, told
	return nil
}

// runWhole runs the operation so that a snapshot has all of it or nothing.
func (d *decision) runWhole(ctx context.Context) (proto.Message, error) {
	leave, err := d.enterOwn(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return d.run(ctx)
}

// rollBack takes back what a native row did, and returns its error with what could not be taken back.
func (r *Run) rollBack(ctx context.Context, tx *journal.Tx, reply *pb.RunScriptResponse, cause error) error {
	report := tx.Rollback(ctx)
	reply.Status, reply.NotUndone = report.Status(), append(report.NotUndone(), r.Undone(report)...)
	reply.RollbackRan = report.Ran
	reply.Error = &pb.ScriptError{
		Kind: builtins.ErrorKind(cause), Message: cause.Error(), Code: fault.Code(cause), Hint: report.Hint(),
	}
	switch {
	case report.Err != nil:
		return fmt.Errorf("%w; transaction %s could not be taken back whole: %w", cause, tx.ID(), report.Err)
	case len(reply.NotUndone) > 0:
		return fmt.Errorf("%w; of transaction %s was not taken back: %s %s", cause, tx.ID(), reply.NotUndone[0].Op, reply.NotUndone[0].Target)
	case reply.Error.Hint != "":
		return fmt.Errorf("%w; %s", cause, reply.Error.Hint)
	}
	return cause
}

// scope is what an operation sees of the transaction that it runs in.
type scope struct {
	tx     *journal.Tx
	op     *builtins.Op
	table  *builtins.Table
	hide   func(string) string // takes secrets out of a text; nil: there are none
	after  []journal.Action
	before []builtins.Pending
	bytes  int // that after and before take
	room   int // the most that it may
}

var _ builtins.Tx = (*scope)(nil)

func (s *scope) Before(ctx context.Context, paths ...string) error { return s.tx.Before(ctx, paths...) }
func (s *scope) BeforeAppend(ctx context.Context, path string) error {
	return s.tx.BeforeAppend(ctx, path)
}

func (s *scope) Kept(path string) (builtins.Touched, bool) { return s.tx.Kept(path) }

func (s *scope) Take(ctx context.Context, path string, seen fsys.Meta) error {
	return s.tx.Take(ctx, path, seen)
}

func (s *scope) NotBegun()                       { s.tx.NotBegun() }
func (s *scope) HeldNames(file fsys.Meta) uint32 { return s.tx.HeldNames(file) }

func (s *scope) BeforeTree(ctx context.Context, paths ...string) error {
	return s.tx.BeforeTree(ctx, paths...)
}

func (s *scope) BeforeTouch(ctx context.Context, paths ...string) ([]builtins.Touched, error) {
	return s.tx.BeforeTouch(ctx, paths...)
}

func (s *scope) UndeclaredChanges(ctx context.Context, op string) ([]*pb.Change, error) {
	return s.tx.UndeclaredChanges(ctx, op)
}

// Undo checks the inverse against what the row declares: it is what a recovery will look for.
func (s *scope) Undo(ctx context.Context, op string, args proto.Message) error {
	if op == "" || op != s.op.Inverse {
		return fault.Wrapf(fault.ErrInternal, "the inverse %s is not the one that %s declares", op, s.op.Name)
	}
	return s.tx.Undo(ctx, op, args)
}

// UndoLast does so as well.
func (s *scope) UndoLast(ctx context.Context, op string, args proto.Message) error {
	if op == "" || op != s.op.Inverse {
		return fault.Wrapf(fault.ErrInternal, "the inverse %s is not the one that %s declares", op, s.op.Name)
	}
	return s.tx.UndoLast(ctx, op, args)
}

// Irreversible keeps secrets out of what a later rollback would report.
func (s *scope) Irreversible(ctx context.Context, change *pb.Change) error {
	if s.hide != nil {
		change = proto.Clone(change).(*pb.Change)
		change.Target = s.hide(change.Target)
	}
	return s.tx.Irreversible(ctx, change)
}

func (s *scope) deferred(action builtins.Action) error {
	if err := s.hold(action); err != nil {
		return err
	}
	s.after = append(s.after, journal.Action(action))
	return nil
}

func (s *scope) pending(p builtins.Pending) error {
	err := s.hold(p.Action)
	if err == nil && p.Check != nil {
		err = s.hold(*p.Check)
	}
	if err == nil {
		s.before = append(s.before, p)
	}
	return err
}

// hold refuses an action that cannot be done, and counts what it takes.
func (s *scope) hold(action builtins.Action) error {
	if action.Op == "" || action.Args == nil {
		return fault.Wrapf(fault.ErrInternal, "an action before or after the commit names no operation")
	}
	row := s.table.Script(action.Op)
	if row == nil || row.In.ProtoReflect().Descriptor() != action.Args.ProtoReflect().Descriptor() {
		return fault.Wrapf(fault.ErrInternal, "no operation %s takes a %s, so it cannot come before or after the commit", action.Op, action.Args.ProtoReflect().Descriptor().Name())
	}
	n := proto.Size(action.Args) + len(action.Op) + len(action.Target) + perItem
	if s.bytes+n > s.room {
		return errHeld
	}
	s.bytes += n
	return nil
}
