package journal

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restoreObjects restores the objects of a step, last to first. The directories of a tree are made before their content. What
// finds no space is tried once more after all others: what filled the disk may be what is removed with them.
func (p *undoPass) restoreObjects(ctx context.Context, s *step, keep *pb.JournalKeep) []Undone {
	list := make([]Undone, len(keep.Objects))
	began := make([]bool, len(keep.Objects))
	t := p.newKeptTree(ctx, keep)
	for again := range 2 {
		full := false
		t.makeDirs(keep)
		for i, o := range slices.Backward(keep.Objects) {
			u := &list[len(list)-1-i]
			if again > 0 && !noSpace(u.Err) {
				continue
			}
			*u = Undone{Step: s.number, Op: "restore", Target: o.Path, Conflict: u.Conflict}
			if p.ended(o.Path) {
				continue
			}
			if u.Err = t.lost[parent(o.Path)]; u.Err == nil {
				var c string
				c, u.Err = t.prune(o)
				u.Conflict = cmp.Or(u.Conflict, c)
			}
			if u.Err == nil {
				u.Err = p.retry(ctx, u.Target, func() error {
					var after *pb.JournalState
					if p.compareAfter && !began[i] {
						after = s.stateAfter(uint32(i))
					}
					c, err := p.restore(ctx, o, after)
					u.Conflict = cmp.Or(u.Conflict, c.put)
					if len(c.reset) > 0 {
						u.Reset = c.reset
					}
					if c.apart {
						u.Irreversible = &pb.Change{Op: u.Op, Target: o.Path + ": its other names are of another file now", Action: "restore"}
					}
					began[i] = began[i] || c.began || c.put != "" // a half restored object matches no state
					u.half = began[i] && noSpace(err)
					return err
				})
			}
			if !o.Tree { // of a tree all is kept together
				p.displaced(ctx, u, o.State, func(to *fsys.At) (bool, error) { return p.putKept(ctx, o, to) })
			}
			full = full || noSpace(u.Err)
		}
		if !full {
			break
		}
	}
	return list
}

