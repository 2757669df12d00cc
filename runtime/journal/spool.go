package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// chooseSpool sets where a tree is moved to: the transaction's directory if that is on the same mount, else a directory at
// the root of the tree's own mount. Others may be able to write there, so its name cannot be guessed.
func (t *Tx) chooseSpool(at *fsys.At, take *pb.JournalTake) error {
	own, err := t.journal.state.At(txFilePath(t.ID(), spoolEntry(take)))
	if err != nil {
		return err
	}
	defer own.Close()
	same, err := fsys.SameMount(at, own)
	if err != nil || same {
		return err
	}
	dir, err := t.journal.mountRoot(parent(at.Path))
	if err != nil {
		return err
	}
	take.Spool = childPath(dir, builtins.SpoolPrefix+rand.Text())
	for path := range t.spools {
		if parent(path) == dir {
			take.Spool = path
		}
	}
	take.SpoolParentMtime, err = t.journal.mtime(dir)
	return err
}

// mountRoot returns the root of the mount that a directory is on.
func (j *Journal) mountRoot(dir string) (string, error) {
	for ; parent(dir) != ""; dir = parent(dir) {
		at, err := j.config.Root.Exact(dir)
		if err != nil {
			return "", err
		}
		meta, err := at.Stat()
		if err = errors.Join(err, at.Close()); err != nil {
			return "", err
		}
		if meta.Mounted {
			return dir, nil
		}
	}
	return dir, nil
}

// spoolEntry returns the name of a tree in the spool.
func spoolEntry(take *pb.JournalTake) string { return strconv.FormatUint(take.Step, 10) }

// openSpooled returns the place of a tree in the spool. create: the spool's directory is made if needed. The error is
// fault.ErrChanged if another directory is in the place of the spool.
func (t *Tx) openSpooled(take *pb.JournalTake, create bool) (*fsys.At, error) {
	if take.Spool == "" {
		return t.journal.state.At(txFilePath(t.ID(), spoolEntry(take)))
	}
	if create && t.spools[take.Spool] == nil {
		if err := t.makeSpool(take); err != nil {
			return nil, err
		}
	}
	at, err := t.journal.config.Root.Exact(take.Spool + "/" + spoolEntry(take))
	if err != nil {
		return nil, err
	}
	dir, err := at.StatDir() // of the directory that is used, whatever its name leads to by now
	if err == nil {
		err = t.checkSpool(take.Spool, at, dir)
	}
	if err != nil {
		return nil, errors.Join(err, at.Close())
	}
	return at, nil
}

// makeSpool makes a spool on another mount, restores the time of its parent directory, and logs what it made: nothing
// is moved there before that is durable.
func (t *Tx) makeSpool(take *pb.JournalTake) error {
	at, err := t.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := t.journal.do("spool.mkdir", func() error { return at.Mkdir(fsys.Attr{Mode: new(uint32(0o700))}) }); err != nil {
		return noSpoolError{err}
	}
	err = t.journal.do("spool.syncdir", at.SyncDir)
	if err == nil {
		err = t.journal.setMtime(parent(take.Spool), take.SpoolParentMtime)
	}
	if err != nil {
		return err
	}
	meta, err := at.Stat()
	if err == nil {
		err = t.checkSpool(take.Spool, at, meta)
	}
	if err != nil {
		return err
	}
	spool := &pb.JournalSpool{Path: take.Spool, State: toState(meta)}
	if err := t.appendRecord(&pb.JournalRecord{Record: &pb.JournalRecord_Spool{Spool: spool}}, false); err != nil {
		return err
	}
	t.noteSpool(spool)
	return nil
}

// noSpoolError returns why a mount takes no spool: it is read-only, say. That is no failure of the journal.
type noSpoolError struct{ error }

func (e noSpoolError) Unwrap() error { return e.error }

func (t *Tx) noteSpool(spool *pb.JournalSpool) {
	if t.spools == nil {
		t.spools = map[string]*pb.JournalState{}
	}
	t.spools[spool.Path] = spool.State
}

// checkSpool refuses a directory that is not the spool that was made at a path. at is the directory, or an entry in it.
// Of a spool of which nothing is logged, as by an older agent, the owner and the mode must do.
func (t *Tx) checkSpool(path string, at *fsys.At, is fsys.Meta) error {
	was := fsys.Meta{Kind: fsys.Directory, UID: is.UID, GID: is.GID, Mode: is.Mode, Ino: is.Ino, Born: is.Born}
	if state := t.spools[path]; state != nil {
		was = fromState(state)
	} else if uid := os.Geteuid(); uid >= 0 {
		was.UID = uint32(uid)
	}
	same, err := sameInode(at, was, is)
	if err != nil {
		return err
	}
	if !same || is.Kind != fsys.Directory || is.UID != was.UID || is.GID != was.GID || is.Mode != was.Mode {
		return fault.Wrapf(fault.ErrChanged, "%s is not the directory that the transaction made", path)
	}
	return nil
}

