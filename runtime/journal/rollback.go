package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Report tells what became of the steps of a transaction that was rolled back, newest first.
type Report struct {
	Steps []Undone
	// Err is why the rollback as a whole is not sure: the disk did not take it, or its context ended. Nil if it is.
	Err error
	// Halted: the context ended. What is left is done by the next Recover.
	Halted bool
}

// Undone is one thing that was to be taken back.
type Undone struct {
	Step uint64
	// Op is the inverse that ran, or "restore" for an object of the file system.
	Op string
	// Target is a path; empty for an operation.
	Target string
	// Conflict is where something was put that somebody else made of the object meanwhile; empty: nobody did.
	Conflict string
	// Err is why it could not be taken back.
	Err error
	// Irreversible is what was done with the promise of no undo, or beside what was kept; nil for all else.
	Irreversible *pb.Change
}

// add puts a step behind the others. What was put aside in a directory that is put aside now is where that is.
func (r *Report) add(u Undone) {
	for i := range r.Steps {
		if old := &r.Steps[i].Conflict; u.Conflict != "" && *old != "" && fsys.Within(*old, u.Target) {
			*old = u.Conflict + (*old)[len(u.Target):]
		}
	}
	r.Steps = append(r.Steps, u)
}

// Status is what a reply says of the rollback.
func (r Report) Status() pb.ScriptStatus {
	if r.Err != nil || slices.ContainsFunc(r.Steps, func(u Undone) bool { return u.Err != nil }) {
		return pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED
	}
	if slices.ContainsFunc(r.Steps, func(u Undone) bool { return u.Irreversible != nil }) {
		return pb.ScriptStatus_SCRIPT_STATUS_PARTIAL
	}
	return pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
}

// NotUndone lists what is not as it was, for a reply. The reason of each stands behind its target.
func (r Report) NotUndone() []*pb.Change {
	var list []*pb.Change
	for _, u := range r.Steps {
		switch {
		case u.Irreversible != nil:
			c := proto.Clone(u.Irreversible).(*pb.Change)
			c.State, c.Reversible = pb.ChangeState_CHANGE_STATE_NOT_UNDONE, false
			list = append(list, c)
		case u.Err != nil:
			list = append(list, &pb.Change{Op: u.Op, Target: fault.On(u.Target, u.Err).Error(), Action: "restore", State: pb.ChangeState_CHANGE_STATE_NOT_UNDONE})
		}
	}
	return list
}

// Conflicts lists where things of others were put.
func (r Report) Conflicts() []string {
	var list []string
	for _, u := range r.Steps {
		if u.Conflict != "" {
			list = append(list, u.Conflict)
		}
	}
	return list
}

// Rollback takes back all steps, newest first, each verified. It goes on where one fails. The caller tells the reply to
// Close. If ctx ends it stops between two steps, and the rest is left to the next Recover.
func (t *Tx) Rollback(ctx context.Context) Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rollback(ctx, nil)
}

// rollback takes back the steps; those for which later is true stay open.
func (t *Tx) rollback(ctx context.Context, later func(op string) bool) Report {
	if t.phase != running && t.phase != awaiting {
		return Report{Err: fault.Wrapf(fault.ErrInternal, "the transaction has ended")}
	}
	t.enter(rollingBack)
	report := Report{Steps: slices.Clone(t.lost)}
	if t.uncommit {
		if report.Err = t.doom(); report.Err != nil {
			t.enter(halted) // recovery decides by what is on disk, which is one or the other whole
			report.Halted = true
			return report
		}
	}
	if t.log == nil {
		t.enter(rolledBack)
		return report
	}
	if err := context.Cause(ctx); err != nil { // what was not begun is no attempt
		t.enter(halted)
		report.Err, report.Halted = err, true
		return report
	}
	p := t.newPass()
	p.left = !t.again // the step that was interrupted left something that is nobody's
	// So that a rollback after this one takes a half restored file for what it is. The rollback itself does not need it.
	_ = t.write(&pb.JournalRecord{Record: &pb.JournalRecord_Attempt{Attempt: &pb.JournalAttempt{
		BootId: t.journal.config.BootID(), At: now(), Early: later != nil}}}, true)
	open := false
	for _, s := range slices.Backward(t.steps) {
		if s.reverted {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			t.enter(halted)
			report.Err, report.Halted = err, true
			return report
		}
		if later != nil && s.record.GetInverse() != nil && later(s.record.GetInverse().Op) {
			open = true
			continue
		}
		undone := p.undoAll(ctx, s)
		failed := failures(undone)
		if err := context.Cause(ctx); err != nil && len(failed) > 0 { // it was cut short, and is done again
			t.enter(halted)
			report.Err, report.Halted = err, true
			return report
		}
		for _, u := range undone {
			report.add(u)
		}
		p.left = true
		if report.Err == nil && !open && s.record.GetIrreversible() == nil { // which is named again
			report.Err = p.progress(s, failed)
		}
	}
	if report.Err == nil {
		report.Err = p.flush()
	}
	switch {
	case open:
		t.enter(halted)
		report.Halted = true
	case report.Status() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED:
		t.enter(failed)
	default:
		t.enter(rolledBack)
	}
	return report
}

