package journal

import (
	"context"
	"errors"
	"io/fs"
	"strconv"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// chooseSpool says where a tree is moved away to: the transaction's directory if it is on the same mount, else a
// directory at the root of the mount that the tree is on.
func (t *Tx) chooseSpool(at *fsys.At, take *pb.JournalTake) error {
	own, err := t.journal.state.At(inState(t.ID(), name(take)))
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
	take.Spool = below(dir, t.spoolName())
	take.SpoolParentMtime, err = t.journal.mtime(dir)
	return err
}

// mountRoot goes up from a directory to the root of its mount.
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

// name is what a tree is called where it is moved to.
func name(take *pb.JournalTake) string { return strconv.FormatUint(take.Step, 10) }

// spooled is the place of a tree that was moved away. Its directory is made if needed.
func (t *Tx) spooled(take *pb.JournalTake, make bool) (*fsys.At, error) {
	if take.Spool == "" {
		return t.journal.state.At(inState(t.ID(), name(take)))
	}
	if make {
		if err := t.makeSpool(take); err != nil {
			return nil, err
		}
	}
	return t.journal.config.Root.Exact(take.Spool + "/" + name(take))
}

// makeSpool makes a directory on another mount, and leaves no trace of it in the time of the one that it is in.
func (t *Tx) makeSpool(take *pb.JournalTake) error {
	at, err := t.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return err
	}
	defer at.Close()
	err = t.journal.do("spool.mkdir", func() error { return at.Mkdir(fsys.Attr{Mode: new(uint32(0o700))}) })
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = t.journal.do("spool.syncdir", at.SyncDir)
	}
	if err == nil {
		err = t.journal.setMtime(parent(take.Spool), take.SpoolParentMtime)
	}
	return err
}

// dropSpool removes a transaction's directory on another mount, which may hold what nobody needs any more.
func (t *Tx) dropSpool(take *pb.JournalTake) error {
	at, err := t.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return notThere(err)
	}
	defer at.Close()
	mtime, err := t.journal.mtime(parent(take.Spool))
	if err != nil {
		return err
	}
	err = t.journal.do("clean.spool", func() error { return at.RemoveAll(context.Background()) })
	if err != nil {
		return notThere(err)
	}
	return t.journal.setMtime(parent(take.Spool), mtime)
}

// notThere is nil where what was to be removed is gone already.
func notThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// moveAway does what a record of a step says.
func (t *Tx) moveAway(at *fsys.At, take *pb.JournalTake) error {
	to, err := t.spooled(take, true)
	if err != nil {
		return t.sticky1(err)
	}
	defer to.Close()
	return t.journal.do("take.rename", func() error { return at.Rename(to, false) })
}

// setMtime gives a directory a time; nil is none.
func (j *Journal) setMtime(dir string, mtime *pb.JournalTime) error {
	if dir == "" || mtime == nil {
		return nil
	}
	at, err := j.config.Root.Exact(dir)
	if err != nil {
		return fault.On(dir, err)
	}
	defer at.Close()
	meta, err := at.Capture()
	if err == nil && meta.Kind == fsys.Directory && meta.Mtime != fromTime(mtime) {
		meta.Mtime = fromTime(mtime)
		err = j.do("restore.time", func() error { return at.Apply(meta) })
	}
	return fault.On(dir, err)
}
