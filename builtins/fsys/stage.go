package fsys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Staged is a file that is about to take a name. Until Commit or Restore renames it, it is in the same directory under
// a temporary name, readable by its owner alone from its first byte on.
type Staged struct {
	// File takes the content. It is Staged's to close.
	File *os.File

	at    *At // Staged's own
	temp  string
	shown bool // see Show
}

// Stage begins a file for this entry, which stays the caller's to close. Commit, Restore or Discard ends the staging.
func (a *At) Stage() (*Staged, error) {
	if a.IsRoot() {
		return nil, notRegular(Directory)
	}
	if err := a.checkSlash(); err != nil {
		return nil, err
	}
	if in, err := a.StatDir(); err != nil {
		return nil, err
	} else if err := in.CheckLocked("the directory"); err != nil { // not even the temporary file could be removed
		return nil, err
	}
	dir, err := a.dir.dup()
	if err != nil {
		return nil, err
	}
	temp, file, err := createTemp(dir)
	if err != nil {
		_ = dir.close()
		return nil, err
	}
	own := &At{Path: a.Path, Name: a.Name, Public: a.Public, dir: dir, checked: a.checked}
	return &Staged{File: file, at: own, temp: temp}, nil
}

// createTemp makes a file and locks it, which shows Sweep that its agent lives. A Sweep that comes between the two may
// remove the file; then createTemp makes another one.
func createTemp(dir directory) (string, *os.File, error) {
	for {
		name := tempName()
		file, err := dir.create(name)
		if err != nil {
			return "", nil, err
		}
		if lockFile(file) == nil {
			if meta, err := statFile(file); err != nil || meta.Links > 0 {
				return name, file, err
			}
		}
		_ = file.Close()
		if err := removeTemp(dir, name); err != nil {
			return "", nil, err
		}
	}
}