// sameInode reports whether two states have one inode; true if the file system is not known to keep the numbers.
func sameInode(at *fsys.At, was, is fsys.Meta) (bool, error) {
	if was.SameInode(is) {
		return true, nil
	}
	stable, err := at.StableInodes()
	return !stable, err
}

// checkMoved refuses an object that is not the one that was moved away. Its content, and of a directory the time, may
// have been changed by those who had it open.
func checkMoved(take *pb.JournalTake, at *fsys.At, is fsys.Meta) error {
	was := fromState(take.State)
	same, err := sameInode(at, was, is)
	if err != nil {
		return err
	}
	if same && !was.SameInode(is) { // the number says nothing
		is.Mtime = was.Mtime
		same = firstDifference(was, is) == ""
	}
	if !same || was.Kind != is.Kind {
		return fault.Wrapf(fault.ErrChanged, "%s is not the %s that was moved away", at.Path, was.Kind)
	}
	return nil
}

// removeSpools removes all that was moved to spools on other mounts.
func (t *Tx) removeSpools() error {
	for _, s := range t.steps {
		if s.spool == "" {
			continue
		}
		record, err := t.record(s)
		if err == nil {
			err = t.checkMounts(record)
		}
		if err == nil {
			err = t.removeSpooled(record.GetTake())
		}
		if waiting := (*waitingError)(nil); t.abandoned && (errors.As(err, &waiting) || errors.Is(err, syscall.EROFS)) {
			continue
		}
		if err != nil {
			return fault.On(s.spool, err)
		}
	}
	return nil
}

// removeSpooled removes a tree from a spool on another mount, and the spool if it is empty then. A directory that is
// not the spool is not touched.
func (t *Tx) removeSpooled(take *pb.JournalTake) error {
	at, err := t.openSpooled(take, false)
	if errors.Is(err, fault.ErrChanged) {
		return nil
	}
	if err != nil {
		return ignoreNotExist(err)
	}
	defer at.Close()
	mtime, err := t.journal.mtime(parent(take.Spool))
	if err != nil {
		return err
	}
	err = t.journal.do("clean.spool", func() error { return at.RemoveAll(context.Background()) })
	if err = ignoreNotExist(err); err != nil {
		return err
	}
	_, err = t.removeEmptySpool("clean.spool", take, mtime)
	return err
}

// removeEmptySpool removes a spool on another mount if it is empty, and restores the time of its parent directory.
func (t *Tx) removeEmptySpool(step string, take *pb.JournalTake, mtime *pb.JournalTime) (removed bool, err error) {
	at, err := t.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return false, ignoreNotExist(err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err == nil {
		err = t.checkSpool(take.Spool, at, meta)
	}
	if err == nil {
		err = t.journal.do(step, at.Remove)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fault.ErrChanged):
		return false, nil
	case errors.Is(err, fs.ErrExist): // ENOTEMPTY is that, too
		return false, nil
	case err != nil:
		return false, err
	}
	delete(t.spools, take.Spool)
	return true, t.journal.setMtime(parent(take.Spool), mtime)
}

// ignoreNotExist returns nil for fs.ErrNotExist.
func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// moveAway moves a tree to the spool. What is moved is a name: another object that somebody gave it at the last moment goes
// back, and the error is fault.ErrChanged.
func (t *Tx) moveAway(at *fsys.At, take *pb.JournalTake) error {
	to, err := t.openSpooled(take, true)
	switch none := (noSpoolError{}); {
	case errors.As(err, &none):
		return none.error
	case err != nil:
		return t.fail(err)
	}
	defer to.Close()
	if err := t.journal.do("take.rename", func() error { return at.Rename(to, false) }); err != nil {
		return err
	}
	is, err := to.Capture()
	if err != nil {
		return err
	}
	if checkMoved(take, to, is) == nil {
		root := t.journal.state
		if take.Spool != "" {
			root = t.journal.config.Root
		}
		t.holdTaken(root, to.Path, is)
		return nil
	}
	if err := t.giveBack(to, at, take); err != nil {
		return err
	}
	t.markReverted(t.steps[len(t.steps)-1])
	return fault.Wrapf(fault.ErrChanged, "another object has its name now")
}

