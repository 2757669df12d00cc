package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Recovered is the outcome of recovery for one transaction that an agent left when it died.
type Recovered struct {
	// ID names the transaction. Entry is what is stored of it; nil if it stays open.
	ID    string
	Entry *pb.JournalEntry
	// Report is that of the rollback.
	Report Report
	// Tx is not nil if the transaction awaits its confirmation, until Until. The caller commits or rolls it back, and
	// closes it.
	Tx    *Tx
	Until Deadline
	// Err is why the transaction could not be recovered; its files are then in the directory kept, unless Report.Halted.
	Err error
}

// Recover ends the transactions that a former agent left, or this one when its time was over: it finishes those that committed
// and rolls back all others. It may be interrupted anywhere and called again; a rollback that waits for a mount (see
// Report.Waiting) must be. deferOp, if not nil, reports which operations cannot run yet, at early boot: they, and all older
// steps, are left to the next call. While a transaction is open it waits.
func (j *Journal) Recover(ctx context.Context, deferOp func(op string) bool) ([]Recovered, error) {
	if err := j.acquireWriter(ctx, true); err != nil {
		return nil, err
	}
	release := func() { j.writer <- struct{}{} }
	j.early.Store(deferOp != nil)
	if j.reopen() != nil { // Unusable returns why
		release()
		return nil, nil
	}
	names, err := os.ReadDir(j.dir("open"))
	if err != nil {
		release()
		return nil, fault.Cause(err)
	}
	var list []Recovered
	var broken error
	awaits := false
	for _, name := range slices.Backward(names) {
		leave := j.enterAnyway()
		r := j.recover(ctx, name.Name(), deferOp)
		leave()
		if r == nil {
			continue
		}
		if r.Report.Halted && (broken == nil || r.Report.Waiting != "") {
			broken = notRecovered(r.Report)
		}
		list = append(list, *r)
		if r.Tx != nil {
			release, awaits = func() {}, true // the open transaction is the writer
		}
	}
	if broken == nil && !awaits {
		if err := j.becomeReady(); err != nil {
			j.setUnusable(err)
			release()
			return list, context.Cause(ctx)
		}
	}
	j.mu.Lock()
	j.broken = broken
	j.mu.Unlock()
	release()
	return list, context.Cause(ctx)
}

// notRecovered returns why no transaction may begin after a rollback that halted.
func notRecovered(r Report) error {
	if errors.Is(r.Err, errNewer) {
		return r.Err
	}
	if r.Waiting != "" {
		return fault.Wrapf(fault.ErrBusy, "busy: recovering: waiting for %s", r.Waiting)
	}
	return errUnrecovered
}

// loadedJournal is the content of a journal file.
type loadedJournal struct {
	tx                  *Tx
	interruptedAttempts int
	await               *pb.JournalAwait
	commit              *pb.JournalCommit
	abort               *pb.JournalAbort
	empty               bool // no step was begun
}

// recover ends one transaction. It returns nil if that had not begun.
func (j *Journal) recover(ctx context.Context, id string, deferOp func(string) bool) *Recovered {
	l, err := j.loadJournal("open", id)
	if err != nil && !errors.Is(err, errNewer) || err == nil && l.commit == nil && l.abort == nil {
		// What has a stored reply has ended: the log was being zeroed, after all else, and zeros of more than one block may
		// reach the disk in part.
		if _, statErr := os.Stat(j.dir("done", id)); statErr == nil {
			l.close()
			if err := j.do("recover.removedir", func() error { return os.RemoveAll(j.dir("open", id)) }); err == nil {
				return nil
			}
		}
	}
	if err == nil && l.empty {
		l.close()
		err = j.do("recover.removedir", func() error { return os.RemoveAll(j.dir("open", id)) })
		if err == nil {
			return nil
		}
	}
	if err == nil {
		err = l.tx.log.zeroTail()
	}
	if errors.Is(err, errNewer) { // a newer agent can take it back, and what this one would do to it is not known
		l.close()
		return &Recovered{ID: id, Report: Report{Halted: true, Err: err}, Err: fmt.Errorf("transaction %s is left as it is: %w", id, err)}
	}
	if err != nil {
		return j.quarantine(id, l, err)
	}
	t := l.tx
	switch {
	case l.commit != nil:
		return j.finishCommit(ctx, t, l.commit, deferOp)
	case l.abort != nil:
		return j.finalize(t, l.abort.Reply, Report{}, l.abort.Failed)
	case l.await != nil && !l.await.GivenUp && j.thisBoot(l.await.BootId) && !t.wasInterrupted:
		if deferOp != nil {
			return &Recovered{ID: id, Report: Report{Halted: true}, Err: t.log.close()}
		}
		return j.resumeAwait(t, l.await)
	case l.interruptedAttempts >= maxAttempts:
		return j.quarantine(id, l, fault.Wrapf(fault.ErrInternal, "%d rollbacks were interrupted", l.interruptedAttempts))
	}
	t.awaited = l.await
	return j.rollBack(ctx, t, deferOp)
}

