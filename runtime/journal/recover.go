package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Recovered is what became of a transaction that an agent left when it died.
type Recovered struct {
	// ID names it; Entry is as it is stored. Nil where it stays open or its journal cannot be read.
	ID    string
	Entry *pb.JournalEntry
	// Report is of the rollback.
	Report Report
	// Tx is open again: it awaits its confirmation until Until. The caller commits or rolls it back, and closes it.
	Tx    *Tx
	Until Deadline
	// Err is why nothing could be done: the transaction's files lie in the directory kept. Nil otherwise.
	Err error
}

// Recover ends what was left unfinished: it finishes what was committed and takes back all else. It can be interrupted
// anywhere and begun again. Later, where not nil, names operations that cannot run yet, at early boot: they, and
// with them the transaction, are left to the next call. No other transaction may be open.
func (j *Journal) Recover(ctx context.Context, later func(op string) bool) ([]Recovered, error) {
	if err := j.wait(ctx); err != nil {
		return nil, err
	}
	release := func() { j.writer <- struct{}{} }
	names, err := os.ReadDir(j.dir("open"))
	if err != nil {
		release()
		return nil, fault.Cause(err)
	}
	var list []Recovered
	open := false
	for _, name := range slices.Backward(names) {
		r := j.recover(ctx, name.Name(), later)
		if r == nil {
			continue
		}
		open = open || r.Report.Halted
		list = append(list, *r)
		if r.Tx != nil {
			release = func() {} // it has the writer's right
		}
	}
	j.mu.Lock()
	j.broken = nil
	if open {
		j.broken = errUnrecovered
	}
	j.mu.Unlock()
	release()
	return list, context.Cause(ctx)
}

// found is what a journal tells.
type found struct {
	tx        *Tx
	tries     int
	await     *pb.JournalAwait
	commit    *pb.JournalCommit
	abort     *pb.JournalAbort
	chain     frames.Chain
	end       int
	data      []byte
	untouched bool // nothing was begun
}

// recover ends one transaction; nil if there was none.
func (j *Journal) recover(ctx context.Context, id string, later func(string) bool) *Recovered {
	f, err := j.find(id)
	if err == nil && f.untouched {
		err = j.do("recover.removedir", func() error { return os.RemoveAll(j.dir("open", id)) })
		if err == nil {
			return nil
		}
	}
	if err == nil {
		f.tx.log, err = openLog(j, j.dir("open", id, "journal"), f.chain, f.end, f.data)
	}
	if err != nil {
		return j.quarantine(id, f, err)
	}
	t := f.tx
	switch {
	case f.commit != nil:
		return j.finish(ctx, t, f.commit, later)
	case f.abort != nil:
		return j.conclude(t, f.abort.Reply, Report{}, f.abort.Failed)
	case f.await != nil && f.await.BootId == j.config.BootID() && !t.again:
		if later != nil {
			return &Recovered{ID: id, Report: Report{Halted: true}, Err: t.log.close()}
		}
		return j.reopen(t, f.await)
	case f.tries >= attempts:
		return j.quarantine(id, f, fault.Wrapf(fault.ErrInternal, "%d attempts to take it back were interrupted", f.tries))
	}
	return j.takeBack(ctx, t, later)
}

// find reads a journal.
func (j *Journal) find(id string) (*found, error) {
	data, err := os.ReadFile(j.dir("open", id, "journal"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Cause(err)
	}
	payloads, chain, end, err := frames.Read(id, data)
	if err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	f := &found{tx: &Tx{journal: j}, chain: chain, end: end, data: data}
	if len(payloads) == 0 {
		kept, err := os.ReadDir(j.dir("open", id, "u"))
		if len(kept) > 0 {
			return nil, fault.Wrapf(fault.ErrCorrupt, "the journal is empty, and something was kept")
		}
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		f.untouched = true
		return f, fault.Cause(err)
	}
	for i, payload := range payloads {
		record := &pb.JournalRecord{}
		if err := proto.Unmarshal(payload, record); err != nil {
			return nil, fault.Wrapf(fault.ErrCorrupt, "record %d: %v", i, err)
		}
		if err := f.read(record, i == 0); err != nil {
			return f, err
		}
	}
	if _, err := os.Stat(j.dir("open", id, "doomed")); err == nil {
		f.commit = nil
	}
	return f, nil
}

// read takes a record.
func (f *found) read(record *pb.JournalRecord, first bool) error {
	if b := record.GetBegin(); first != (b != nil) {
		return fault.Wrapf(fault.ErrCorrupt, "the first record does not begin, or a later one does")
	}
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Begin:
		f.tx.begin = r.Begin
		if r.Begin.Version != version {
			return fault.Unsupported("the journal is of version %d, and this agent knows %d", r.Begin.Version, version)
		}
	case *pb.JournalRecord_Attempt:
		f.tx.again = true
		if !r.Attempt.Early {
			f.tries++
		}
	case *pb.JournalRecord_Undone: // it got on, so it will come to its end
		f.tries = 0
	case *pb.JournalRecord_Await:
		f.await = r.Await
	case *pb.JournalRecord_Commit:
		f.commit = r.Commit
	case *pb.JournalRecord_Abort:
		f.abort = r.Abort
	case nil:
		return fault.Unsupported("the journal has a record that this agent does not know")
	}
	f.tx.replay(record)
	return nil
}