// noSpace reports whether an error is that of a disk, or a quota, that is full.
func noSpace(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// keptTree is what a step kept of trees that a command declared, while it is restored.
type keptTree struct {
	pass     *undoPass
	ctx      context.Context
	children map[string]map[string]bool // the paths that were in each directory
	dirs     map[inode]bool             // that were kept
	since    time.Time                  // when they were
	aside    map[string]string          // where other directories that were at these paths are by now
	lost     map[string]error           // directories that are not there, and could not be made
}

func (p *undoPass) newKeptTree(ctx context.Context, keep *pb.JournalKeep) *keptTree {
	t := &keptTree{pass: p, ctx: ctx, children: keptChildren(keep), dirs: map[inode]bool{}, aside: map[string]string{}}
	if t.since = p.tx.begin.Started.AsTime(); keep.At != nil {
		t.since = keep.At.AsTime()
	}
	p.tree = t
	for _, o := range keep.Objects {
		if isTreeDir(o) {
			t.dirs[inodeOf(fromState(o.State))] = true
		}
	}
	return t
}

// isTreeDir reports whether an object is a directory of a tree.
func isTreeDir(o *pb.JournalObject) bool { return o.Tree && fsys.Kind(o.State.Kind) == fsys.Directory }

// makeDirs makes the directories that are missing, and gives those that the command made anew what the kept ones had, before
// anything is put into them. What others put in the place of one is moved aside.
func (t *keptTree) makeDirs(keep *pb.JournalKeep) {
	p := t.pass
	t.lost = map[string]error{}
	for _, o := range keep.Objects {
		if !isTreeDir(o) || p.ended(o.Path) {
			continue
		}
		if err := t.lost[parent(o.Path)]; err != nil {
			t.lost[o.Path] = err
			continue
		}
		if p.checkTreeDir(o) == nil {
			continue
		}
		c, err := p.restore(t.ctx, o, nil)
		t.aside[o.Path] = cmp.Or(c.put, t.aside[o.Path])
		if p.checkTreeDir(o) != nil {
			if t.lost[o.Path] = err; err == nil {
				t.lost[o.Path] = errExchanged
			}
		}
	}
}

// checkTreeDir returns an error where the directory of a tree is not there, or another one is.
func (p *undoPass) checkTreeDir(o *pb.JournalObject) error {
	dir, err := p.openTreeDir(o)
	if err != nil {
		return err
	}
	return dir.Close()
}

// openTreeDir opens the directory of a tree; errExchanged where another one is there.
func (p *undoPass) openTreeDir(o *pb.JournalObject) (*fsys.Dir, error) {
	at, err := p.tx.journal.config.Root.Exact(o.Path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	is, err := dir.Stat(".")
	other := false
	if err == nil {
		other, err = p.exchanged(at, o.Path, fromState(o.State), is)
	}
	if err == nil && other {
		err = errExchanged
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// keptChildren returns the paths that were in each directory of a step.
func keptChildren(keep *pb.JournalKeep) map[string]map[string]bool {
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

// prune removes from the directory of a tree what was not in it before. Directories that others moved there are moved aside;
// the name of the last one, or of what was in the place of the directory itself, is returned.
func (t *keptTree) prune(o *pb.JournalObject) (conflict string, err error) {
	conflict = t.aside[o.Path]
	if !isTreeDir(o) {
		return "", nil
	}
	dir, err := t.pass.openTreeDir(o)
	if err != nil {
		return conflict, err
	}
	defer dir.Close()
	found := true
	for n := 0; found && err == nil && n < maxPrunes; n++ {
		found = false
		err = dir.Each(func(name string) error {
			path := childPath(o.Path, name)
			if err := context.Cause(t.ctx); err != nil || t.children[o.Path][path] {
				return err
			}
			at, err := dir.At(name)
			if err != nil {
				return err
			}
			r := &restorer{pass: t.pass, ctx: t.ctx, object: &pb.JournalObject{Path: path}, at: at}
			if err := errors.Join(r.clear("restore.prune"), at.Close()); err != nil {
				return fault.On(path, err)
			}
			conflict = cmp.Or(r.conflict, conflict)
			found = found || r.conflict != path // which stays: it was moved aside before
			return nil
		})
	}
	return conflict, err
}

// maxPrunes bounds how often a directory is looked through: some file systems leave out names that are after removed ones, and
// somebody may go on to make new ones.
const maxPrunes = 100

// clear removes what is there, with all that is below it. Where somebody moved a directory there, that is not removed, and what
// is left is moved aside.
func (r *restorer) clear(step string) error {
	own, err := r.pass.tree.own(r.object.Path)
	if err == nil {
		err = ignoreNotExist(r.do(step, func() error { return r.at.RemoveAllOf(r.ctx, own) }))
	}
	switch {
	case !errors.Is(err, fault.ErrChanged):
		return err
	case strings.Contains(r.at.Name, r.pass.tx.conflictSuffix()): // it was moved aside already
		r.conflict = r.object.Path
		return nil
	}
	return r.moveAside()
}

// own returns what distinguishes the directories of the command from those that others have moved to a path, or below it; nil
// where none but root can.
func (t *keptTree) own(path string) (func(fsys.Meta) bool, error) {
	may, err := t.pass.tx.journal.config.Root.Exchangeable(path)
	if !may || err != nil {
		return nil, err
	}
	return func(dir fsys.Meta) bool { return t.dirs[inodeOf(dir)] || t.madeSince(dir) }, nil
}

// clockTick is how much the clock of a file system may be behind.
const clockTick = 20 * time.Millisecond

// madeSince reports whether a directory was made since the trees were kept. Where the file system does not record that, one of
// root's was there before.
func (t *keptTree) madeSince(dir fsys.Meta) bool {
	if dir.Born == (fsys.Time{}) {
		return dir.UID != 0
	}
	return !dir.Born.Time().Before(t.since.Add(-clockTick))
}