// failures are what could not be taken back.
func failures(undone []Undone) []*pb.JournalFailed {
	var list []*pb.JournalFailed
	for _, u := range undone {
		switch {
		case u.Err != nil:
			list = append(list, &pb.JournalFailed{Step: u.Step, Op: u.Op, Target: u.Target, Message: cut(u.Err.Error())})
		case u.Irreversible != nil:
			list = append(list, &pb.JournalFailed{Step: u.Step, Op: u.Op, Target: u.Target, Stays: u.Irreversible})
		}
	}
	return list[:min(len(list), 20)]
}

// doom makes durable that a commit, which may or may not have reached the disk, does not count.
func (t *Tx) doom() error {
	err := t.journal.do("doom.write", func() error {
		file, err := os.OpenFile(t.dir("doomed"), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(file.Sync(), file.Close())
	})
	if err == nil {
		err = t.journal.do("doom.syncdir", func() error { return syncDir(t.dir()) })
	}
	return err
}

// pass is one way back through the steps.
type pass struct {
	tx    *Tx
	left  bool // compare with what the steps left
	swept map[string]bool
	dirty map[string]bool // paths to be made durable, with the directories that they are in
	all   bool            // operations ran: the paths are not known
}

func (t *Tx) newPass() *pass {
	return &pass{tx: t, swept: map[string]bool{}, dirty: map[string]bool{}}
}

func (p *pass) touched(path string) { p.dirty[path] = true }

// progress makes durable that a step is taken back, or that it was tried: it must not be again once older ones are, whose
// objects it would take for somebody else's. Without the record a rollback that is not interrupted is just as good.
func (p *pass) progress(s *step, failed []*pb.JournalFailed) error {
	if err := p.flush(); err != nil {
		return err
	}
	_ = p.tx.log.append(&pb.JournalRecord{Reverted: []uint64{s.number},
		Record: &pb.JournalRecord_Undone{Undone: &pb.JournalUndone{Failed: failed}}}, true)
	return nil
}

// undo takes back a step, and gives the first failure, or the last success.
func (p *pass) undo(ctx context.Context, s *step) Undone {
	last := Undone{}
	for _, u := range p.undoAll(ctx, s) {
		if u.Err != nil || u.Irreversible != nil {
			return u
		}
		last = u
	}
	return last
}

func (p *pass) undoAll(ctx context.Context, s *step) []Undone {
	switch r := s.record.Record.(type) {
	case *pb.JournalRecord_Keep:
		return append(p.beside(s, r.Keep), p.restoreAll(ctx, s, r.Keep)...)
	case *pb.JournalRecord_Take:
		u := Undone{Step: s.number, Op: "restore", Target: r.Take.Path}
		u.Conflict, u.Err = p.giveBack(ctx, r.Take)
		return []Undone{u}
	case *pb.JournalRecord_Inverse:
		return []Undone{{Step: s.number, Op: r.Inverse.Op, Err: p.run(ctx, r.Inverse)}}
	case *pb.JournalRecord_Irreversible:
		return []Undone{{Step: s.number, Op: r.Irreversible.Change.GetOp(), Target: r.Irreversible.Change.GetTarget(), Irreversible: r.Irreversible.Change}}
	}
	return nil
}

// run takes back by an operation.
func (p *pass) run(ctx context.Context, inverse *pb.JournalInverse) error {
	p.all = true
	if p.tx.journal.config.Run == nil {
		return fault.Unsupported("the operation %s is not known", inverse.Op)
	}
	args, err := inverse.Args.UnmarshalNew()
	if err != nil {
		return err
	}
	return p.tx.journal.do("undo.run", func() error { return p.tx.journal.config.Run(ctx, inverse.Op, args) })
}

// restoreAll takes back a step that kept objects, the last first. Directories of a tree are made before what was in them.
func (p *pass) restoreAll(ctx context.Context, s *step, keep *pb.JournalKeep) []Undone {
	var list []Undone
	for _, o := range keep.Objects {
		if o.Tree && fsys.Kind(o.State.Kind) == fsys.Directory && p.missing(o.Path) {
			_, _ = p.restore(ctx, o, nil) // comes again, and then counts
		}
	}
	inside := inside(keep)
	for i, o := range slices.Backward(keep.Objects) {
		var left *pb.JournalState
		if p.left {
			left = s.left[uint32(i)]
		}
		u := Undone{Step: s.number, Op: "restore", Target: o.Path}
		if o.Tree && fsys.Kind(o.State.Kind) == fsys.Directory {
			u.Err = p.prune(ctx, o.Path, inside[o.Path])
		}
		if u.Err == nil {
			u.Conflict, u.Err = p.restore(ctx, o, left)
		}
		list = append(list, u)
	}
	return list
}

func (p *pass) missing(path string) bool {
	at, err := p.tx.journal.config.Root.Exact(path)
	if err != nil {
		return true
	}
	defer at.Close()
	meta, err := at.Stat()
	return err != nil || meta.Kind != fsys.Directory
}

// inside lists what was in each directory of a step.
func inside(keep *pb.JournalKeep) map[string]map[string]bool {
	dirs := map[string]map[string]bool{}
	for _, o := range keep.Objects {
		if fsys.Kind(o.State.Kind) == fsys.Absent {
			continue
		}
		if dirs[parent(o.Path)] == nil {
			dirs[parent(o.Path)] = map[string]bool{}
		}
		dirs[parent(o.Path)][o.Path] = true
	}
	return dirs
}

// prune removes what was not in a directory.
func (p *pass) prune(ctx context.Context, dir string, was map[string]bool) error {
	names, err := p.tx.journal.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := below(dir, name)
		if was[path] {
			continue
		}
		at, err := p.tx.journal.config.Root.Exact(path)
		if err != nil {
			return err
		}
		err = p.tx.journal.do("restore.prune", func() error { return at.RemoveAll(ctx) })
		if err = errors.Join(notThere(err), at.Close()); err != nil {
			return fault.On(path, err)
		}
	}
	return nil
}

