package call

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// MaxConfirm is the longest time within which a change may have to be confirmed: nothing else can change the guest meanwhile.
const MaxConfirm = 24 * time.Hour

// CheckConfirm returns why a change cannot have to be confirmed within a time; nil: it can.
func CheckConfirm(within time.Duration) error {
	if within <= 0 || within > MaxConfirm {
		return fault.Invalid("the time for a confirmation is %v: it must be more than 0, and %v at most", within, MaxConfirm)
	}
	return nil
}

// Await is a transaction that is to await its confirmation.
type Await struct {
	// Tx is the transaction. It is the executor's from then on. Required.
	Tx *journal.Tx
	// Reply is sent to its host: Keep sets the status and the deadline. Required.
	Reply *pb.RunScriptResponse
	// Within is the time for the confirmation, from now on.
	Within time.Duration
	// After are the actions that the commit runs.
	After []journal.Action
	// Hide takes secrets out of a text; nil: there are none.
	Hide func(string) string
	// Undone sets the states of the reply's changes by the report of a rollback, and returns those that it did not come to.
	// Nil: the report alone sets them.
	Undone func(journal.Report) []*pb.Change
	// Event sends an event to the host that began it; nil: nobody listens.
	Event func(proto.Message) bool
}

// confirmations keeps the transaction that awaits its confirmation, if there is one, and takes it back when its time is over.
type confirmations struct {
	unconfirmed func(*pb.ErrorEvent) // called when a transaction was rolled back because nobody confirmed it; may be nil

	ctx  context.Context // ends with close
	stop context.CancelCauseFunc
	work sync.WaitGroup

	mu     sync.Mutex
	open   *pending
	closed bool
}

// pending is a transaction that awaits its confirmation, or about which was just decided. The lock of confirmations guards
// until and decided.
type pending struct {
	Await
	port    string
	until   journal.Deadline
	decided bool                  // by a host, or by the time
	stop    context.CancelFunc    // ends the wait for the deadline
	done    chan struct{}         // closed when what was decided is done
	final   *pb.RunScriptResponse // what became of it; there when done is closed, and not written to any more
}

func newConfirmations(unconfirmed func(*pb.ErrorEvent)) *confirmations {
	c := &confirmations{unconfirmed: unconfirmed}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	return c
}

// Keep makes a transaction durable and lets it await its confirmation: from then on it is committed or taken back here, and its
// reply says so. On an error the caller rolls it back.
func (x *Executor) Keep(ctx context.Context, a Await) error {
	until := x.journal.Within(a.Within)
	a.Reply.Status, a.Reply.ConfirmUntil = pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM, timestamppb.New(until.Wall)
	if err := a.Tx.Await(ctx, proto.CloneOf(a.Reply), until, a.After...); err != nil {
		a.Reply.ConfirmUntil = nil
		return err
	}
	own := a
	own.Reply = shallow(a.Reply)
	a.Reply.Changes = cloned(a.Reply.Changes) // Undone sets those of the run
	x.keep(own, until)
	return nil
}

// shallow returns a reply of its own with the same changes.
func shallow(reply *pb.RunScriptResponse) *pb.RunScriptResponse {
	changes := reply.Changes
	own := proto.CloneOf(reply)
	own.Changes = changes
	return own
}

func cloned(list []*pb.Change) []*pb.Change {
	var own []*pb.Change
	for _, c := range list {
		own = append(own, proto.CloneOf(c))
	}
	return own
}

// Resume goes on with a transaction that awaited its confirmation when an earlier process of the agent ended.
func (x *Executor) Resume(tx *journal.Tx, until journal.Deadline) {
	reply := &pb.RunScriptResponse{}
	if entry := x.journal.Awaiting(); entry != nil && entry.Reply != nil {
		reply = entry.Reply
	}
	x.keep(Await{Tx: tx, Reply: reply}, until)
}