// removeTemp removes a temporary file that may be gone already.
func removeTemp(dir directory, name string) error {
	if err := dir.remove(name, false); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CanReplace returns why Commit would be refused: there is a directory, a fifo or a device here, a file with several
// names, a mount, or a link that another user may have planted; or the path names a directory.
func (a *At) CanReplace() error {
	old, err := a.captureFor()
	if err != nil {
		return err
	}
	return a.CheckReplace(old)
}

// captureFor is Capture for what needs no extended attributes: of those there may be too many.
func (a *At) captureFor() (Meta, error) {
	meta, err := a.Capture()
	if errors.Is(err, fault.ErrTooLarge) {
		err = nil
	}
	return meta, err
}

// CheckReplace is CanReplace for what was captured as old.
func (a *At) CheckReplace(old Meta) error {
	if err := a.checkSlash(); err != nil {
		return err
	}
	return a.checkReplace(old)
}

// checkReplace returns why the object here must not be replaced by renaming over it; nil where it may.
func (a *At) checkReplace(old Meta) error {
	switch {
	case old.Kind == Absent:
		return nil
	case old.Mounted:
		return fault.Refuse("a file system is mounted here; write in place instead")
	case old.Kind == Directory:
		return notRegular(Directory)
	case old.Kind == Symlink:
		return a.dir.checkLink(a.Name)
	case old.Kind != File:
		return notRegular(old.Kind)
	case old.Links > 1:
		return fault.Refuse("the file has %d names, and replacing it would part them; write in place instead", old.Links)
	}
	return old.CheckLocked("the file")
}

// CheckPlace returns fault.ErrChanged where an entry is not the one that the file is for: it is in another directory, or has
// another name.
func (s *Staged) CheckPlace(at *At) error {
	own, err := s.at.StatDir()
	if err != nil {
		return err
	}
	dir, err := at.StatDir()
	if err == nil && !(dir.Same(own) && Equal(at.Name, s.at.Name)) {
		err = fault.Wrapf(fault.ErrChanged, "the path leads elsewhere by now")
	}
	return err
}

// Commit gives the file its name. The file takes owner, mode, ACLs, label and other extended attributes of the file
// that it replaces, flags of chattr among them, unless attr says otherwise; if it replaces none, or one that is not
// Trusted, it has what open(2) would give it: mode 0644, or what the default ACL of the directory makes of 0666. Its
// content is durable before the rename, and its name is durable too if syncDir is set. File capabilities and integrity
// hashes are not kept: they spoke of the old content. On an error before the rename nothing has changed. The staging is
// over either way.
func (s *Staged) Commit(attr Attr, syncDir bool) error {
	if err := s.prepare(s.commit(attr)); err != nil {
		return err
	}
	return s.place(syncDir)
}

// commit gives the file the attributes that Commit promises.
func (s *Staged) commit(attr Attr) func(old Meta, err error) error {
	return func(old Meta, err error) error {
		if err != nil {
			return err
		}
		if attr.Separate && old.Kind == File {
			old.Links = 1
		}
		if err := s.at.checkReplace(old); err != nil {
			return err
		}
		trusted, err := s.at.Trusted(old, attr.UID)
		if err != nil {
			return err
		}
		if !trusted {
			old = Meta{Kind: Absent}
		}
		return s.at.dir.copyAttrs(s.temp, s.File, old, attr)
	}
}

// Placement is one of the files that CommitAll gives their names.
type Placement struct {
	Staged *Staged
	Attr   Attr
}

// CommitAll is Commit of several files, each durable with its name: the disk is at work on all of them before one is waited
// for, and a directory is synced once. No two are for one place: the second would not see the first. It returns the error of
// each. The stagings are over either way.
func CommitAll(list []Placement) []error {
	failed := make([]error, len(list))
	for i, p := range list {
		if failed[i] = p.Staged.prepare(p.Staged.commit(p.Attr)); failed[i] == nil {
			startWriting(p.Staged.File)
		}
	}
	dirs := map[[2]uint64]directory{}
	in := make([]directory, len(list))
	for i, p := range list {
		if failed[i] != nil {
			continue
		}
		if in[i], failed[i] = sharedDir(dirs, p.Staged.at); failed[i] != nil {
			failed[i] = errors.Join(failed[i], p.Staged.Discard())
			continue
		}
		failed[i] = p.Staged.place(false)
	}
	for _, dir := range dirs {
		err := errors.Join(dir.sync("."), dir.close())
		for i := range list {
			if err != nil && in[i] == dir && failed[i] == nil {
				failed[i] = err
			}
		}
	}
	return failed
}

// sharedDir returns the directory of an entry, of which dirs has one for all of its entries.
func sharedDir(dirs map[[2]uint64]directory, at *At) (directory, error) {
	meta, err := at.StatDir()
	if err != nil {
		return nil, err
	}
	is := [2]uint64{meta.Dev, meta.Ino}
	if dirs[is] == nil {
		if dirs[is], err = at.dir.dup(); err != nil {
			delete(dirs, is)
			return nil, err
		}
	}
	return dirs[is], nil
}

// Restore gives the file its name with exactly the state of meta, but for flags that would forbid to give it a name: Apply sets
// them. It replaces anything but a directory. The rest is as with Commit.
func (s *Staged) Restore(meta Meta, syncDir bool) error {
	err := s.prepare(func(old Meta, err error) error {
		if err != nil && !errors.Is(err, fault.ErrTooLarge) {
			return err
		}
		if old.Kind == Directory {
			return notRegular(Directory)
		}
		return s.at.dir.applyFile(s.temp, s.File, meta.Unlocked())
	})
	if err != nil {
		return err
	}
	return s.place(syncDir)
}

// prepare completes the file by what it shall have of the one that it replaces, as Capture describes that. An error ends the
// staging.
func (s *Staged) prepare(complete func(old Meta, err error) error) error {
	old, err := s.at.dir.capture(s.at.Name)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = Meta{Kind: Absent}, nil
	}
	if err = complete(old, err); err != nil {
		return errors.Join(err, s.Discard())
	}
	return nil
}

// place makes the file durable and gives it its name. It ends the staging.
func (s *Staged) place(syncDir bool) (err error) {
	renamed := false
	defer func() {
		if !renamed {
			err = errors.Join(err, removeTemp(s.at.dir, s.temp))
		}
		_ = s.at.Close()
	}()
	release, err := holdLock(s.File) // until the rename: a file that is not locked may be swept
	if err != nil {
		return errors.Join(err, fault.Cause(s.File.Close()))
	}
	defer release()
	watched, err := s.watched()
	var own Meta
	if err == nil && watched {
		own, err = statFile(s.File)
	}
	if err != nil {
		return errors.Join(err, fault.Cause(s.File.Close()))
	}
	if err := s.at.dir.closeNew(s.File); err != nil {
		return err
	}
	if watched {
		if have, err := s.at.dir.stat(s.temp); err != nil || !have.Same(own) {
			return errors.Join(errChanged(s.Path()), ignoreAbsent(err))
		}
	}
	if err := s.at.dir.rename(s.temp, s.at.dir, s.at.Name, true); err != nil {
		return err
	}
	renamed = true
	s.at.changed()
	if watched {
		if have, err := s.at.dir.stat(s.at.Name); err != nil || !have.Same(own) {
			return errors.Join(errChanged(s.at.Path), ignoreAbsent(err))
		}
	}
	if syncDir {
		return s.at.SyncDir()
	}
	return nil
}

