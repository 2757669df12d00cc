package fsys

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// At is an entry of a directory: the open directory, and a name in it, at which there may be nothing. Its methods do
// not follow a link that is there, and their errors do not name the path. It belongs to one goroutine at a time.
type At struct {
	// Path is the resolved path, escaped.
	Path string
	// Name is the last element, not escaped; "." for the root itself.
	Name string
	// Public: all users may search the directories that lead here, so that the object's own mode says who may read it.
	// False where that is not known.
	Public bool

	dir     directory
	checked *Found // what must be here; nil: anything
	dirOnly bool   // the path ends with a slash, and nothing is here: only a directory may be made
}

// Of returns the entry for the object alone that was described as old, until it is changed: where another one is here by then
// the error is fault.ErrChanged. It ends with a, and is not closed.
func (a *At) Of(old Meta) *At {
	of := *a
	of.checked = &Found{Meta: old}
	return &of
}

// requireDir is for a path that ends with a slash: it names a directory, or one that is still to be made. A link is
// refused: to follow it or not would be a guess, and a wrong guess may delete.
func (a *At) requireDir() error {
	meta, err := a.Stat()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.dirOnly = true
		return nil
	case err == nil && meta.Kind != Directory:
		return errSlash
	}
	return err
}

var errSlash = fault.Wrapf(syscall.ENOTDIR, "not a directory, which the slash at the end says")

// checkSlash refuses to make anything but a directory where the path ends with a slash.
func (a *At) checkSlash() error {
	if a.dirOnly {
		return errSlash
	}
	return nil
}

// Close frees the entry's directory.
func (a *At) Close() error { return a.dir.close() }

// IsRoot reports whether the entry is the root directory itself.
func (a *At) IsRoot() bool { return a.Name == "." }

// Stat describes what is here; extended attributes may be missing. The error is fs.ErrNotExist where nothing is.
func (a *At) Stat() (Meta, error) {
	meta, err := a.dir.stat(a.Name)
	if err == nil {
		err = a.held(meta)
	}
	return meta, err
}

// StatFile describes an open file, except for its extended attributes.
func StatFile(file *os.File) (Meta, error) { return statFile(file) }

// Capture describes the complete state of what is here. Where nothing is, the kind is Absent, and there is no error. Where
// extended attributes have more than 256 KiB the error is fault.ErrTooLarge, and all else is described; Xattrs then has the
// state from one without an error.
func (a *At) Capture() (Meta, error) {
	meta, err := a.dir.capture(a.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{Kind: Absent}, nil
	}
	if err == nil || errors.Is(err, fault.ErrTooLarge) {
		err = cmp.Or(a.held(meta), err)
	}
	return meta, err
}

// Pretended reports whether the content here is an overlay's own, as in a dry run: its file has another owner and mode.
func (a *At) Pretended() bool { return a.dir.pretended(a.Name) }

// OpenDir opens the directory here. The caller closes it.
func (a *At) OpenDir() (*Dir, error) {
	dir, err := a.dir.openDir(a.Name)
	if err != nil {
		return nil, err
	}
	meta, err := dir.stat(".")
	if err == nil {
		err = a.held(meta)
	}
	if err != nil {
		_ = dir.close()
		return nil, err
	}
	return &Dir{dir, a.Path}, nil
}

// Symlink makes a link to target, byte for byte, or replaces the link that is here by it, in one step. Where anything
// else is, the error is fs.ErrExist.
func (a *At) Symlink(target string) error { return a.symlink(target, false) }

// ReplaceBySymlink is Symlink for a place where a regular file may be, which the link replaces.
func (a *At) ReplaceBySymlink(target string) error { return a.symlink(target, true) }

func (a *At) symlink(target string, file bool) error {
	if err := a.checkSlash(); err != nil {
		return err
	}
	old, err := a.captureFor()
	if err != nil {
		return err
	}
	link := Meta{Kind: Symlink, Target: target}
	defer a.changed()
	if err := old.CheckLocked("the file"); err != nil {
		return err
	}
	switch {
	case old.Kind == Absent:
		return a.dir.make(a.Name, link)
	case old.Kind == Symlink, old.Kind == File && file:
		temp := tempName()
		if err := a.dir.make(temp, link); err != nil {
			return err
		}
		if err := a.dir.rename(temp, a.dir, a.Name, true); err != nil {
			return errors.Join(err, a.dir.remove(temp, false))
		}
		is, err := a.dir.stat(a.Name)
		if err != nil || is.Kind != Symlink || modesTellRights && is.Target != target { // Windows writes a target in its own way
			return errors.Join(errChangedName, ignoreAbsent(err))
		}
		return nil
	}
	return fs.ErrExist
}

