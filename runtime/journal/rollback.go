package journal

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Rollback undoes all steps, newest first, and verifies each. It continues with the others if one fails. If ctx ends it
// stops, and the next Recover undoes the rest. The caller passes the reply to Close.
func (t *Tx) Rollback(ctx context.Context) Report {
	defer t.enterAnyway()()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rollback(ctx, nil)
}

// rollback undoes the steps, except inverses for which deferOp returns true.
func (t *Tx) rollback(ctx context.Context, deferOp func(op string) bool) (report Report) {
	if t.phase != running && t.phase != awaiting {
		return Report{Err: fault.Wrapf(fault.ErrInternal, "the transaction has ended")}
	}
	t.setPhase(rollingBack)
	report = Report{Steps: slices.Clone(t.earlierFailures), Ran: slices.Clone(t.earlierRan)}
	if t.begin.GetSecrets() {
		report.tell = t.tell
		defer func() { report.Err = t.tellError(report.Err) }()
	}
	if t.commitUncertain {
		if report.Err = t.markAborted(); report.Err != nil {
			t.setPhase(halted) // all changes are durable, so recovery decides by whether the commit record is
			report.Halted, report.Left = true, numbers(t.steps)
			return report
		}
	}
	if t.log == nil {
		t.setPhase(rolledBack)
		return report
	}
	p := t.newPass()
	p.compareAfter = !t.wasInterrupted // a half restored object matches no state, and is nobody else's
	if err := p.undoSteps(ctx, deferOp, &report); err != nil {
		t.setPhase(halted)
		report.halt(err)
		return report
	}
	if report.Err == nil {
		report.Err = p.flush()
	}
	if report.Status() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.setPhase(rollbackFailed)
	} else {
		t.setPhase(rolledBack)
	}
	return report
}

// errDeferred stops a rollback at early boot before an inverse that needs more of the guest.
var errDeferred = errors.New("left to the agent")

// undoSteps undoes the steps, in their undoOrder. It stops with an error before the first one that must wait: an older step is
// never undone before a newer one, which may depend on what is there. What failed for good is in the report instead.
func (p *undoPass) undoSteps(ctx context.Context, deferOp func(op string) bool, report *Report) error {
	attempted, order := false, undoOrder(p.tx.steps)
	for i, s := range order {
		if s.reverted {
			continue
		}
		record, lost := p.tx.record(s)
		if errno := syscall.Errno(0); errors.As(lost, &errno) { // the disk does not answer now: a later attempt may read it
			return lost
		}
		err := p.mustWait(ctx, s, record, deferOp)
		if waiting := (*waitingError)(nil); p.tx.abandoned && errors.As(err, &waiting) {
			lost, err = fault.Wrapf(fault.ErrBusy, "it was on %s, which is not there", waiting.mount), nil
		}
		if err != nil {
			report.Left = numbers(order[i:])
			if attempted && report.Err == nil && !p.unlogged {
				p.logHalted(false)
			}
			return err
		}
		if !attempted && !s.irreversible { // which is reported each time
			p.logAttempt(deferOp != nil)
			attempted = true
		}
		var undone []Undone
		if lost == nil {
			undone = p.undoStep(ctx, s, record)
		} else {
			undone = lostStep(s, record, lost)
		}
		failed := failures(undone)
		if err := context.Cause(ctx); err != nil && len(failed) > 0 { // ctx cut it short, so it is repeated
			report.Left = numbers(order[i:])
			return err
		}
		if wait := p.findObstacle(s, record, undone); wait != nil {
			report.Left = numbers(order[i:])
			if report.Err == nil && !p.unlogged {
				p.logHalted(slices.ContainsFunc(undone, func(u Undone) bool { return u.half }))
			}
			return wait
		}
		var ran []*pb.Change
		for i := range undone[:min(len(undone), 1)] {
			for _, point := range p.detached {
				undone[i].Reset = append(undone[i].Reset, "a mount on "+point)
			}
			p.detached = nil
		}
		for _, u := range undone {
			report.add(u)
			if u.Ran != nil {
				ran = append(ran, u.Ran)
			}
		}
		report.Ran = append(report.Ran, ran...)
		if s.irreversible {
			continue
		}
		p.compareAfter = true
		if report.Err == nil {
			report.Err = p.logUndone(s, failed, ran)
		}
	}
	return nil
}