// keep waits for what becomes of a transaction. One that comes when the agent stops stays as it is on disk.
func (x *Executor) keep(a Await, until journal.Deadline) {
	c := x.confirms
	p := &pending{Await: a, port: a.Tx.Port(), until: until, done: make(chan struct{})}
	ctx, stop := context.WithCancel(c.ctx)
	p.stop = stop
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		stop()
		return
	}
	c.open = p
	c.work.Go(func() {
		defer stop()
		x.watch(ctx, p)
	})
}

// watch takes a transaction back when its time is over. The time may be extended meanwhile.
func (x *Executor) watch(ctx context.Context, p *pending) {
	c := x.confirms
	for {
		c.mu.Lock()
		until := p.until
		c.mu.Unlock()
		if x.journal.WaitUntil(ctx, until) != nil || x.late(p) {
			return // it was decided, or the agent stops
		}
	}
}

// late takes a transaction back if its time is over and nobody has decided; true: somebody has now.
func (x *Executor) late(p *pending) bool {
	if !x.decide(p, func() bool { return x.journal.Remaining(p.until) <= 0 }) {
		x.confirms.mu.Lock()
		defer x.confirms.mu.Unlock()
		return p.decided
	}
	x.takeBack(p, &pb.ScriptError{Kind: "timeout", Message: "it was taken back: no confirmation came in time"})
	x.reportUnconfirmed("transaction "+p.Tx.ID()+" was taken back: no confirmation came in time", p)
	return true
}

// reportUnconfirmed reports a transaction that nobody confirmed to the agent, and to the host that began it.
func (x *Executor) reportUnconfirmed(words string, p *pending) {
	e := &pb.ErrorEvent{
		Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "transaction_unconfirmed", Message: words,
		Details: map[string]string{
			"transaction_id": p.Tx.ID(), "status": p.final.GetStatus().String(), "script": p.Reply.GetScript().GetName(),
		},
	}
	if s := p.final.GetStatus(); s != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		e.Severity = pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL
		e.Message += "; not all of it could be"
	}
	if x.confirms.unconfirmed != nil {
		x.confirms.unconfirmed(e)
	}
	if p.Event != nil {
		p.Event(proto.Clone(e))
	}
}

// decide claims the decision about a transaction, where may says that it can be made; false: it cannot, or was made.
func (x *Executor) decide(p *pending, may func() bool) bool {
	c := x.confirms
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || p.decided || !may() {
		return false
	}
	p.decided = true
	c.work.Add(1) // until it is done
	p.stop()
	return true
}

// ended makes it known what became of a transaction about which was decided.
func (x *Executor) ended(p *pending, reply *pb.RunScriptResponse) {
	c := x.confirms
	c.mu.Lock()
	p.final = proto.CloneOf(reply)
	close(p.done)
	if c.open == p {
		c.open = nil
	}
	c.mu.Unlock()
	c.work.Done()
}

// commit commits a transaction, or takes it back where that fails.
func (x *Executor) commit(p *pending) {
	end, cancel := x.Ending(WithHide(context.Background(), p.Hide))
	defer cancel()
	reply := shallow(p.Reply)
	reply.Status, reply.ConfirmUntil = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, nil
	if err := p.Tx.Commit(end, proto.CloneOf(reply)); err != nil {
		x.takeBack(p, &pb.ScriptError{Kind: "internal", Message: "the undo journal failed: " + err.Error(), Code: fault.Code(err)})
		return
	}
	reply.AfterCommit = p.Tx.After(end)
	x.end(end, p, reply)
}

// takeBack rolls a transaction back.
func (x *Executor) takeBack(p *pending, why *pb.ScriptError) {
	end, cancel := x.Ending(WithHide(context.Background(), p.Hide))
	defer cancel()
	reply := shallow(p.Reply)
	reply.Result, reply.ConfirmUntil = nil, nil
	if why.Script == "" {
		why.Script = reply.GetScript().GetName()
	}
	report := p.Tx.TakeBack(end, why)
	reply.Error, reply.Status, reply.NotUndone = proto.CloneOf(why), report.Status(), report.NotUndone()
	reply.RollbackRan = report.Ran
	if p.Undone != nil {
		reply.NotUndone = append(reply.NotUndone, p.Undone(report)...)
	} else {
		report.Settle(reply.Changes)
	}
	reply.Error.Hint = report.Hint()
	x.end(end, p, reply)
}