// Unlock takes the flags of chattr(1) from the object here that forbid to change it. Apply sets them again.
func (a *At) Unlock() error { return a.dir.unlock(a.Name) }

// CopyContent copies the content of the regular file here into a new file at to, of mode 0600 and durable but for its
// name. Where the file system can share blocks it does, else holes stay holes. A file that shrinks meanwhile is
// fault.ErrChanged, and where it does not fit nothing is begun. On an error nothing is left at to.
func (a *At) CopyContent(ctx context.Context, to *At) (err error) {
	from, err := a.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := to.dir.create(to.Name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.dir.remove(to.Name, false))
		}
	}()
	if err := CopyFitting(ctx, file, from); err != nil {
		_ = file.Close()
		return err
	}
	return to.dir.closeNew(file)
}

// CopyCost returns how many bytes a copy of the file here into the agent's state directory, where the scratch directory
// of the overlay is, would write: none where the two share blocks. It is unsupported but on an overlay.
func (a *At) CopyCost() (int64, error) { return a.dir.copyCost(a.Name) }

// Remove removes a file, a link or an empty directory. The root and a mount point are refused.
func (a *At) Remove() error {
	meta, err := a.removable()
	if err != nil {
		return err
	}
	a.changed()
	return a.dir.remove(a.Name, meta.Kind == Directory)
}

// RemoveAll removes what is here, a directory with all that is below it. It follows no link, and refuses, before it
// removes anything, a tree in which a file system is mounted. Flags of chattr(1) are taken off what is below, as a rename of
// the tree heeds none of them. An error later leaves a part of the tree.
func (a *At) RemoveAll(ctx context.Context) error { return a.RemoveAllOf(ctx, nil) }

// RemoveAllOf is RemoveAll that goes into no directory of which own says no: that is fault.ErrChanged, and such a directory
// stays with all that is in it. On an overlay and on Windows own is not asked.
func (a *At) RemoveAllOf(ctx context.Context, own func(dir Meta) bool) error {
	meta, err := a.removable()
	if err != nil {
		return err
	}
	if meta.Kind != Directory {
		return a.Remove()
	}
	if err := a.NoMountsBelow(); err != nil {
		return err
	}
	return a.dir.removeAll(ctx, a.Name, own)
}

// NoMountsBelow refuses a directory below which a file system is mounted.
func (a *At) NoMountsBelow() error { return a.dir.checkMounts(a.Name) }

func (a *At) removable() (Meta, error) {
	if a.IsRoot() {
		return Meta{}, fault.Refuse("the root directory is not removed")
	}
	meta, err := a.Stat()
	if err == nil && meta.Mounted {
		err = fault.Refuse("a file system is mounted here")
	}
	return meta, err
}

// Rename moves what is here to another entry of the same mounted file system, in one step. What is there is replaced if
// replace is set, and an fs.ErrExist otherwise. Two names of one object are left as they are, as rename(2) does.
func (a *At) Rename(to *At, replace bool) error {
	if to.dirOnly {
		if meta, err := a.Stat(); err != nil || meta.Kind != Directory {
			return errors.Join(err, errSlash)
		}
	}
	err := a.dir.rename(a.Name, to.dir, to.Name, replace)
	if err == nil {
		a.changed()
		to.changed()
	}
	return err
}

// Link gives the object here, which is no directory, another name. Where something is already the error is fs.ErrExist.
// It is unsupported on an overlay.
func (a *At) Link(to *At) error { return a.dir.link(a.Name, to.dir, to.Name) }

// LinkOver is Link for a place where a file or a link may be, which the new name replaces in one step. Where it is a name of
// the same object already nothing is done, and false returned. Anything else there is fs.ErrExist.
func (a *At) LinkOver(to *At) (changed bool, err error) {
	if err := to.checkSlash(); err != nil {
		return false, err
	}
	object, err := a.Stat()
	if err != nil {
		return false, err
	}
	old, err := to.captureFor()
	switch {
	case err != nil:
		return false, err
	case old.Kind == Absent:
		if err = a.Link(to); err == nil {
			to.changed()
		}
		return err == nil, err
	case object.Same(old):
		return false, nil
	case old.Kind != File && old.Kind != Symlink || old.Mounted:
		return false, fs.ErrExist
	}
	if err := old.CheckLocked("the file"); err != nil {
		return false, err
	}
	for again := linkAttempts; ; again-- {
		temp := tempName()
		if err := a.dir.link(a.Name, to.dir, temp); err != nil {
			return false, err
		}
		err := to.dir.rename(temp, to.dir, to.Name, true)
		if err == nil {
			to.changed()
			return true, nil
		}
		if err = errors.Join(err, removeTemp(to.dir, temp)); !errors.Is(err, fs.ErrNotExist) || again == 0 {
			return false, err
		}
	}
}