// giveBack moves back what was not to be moved away; where its name is taken already it gets that of a conflict.
func (t *Tx) giveBack(from, at *fsys.At, take *pb.JournalTake) error {
	err := t.journal.do("take.back", func() error { return from.Rename(at, false) })
	if errors.Is(err, fs.ErrExist) {
		var aside *fsys.At
		if aside, err = at.Beside(at.Name + t.conflictSuffix()); err == nil {
			err = t.journal.do("take.back", func() error { return from.Rename(aside, false) })
			_ = aside.Close()
		}
	}
	return errors.Join(err, t.journal.setDirMtime(at, take.ParentMtime))
}

// setMtime sets the modification time of a directory; nil leaves it.
func (j *Journal) setMtime(dir string, mtime *pb.JournalTime) error {
	if dir == "" || mtime == nil {
		return nil
	}
	at, err := j.config.Root.Exact(dir)
	if err != nil {
		return fault.On(dir, err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err == nil && meta.Kind == fsys.Directory && meta.Mtime != fromTime(mtime) {
		err = j.do("restore.time", func() error { return at.SetAttrOf(meta, fsys.Attr{Mtime: new(fromTime(mtime))}) })
	}
	return fault.On(dir, err)
}

// setDirMtime is setMtime for the directory that an entry is in.
func (j *Journal) setDirMtime(at *fsys.At, mtime *pb.JournalTime) error {
	if mtime == nil {
		return nil
	}
	is, err := at.StatDir()
	if err == nil && is.Mtime != fromTime(mtime) {
		err = j.do("restore.time", func() error { return at.SetDirMtime(fromTime(mtime)) })
	}
	return fault.On(parent(at.Path), err)
}

// restoreMoved moves a tree back from the spool.
func (p *undoPass) restoreMoved(ctx context.Context, take *pb.JournalTake) (conflict string, err error) {
	from, err := p.tx.openSpooled(take, false)
	if errors.Is(err, fs.ErrNotExist) && take.Spool != "" {
		return "", p.finishMoved(take) // the directory was never made, or is removed already
	}
	if err != nil {
		return "", err
	}
	defer from.Close()
	spooled, err := from.Capture()
	if err == nil && spooled.Kind == fsys.Absent {
		return "", p.finishMoved(take)
	}
	if err == nil {
		err = checkMoved(take, from, spooled)
	}
	if err != nil {
		return "", err
	}
	at, err := p.tx.journal.config.Root.Exact(take.Path)
	if err != nil {
		return "", err
	}
	defer at.Close()
	if err := p.checkParent(at, take.ParentIno, take.ParentBorn); err != nil {
		return "", err
	}
	r := &restorer{pass: p, ctx: ctx, at: at, object: &pb.JournalObject{Path: take.Path, State: take.State}}
	err = r.capture()
	switch {
	case err != nil:
	case r.is.Kind == fsys.Absent:
		err = p.renameBack(from, at)
	case r.is.Kind != fsys.Directory && r.is.SameInode(fromState(take.State)) && unchanged(take.State, r.is):
		// The same object under both names: after a power loss btrfs may keep the old name of a moved file.
		err = p.tx.journal.do("restore.moved", from.Remove)
	default:
		if err = r.moveAside(); err == nil {
			err = p.renameBack(from, at)
		}
	}
	if err == nil {
		err = p.finishMoved(take)
	}
	return r.conflict, err
}

func (p *undoPass) renameBack(from, at *fsys.At) error {
	return p.tx.journal.do("restore.moved", func() error { return from.Rename(at, false) })
}

// finishMoved restores the times once the tree is back, and removes an empty spool.
func (p *undoPass) finishMoved(take *pb.JournalTake) error {
	p.markDirty(take.Path)
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
		return fault.Wrapf(fault.ErrCorrupt, "the moved tree is missing")
	}
	if err := checkMoved(take, at, is); err != nil {
		return err
	}
	if is.Kind == fsys.Directory { // on some file systems a move changes the directory's own time
		if was := fromState(take.State); is.SameInode(was) && is.Mtime != was.Mtime {
			if err := p.tx.journal.setMtime(take.Path, take.State.Mtime); err != nil {
				return err
			}
		}
	}
	if take.Spool != "" {
		removed, err := p.tx.removeEmptySpool("restore.spool", take, take.SpoolParentMtime)
		if err != nil {
			return err
		}
		if removed {
			p.markDirty(take.Spool)
		}
	}
	if err := p.checkParent(at, take.ParentIno, take.ParentBorn); err != nil {
		return err
	}
	return p.tx.journal.setDirMtime(at, take.ParentMtime)
}
