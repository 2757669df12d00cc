package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Tx is an open transaction: what it changed can be taken back until it commits. It is safe for concurrent use, but what
// belongs together (Before, the change, the next Before) is the caller's to keep in order.
type Tx struct {
	journal *Journal
	begin   *pb.JournalBegin

	mu    sync.Mutex
	log   *log // nil until there is something to be kept
	steps []*step
	phase phase
	err   error // sticky
	// what the next record tells besides
	left     []*pb.JournalLeft
	reverted []uint64
	checked  []uint64
	marked   int // steps whose outcome is known
	loose    loose

	reply    *pb.RunScriptResponse
	after    []*pb.JournalAction
	again    bool     // an earlier rollback was interrupted
	lost     []Undone // what that could not take back
	uncommit bool     // a commit may be on disk, and must not count

	seen view
}

// view is what others may see of a transaction at any time, also while it takes long.
type view struct {
	mu    sync.Mutex
	paths []owned
	phase phase
	bytes int64
}

// owned is a path that a transaction keeps.
type owned struct {
	path string
	tree bool
}

// enter is the one way into another phase.
func (t *Tx) enter(p phase) {
	t.phase = p
	t.seen.mu.Lock()
	defer t.seen.mu.Unlock()
	t.seen.phase = p
}

type phase int

const (
	running phase = iota
	awaiting
	rollingBack
	committed
	rolledBack
	failed // the rollback: something could not be taken back
	halted // the rollback, by the end of its context
	closed
)

// step is a record that can be taken back.
type step struct {
	number   uint64
	record   *pb.JournalRecord
	left     map[uint32]*pb.JournalState
	reverted bool
	checked  bool // what it left beside is known
}

// ID names the transaction.
func (t *Tx) ID() string { return t.begin.TransactionId }

// Err is why nothing can be changed any more: the journal failed. The caller rolls back, whatever else it was told.
func (t *Tx) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Before implements builtins.Tx. Of a directory it keeps the directory itself, not what is in it. All paths of one call
// cost as much as one.
func (t *Tx) Before(ctx context.Context, paths ...string) error { return t.keep(ctx, false, paths) }

// BeforeTree is Before for paths of which anything may change: also all that is in a directory, and that nothing else is.
func (t *Tx) BeforeTree(ctx context.Context, paths ...string) error { return t.keep(ctx, true, paths) }

func (t *Tx) keep(ctx context.Context, tree bool, paths []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(); err != nil || len(paths) == 0 {
		return err
	}
	return t.keepNow(ctx, tree, paths, nil)
}

func (t *Tx) keepNow(ctx context.Context, tree bool, paths []string, beside []*pb.JournalBeside) error {
	k := &keeper{tx: t, ctx: ctx, step: t.next(), tree: tree, seen: map[string]bool{}}
	for _, path := range paths {
		if err := k.add(path); err != nil {
			return t.sticky(k.disk, fault.On(path, err))
		}
	}
	if k.spooled {
		if err := t.journal.do("image.syncdir", func() error { return syncDir(t.dir("u")) }); err != nil {
			return t.sticky(err, err)
		}
	}
	if err := t.settle(k.owned()); err != nil {
		return t.sticky1(err)
	}
	return t.append(&pb.JournalRecord{Record: &pb.JournalRecord_Keep{Keep: &pb.JournalKeep{Step: k.step, Objects: k.objects, Beside: beside}}})
}

// Undo implements builtins.Tx.
func (t *Tx) Undo(ctx context.Context, op string, args proto.Message) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(); err != nil {
		return err
	}
	stored, err := anypb.New(args)
	if err != nil {
		return fault.On("the inverse "+op, err)
	}
	return t.append(&pb.JournalRecord{Record: &pb.JournalRecord_Inverse{Inverse: &pb.JournalInverse{Step: t.next(), Op: op, Args: stored}}})
}

// Irreversible keeps that something is done which nothing takes back, so that a rollback names it.
func (t *Tx) Irreversible(ctx context.Context, change *pb.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(); err != nil {
		return err
	}
	return t.irreversible(change)
}

func (t *Tx) irreversible(change *pb.Change) error {
	return t.append(&pb.JournalRecord{Record: &pb.JournalRecord_Irreversible{Irreversible: &pb.JournalIrreversible{Step: t.next(), Change: change}}})
}

