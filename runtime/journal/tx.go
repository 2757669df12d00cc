package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Tx is a transaction: what it changed can be undone until it commits. It is safe for concurrent use, but the caller must
// keep the order of Before, the change, and the next Before.
type Tx struct {
	hide    func(string) string // takes secrets out of a text; nil: there are none, or they are not known any more
	names   toldNames           // with secrets, of a transaction whose secrets are not known any more
	journal *Journal
	begin   *pb.JournalBegin

	mu    sync.Mutex
	log   *log // nil until the first step
	steps []*step
	phase phase
	err   error // sticky
	// what the next record carries besides its own content
	unloggedAfter    []*pb.JournalLeft
	unloggedReverted []uint64
	unloggedChecked  []uint64
	unloggedMade     []*pb.JournalMade
	markedSteps      int // how many of steps belong to calls that ended
	pending          pendingSyncs
	made             map[inode]inode             // what a rollback made anew, by what it stands for
	held             map[object][]heldName       // the names of files with several that are the transaction's own
	heldCount        int                         // of these
	unsearched       []heldName                  // trees that were moved away, in which such names were not looked for
	searched         int                         // names that were looked at in such trees
	named            map[inode]bool              // the objects that inverses are about
	spools           map[string]*pb.JournalState // on other mounts: those that were made, by path
	index, inverses  int64                       // bytes, see reserve
	latest           *pb.JournalRecord           // of the last step, if it is small; nil: it is in the log alone

	reply           *pb.RunScriptResponse
	actions         []*pb.JournalAction // to be done after the commit
	obstacle        obstacle            // as of unfinished
	wasInterrupted  bool                // an earlier rollback began
	earlierFailures []Undone            // of that rollback
	earlierRan      []*pb.Change        // what that rollback ran
	awaited         *pb.JournalAwait    // the last record of that kind, of one that is recovered; nil: there is none
	kept            []builtins.Touched  // by the last step that kept objects one by one
	abandoned       bool                // mounts that are not there are not waited for
	commitUncertain bool                // the commit record may be on disk although Commit failed
	machineAfter    *string             // of one that had committed and is recovered: as of a JournalEntry

	status txStatus
}

// txStatus is what other goroutines read of a transaction, also while a method of it holds mu.
type txStatus struct {
	mu    sync.Mutex
	paths []ownedPath
	phase phase
	bytes int64
	until Deadline              // of the confirmation, and
	reply *pb.RunScriptResponse // what was sent to the host, while a confirmation is awaited
}

// ownedPath is a path of which a transaction has a before-image.
type ownedPath struct {
	path string
	tree bool
	disk bool // what is there, or the directory that it is in, is on a disk
}

// setPhase is the only function that changes the phase.
func (t *Tx) setPhase(p phase) {
	t.phase = p
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	t.status.phase = p
}

type phase int

const (
	running phase = iota
	awaiting
	rollingBack
	committed
	rolledBack
	rollbackFailed // something could not be undone
	halted         // the rollback is incomplete; the next Recover goes on with it
	closed
)

// ID names the transaction.
func (t *Tx) ID() string { return t.begin.TransactionId }

// Port is the name of the port that its request came by.
func (t *Tx) Port() string { return t.begin.GetPort() }

// Began reports whether a step was taken, so that something may have been changed.
func (t *Tx) Began() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.log != nil
}

// Err returns the error of the journal that made the transaction fail for good; nil if there was none. The caller must roll
// back, even if its own calls returned no error.
func (t *Tx) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Before implements builtins.Tx. Of a directory it keeps the attributes, not what is in it. All paths of one call are one
// record, and so one sync.
func (t *Tx) Before(ctx context.Context, paths ...string) error { return t.snapshot(ctx, false, paths) }

// BeforeTree implements builtins.Tx. A rollback restores all that is in a directory, and removes what was not in it.
func (t *Tx) BeforeTree(ctx context.Context, paths ...string) error {
	return t.snapshot(ctx, true, paths)
}

func (t *Tx) snapshot(ctx context.Context, tree bool, paths []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil || len(paths) == 0 {
		return err
	}
	return t.snapshotLocked(ctx, tree, paths, nil)
}

func (t *Tx) snapshotLocked(ctx context.Context, tree bool, paths []string, neighbours []*pb.JournalBeside) error {
	return t.keep(&snapshotter{tx: t, ctx: ctx, tree: tree}, paths, neighbours)
}