func (j *Journal) names(path string) ([]string, error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	names, err := dir.Names()
	return names, errors.Join(err, dir.Close())
}

// giveBack moves a tree back.
func (p *pass) giveBack(ctx context.Context, take *pb.JournalTake) (conflict string, err error) {
	from, err := p.tx.spooled(take, false)
	if errors.Is(err, fs.ErrNotExist) && take.Spool != "" {
		return "", nil // the directory was never made
	}
	if err != nil {
		return "", err
	}
	defer from.Close()
	_, err = from.Stat()
	if errors.Is(err, fs.ErrNotExist) {
		return "", p.givenBack(take)
	}
	if err != nil {
		return "", err
	}
	at, err := p.tx.journal.config.Root.Exact(take.Path)
	if err != nil {
		return "", err
	}
	defer at.Close()
	r := &restoring{pass: p, ctx: ctx, at: at, o: &pb.JournalObject{Path: take.Path, State: take.State}}
	r.is, err = at.Capture()
	switch {
	case err != nil:
	case r.is.Kind == fsys.Absent:
		err = p.comesBack(from, at)
	case r.is.Kind != fsys.Directory && r.is.Ino == take.State.Ino && unchanged(take.State, r.is):
		// The very object, by both names: btrfs may lose the one half of a move, the end of the old name.
		err = p.tx.journal.do("restore.return", from.Remove)
	default:
		if err = r.rename(); err == nil {
			err = p.comesBack(from, at)
		}
	}
	if err == nil {
		err = p.givenBack(take)
	}
	return r.conflict, err
}

func (p *pass) comesBack(from, at *fsys.At) error {
	return p.tx.journal.do("restore.return", func() error { return from.Rename(at, false) })
}

// givenBack does what is left when the tree is where it was.
func (p *pass) givenBack(take *pb.JournalTake) error {
	p.touched(take.Path)
	at, err := p.tx.journal.config.Root.Exact(take.Path)
	if err != nil {
		return err
	}
	defer at.Close()
	is, err := at.Capture()
	if err != nil {
		return err
	}
	if is.Kind == fsys.Absent {
		return fault.Wrapf(fault.ErrCorrupt, "what was moved away is gone")
	}
	if is.Kind == fsys.Directory { // some file systems count the new place as a change
		if was := fromState(take.State); is.Ino == was.Ino && is.Mtime != was.Mtime {
			if err := p.tx.journal.setMtime(take.Path, take.State.Mtime); err != nil {
				return err
			}
		}
	}
	if take.Spool != "" {
		if err := p.dropEmptySpool(take); err != nil {
			return err
		}
	}
	return p.tx.journal.setMtime(parent(take.Path), take.ParentMtime)
}

// dropEmptySpool removes the directory on another mount once the last tree is taken from it.
func (p *pass) dropEmptySpool(take *pb.JournalTake) error {
	at, err := p.tx.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return notThere(err)
	}
	defer at.Close()
	err = p.tx.journal.do("restore.spool", at.Remove)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) { // ENOTEMPTY is the former
		return nil
	}
	if err == nil {
		p.touched(take.Spool)
		err = p.tx.journal.setMtime(parent(take.Spool), take.SpoolParentMtime)
	}
	return err
}

// sweep removes what an interrupted operation left in a directory under a temporary name.
func (p *pass) sweep(dir string) error {
	if dir == "" || p.swept[dir] {
		return nil
	}
	p.swept[dir] = true
	names, err := p.tx.journal.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !fsys.IsTemp(name) {
			continue
		}
		if err := p.drop(below(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) drop(path string) error {
	at, err := p.tx.journal.config.Root.Exact(path)
	if err != nil {
		return err
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return notThere(err)
	}
	if meta.Kind == fsys.File { // it may be an upload's that is under way; that holds a lock on it
		_, err = at.Sweep()
		return err
	}
	return notThere(p.tx.journal.do("restore.sweep", at.Remove))
}

// flush makes durable what was restored.
func (p *pass) flush() error {
	if p.all {
		if err := p.tx.journal.do("restore.syncall", p.tx.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	err := p.tx.journal.syncPaths("restore", p.dirty)
	p.dirty, p.all = map[string]bool{}, false
	return err
}