// NotBegun implements builtins.Tx.
func (t *Tx) NotBegun() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.steps); t.phase == running && n > 0 && !t.steps[n-1].reverted {
		t.steps[n-1].reverted = true
		t.reverted = append(t.reverted, t.steps[n-1].number)
	}
}

// Take implements builtins.Tx. Where nothing is at the path there is nothing to do.
func (t *Tx) Take(ctx context.Context, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(); err != nil {
		return err
	}
	at, err := t.journal.config.Root.At(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Cause(err)
	}
	defer at.Close()
	meta, err := at.Capture()
	if err != nil || meta.Kind == fsys.Absent {
		return fault.Cause(err)
	}
	if meta.Mounted || at.IsRoot() {
		return fault.Refuse("a file system is mounted here")
	}
	take := &pb.JournalTake{Step: t.next(), Path: at.Path, State: toState(meta)}
	if take.ParentMtime, err = t.journal.mtime(parent(at.Path)); err == nil {
		err = t.chooseSpool(at, take)
	}
	if err != nil {
		return fault.Cause(err)
	}
	if err := t.settle([]owned{{at.Path, meta.Kind == fsys.Directory}}); err != nil {
		return t.sticky1(err)
	}
	if err := t.append(&pb.JournalRecord{Record: &pb.JournalRecord_Take{Take: take}}); err != nil {
		return err
	}
	err = t.moveAway(at, take)
	if errors.Is(err, syscall.EXDEV) { // what is of a lower layer of overlayfs, a subvolume, or of another project's quota
		err = t.copyAway(ctx, at)
	}
	return fault.Cause(err)
}

// copyAway is for a tree that the file system does not move, though it is on the same mount: it is kept and removed.
func (t *Tx) copyAway(ctx context.Context, at *fsys.At) error {
	if err := t.keepNow(ctx, true, []string{at.Path}, nil); err != nil {
		return err
	}
	return t.journal.do("take.remove", func() error { return at.RemoveAll(ctx) })
}

// ready says why nothing can be kept; it makes the transaction's files if they are needed for the first time.
func (t *Tx) ready() error {
	switch {
	case t.err != nil:
		return t.err
	case t.phase != running:
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	case t.log != nil:
		return nil
	}
	return t.sticky1(t.start())
}

// start makes the transaction's directory and journal durable, all empty.
func (t *Tx) start() error {
	j := t.journal
	for _, dir := range []string{t.dir(), t.dir("u")} {
		if err := j.do("begin.mkdir", func() error { return os.Mkdir(dir, 0o700) }); err != nil {
			return err
		}
	}
	var err error
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

// dir is a path in the transaction's directory.
func (t *Tx) dir(elements ...string) string {
	return t.journal.dir(append([]string{"open", t.ID()}, elements...)...)
}

// next is the number of the step to come.
func (t *Tx) next() uint64 {
	if n := len(t.steps); n > 0 {
		return t.steps[n-1].number + 1
	}
	return 1
}

// sticky keeps an error of the disk for good, and gives what the caller is told.
func (t *Tx) sticky(disk, told error) error {
	if disk != nil && t.err == nil {
		t.err = fault.On("journal", disk)
	}
	return told
}

func (t *Tx) sticky1(err error) error { return t.sticky(err, err) }

// write appends a record, and with it what is to be told of earlier steps.
func (t *Tx) write(record *pb.JournalRecord, last bool) error {
	record.Left, record.Reverted, record.Checked = t.left, t.reverted, t.checked
	err := t.log.append(record, last)
	if err == nil {
		t.left, t.reverted, t.checked = nil, nil, nil
	}
	return err
}

// append makes a step durable.
func (t *Tx) append(record *pb.JournalRecord) error {
	if err := t.write(record, false); err != nil {
		if errors.Is(err, fault.ErrTooLarge) { // nothing was written
			return err
		}
		return t.sticky1(fault.On("journal", err))
	}
	t.replay(record)
	t.loose.note(record)
	t.seen.mu.Lock()
	defer t.seen.mu.Unlock()
	t.seen.bytes = t.log.end
	return nil
}

// replay adds a record to what is known.
func (t *Tx) replay(record *pb.JournalRecord) {
	byNumber := func(number uint64) *step {
		for _, s := range t.steps {
			if s.number == number {
				return s
			}
		}
		return &step{left: map[uint32]*pb.JournalState{}}
	}
	for _, left := range record.Left {
		byNumber(left.Step).left[left.Object] = left.State
	}
	for _, number := range record.Reverted {
		byNumber(number).reverted = true
	}
	for _, number := range record.Checked {
		byNumber(number).checked = true
	}
	for _, f := range record.GetUndone().GetFailed() {
		u := Undone{Step: f.Step, Op: f.Op, Target: f.Target, Irreversible: f.Stays}
		if f.Stays == nil {
			u.Err = errors.New(f.Message)
		}
		t.lost = append(t.lost, u)
	}
	s := &step{record: record, left: map[uint32]*pb.JournalState{}}
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Keep:
		s.number = r.Keep.Step
	case *pb.JournalRecord_Take:
		s.number = r.Take.Step
	case *pb.JournalRecord_Inverse:
		s.number = r.Inverse.Step
	case *pb.JournalRecord_Irreversible:
		s.number = r.Irreversible.Step
	default:
		return
	}
	t.steps = append(t.steps, s)
	t.seen.add(record)
}