// thisBoot reports whether an id is that of this boot; false where that is not known.
func (j *Journal) thisBoot(id string) bool { return id != "" && id == j.config.BootID() }

// close closes the log.
func (l *loadedJournal) close() {
	if l.tx.log != nil {
		_ = l.tx.log.close()
	}
}

// loadJournal reads the journal file of a transaction in open or kept. It never returns nil, and leaves the log open.
func (j *Journal) loadJournal(place, id string) (*loadedJournal, error) {
	l := &loadedJournal{tx: &Tx{journal: j}}
	log, err := openLog(j, j.dir(place, id, "journal"), id)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	records := 0
	if l.tx.log = log; log != nil {
		err = log.scan(id, func(payload []byte, at int64) error {
			records++
			return l.addPayload(payload, records, at)
		})
		l.tx.names.ready()
		if err != nil {
			return l, err
		}
	}
	if records == 0 {
		kept, err := os.ReadDir(j.dir(place, id, "u"))
		if len(kept) > 0 {
			return l, fault.Wrapf(fault.ErrCorrupt, "the journal is empty, but before-images exist")
		}
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		l.empty = true
		return l, fault.Cause(err)
	}
	if _, err := os.Stat(j.dir(place, id, abortMark)); err == nil { // a rollback began
		l.commit, l.await = nil, nil
	}
	return l, nil
}

// addPayload adds a record, which begins at an offset, to what was loaded. number counts from 1.
func (l *loadedJournal) addPayload(payload []byte, number int, at int64) error {
	record := &pb.JournalRecord{}
	if err := proto.Unmarshal(payload, record); err != nil {
		return fault.Wrapf(fault.ErrCorrupt, "record %d: %v", number, err)
	}
	if b := record.GetBegin(); (number == 1) != (b != nil) {
		return fault.Wrapf(fault.ErrCorrupt, "the begin record is missing, or not the first one")
	}
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Begin:
		l.tx.begin = r.Begin
		if r.Begin.Version != formatVersion {
			return newerFormat(r.Begin.Version)
		}
	case *pb.JournalRecord_Attempt:
		l.tx.wasInterrupted = true
		if !r.Attempt.Early {
			l.interruptedAttempts++
		}
	case *pb.JournalRecord_Undone: // an attempt with progress does not count
		l.interruptedAttempts = 0
		l.tx.wasInterrupted = l.tx.wasInterrupted && !r.Undone.Halted
	case *pb.JournalRecord_Await:
		l.await = r.Await
	case *pb.JournalRecord_Extend:
		if l.await == nil {
			return fault.Wrapf(fault.ErrCorrupt, "record %d: a new deadline of what awaits no confirmation", number)
		}
		l.await.BootId, l.await.UntilBoottimeMs, l.await.Until = r.Extend.BootId, r.Extend.UntilBoottimeMs, r.Extend.Until
		if l.await.Reply != nil {
			l.await.Reply.ConfirmUntil = r.Extend.Until
		}
	case *pb.JournalRecord_Commit:
		l.commit = r.Commit
	case *pb.JournalRecord_Abort:
		l.abort = r.Abort
	case nil:
		return fault.Wrapf(errNewer, "the journal has a record of a type that this agent does not know: a newer agent wrote it")
	}
	l.tx.names.add(record)
	l.tx.applyRecord(record, at)
	return nil
}