// end closes a transaction.
func (x *Executor) end(ctx context.Context, p *pending, reply *pb.RunScriptResponse) {
	hideChanges(p.Hide, reply.NotUndone, reply.AfterCommit, reply.RollbackRan)
	if p.Hide != nil && reply.Error != nil {
		reply.Error.Message, reply.Error.Hint = p.Hide(reply.Error.Message), p.Hide(reply.Error.Hint)
	}
	journal.LimitReply(reply)
	if err := p.Tx.Close(ctx, proto.CloneOf(reply)); err != nil && reply.Error != nil {
		reply.Error.Hint = "the end of the transaction could not be stored: " + err.Error()
	}
	x.ended(p, reply)
}

func hideChanges(hide func(string) string, lists ...[]*pb.Change) {
	if hide == nil {
		return
	}
	for _, list := range lists {
		for _, c := range list {
			c.Target = hide(c.Target)
		}
	}
}

// Close ends the waits for confirmations, and waits for what was decided. A transaction that awaits one stays as it is on disk:
// the next agent goes on with it.
func (x *Executor) Close() {
	c := x.confirms
	if c == nil {
		return
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop(builtins.ErrStopping)
	c.work.Wait()
}

// Room is what the table knows of the requests to confirm.
func (x *Executor) Room() builtins.Room {
	return builtins.Room{Name: "confirmation", Ops: []builtins.Op{{
		Name: "confirm", Summary: "keep the changes of a transaction that awaits that, take them back, or give it more time",
		Capability: "confirm", Mutates: true, Access: builtins.Of(confirmAccess), OnError: confirmError,
		Handler: builtins.Handle(x.confirm),
	}}}
}

func confirmAccess(in *pb.ConfirmRequest) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{{Kind: "transaction", Name: in.TransactionId}}}
}

func confirmError(err error) proto.Message {
	return &pb.ConfirmResponse{Error: &pb.ScriptError{Kind: builtins.ErrorKind(err), Message: err.Error(), Code: fault.Code(err)}}
}

// confirm decides about the transaction that awaits its confirmation, for the hosts of the port that began it. What was decided
// already is returned, with an error where it is not what is asked for.
func (x *Executor) confirm(ctx context.Context, call *builtins.Call, in *pb.ConfirmRequest) (*pb.ConfirmResponse, error) {
	more := time.Duration(in.ExtendSeconds) * time.Second
	switch {
	case in.TransactionId == "":
		return nil, fault.Invalid("no transaction is named")
	case in.Action < pb.ConfirmAction_CONFIRM_ACTION_CONFIRM || in.Action > pb.ConfirmAction_CONFIRM_ACTION_EXTEND:
		return nil, fault.Invalid("action %d is none of confirm (1), rollback (2) and extend (3)", in.Action)
	case in.Action == pb.ConfirmAction_CONFIRM_ACTION_EXTEND && (more == 0 || more > MaxConfirm):
		return nil, fault.Invalid("extend_seconds is %d, and not from 1 to %d", in.ExtendSeconds, int(MaxConfirm.Seconds()))
	}
	c := x.confirms
	c.mu.Lock()
	p := c.open
	c.mu.Unlock()
	if p == nil || p.Tx.ID() != in.TransactionId {
		return x.decided(call, in)
	}
	if !call.MaySee(p.port) {
		return nil, unknownTransaction(in.TransactionId)
	}
	open := func() bool { return x.journal.Remaining(p.until) > 0 }
	switch {
	case in.Action == pb.ConfirmAction_CONFIRM_ACTION_EXTEND:
		reply, err := x.extend(ctx, p, more)
		if reply != nil || err != nil {
			return reply, err
		}
		x.late(p)
	case in.Action == pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK && x.decide(p, open):
		x.takeBack(p, &pb.ScriptError{Kind: "cancelled", Message: "it was taken back as a host asked"})
	case in.Action == pb.ConfirmAction_CONFIRM_ACTION_CONFIRM && x.decide(p, open):
		x.commit(p)
	default:
		x.late(p)
	}
	select {
	case <-p.done:
		return outcome(in, p.final), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ctx.Done():
		return nil, fault.Wrapf(builtins.ErrStopping, "the agent is stopping; ask the next one")
	}
}