func (v *view) add(record *pb.JournalRecord) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range record.GetKeep().GetObjects() {
		v.paths = append(v.paths, owned{o.Path, o.Tree})
	}
	if take := record.GetTake(); take != nil {
		v.paths = append(v.paths, owned{take.Path, true})
	}
}

// Mark is a point that Revert goes back to: the number of the last step before it, 0 for none.
type Mark int

// Mark ends a call that succeeded: what it left at the objects it kept is noted, so that a rollback can tell whether
// somebody else changed them since. It costs nothing on the disk.
func (t *Tx) Mark() Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.steps[t.marked:] {
		keep := s.record.GetKeep()
		if keep == nil || s.reverted {
			continue
		}
		for i, o := range keep.Objects {
			if o.Tree {
				continue
			}
			if state := t.journal.look(o); state != nil {
				s.left[uint32(i)] = state
				t.left = append(t.left, &pb.JournalLeft{Step: s.number, Object: uint32(i), State: state})
			}
		}
	}
	t.marked = len(t.steps)
	return Mark(len(t.steps))
}

// look gives what is at an object's place; nil if that cannot be known.
func (j *Journal) look(o *pb.JournalObject) *pb.JournalState {
	at, err := j.config.Root.Exact(o.Path)
	if err != nil {
		return nil
	}
	defer at.Close()
	meta, err := at.Capture()
	if err != nil {
		return nil
	}
	state := toState(meta)
	if o.State.Mtime == nil {
		state.Mtime = nil
	}
	return state
}

// Revert takes back all since the mark, newest first, as Rollback does. An error is sticky.
func (t *Tx) Revert(ctx context.Context, to Mark) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != running {
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	}
	p := t.newPass()
	var reverted []*step
	for i := len(t.steps) - 1; i >= int(to); i-- {
		s := t.steps[i]
		if s.reverted {
			continue
		}
		if done := p.undo(ctx, s); done.Err != nil {
			return t.sticky1(fault.On(done.Target, done.Err))
		}
		reverted = append(reverted, s)
	}
	if err := p.flush(); err != nil { // before any record says that it is so
		return t.sticky1(err)
	}
	for _, s := range reverted {
		s.reverted = true
		t.reverted = append(t.reverted, s.number)
	}
	t.marked = len(t.steps)
	return nil
}

// owns says whether a path is of an object that is kept, above one, or in a tree that is.
func (t *Tx) owns(path string) bool {
	t.seen.mu.Lock()
	defer t.seen.mu.Unlock()
	return slices.ContainsFunc(t.seen.paths, func(o owned) bool {
		return fsys.Within(o.path, path) || o.tree && fsys.Within(path, o.path)
	})
}

// conflictSuffix is behind the name of what somebody else put in the place of an object that was restored.
func (t *Tx) conflictSuffix() string { return ".quantix-conflict-" + t.ID() }

// spoolName is the directory that a transaction makes on other mounts.
func (t *Tx) spoolName() string { return ".quantix-tx-" + strings.ToLower(t.ID()) }
