package journal

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What is removed is kept by moving it away.

// Take implements builtins.Tx. If nothing is at the path it does nothing.
func (t *Tx) Take(ctx context.Context, path string, seen fsys.Meta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil {
		return err
	}
	at, err := t.journal.config.Root.Exact(path)
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
	if seen.Kind != "" && !meta.Same(seen) {
		if stable, err := at.StableInodes(); stable || err != nil {
			return errors.Join(err, fault.Wrapf(fault.ErrChanged, "another object has its name now"))
		}
	}
	record, err := t.newTake(at, meta)
	if err != nil {
		return fault.Cause(err)
	}
	if err := t.syncPending([]ownedPath{{path: at.Path, tree: meta.Kind == fsys.Directory}}); err != nil {
		return t.fail(err)
	}
	if err := t.appendStep(record); err != nil {
		return err
	}
	err = t.moveAway(at, record.GetTake())
	if errors.Is(err, syscall.EXDEV) { // a lower layer of overlayfs, a subvolume, or the quota of another project
		t.markReverted(t.steps[len(t.steps)-1]) // what is there again after a rollback is a copy
		err = t.copyAndRemove(ctx, at)
	}
	return fault.Cause(err)
}

// newTake returns the record of a step that moves away the tree at an entry.
func (t *Tx) newTake(at *fsys.At, meta fsys.Meta) (*pb.JournalRecord, error) {
	take := &pb.JournalTake{Step: t.nextStep(), Path: at.Path, State: toState(meta)}
	above, err := at.StatDir()
	if err != nil {
		return nil, err
	}
	take.ParentMtime, take.ParentIno, take.ParentBorn = toTime(above.Mtime), above.Ino, bornTime(above)
	if err := t.chooseSpool(at, take); err != nil {
		return nil, err
	}
	var mounts mountList
	if err := mounts.add(at); err != nil {
		return nil, err
	}
	record := &pb.JournalRecord{Record: &pb.JournalRecord_Take{Take: take}}
	record.Mounts, err = mounts.record(t.journal)
	return record, err
}

// copyAndRemove takes a tree that the file system does not rename although it is on the same mount.
func (t *Tx) copyAndRemove(ctx context.Context, at *fsys.At) error {
	if err := t.snapshotLocked(ctx, true, []string{at.Path}, nil); err != nil {
		return err
	}
	return t.journal.do("take.remove", func() error { return at.RemoveAll(ctx) })
}