// keep takes the before-images of paths as the next step.
func (t *Tx) keep(s *snapshotter, paths []string, neighbours []*pb.JournalBeside) (err error) {
	s.step, s.seen = t.nextStep(), map[string]bool{}
	at := now()
	defer func() {
		if err != nil && t.err == nil { // no record names them, and the next step has the same number
			s.removeFiles()
		}
	}()
	for _, path := range paths {
		if err := s.add(path); err != nil {
			_ = t.fail(s.diskErr)
			return fault.On(path, err)
		}
	}
	if len(s.files) > 0 {
		if err := t.journal.do("image.syncdir", func() error { return syncDir(t.dir("u")) }); err != nil {
			return t.fail(ownError(err))
		}
	}
	if err := t.syncPending(s.ownedPaths()); err != nil {
		return t.fail(err)
	}
	mounts, err := s.mounts.record(t.journal)
	if err != nil {
		return err
	}
	keep := &pb.JournalKeep{Step: s.step, Objects: s.objects, Beside: neighbours}
	t.kept = nil
	if s.tree {
		keep.At = at
	} else {
		for _, o := range s.objects {
			t.kept = append(t.kept, builtins.Touched{Path: o.Path, Ino: o.State.Ino, Dir: o.ParentIno})
		}
	}
	return t.appendStep(&pb.JournalRecord{Mounts: mounts, Record: &pb.JournalRecord_Keep{Keep: keep}})
}

// Kept implements builtins.Tx.
func (t *Tx) Kept(path string) (builtins.Touched, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, kept := range t.kept {
		if kept.Path == path {
			return kept, true
		}
	}
	return builtins.Touched{}, false
}

// Undo implements builtins.Tx.
func (t *Tx) Undo(ctx context.Context, op string, args proto.Message) error {
	return t.inverse(op, args, false)
}

// UndoLast implements builtins.Tx.
func (t *Tx) UndoLast(ctx context.Context, op string, args proto.Message) error {
	return t.inverse(op, args, true)
}

func (t *Tx) inverse(op string, args proto.Message, last bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil {
		return err
	}
	stored, err := anypb.New(args)
	if err != nil {
		return fault.On("the inverse "+op, err)
	}
	inverse := &pb.JournalInverse{Step: t.nextStep(), Op: op, Args: stored, Last: last, Target: t.subject(op, args)}
	mounts, err := t.inverseMounts(inverse)
	if err != nil {
		return err
	}
	return t.appendStep(&pb.JournalRecord{Mounts: mounts, Record: &pb.JournalRecord_Inverse{Inverse: inverse}})
}

// subject returns what people call an inverse, without the secrets of the request.
func (t *Tx) subject(op string, args proto.Message) string {
	subject := t.journal.config.Subject
	switch {
	case subject == nil:
		return ""
	case t.hide != nil:
		return cutText(t.hide(subject(op, args)), maxTarget)
	case t.begin.GetSecrets(): // which nobody knows any more
		return ""
	}
	return cutText(subject(op, args), maxTarget)
}

// Irreversible implements builtins.Tx.
func (t *Tx) Irreversible(ctx context.Context, change *pb.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil {
		return err
	}
	return t.irreversible(change)
}

func (t *Tx) irreversible(change *pb.Change) error {
	change = proto.CloneOf(change)
	limitTexts(change.ProtoReflect()) // as in the reply
	change.Diff = ""
	if t.hide != nil {
		change.Target = t.hide(change.Target)
	}
	return t.appendStep(&pb.JournalRecord{Record: &pb.JournalRecord_Irreversible{Irreversible: &pb.JournalIrreversible{Step: t.nextStep(), Change: change}}})
}

// NotBegun implements builtins.Tx.
func (t *Tx) NotBegun() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.steps); t.phase == running && n > 0 && !t.steps[n-1].reverted {
		t.markReverted(t.steps[n-1])
	}
}

// markReverted notes that a step needs no undo any more.
func (t *Tx) markReverted(s *step) {
	s.reverted = true
	t.unloggedReverted = append(t.unloggedReverted, s.number)
}

// ensureStarted makes the transaction's files if this is the first step. It returns why no step can be taken.
func (t *Tx) ensureStarted() error {
	switch {
	case t.err != nil:
		return t.err
	case t.phase != running:
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	case t.log != nil:
		return nil
	}
	return t.fail(t.createFiles())
}

// createFiles makes the transaction's directory and log durable.
func (t *Tx) createFiles() (err error) {
	defer func() { err = ownError(err) }()
	j := t.journal
	for _, dir := range []string{t.dir(), t.dir("u")} {
		if err := j.do("begin.mkdir", func() error { return os.Mkdir(dir, 0o700) }); err != nil {
			return err
		}
	}
	if t.log, err = newLog(j, t.dir("journal"), t.ID()); err != nil {
		return err
	}
	if err := t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Begin{Begin: t.begin}}, false); err != nil {
		return err
	}
	if err := j.do("begin.syncdir", func() error { return syncDir(t.dir()) }); err != nil {
		return err
	}
	return j.do("begin.syncparent", func() error { return syncDir(j.dir("open")) })
}

