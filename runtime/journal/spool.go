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

// chooseSpool sets where a tree is moved to: the transaction's directory if that is on the same mount, else a directory at
// the root of the tree's own mount.
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
	take.Spool = childPath(dir, t.spoolDirName())
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

// openSpooled returns the place of a tree in the spool. create: the spool's directory is made if needed.
func (t *Tx) openSpooled(take *pb.JournalTake, create bool) (*fsys.At, error) {
	if take.Spool == "" {
		return t.journal.state.At(txFilePath(t.ID(), spoolEntry(take)))
	}
	if create {
		if err := t.makeSpool(take); err != nil {
			return nil, err
		}
	}
	return t.journal.config.Root.Exact(take.Spool + "/" + spoolEntry(take))
}

// makeSpool makes a spool on another mount, and restores the time of its parent directory.
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

// removeSpool removes a transaction's spool on another mount with all that is in it.
func (t *Tx) removeSpool(take *pb.JournalTake) error {
	at, err := t.journal.config.Root.Exact(take.Spool)
	if err != nil {
		return ignoreNotExist(err)
	}
	defer at.Close()
	mtime, err := t.journal.mtime(parent(take.Spool))
	if err != nil {
		return err
	}
	err = t.journal.do("clean.spool", func() error { return at.RemoveAll(context.Background()) })
	if err != nil {
		return ignoreNotExist(err)
	}
	return t.journal.setMtime(parent(take.Spool), mtime)
}

// ignoreNotExist returns nil for fs.ErrNotExist.
func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// moveAway moves a tree to the spool.
func (t *Tx) moveAway(at *fsys.At, take *pb.JournalTake) error {
	to, err := t.openSpooled(take, true)
	if err != nil {
		return t.fail(err)
	}
	defer to.Close()
	return t.journal.do("take.rename", func() error { return at.Rename(to, false) })
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
	meta, err := at.Capture()
	if err == nil && meta.Kind == fsys.Directory && meta.Mtime != fromTime(mtime) {
		meta.Mtime = fromTime(mtime)
		err = j.do("restore.time", func() error { return at.Apply(meta) })
	}
	return fault.On(dir, err)
}