// obstacle is what a rollback of this process met on the file system of a step, and waits for to change. Until then it writes no
// attempt each time that one is asked for.
type obstacle struct {
	step uint64 // 0: none
	path string // of the object that was not restored
	// full: there was no space; else it is read-only. free and inodes are the most that was too little, as of fsys.Mount.
	full         bool
	free, inodes uint64
	met          time.Time
}

// A disk that was full is tried again once this much more is free: less comes and goes with every log file. It is tried after
// this time, too: what is free was asked for after the attempt, and there are disks that are full with something else.
const (
	moreSpace  = 1 << 20
	moreInodes = 64
	fullFor    = time.Hour
)

// findObstacle returns a waitingError if objects of a step were not restored since their file system is read-only, as one becomes on
// which the kernel found a fault, or full of what others wrote. Once somebody has mended that the rollback goes on. One that was
// abandoned fails there.
func (p *undoPass) findObstacle(s *step, record *pb.JournalRecord, undone []Undone) error {
	for _, u := range undone {
		full := errors.Is(u.Err, syscall.ENOSPC)
		if u.Target == "" || !full && !errors.Is(u.Err, syscall.EROFS) || p.tx.abandoned {
			continue
		}
		m := longestMount(record.GetMounts(), u.Target)
		if m == nil {
			continue
		}
		found, before := obstacle{step: s.number, path: u.Target, full: full, met: time.Now()}, p.knownObstacle(s)
		if full {
			now, err := p.mountAt(record, u.Target)
			if err != nil || !now.Sized { // one that does not say what is free would be waited for without end
				continue
			}
			found.free, found.inodes = max(now.Free, before.free), max(now.FreeInodes, before.inodes)
		}
		p.tx.obstacle = found
		return found.waitFor(m)
	}
	return nil
}

// knownObstacle returns what an earlier rollback of this process met at a step.
func (p *undoPass) knownObstacle(s *step) obstacle {
	j := p.tx.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if o := j.unfinished[p.tx.ID()].obstacle; o.step == s.number {
		return o
	}
	return obstacle{}
}

// stillThere returns a waitingError if what a rollback of this process met at a step has not changed.
func (p *undoPass) stillThere(s *step, record *pb.JournalRecord) error {
	o := p.knownObstacle(s)
	if o.step == 0 || p.tx.abandoned {
		return nil
	}
	now, err := p.mountAt(record, o.path)
	if err != nil {
		return err
	}
	more := now.Free >= o.free+moreSpace || now.FreeInodes >= o.inodes+moreInodes || time.Since(o.met) >= fullFor
	m := longestMount(record.GetMounts(), o.path)
	if m == nil || !o.full && !now.ReadOnly || o.full && more {
		return nil
	}
	return o.waitFor(m)
}

// mountAt returns the mount that a path of a step is on now.
func (p *undoPass) mountAt(record *pb.JournalRecord, path string) (fsys.Mount, error) {
	c, err := p.tx.newMountCheck(record)
	if c == nil || err != nil {
		return fsys.Mount{}, err
	}
	return c.current(path)
}

func (o obstacle) waitFor(m *pb.JournalMount) error {
	if o.full {
		return &waitingError{fromMount(m).String() + ", which has no space left"}
	}
	return &waitingError{fromMount(m).String() + ", which is read-only"}
}

// lostStep returns the outcomes of a step that cannot be undone.
func lostStep(s *step, record *pb.JournalRecord, why error) []Undone {
	var list []Undone
	for _, o := range record.GetKeep().GetObjects() {
		list = append(list, Undone{Step: s.number, Op: "restore", Target: o.Path, Err: why})
	}
	if list == nil {
		list = []Undone{{Step: s.number, Op: cmp.Or(s.inverse, "restore"), Target: s.moved, Err: why}}
	}
	return list
}

// undoOrder returns steps in the order in which they are undone: newest first, and after all others those that come last.
func undoOrder(steps []*step) []*step {
	order := make([]*step, 0, len(steps))
	for _, last := range []bool{false, true} {
		for _, s := range slices.Backward(steps) {
			if s.last == last {
				order = append(order, s)
			}
		}
	}
	return order
}