// rollBack rolls back an interrupted transaction.
func (j *Journal) rollBack(ctx context.Context, t *Tx, deferOp func(string) bool) *Recovered {
	j.noteUnfinished(t, nil)
	t.mu.Lock()
	report := t.rollback(ctx, deferOp)
	reached := t.phase
	t.mu.Unlock()
	if reached == halted {
		j.noteUnfinished(t, nil) // with what it met
		return &Recovered{ID: t.ID(), Report: report, Err: errors.Join(t.log.close())}
	}
	reply := t.interruptedReply(report)
	reply.Status, reply.NotUndone, reply.Error = report.Status(), report.NotUndone(), j.interruption(t, report)
	reply.RollbackRan = report.Ran
	if err := t.abort(reply, reached == rollbackFailed); err != nil {
		_ = t.log.close()
		if err := j.moveToKept(t.ID()); err != nil {
			report.Err, report.Halted, report.Ran = err, true, nil
			return &Recovered{ID: t.ID(), Report: report, Err: err}
		}
	}
	return j.finalize(t, reply, report, reached == rollbackFailed)
}

// interruption returns the error of a run that a recovery rolled back: that of the run itself if its rollback only took too
// long.
func (j *Journal) interruption(t *Tx, report Report) *pb.ScriptError {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.unfinished[t.ID()].reply.GetError(); e != nil {
		e = proto.Clone(e).(*pb.ScriptError)
		e.Hint = report.Hint()
		return e
	}
	e := &pb.ScriptError{Kind: "interrupted", Message: "the agent or the guest stopped in the middle of the script"}
	switch {
	case t.awaited.GetGivenUp() && t.awaited.GetReply().GetError() != nil:
		e = proto.CloneOf(t.awaited.Reply.Error)
	case t.awaited != nil:
		e.Message = "the guest was booted again before the confirmation came"
	}
	e.Script, e.Hint = t.begin.Script.GetName(), report.Hint()
	return e
}

// interruptedReply returns a reply with what an interrupted transaction had changed, and what became of that. Of one that
// awaited its confirmation it is what was sent to the host.
func (t *Tx) interruptedReply(report Report) *pb.RunScriptResponse {
	if told := t.awaited.GetReply(); len(told.GetChanges()) > 0 {
		reply := proto.CloneOf(told)
		reply.Result, reply.ConfirmUntil = nil, nil
		report.Settle(reply.Changes)
		return reply
	}
	return &pb.RunScriptResponse{TransactionId: t.ID(), Script: t.begin.Script, Changes: t.interruptedChanges(report)}
}

// finishCommit runs the actions that were left after a commit.
func (j *Journal) finishCommit(ctx context.Context, t *Tx, commit *pb.JournalCommit, deferOp func(string) bool) *Recovered {
	t.setPhase(committed)
	t.reply = commit.Reply
	for _, action := range commit.After {
		if deferOp != nil && deferOp(action.Op) {
			return &Recovered{ID: t.ID(), Report: Report{Halted: true}, Err: t.log.close()}
		}
		if !action.SameBoot || commit.BootId == j.config.BootID() {
			t.actions = append(t.actions, action)
		}
	}
	done := t.after(ctx)
	if len(t.actions) > 0 {
		return &Recovered{ID: t.ID(), Report: Report{Halted: true, Err: context.Cause(ctx)}, Err: t.log.close()}
	}
	reply := commit.Reply
	if len(done) > 0 && reply != nil {
		reply = proto.Clone(reply).(*pb.RunScriptResponse)
		reply.AfterCommit = done
	}
	t.machineAfter = j.machineAfter(t.begin, commit)
	return j.finalize(t, reply, Report{}, false)
}

