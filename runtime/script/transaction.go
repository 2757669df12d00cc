package script

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rollbackTime bounds a rollback; what is left is taken back when the agent starts again.
const rollbackTime = 5 * time.Minute

// transact runs the script in a transaction and ends that one way or the other.
func (r *run) transact(ctx context.Context, s Script, ref *pb.ScriptRef) *pb.RunScriptResponse {
	// The journal stores its header while the caller goes on with the reply, which holds the reference, too.
	header := journal.Header{MessageID: r.call.ID, Key: r.key, Fingerprint: r.print, Script: proto.Clone(ref).(*pb.ScriptRef)}
	tx, err := r.manager.config.Journal.Begin(ctx, header)
	if err != nil {
		return refused(kindOf(err), err.Error())
	}
	r.tx = tx
	r.name(tx.ID())
	reply := r.execute(ctx, s)
	reply.TransactionId, reply.Script = tx.ID(), ref
	if err := tx.Err(); err != nil && reply.Error == nil {
		reply.Error = journalFailed(err)
	}
	r.hide.reply(reply)
	// The end of a transaction must not depend on whether somebody still waits for it.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	if reply.Error == nil {
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		if err := tx.Commit(ctx, reply); err != nil {
			reply.Error = journalFailed(err)
			if cause := context.Cause(ctx); cause != nil {
				reply.Error = &pb.ScriptError{Kind: kindOf(cause), Message: "the script ended, but not in time: " + cause.Error()}
			}
		}
	}
	if reply.Error != nil {
		r.takeBack(end, reply)
	}
	stored := proto.Clone(reply).(*pb.RunScriptResponse)       // it is stored while the caller goes on with the reply
	if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_REFUSED { // nothing of it is kept, so it has no name
		stored, reply.TransactionId = nil, ""
	}
	if err := tx.Close(end, stored); err != nil && reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		reply.Error.Hint = "the end of the transaction could not be stored: " + err.Error()
	}
	return reply
}

func journalFailed(err error) *pb.ScriptError {
	return &pb.ScriptError{Kind: "internal", Message: "the undo journal failed: " + err.Error(), Code: fault.Code(err)}
}

// takeBack rolls back and tells what became of each change.
func (r *run) takeBack(ctx context.Context, reply *pb.RunScriptResponse) {
	reply.Result = nil
	report := r.tx.Rollback(ctx)
	reply.NotUndone = report.NotUndone()
	for _, c := range reply.NotUndone {
		c.Target = r.hide.text(c.Target)
	}
	r.tell(report, reply)
	if reply.Status = report.Status(); reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK && r.nothingRan(reply) {
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	}
	if report.Err != nil {
		reply.Error.Hint = "the rollback is not complete: " + report.Err.Error()
	} else if at := report.Conflicts(); len(at) > 0 {
		reply.Error.Hint = "others had changed some of it meanwhile; theirs was kept as " + at[0]
	}
}

// made is a call of a builtin: the steps behind the mark and the changes from a number on are its own, up to those of the
// next call.
type made struct {
	mark journal.Mark
	from int
}

// tell says of each change what became of it. A rollback that halted has not come to the oldest steps: they are as the
// script left them, until the next start.
func (r *run) tell(report journal.Report, reply *pb.RunScriptResponse) {
	reached := ^uint64(0)
	var stays []journal.Undone
	for _, u := range report.Steps {
		reached = min(reached, u.Step)
		if u.Err != nil || u.Irreversible != nil {
			stays = append(stays, u)
		}
	}
	for n, call := range r.calls {
		next, last := len(reply.Changes), ^uint64(0)
		if n+1 < len(r.calls) {
			next, last = r.calls[n+1].from, uint64(r.calls[n+1].mark)
		}
		own := reply.Changes[min(call.from, next):next]
		leaves := func(c *pb.Change) bool {
			return slices.ContainsFunc(stays, func(u journal.Undone) bool {
				return u.Step > uint64(call.mark) && u.Step <= last && r.concerns(u, c, own)
			})
		}
		for _, c := range own {
			c.State = pb.ChangeState_CHANGE_STATE_UNDONE
			switch {
			case report.Halted && uint64(call.mark)+1 < reached:
				c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
				reply.NotUndone = append(reply.NotUndone, c)
			case leaves(c):
				c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
			}
		}
	}
}

// concerns says whether a step that was not taken back leaves a change of its call: that of its target, and where none
// has that for its target, as with a command that touches files, each.
func (r *run) concerns(u journal.Undone, c *pb.Change, own []*pb.Change) bool {
	target := r.hide.text(u.Target)
	return target == c.Target || !slices.ContainsFunc(own, func(c *pb.Change) bool { return c.Target == target })
}

