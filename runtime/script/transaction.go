package script

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// transact runs the script in a transaction and ends that one way or the other.
func (r *run) transact(ctx context.Context, s Script, ref *pb.ScriptRef) *pb.RunScriptResponse {
	// The journal stores its header while the caller goes on with the reply, which holds the reference, too.
	header := journal.Header{
		Hide: r.hide.function(), MessageID: r.call.ID, Key: r.key, Port: r.call.Port, Fingerprint: r.print, Script: proto.Clone(ref).(*pb.ScriptRef),
	}
	tx, err := r.manager.config.Journal.Begin(ctx, header)
	if err != nil {
		return refused(builtins.ErrorKind(err), err.Error())
	}
	kept := false
	defer func() {
		if !kept {
			_ = tx.Close(context.WithoutCancel(ctx), nil) // which does something after a panic alone
		}
	}()
	if reply := r.storedReply(); reply != nil {
		return reply
	}
	r.tx = tx
	r.name(tx.ID())
	reply := r.execute(ctx, s)
	r.beforeCommit(ctx, reply)
	reply.TransactionId, reply.Script = tx.ID(), ref
	if err := tx.Err(); err != nil && reply.Error == nil {
		reply.Error = journalFailed(err)
	}
	r.hide.reply(reply)
	end, cancel := r.manager.config.Calls.Ending(call.WithHide(ctx, r.hide.function()))
	defer cancel()
	if reply.Error == nil {
		kept, err = r.settle(ctx, reply)
		if kept {
			return reply
		}
		if err != nil {
			reply.Error = journalFailed(err)
			if cause := context.Cause(ctx); cause != nil {
				reply.Error = &pb.ScriptError{Kind: builtins.ErrorKind(cause), Message: "the script ended, but not in time: " + cause.Error()}
			}
		}
	}
	if reply.Error != nil {
		r.rollBack(end, reply)
	} else {
		reply.AfterCommit = tx.After(end)
	}
	r.hide.reply(reply) // also what a rollback says
	journal.LimitReply(reply)
	stored := proto.Clone(reply).(*pb.RunScriptResponse)       // it is stored while the caller goes on with the reply
	if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_REFUSED { // nothing of it is kept, so it has no name
		stored, reply.TransactionId = nil, ""
	}
	if err := tx.Close(end, stored); err != nil && reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		reply.Error.Hint = "the end of the transaction could not be stored: " + err.Error()
	}
	return reply
}

// settle commits, or lets the transaction await its confirmation: then kept is true, and it is not the run's any more. What
// changed nothing, and leaves nothing to do, has nothing to confirm.
func (r *run) settle(ctx context.Context, reply *pb.RunScriptResponse) (kept bool, err error) {
	after := r.calls.After()
	if r.confirm > 0 && (r.tx.Began() || len(after) > 0) {
		journal.LimitReply(reply)
		err := r.manager.config.Calls.Keep(ctx, call.Await{
			Tx: r.tx, Reply: reply, Within: r.confirm, After: after, Hide: r.hide.function(), Undone: r.calls.Undone, Event: r.call.Event,
		})
		return err == nil, err
	}
	reply.Status = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	return false, r.tx.Commit(ctx, reply, after...)
}

// storedReply returns the reply of a run under the same key that ended, or that awaits its confirmation; nil: there is none. It
// is asked for again when this run has begun: a recovery may have stored one since the first look.
func (r *run) storedReply() *pb.RunScriptResponse {
	if open := r.manager.config.Journal.Awaiting(); open != nil && open.Begin.Key == r.key { // first: it may end meanwhile
		return r.replay(open)
	}
	stored, err := r.manager.config.Journal.Stored(journal.Ref{Key: r.key})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return refused("internal", "the stored reply of an earlier run cannot be read: "+err.Error())
	}
	return r.replay(stored)
}

func journalFailed(err error) *pb.ScriptError {
	return &pb.ScriptError{Kind: "internal", Message: "the undo journal failed: " + err.Error(), Code: fault.Code(err)}
}

// rollBack undoes everything and reports the outcome of each change.
func (r *run) rollBack(ctx context.Context, reply *pb.RunScriptResponse) {
	reply.Result = nil
	report := r.tx.Rollback(ctx)
	reply.NotUndone, reply.RollbackRan = report.NotUndone(), report.Ran
	for _, c := range reply.NotUndone {
		c.Target = r.hide.text(c.Target)
	}
	reply.NotUndone = append(reply.NotUndone, r.calls.Undone(report)...)
	if reply.Status = report.Status(); reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK && r.nothingRan(reply) {
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	}
	if hint := report.Hint(); hint != "" {
		reply.Error.Hint = hint
	}
}

// nothingRan says that not a line of the script was executed.
func (r *run) nothingRan(reply *pb.RunScriptResponse) bool {
	return refusedKinds[reply.Error.Kind] && reply.Stats.GetCalls() == 0 && len(reply.Changes) == 0
}