// extend gives a transaction more time, on disk first; nil without an error: it was decided about, or its time is over.
func (x *Executor) extend(ctx context.Context, p *pending, more time.Duration) (*pb.ConfirmResponse, error) {
	c := x.confirms
	c.mu.Lock()
	defer c.mu.Unlock() // nobody decides meanwhile
	if p.decided || c.closed || x.journal.Remaining(p.until) <= 0 {
		return nil, nil
	}
	until := x.journal.Within(more)
	if until.Boottime < p.until.Boottime {
		until = p.until
	}
	reply := proto.CloneOf(p.Reply)
	reply.ConfirmUntil = timestamppb.New(until.Wall)
	if err := p.Tx.Await(ctx, reply, until); err != nil {
		return nil, err
	}
	p.until, p.Reply.ConfirmUntil = until, reply.ConfirmUntil
	left := x.journal.Remaining(until)
	return &pb.ConfirmResponse{
		Status:       pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM,
		ConfirmUntil: timestamppb.New(time.Now().Add(left)), RemainingMs: uint64(max(left, 0).Milliseconds()),
	}, nil
}

// decided returns the outcome of a transaction that does not await a confirmation.
func (x *Executor) decided(call *builtins.Call, in *pb.ConfirmRequest) (*pb.ConfirmResponse, error) {
	entry, err := x.journal.Stored(journal.Ref{ID: in.TransactionId})
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !call.MaySee(entry.Begin.GetPort()):
		if open := x.journal.Status().GetOpen(); open.GetTransactionId() == in.TransactionId && call.MaySee(open.GetPort()) {
			return nil, fault.Wrapf(fault.ErrBusy, "busy: transaction %s is %s, and awaits no confirmation", in.TransactionId, open.Phase)
		}
		return nil, unknownTransaction(in.TransactionId)
	case err != nil:
		return nil, err
	}
	return outcome(in, entry.Reply), nil
}

func unknownTransaction(id string) error {
	return fault.Wrapf(fs.ErrNotExist, "no transaction %s", id)
}

// outcome is the answer to a request about a transaction that has ended. It is an error where that is not as was asked for.
func outcome(in *pb.ConfirmRequest, reply *pb.RunScriptResponse) *pb.ConfirmResponse {
	const committed, rolledBack = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
	out := &pb.ConfirmResponse{Status: reply.GetStatus(), AfterCommit: reply.GetAfterCommit(), NotUndone: reply.GetNotUndone(),
		RollbackRan: reply.GetRollbackRan()}
	confirms := in.Action == pb.ConfirmAction_CONFIRM_ACTION_CONFIRM
	takesBack := in.Action == pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK
	switch {
	case confirms && out.Status == committed, takesBack && out.Status == rolledBack:
	case out.Status == committed:
		out.Error = &pb.ScriptError{Kind: "params", Message: "transaction " + in.TransactionId + " is committed already"}
	case takesBack:
		out.Error = &pb.ScriptError{
			Kind: "internal", Message: "transaction " + in.TransactionId + " was taken back, but not all of it could be",
			Hint: reply.GetError().GetHint(),
		}
	default:
		if out.Error = proto.CloneOf(reply.GetError()); out.Error == nil {
			out.Error = &pb.ScriptError{Kind: "internal", Message: "it was not committed"}
		}
		out.Error.Message = "transaction " + in.TransactionId + ": " + out.Error.Message
	}
	return out
}