// nothingRan says that not a line of the script was executed.
func (r *run) nothingRan(reply *pb.RunScriptResponse) bool {
	return refusedKinds[reply.Error.Kind] && reply.Stats.GetCalls() == 0 && len(reply.Changes) == 0
}

// hiding keeps secrets out of what a later rollback would tell of irreversible steps.
type hiding struct {
	*journal.Tx
	hide *redactor
}

// Irreversible implements builtins.Tx.
func (h hiding) Irreversible(ctx context.Context, change *pb.Change) error {
	change = proto.Clone(change).(*pb.Change)
	change.Target = h.hide.text(change.Target)
	return h.Tx.Irreversible(ctx, change)
}

// transactions lists what the journal knows, or shows one.
func (m *Manager) transactions(_ context.Context, _ *builtins.Call, request *pb.TransactionsRequest) (*pb.TransactionsResponse, error) {
	if id := request.TransactionId; id != "" {
		entry, err := m.config.Journal.Stored(journal.Ref{ID: id})
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Wrapf(fs.ErrNotExist, "no transaction %s", id)
		}
		if err != nil {
			return nil, err
		}
		return &pb.TransactionsResponse{Transactions: []*pb.TransactionInfo{journal.Info(entry)}}, nil
	}
	n := int(request.MaxEntries)
	if n <= 0 || n > 100 {
		n = 100
	}
	list, next, err := m.config.Journal.List(request.ContinuationToken, n)
	if err != nil {
		return nil, err
	}
	return &pb.TransactionsResponse{Transactions: list, ContinuationToken: next}, nil
}

// Guard refuses a native change of what an open transaction has kept: it would be lost, or in its way. It is a check of
// builtins.Table.Allow; resolve gives the resolved form of a path.
func (m *Manager) Guard(resolve func(path string) (string, error)) func(context.Context, *builtins.Call, *builtins.Op, proto.Message) error {
	return func(_ context.Context, call *builtins.Call, op *builtins.Op, in proto.Message) error {
		field := in.ProtoReflect().Descriptor().Fields().ByName("path")
		if op.Script != nil || !op.Changes(in) || field == nil || field.Kind() != protoreflect.StringKind {
			return nil
		}
		path, err := resolve(in.ProtoReflect().Get(field).String())
		if err != nil {
			return nil // the operation itself will say so
		}
		if id, owned := m.config.Journal.Owns(path); owned {
			return &fault.Error{
				Object: path, Err: fault.Wrapf(fault.ErrBusy, "busy: transaction %s has changed it and is still open", id),
				Details: map[string]string{"transaction_id": id},
			}
		}
		return nil
	}
}

// Recover ends what an earlier agent left unfinished. Each transaction that it found gives an event for the host.
func (m *Manager) Recover(ctx context.Context) ([]*pb.ErrorEvent, error) {
	found, err := m.config.Journal.Recover(ctx, nil)
	var events []*pb.ErrorEvent
	for _, r := range found {
		if r.Tx != nil { // it awaited a confirmation, which this agent cannot give
			r.Report = r.Tx.Rollback(ctx)
			err = errors.Join(err, r.Tx.Close(ctx, &pb.RunScriptResponse{
				Status: r.Report.Status(), TransactionId: r.ID, NotUndone: r.Report.NotUndone(),
				Error: &pb.ScriptError{Kind: "interrupted", Message: "the agent was started again before the confirmation"},
			}))
		}
		events = append(events, interrupted(r))
	}
	return events, err
}

func interrupted(r journal.Recovered) *pb.ErrorEvent {
	e := &pb.ErrorEvent{
		Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "transaction_interrupted",
		Message: "transaction " + r.ID + " was interrupted, and ended when the agent started",
		Details: map[string]string{"transaction_id": r.ID, "status": r.Entry.GetReply().GetStatus().String(), "script": r.Entry.GetBegin().GetScript().GetName()},
	}
	if r.Err != nil || r.Report.Halted || r.Entry.GetReply().GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		e.Severity = pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL
		e.Message = "transaction " + r.ID + " was interrupted and could not be taken back whole"
		if r.Err != nil {
			e.Message += ": " + r.Err.Error()
		}
	}
	return e
}

// name makes the run known by its transaction.
func (r *run) name(id string) {
	r.manager.mu.Lock()
	defer r.manager.mu.Unlock()
	r.id = id
}