// finalize stores the outcome and removes the transaction's files. keep: they move to the directory kept instead.
func (j *Journal) finalize(t *Tx, reply *pb.RunScriptResponse, report Report, keep bool) *Recovered {
	t.setPhase(closed)
	entry := j.newEntry(t.begin, reply, "done")
	entry.MachineIdAfter = t.machineAfter
	j.mu.Lock()
	delete(j.unfinished, t.ID())
	j.mu.Unlock()
	j.store.add(entry)
	if j.tellMachine(entry) == nil {
		_ = j.clean(t, entry, keep)
	} // else the next Recover does it again
	_ = t.log.close()
	return &Recovered{ID: t.ID(), Entry: entry, Report: report}
}

// resumeAwait lets a transaction await its confirmation again.
func (j *Journal) resumeAwait(t *Tx, await *pb.JournalAwait) *Recovered {
	until := Deadline{Boottime: time.Duration(await.UntilBoottimeMs) * time.Millisecond, Wall: await.Until.AsTime()}
	t.actions, t.markedSteps = await.After, len(t.steps)
	j.mu.Lock()
	j.current = t
	j.mu.Unlock()
	t.beginAwait(await.Reply, until)
	return &Recovered{ID: t.ID(), Tx: t, Until: until}
}

// quarantine moves a transaction that cannot be recovered to the directory kept, without changing the guest.
func (j *Journal) quarantine(id string, l *loadedJournal, why error) *Recovered {
	r := &Recovered{ID: id, Err: fmt.Errorf("transaction %s cannot be rolled back: %w", id, why)}
	begin := &pb.JournalBegin{TransactionId: id, MachineId: j.config.MachineID()}
	if l.tx.begin != nil {
		begin = l.tx.begin
	}
	r.Entry = j.newEntry(begin, &pb.RunScriptResponse{
		Status: pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, TransactionId: id, Script: begin.Script,
		Error:     &pb.ScriptError{Kind: "interrupted", Message: r.Err.Error()},
		NotUndone: l.tx.tellTargets(l.tx.announcedChanges(pb.ChangeState_CHANGE_STATE_UNKNOWN)),
	}, "quarantined")
	l.close()
	if err := j.moveToKept(id); err != nil {
		r.Err = errors.Join(r.Err, err)
		r.Report.Halted = true
		return r
	}
	j.mu.Lock()
	delete(j.unfinished, id)
	j.mu.Unlock()
	j.store.add(r.Entry)
	r.Err = errors.Join(r.Err, j.saveEntry(r.Entry))
	return r
}

// interruptedChanges lists what an interrupted transaction may have changed, and whether it was restored.
func (t *Tx) interruptedChanges(report Report) []*pb.Change {
	list := t.announcedChanges(pb.ChangeState_CHANGE_STATE_UNDONE)
	for _, c := range list {
		if slices.ContainsFunc(report.Steps, func(u Undone) bool { return u.Err != nil && u.Op == c.Op && u.Target == c.Target }) {
			c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
		}
	}
	return t.tellTargets(list)
}

// tellTargets takes secrets out of the targets of changes.
func (t *Tx) tellTargets(list []*pb.Change) []*pb.Change {
	for _, c := range list {
		c.Target = t.tell(c.Target)
	}
	return list
}

// maxAnnounced is how many changes an interrupted transaction lists.
const maxAnnounced = 1000

// announcedChanges lists what the steps of a transaction may have changed, each object once.
func (t *Tx) announcedChanges(state pb.ChangeState) []*pb.Change {
	var list []*pb.Change
	seen := map[string]bool{}
	add := func(op, target string) {
		if target == "" || !seen[target] {
			list = append(list, &pb.Change{Op: op, Target: target, Action: "restore", State: state})
		}
		seen[target] = true
	}
	for _, s := range t.steps {
		switch {
		case len(list) >= maxAnnounced:
			return list[:maxAnnounced]
		case s.moved != "":
			add("restore", s.moved)
		case s.inverse != "":
			add(s.inverse, "")
		case !s.irreversible:
			record, err := t.record(s)
			if err != nil {
				add("restore", "")
			}
			for _, o := range record.GetKeep().GetObjects() {
				add("restore", o.Path)
			}
		}
	}
	return list[:min(len(list), maxAnnounced)]
}