// numbers returns the numbers of the steps that are not undone.
func numbers(steps []*step) (list []uint64) {
	for _, s := range steps {
		if !s.reverted {
			list = append(list, s.number)
		}
	}
	return list
}

// mustWait returns why a step is not undone now; nil if it is, or if its record could not be read.
func (p *undoPass) mustWait(ctx context.Context, s *step, record *pb.JournalRecord, deferOp func(op string) bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if s.inverse != "" && deferOp != nil && deferOp(s.inverse) {
		return errDeferred
	}
	err := p.tx.checkMounts(record)
	if err == nil {
		err = p.stillThere(s, record)
	}
	if err == nil || p.tx.journal.config.BootID() != p.tx.begin.BootId {
		return err
	}
	// A user who can mount over a directory of his may delay a rollback, and not hold it up.
	points, detachErr := p.tx.journal.config.Root.DetachUserMounts(stepPaths(record))
	if p.detached = append(p.detached, points...); len(points) == 0 || detachErr != nil {
		return errors.Join(err, detachErr)
	}
	return p.tx.checkMounts(record)
}

// logAttempt records for the next rollback that objects may be half restored. This one goes on without the record.
func (p *undoPass) logAttempt(early bool) {
	_ = p.tx.appendRecord(&pb.JournalRecord{Record: &pb.JournalRecord_Attempt{Attempt: &pb.JournalAttempt{
		BootId: p.tx.journal.config.BootID(), At: now(), Early: early}}}, true)
}

// logHalted records for the next rollback that this one was not interrupted, but stopped. Unless an object is half restored, that
// one compares the objects of the first step with what the step left, too. Without the record it does not.
func (p *undoPass) logHalted(half bool) {
	_ = p.tx.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Undone{Undone: &pb.JournalUndone{Halted: !half}}}, true)
}

// failures returns the records of what could not be undone.
func failures(undone []Undone) []*pb.JournalFailed {
	var list []*pb.JournalFailed
	for _, u := range undone {
		switch {
		case u.Err != nil:
			list = append(list, &pb.JournalFailed{Step: u.Step, Op: u.Op, Target: u.Target, Message: truncateText(u.Err.Error())})
		case u.Irreversible != nil:
			list = append(list, &pb.JournalFailed{Step: u.Step, Op: u.Op, Target: u.Target, Stays: u.Irreversible})
		}
	}
	return list[:min(len(list), 20)]
}

// abortMark is the file whose presence invalidates the commit record. Its name is part of the format on disk.
const abortMark = "doomed"