// linkAttempts is how often a name of LinkOver is made again that a Sweep of another request has taken for a dead agent's: it
// has no lock of its own, since the lock would be one of the file.
const linkAttempts = 20

// SameMount reports whether what is at one entry can be renamed to the other, and linked there. It is unsupported on an
// overlay.
func SameMount(a, b *At) (bool, error) { return a.dir.sameMount(b.dir) }

// Pseudo reports whether the entry is on a file system that keeps nothing, such as /proc or /sys: a file there is a
// setting of the kernel, and times mean nothing.
func (a *At) Pseudo() (bool, error) { return a.dir.pseudo() }

// StableInodes reports whether the file system is known to give an object the same inode number as long as it exists, also
// after another mount: else the number does not identify an object.
func (a *At) StableInodes() (bool, error) { return a.dir.stableInodes() }

// StatDir describes the directory that the entry is in, as it was opened.
func (a *At) StatDir() (Meta, error) { return a.dir.stat(".") }

// SetDirMtime sets the time of modification of that directory.
func (a *At) SetDirMtime(mtime Time) error {
	meta, err := a.StatDir()
	if err != nil || meta.Mtime == mtime {
		return err
	}
	return a.dir.setAttr(".", Directory, Attr{Mtime: &mtime, of: &meta})
}

// Beside returns the entry of another name, not escaped, in that directory. The caller closes it.
func (a *At) Beside(name string) (*At, error) {
	return (&Dir{a.dir, Parent(a.Path)}).At(name)
}

// SetAttrOf sets what attr says on the object here, which was described as old; another one in its place is fault.ErrChanged. A
// link has no mode.
func (a *At) SetAttrOf(old Meta, attr Attr) error {
	meta, err := a.Stat()
	if err == nil {
		err = a.sameAs(meta, old)
	}
	if err != nil {
		return err
	}
	attr.of = &meta
	return a.dir.setAttr(a.Name, meta.Kind, attr)
}

// SetAttrFile sets what attr says on the file that was opened here, wherever its name leads by now.
func (a *At) SetAttrFile(file *os.File, attr Attr) error {
	return a.dir.setAttrFile(a.Name, file, attr)
}

// ApplyFile is Apply to the file that was opened here, wherever its name leads by now.
func (a *At) ApplyFile(file *os.File, meta Meta) error { return a.dir.applyFile(a.Name, file, meta) }

// CheckFile returns fault.ErrChanged where the file that was opened here is not here any more.
func (a *At) CheckFile(file *os.File) error {
	if a.dir.pretended(a.Name) {
		return nil
	}
	open, err := statFile(file)
	if err != nil {
		return err
	}
	have, err := a.dir.stat(a.Name)
	if err != nil || a.sameAs(have, open) != nil {
		return errors.Join(fault.Wrapf(fault.ErrChanged, "another object took its place while it was written"), ignoreAbsent(err))
	}
	return nil
}

// Narrow takes from the file that was opened here, and described as old, the rights that attr will take, before content is
// written into it that is not for all who had the former ones; with another owner that is everybody. It returns what
// SetAttrFile is to set once that is written.
func (a *At) Narrow(file *os.File, old Meta, attr Attr) (Attr, error) {
	want := valueOr(attr.Mode, old.Mode)
	narrow := old.Mode & want
	if valueOr(attr.UID, old.UID) != old.UID || valueOr(attr.GID, old.GID) != old.GID {
		narrow = 0
	}
	if narrow == old.Mode {
		return attr, nil
	}
	attr.Mode = &want
	return attr, a.SetAttrFile(file, Attr{Mode: &narrow})
}

// Apply gives the object here, which must be of the same kind, the owner, extended attributes, mode and time of
// modification of meta; what is so already is not touched, so that it can be done again. It neither changes content nor
// makes anything durable.
func (a *At) Apply(meta Meta) error {
	if a.checked != nil && !a.checked.made {
		meta.of = &a.checked.Meta
	}
	return a.dir.apply(a.Name, meta)
}

// SyncDir makes durable the names in the directory of the entry.
func (a *At) SyncDir() error { return a.dir.sync(".") }

// Sync makes durable the content and the state of what is here; of a directory the names in it.
func (a *At) Sync() error { return a.dir.sync(a.Name) }
