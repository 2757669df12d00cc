package journal

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Deadline is the end of the time for a confirmation.
type Deadline struct {
	// Boottime is on CLOCK_BOOTTIME, which counts from boot and through suspends, and decides. Wall is the same moment for
	// people.
	Boottime time.Duration
	Wall     time.Time
}

// Within returns the deadline that is so long from now.
func (j *Journal) Within(d time.Duration) Deadline {
	return Deadline{Boottime: j.config.Uptime() + d, Wall: time.Now().Add(d)}
}

// Remaining returns how long it is until a deadline; 0 or less: it has passed.
func (j *Journal) Remaining(until Deadline) time.Duration { return until.Boottime - j.config.Uptime() }

// WaitUntil waits until a deadline has passed, suspends of the guest included, or until ctx ends: then it returns the cause.
func (j *Journal) WaitUntil(ctx context.Context, until Deadline) error {
	for {
		left := j.Remaining(until)
		if left <= 0 {
			return context.Cause(ctx)
		}
		if err := sleep(ctx, left); err != nil {
			return err
		}
	}
}

// sleepAwake waits for a time, or until ctx ends: then it returns the cause. On most systems suspends do not count.
func sleepAwake(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// Await makes all changes durable as Commit does, but leaves the transaction open until Commit or TakeBack. After a
// restart of the agent Recover returns the open transaction; after another boot it rolls back. after are the actions that
// Commit then runs. Another call of Await sets a new deadline, and keeps the actions of the first. While a transaction is
// awaiting, others are refused at once instead of waiting for it.
func (t *Tx) Await(ctx context.Context, reply *pb.RunScriptResponse, until Deadline, after ...Action) error {
	leave, err := t.journal.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkOpen(ctx); err != nil {
		return err
	}
	actions, err := t.toActions(after)
	if err != nil {
		return err
	}
	if t.log == nil {
		if err := t.fail(t.createFiles()); err != nil {
			return err
		}
	}
	if t.phase == running {
		if err := t.syncChanges(); err != nil {
			return t.fail(err)
		}
		t.actions = actions
	}
	LimitReply(reply)
	if err := t.appendRecord(t.awaitRecord(reply, until), false); err != nil {
		return t.fail(fault.On("journal", err))
	}
	t.beginAwait(reply, until)
	return nil
}

// awaitRecord returns the record of a deadline: only the first one holds the reply.
func (t *Tx) awaitRecord(reply *pb.RunScriptResponse, until Deadline) *pb.JournalRecord {
	boot, ms, wall := t.journal.config.BootID(), uint64(max(until.Boottime, 0).Milliseconds()), timestamppb.New(until.Wall)
	if t.phase == awaiting {
		return &pb.JournalRecord{Record: &pb.JournalRecord_Extend{Extend: &pb.JournalExtend{BootId: boot, UntilBoottimeMs: ms, Until: wall}}}
	}
	return &pb.JournalRecord{Record: &pb.JournalRecord_Await{Await: &pb.JournalAwait{
		Reply: reply, BootId: boot, After: t.actions, UntilBoottimeMs: ms, Until: wall}}}
}

// beginAwait makes it known that the transaction awaits its confirmation.
func (t *Tx) beginAwait(reply *pb.RunScriptResponse, until Deadline) {
	t.reply = reply
	t.status.mu.Lock()
	t.status.until = until
	t.status.reply = reply
	t.status.mu.Unlock()
	t.setPhase(awaiting)
	j := t.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.awaitBegan)
	j.awaitBegan = make(chan struct{})
}

// TakeBack is Rollback of a transaction that is not confirmed. That, and why, is durable first: a restart of the agent in
// the middle goes on with the rollback instead of waiting for a confirmation again.
func (t *Tx) TakeBack(ctx context.Context, why *pb.ScriptError) Report {
	defer t.enterAnyway()()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase == awaiting {
		record := &pb.JournalAwait{GivenUp: true, BootId: t.journal.config.BootID(), Reply: proto.CloneOf(t.reply)}
		if record.Reply == nil {
			record.Reply = &pb.RunScriptResponse{}
		}
		record.Reply.Error = why
		LimitReply(record.Reply)
		awaits := &pb.JournalRecord{Record: &pb.JournalRecord_Await{Await: record}}
		if err := t.log.append(awaits, false); err != nil && t.log.err == nil { // no space for the whole reply
			record.Reply = &pb.RunScriptResponse{Error: why}
			_ = t.log.append(awaits, true)
		} // without the record a restart waits again, with the same deadline
	}
	return t.rollback(ctx, nil)
}

// Awaiting returns what is known of the transaction that awaits its confirmation, with its reply; nil: none does. The deadline
// in the reply is by the clock as it is now.
func (j *Journal) Awaiting() *pb.JournalEntry {
	t := j.awaitingTx()
	if t == nil {
		return nil
	}
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	e := &pb.JournalEntry{
		Begin: proto.CloneOf(t.begin), Reply: proto.CloneOf(t.status.reply), Phase: phaseNames[awaiting],
		Changes: uint32(len(t.status.reply.GetChanges())),
	}
	if e.Reply != nil {
		e.Reply.ConfirmUntil = timestamppb.New(time.Now().Add(max(j.Remaining(t.status.until), 0)))
	}
	return e
}

// awaitingTx returns the transaction that awaits its confirmation; nil: none does.
func (j *Journal) awaitingTx() *Tx {
	j.mu.Lock()
	t := j.current
	j.mu.Unlock()
	if t == nil || !t.status.awaits() {
		return nil
	}
	return t
}

func (v *txStatus) awaits() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.phase == awaiting
}

// awaitingError returns why nobody may become the writer at present: a transaction awaits its confirmation, which may take
// long. began is closed when the next one begins to.
func (j *Journal) awaitingError() (began <-chan struct{}, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.current; t != nil && t.status.awaits() {
		err = &fault.Error{
			Err:     fault.Wrapf(fault.ErrBusy, "busy: transaction %s awaits its confirmation", t.ID()),
			Details: map[string]string{"transaction_id": t.ID()},
		}
	}
	return j.awaitBegan, err
}