// ownError is that of the journal's own files, which must not be taken for one of what the step is about: somebody has removed
// them, and not that.
func ownError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.Wrapf(fault.ErrInternal, "its directory is not there any more: %v", err)
	}
	return fault.On("journal", err)
}

// dir returns a path in the transaction's directory.
func (t *Tx) dir(elements ...string) string {
	return t.journal.dir(append([]string{"open", t.ID()}, elements...)...)
}

// nextStep returns the number of the next step.
func (t *Tx) nextStep() uint64 {
	if n := len(t.steps); n > 0 {
		return t.steps[n-1].number + 1
	}
	return 1
}

// fail makes an error of the journal's disk the transaction's error for good, if it is the first, and returns it.
func (t *Tx) fail(err error) error {
	if err != nil && t.err == nil {
		t.err = fault.On("journal", err)
	}
	return err
}

// appendRecord appends a record, which also carries what is not logged yet of earlier steps.
func (t *Tx) appendRecord(record *pb.JournalRecord, last bool) error {
	record.Left, record.Reverted, record.Checked = t.unloggedAfter, t.unloggedReverted, t.unloggedChecked
	record.Made = t.unloggedMade
	err := t.log.append(record, last)
	if err == nil {
		t.unloggedAfter, t.unloggedReverted, t.unloggedChecked, t.unloggedMade = nil, nil, nil, nil
	}
	return err
}

// appendStep appends the record of a step.
func (t *Tx) appendStep(record *pb.JournalRecord) error {
	t.addTold(record)
	if err := t.reserve(record); err != nil {
		return err
	}
	at := t.log.end
	if err := t.appendRecord(record, false); err != nil {
		if errors.Is(err, fault.ErrTooLarge) { // nothing was written
			return err
		}
		return t.fail(fault.On("journal", err))
	}
	t.applyRecord(record, at)
	if t.log.end-at <= maxLatest {
		t.latest = record
	}
	t.pending.note(record)
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	t.status.bytes = t.log.end
	return nil
}

// applyRecord updates the state in memory by a record that was appended, or read, at an offset of the log.
func (t *Tx) applyRecord(record *pb.JournalRecord, at int64) {
	for _, left := range record.Left {
		if s := t.stepByNumber(left.Step); s != nil {
			s.setAfter(left.Object, left.State)
		}
	}
	for _, number := range record.Reverted {
		if s := t.stepByNumber(number); s != nil {
			s.reverted = true
		}
	}
	for _, made := range record.Made {
		t.applyMade(made)
	}
	for _, number := range record.Checked {
		if s := t.stepByNumber(number); s != nil {
			s.checked = true
		}
	}
	for _, f := range record.GetUndone().GetFailed() {
		u := Undone{Step: f.Step, Op: f.Op, Target: f.Target, Irreversible: f.Stays}
		if f.Stays == nil {
			u.Err = errors.New(f.Message)
		}
		t.earlierFailures = append(t.earlierFailures, u)
	}
	t.earlierRan = append(t.earlierRan, record.GetUndone().GetRan()...)
	if spool := record.GetSpool(); spool != nil {
		t.noteSpool(spool)
	}
	s := &step{at: at}
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Keep:
		s.number = r.Keep.Step
		for _, o := range r.Keep.Objects {
			if len(o.Tail) > 0 { // no other file is cut back
				t.name(inodeOf(fromState(o.State)))
			}
		}
	case *pb.JournalRecord_Take:
		s.number, s.moved, s.spool = r.Take.Step, r.Take.Path, r.Take.Spool
	case *pb.JournalRecord_Inverse:
		s.number, s.inverse, s.last = r.Inverse.Step, r.Inverse.Op, r.Inverse.Last
		if o := inverseObject(r.Inverse); o != nil {
			t.name(inodeOf(fromState(o.State)))
		}
	case *pb.JournalRecord_Irreversible:
		s.number, s.irreversible = r.Irreversible.Step, true
	default:
		return
	}
	t.steps = append(t.steps, s)
	t.status.add(record)
}

func (v *txStatus) add(record *pb.JournalRecord) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.paths = append(v.paths, keptPaths(record.GetKeep())...)
	if take := record.GetTake(); take != nil {
		v.paths = append(v.paths, ownedPath{path: take.Path, tree: true})
	}
	o := inverseObject(record.GetInverse())
	for _, path := range objectPaths(o) {
		v.paths = append(v.paths, ownedPath{path: path, tree: o.MovedTo != "", disk: true})
	}
}

// owns reports whether a path is that of an object with a before-image, above one, or in a tree of them.
func (v *txStatus) owns(path string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.ContainsFunc(v.paths, func(o ownedPath) bool {
		return fsys.Within(o.path, path) || o.tree && fsys.Within(path, o.path)
	})
}

// conflictSuffix returns the end of the name that somebody else's version of a restored object gets.
func (t *Tx) conflictSuffix() string { return ".quantix-conflict-" + t.ID() }