// markAborted makes durable that a commit record, which may or may not have reached the disk, is invalid.
func (t *Tx) markAborted() error {
	err := t.journal.do("abortmark.write", func() error {
		file, err := os.OpenFile(t.dir(abortMark), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(file.Sync(), file.Close())
	})
	if err == nil {
		err = t.journal.do("abortmark.syncdir", func() error { return syncDir(t.dir()) })
	}
	return err
}

// undoPass is the state of undoing steps, newest first.
type undoPass struct {
	tx               *Tx
	compareAfter     bool // compare with what the steps left
	tempFilesRemoved map[string]bool
	dirty            map[string]bool // paths to be made durable, with the directories that they are in
	syncAll          bool            // operations ran: the paths are not known
	unlogged         bool            // a step was undone, and its record could not be written
	// ended reports for the paths of the present step whether they were on a file system that is gone for good.
	ended    func(path string) bool
	tree     *keptTree       // of the present step
	detached []string        // what users had mounted in the way, until a step reports it
	patience time.Duration   // what is left for others who are in the way
	away     map[string]bool // directories that others have taken away
	inScript bool            // what a call changed that failed is undone, and the script goes on
}

func (t *Tx) newPass() *undoPass {
	return &undoPass{tx: t, tempFilesRemoved: map[string]bool{}, dirty: map[string]bool{}, away: map[string]bool{}, patience: maxPatience}
}

func (p *undoPass) markDirty(path string) { p.dirty[path] = true }

// logUndone makes durable that a step was undone, or tried. A later rollback must not repeat it once older steps are undone:
// it would take what these restored for somebody else's. A missing record matters only if this rollback is interrupted.
func (p *undoPass) logUndone(s *step, failed []*pb.JournalFailed, ran []*pb.Change) error {
	if err := p.flush(); err != nil {
		return err
	}
	err := p.tx.log.append(&pb.JournalRecord{Reverted: []uint64{s.number}, Made: p.tx.unloggedMade,
		Record: &pb.JournalRecord_Undone{Undone: &pb.JournalUndone{Failed: failed, Ran: ran}}}, true)
	if err == nil {
		p.tx.unloggedMade = nil
	}
	p.unlogged = p.unlogged || err != nil
	return nil
}

// undoFirstError undoes a step and returns its first failure, or its last success.
func (p *undoPass) undoFirstError(ctx context.Context, s *step, record *pb.JournalRecord) Undone {
	last := Undone{}
	for _, u := range p.undoStep(ctx, s, record) {
		if u.Err != nil || u.Irreversible != nil {
			return u
		}
		last = u
	}
	return last
}

// undoStep undoes a step by its record.
func (p *undoPass) undoStep(ctx context.Context, s *step, record *pb.JournalRecord) []Undone {
	switch r := record.GetRecord().(type) {
	case *pb.JournalRecord_Keep:
		p.ended = p.tx.ended(record)
		return append(p.undeclaredChanges(s, r.Keep), p.restoreObjects(ctx, s, r.Keep)...)
	case *pb.JournalRecord_Take:
		if p.tx.ended(record)(r.Take.Path) {
			return []Undone{{Step: s.number, Op: "restore", Target: r.Take.Path}}
		}
		u := Undone{Step: s.number, Op: "restore", Target: r.Take.Path}
		u.Err = p.retry(ctx, u.Target, func() error {
			c, err := p.restoreMoved(ctx, r.Take)
			u.Conflict = cmp.Or(u.Conflict, c)
			return err
		})
		p.displaced(ctx, &u, r.Take.State, func(to *fsys.At) (bool, error) { return p.putMoved(r.Take, to) })
		return []Undone{u}
	case *pb.JournalRecord_Inverse:
		if o := inverseObject(r.Inverse); o != nil && p.tx.ended(record)(o.Path) {
			return []Undone{{Step: s.number, Op: r.Inverse.Op}}
		}
		ran, err := p.runInverse(ctx, r.Inverse)
		return []Undone{{Step: s.number, Op: r.Inverse.Op, Err: err, Ran: ran}}
	case *pb.JournalRecord_Irreversible:
		return []Undone{{Step: s.number, Op: r.Irreversible.Change.GetOp(), Target: r.Irreversible.Change.GetTarget(), Irreversible: r.Irreversible.Change}}
	}
	return nil
}

// runInverse runs an inverse operation, and returns its entry for the report; nil: it could not be started.
func (p *undoPass) runInverse(ctx context.Context, inverse *pb.JournalInverse) (ran *pb.Change, err error) {
	p.syncAll = true
	config := &p.tx.journal.config
	if config.Run == nil {
		return nil, fault.Unsupported("operation %s is unknown", inverse.Op)
	}
	stored, err := p.tx.withMade(inverse)
	if err != nil {
		return nil, err
	}
	args, err := stored.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	ran = &pb.Change{
		Op: inverse.Op, Target: cmp.Or(inverse.Target, p.tx.subject(inverse.Op, args)), Action: "ran",
		State: pb.ChangeState_CHANGE_STATE_APPLIED, At: now(),
	}
	began, idle := time.Now(), false
	err = p.tx.withoutSecrets(p.tx.journal.do("undo.run", func() (err error) {
		idle, err = config.Run(ctx, inverse.Op, args)
		return err
	}))
	ran.DurationMs = uint64(time.Since(began).Milliseconds())
	switch {
	case err != nil:
		ran.Action, ran.State = "failed", pb.ChangeState_CHANGE_STATE_UNKNOWN
		return ran, err
	case idle:
		ran.Action = "not needed"
	}
	return ran, nil
}

// flush makes durable what was restored.
func (p *undoPass) flush() error {
	if p.syncAll {
		if err := p.tx.journal.do("restore.syncall", p.tx.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	err := p.tx.journal.syncPaths("restore", p.dirty)
	p.dirty, p.syncAll = map[string]bool{}, false
	return err
}