// transactions lists what the journal knows, or shows one: what the caller's port began, and what else it may see.
func (m *Manager) transactions(_ context.Context, call *builtins.Call, request *pb.TransactionsRequest) (*pb.TransactionsResponse, error) {
	if id := request.TransactionId; id != "" {
		if open := m.awaiting(id); open != nil && call.MaySee(open.Port) {
			return &pb.TransactionsResponse{Transactions: []*pb.TransactionInfo{open}}, nil
		}
		entry, err := m.config.Journal.Stored(journal.Ref{ID: id})
		if errors.Is(err, fs.ErrNotExist) || err == nil && !call.MaySee(entry.Begin.GetPort()) {
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
	list, next, err := m.config.Journal.List(request.ContinuationToken, n, call.MaySee)
	if err != nil {
		return nil, err
	}
	return &pb.TransactionsResponse{Transactions: list, ContinuationToken: next}, nil
}

// awaiting describes the transaction with an id, with its reply, if it awaits its confirmation; nil: it does not.
func (m *Manager) awaiting(id string) *pb.TransactionInfo {
	entry := m.config.Journal.Awaiting()
	if entry == nil || entry.Begin.TransactionId != id {
		return nil
	}
	open := m.config.Journal.Status().Open
	if open.GetTransactionId() != id || open.ConfirmUntil == nil { // it was decided about meanwhile
		return nil
	}
	open.Reply = entry.Reply
	return open
}

// cleanAccess names the transactions of a request, and all of them by a star.
func cleanAccess(request *pb.CleanTransactionsRequest) (access builtins.Access) {
	for _, id := range request.TransactionIds {
		access.Objects = append(access.Objects, builtins.Object{Kind: "transaction", Name: id})
	}
	if request.All {
		access.Objects = append(access.Objects, builtins.Object{Kind: "transaction", Name: "*"})
	}
	return access
}

// cleanTransactions removes what is left of transactions: those that it can, if others fail.
func (m *Manager) cleanTransactions(
	ctx context.Context, call *builtins.Call, request *pb.CleanTransactionsRequest,
) (*pb.CleanTransactionsResponse, error) {
	ids := request.TransactionIds
	switch {
	case request.All && request.Abandon:
		return nil, fault.Invalid("abandon needs the ids of transactions")
	case request.All && len(ids) > 0:
		return nil, fault.Invalid("transaction_ids and all exclude each other")
	case request.All:
		ids = m.config.Journal.Kept()
	case len(ids) == 0:
		return nil, fault.Invalid("no transaction is named")
	}
	remove := m.config.Journal.RemoveKept
	if request.Abandon {
		remove = m.config.Journal.Abandon
	}
	reply := &pb.CleanTransactionsResponse{}
	for _, id := range ids {
		err := remove(ctx, id, call.MaySee)
		if err == nil {
			reply.TransactionIds = append(reply.TransactionIds, id)
		} else if reply.Error == nil && !(request.All && errors.Is(err, fs.ErrNotExist)) { // others' are not among all
			reply.Error = &pb.ScriptError{Kind: builtins.ErrorKind(err), Message: err.Error(), Object: id, Code: fault.Code(err)}
		}
	}
	return reply, nil
}

// Recover ends what an earlier agent, or this one, left unfinished, and goes on with what awaits its confirmation. It returns
// an event for the host for each transaction that it ended.
func (m *Manager) Recover(ctx context.Context) ([]*pb.ErrorEvent, error) {
	found, err := m.config.Journal.Recover(ctx, nil)
	var events []*pb.ErrorEvent
	for _, r := range found {
		if r.Tx != nil {
			m.config.Calls.Resume(r.Tx, r.Until)
			continue
		}
		events = append(events, interrupted(r))
	}
	return events, err
}

func interrupted(r journal.Recovered) *pb.ErrorEvent {
	e := &pb.ErrorEvent{
		Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "transaction_interrupted",
		Message: "transaction " + r.ID + " was interrupted, and rolled back by the recovery",
		Details: map[string]string{"transaction_id": r.ID},
	}
	status := r.Entry.GetReply().GetStatus()
	if r.Entry != nil {
		e.Details["status"], e.Details["script"] = status.String(), r.Entry.Begin.GetScript().GetName()
	}
	switch {
	case r.Report.Waiting != "":
		e.Severity = pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL
		e.Message = "transaction " + r.ID + " is not rolled back yet: waiting for " + r.Report.Waiting
		e.Details["waiting_for"] = r.Report.Waiting
	case r.Err != nil || r.Report.Halted || status == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED:
		e.Severity = pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL
		e.Message = "transaction " + r.ID + " was interrupted and could not be taken back whole"
		if r.Err != nil {
			e.Message += ": " + r.Err.Error()
		}
	case status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
		e.Message = "transaction " + r.ID + " had committed before the interruption, and was finished by the recovery"
	}
	return e
}

// name makes the run known by its transaction.
func (r *run) name(id string) {
	r.manager.mu.Lock()
	defer r.manager.mu.Unlock()
	r.id = id
}