// takeBack rolls back.
func (j *Journal) takeBack(ctx context.Context, t *Tx, later func(string) bool) *Recovered {
	t.mu.Lock()
	report := t.rollback(ctx, later)
	was := t.phase
	t.mu.Unlock()
	if was == halted {
		return &Recovered{ID: t.ID(), Report: report, Err: errors.Join(t.log.close())}
	}
	reply := &pb.RunScriptResponse{
		Status: report.Status(), TransactionId: t.ID(), Script: t.begin.Script, NotUndone: report.NotUndone(),
		Changes: t.undone(report),
		Error:   &pb.ScriptError{Kind: "interrupted", Message: "the agent or the guest stopped in the middle of the script", Script: t.begin.Script.GetName()},
	}
	if err := t.abort(reply, was == failed); err != nil {
		if err := j.setAside(t.ID()); err != nil {
			return &Recovered{ID: t.ID(), Report: Report{Steps: report.Steps, Err: err, Halted: true}, Err: errors.Join(err, t.log.close())}
		}
	}
	return j.conclude(t, reply, report, was == failed)
}

// finish does what was left to do after a commit.
func (j *Journal) finish(ctx context.Context, t *Tx, commit *pb.JournalCommit, later func(string) bool) *Recovered {
	t.enter(committed)
	t.reply = commit.Reply
	for _, action := range commit.After {
		if later != nil && later(action.Op) {
			return &Recovered{ID: t.ID(), Report: Report{Halted: true}, Err: t.log.close()}
		}
		if !action.SameBoot || commit.BootId == j.config.BootID() {
			t.after = append(t.after, action)
		}
	}
	done := t.After(ctx)
	if len(t.after) > 0 {
		return &Recovered{ID: t.ID(), Report: Report{Halted: true, Err: context.Cause(ctx)}, Err: t.log.close()}
	}
	reply := commit.Reply
	if len(done) > 0 && reply != nil {
		reply = proto.Clone(reply).(*pb.RunScriptResponse)
		reply.AfterCommit = done
	}
	return j.conclude(t, reply, Report{}, false)
}

// conclude stores the outcome and cleans up.
func (j *Journal) conclude(t *Tx, reply *pb.RunScriptResponse, report Report, keep bool) *Recovered {
	t.enter(closed)
	entry := &pb.JournalEntry{Begin: t.begin, Reply: reply, Finished: now(), Phase: "done"}
	j.mu.Lock()
	j.store.add(entry)
	j.mu.Unlock()
	_ = j.clean(t, entry, keep) // what it did not do is done by the next Recover
	_ = t.log.close()
	return &Recovered{ID: t.ID(), Entry: entry, Report: report}
}

// reopen goes on waiting for the confirmation.
func (j *Journal) reopen(t *Tx, await *pb.JournalAwait) *Recovered {
	t.enter(awaiting)
	t.reply, t.marked = await.Reply, len(t.steps)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.current = t
	return &Recovered{ID: t.ID(), Tx: t, Until: Deadline{Boottime: time.Duration(await.UntilBoottimeMs) * time.Millisecond, Wall: await.Until.AsTime()}}
}

// quarantine gives a transaction up: nothing is guessed.
func (j *Journal) quarantine(id string, f *found, why error) *Recovered {
	r := &Recovered{ID: id, Err: fmt.Errorf("transaction %s cannot be taken back: %w", id, why)}
	begin := &pb.JournalBegin{TransactionId: id, MachineId: j.config.MachineID()}
	if f != nil && f.tx.begin != nil {
		begin = f.tx.begin
	}
	r.Entry = &pb.JournalEntry{Begin: begin, Finished: now(), Phase: "quarantined", Reply: &pb.RunScriptResponse{
		Status: pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, TransactionId: id, Script: begin.Script,
		Error:     &pb.ScriptError{Kind: "interrupted", Message: r.Err.Error()},
		NotUndone: f.kept(),
	}}
	if f != nil && f.tx.log != nil {
		_ = f.tx.log.close()
	}
	if err := j.setAside(id); err != nil {
		r.Err = errors.Join(r.Err, err)
		r.Report.Halted = true
		return r
	}
	j.mu.Lock()
	j.store.add(r.Entry)
	j.mu.Unlock()
	r.Err = errors.Join(r.Err, j.save(r.Entry))
	return r
}

// kept lists what a transaction that is given up may have changed.
func (f *found) kept() []*pb.Change {
	if f == nil {
		return nil
	}
	return f.tx.touched(pb.ChangeState_CHANGE_STATE_UNKNOWN)
}

// undone lists what an interrupted transaction may have changed, and whether it is as it was.
func (t *Tx) undone(report Report) []*pb.Change {
	list := t.touched(pb.ChangeState_CHANGE_STATE_UNDONE)
	for _, c := range list {
		if slices.ContainsFunc(report.Steps, func(u Undone) bool { return u.Err != nil && u.Op == c.Op && u.Target == c.Target }) {
			c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
		}
	}
	return list
}

// touched lists what the steps of a transaction announced, each object once.
func (t *Tx) touched(state pb.ChangeState) []*pb.Change {
	var list []*pb.Change
	seen := map[string]bool{}
	add := func(op, target string) {
		if target == "" || !seen[target] {
			list = append(list, &pb.Change{Op: op, Target: target, Action: "restore", State: state})
		}
		seen[target] = true
	}
	for _, s := range t.steps {
		for _, o := range s.record.GetKeep().GetObjects() {
			add("restore", o.Path)
		}
		if take := s.record.GetTake(); take != nil {
			add("restore", take.Path)
		}
		if inverse := s.record.GetInverse(); inverse != nil {
			add(inverse.Op, "")
		}
	}
	return list[:min(len(list), 1000)]
}