// watched reports whether it is to be looked whether the file still has its names: a program has looked at it, or others may
// put their own file in its place, since the directory is another user's, or all may write to it.
func (s *Staged) watched() (bool, error) {
	if s.shown || s.at.dir.pretended(s.temp) {
		return s.shown, nil
	}
	in, err := s.at.StatDir()
	return err == nil && in.foreign(), err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Create makes a file of mode 0600 with this content at once, under its own name, as files are made that are locks. Where
// something is already the error is fs.ErrExist. Nothing of it is durable.
func (a *At) Create(content []byte) error {
	if err := a.checkSlash(); err != nil {
		return err
	}
	file, err := a.dir.create(a.Name)
	if err != nil {
		return err
	}
	a.changed()
	_, err = file.Write(content)
	if err = errors.Join(fault.Cause(err), fault.Cause(file.Close())); err != nil {
		return errors.Join(err, a.dir.remove(a.Name, false))
	}
	return nil
}

// Path returns the path of the staged file, inside the root.
func (s *Staged) Path() string { return Join(Parent(s.at.Path), s.temp) }

// Show has f look at the complete file under its temporary name. An error of f is returned. That the file was written to
// meanwhile, or has changed in another way, or that another one has its name, is fault.ErrChanged. Commit looks once more
// whether the file has its name.
func (s *Staged) Show(f func(path string) error) error {
	if err := fault.Cause(s.File.Sync()); err != nil { // file systems set times when they write, too
		return err
	}
	before, err := s.stamp()
	if err != nil {
		return err
	}
	if err := f(s.Path()); err != nil {
		return err
	}
	if after, err := s.stamp(); err != nil || after != before {
		return errors.Join(errChanged(s.Path()), err)
	}
	s.shown = true
	return nil
}

// stamp is what reports whether a file was changed.
type stamp struct {
	dev, ino       uint64
	links          uint32
	size           int64
	mtime, changed Time
}

// stamp returns the stamp of the file, which has its name, too.
func (s *Staged) stamp() (stamp, error) {
	meta, err := statFile(s.File)
	if err != nil {
		return stamp{}, err
	}
	named, err := s.at.dir.stat(s.temp)
	if err != nil {
		return stamp{}, err
	}
	if !named.Same(meta) || named.Kind != File {
		return stamp{}, errChanged(s.Path())
	}
	changed, err := changeTime(s.File)
	return stamp{meta.Dev, meta.Ino, meta.Links, meta.Size, meta.Mtime, changed}, err
}

func errChanged(path string) error {
	return fault.Wrapf(fault.ErrChanged, "the new file %s was changed before it was put in place", path)
}

// Discard ends the staging and removes the file.
func (s *Staged) Discard() error {
	err := errors.Join(fault.Cause(s.File.Close()), removeTemp(s.at.dir, s.temp))
	return errors.Join(err, s.at.Close())
}

// Sweep removes the staged files that a dead agent left in the directory of the entry, and returns how many there were.
// It is unsupported on an overlay.
func (a *At) Sweep() (int, error) { return a.dir.sweep() }

// tempPrefix and tempSuffix enclose the random part of a temporary name.
const tempPrefix, tempSuffix = ".quantix-kvm-", ".tmp"

func tempName() string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: the runtime ends the process instead
	return tempPrefix + hex.EncodeToString(random[:]) + tempSuffix
}

// IsTemp reports whether a name looks like one that Stage makes for a file that is not complete yet. If nobody has such a file locked,
// an agent that died left it.
func IsTemp(name string) bool {
	return len(name) > len(tempPrefix)+len(tempSuffix) &&
		strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}
