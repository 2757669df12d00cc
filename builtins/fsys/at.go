package fsys

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// At is a place: an open directory, and a name in it, at which there may be nothing. Its methods do not follow a link
// there, and their errors do not name the path. It belongs to one goroutine at a time.
type At struct {
	// Path is the resolved path, escaped.
	Path string
	// Name is the last element, not escaped; "." for the root itself.
	Name string
	// Public: all users may search the directories that lead here, so that the object's own mode says who may read it.
	// Unknown is false.
	Public bool

	dir   handle
	root  *Root
	spot  *spot // in a plan, which has no dir
	slash bool  // the path ends with a slash, and nothing is here: only a directory may be made
}

// named holds a place to a path that ends with a slash, and so names a directory, or one to come. A link is none: to follow it
// or not would be a guess, and one that deletes.
func (a *At) named() error {
	meta, err := a.Stat()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.slash = true
		return nil
	case err == nil && meta.Kind != Directory:
		return errSlash
	}
	return err
}

var errSlash = fault.Wrapf(syscall.ENOTDIR, "not a directory, which the slash at the end says")

// notSlash refuses to make anything but a directory where one is named.
func (a *At) notSlash() error {
	if a.slash {
		return errSlash
	}
	return nil
}

// Close frees the place.
func (a *At) Close() error {
	if a.spot != nil {
		return nil
	}
	return closeHandle(a.dir)
}

// IsRoot says whether the place is the root directory itself.
func (a *At) IsRoot() bool { return a.Name == "." }

// Stat describes what is here, but for its extended attributes. The error is fs.ErrNotExist where nothing is.
func (a *At) Stat() (Meta, error) {
	if a.spot != nil {
		return a.spot.stat(a.Name)
	}
	return statAt(a.dir, a.Name)
}

// StatFile describes an open file, but for its extended attributes.
func StatFile(file *os.File) (Meta, error) { return statFile(file) }

// Capture describes the complete state of what is here, also that nothing is, in which case there is no error.
func (a *At) Capture() (Meta, error) {
	capture := func() (Meta, error) { return captureAt(a.dir, a.Name) }
	if a.spot != nil {
		capture = a.Stat
	}
	meta, err := capture()
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{Kind: Absent}, nil
	}
	return meta, err
}

// safeLink says why the link here may be another user's trap; nil where it is none.
func (a *At) safeLink() error {
	if a.spot != nil {
		return a.spot.safeLink(a.Name)
	}
	_, _, err := readLink(a.root, a.dir, a.Name)
	return err
}

// Open opens the regular file here for reading. Anything else is refused at once, without opening it: a device may act
// on being opened, and a fifo would wait for a writer.
func (a *At) Open() (*os.File, error) { return a.open(false) }

// OpenInPlace opens the regular file here for reading and writing, with its content as it is. What is written is seen by
// all names of the file at once, and torn by a crash.
func (a *At) OpenInPlace() (*os.File, error) { return a.open(true) }

func (a *At) open(write bool) (*os.File, error) {
	meta, err := a.Stat()
	if err != nil {
		return nil, err
	}
	if meta.Kind == Symlink {
		return nil, fault.Refuse("is a link")
	}
	if meta.Kind != File {
		return nil, notRegular(meta.Kind)
	}
	if a.spot != nil {
		return a.spot.open(a.Name, write)
	}
	file, err := openFile(a.dir, a.Name, write)
	if err != nil {
		return nil, err
	}
	if err := regular(file); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// ReadFile reads the regular file here, and fails for one of more than limit bytes.
func (a *At) ReadFile(limit int64) ([]byte, error) {
	file, err := a.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// A file of /proc has size 0, and a log grows: so the size decides nothing. Reads at an offset never wait.
	data, err := io.ReadAll(io.NewSectionReader(file, 0, limit+1))
	if err != nil {
		return nil, fault.Cause(err)
	}
	if int64(len(data)) > limit {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the file has more than %d bytes", limit)
	}
	return data, nil
}

// OpenDir opens the directory here.
func (a *At) OpenDir() (*Dir, error) {
	if a.spot != nil {
		return a.spot.openDir(a.Name)
	}
	h, file, err := openDir(a.dir, a.Name)
	if err != nil {
		return nil, err
	}
	return &Dir{file: file, handle: h}, nil
}

// Dir is an open directory to look at.
type Dir struct {
	file   *os.File
	handle handle

	plan    *plan // or this
	planned *planned
}

// Close frees the directory.
func (d *Dir) Close() error {
	if d.plan != nil {
		return nil
	}
	return d.file.Close()
}

// Names lists the names in the directory, not escaped, in no order. After an error they are those that were read before.
// It can be called once.
func (d *Dir) Names() ([]string, error) {
	if d.plan != nil {
		return d.plan.entries(d.planned)
	}
	names, err := d.file.Readdirnames(-1)
	return names, fault.Cause(err)
}

// Stat is At.Stat of a name in the directory.
func (d *Dir) Stat(name string) (Meta, error) {
	if d.plan != nil {
		return (&spot{d.plan, d.planned}).stat(name)
	}
	return statAt(d.handle, name)
}

// Mkdir makes a directory, with mode 0755 unless attr says otherwise. While it is made others cannot enter it.
func (a *At) Mkdir(attr Attr) error {
	if attr.Mode == nil {
		attr.Mode = new(uint32(0o755))
	}
	if a.spot != nil {
		return a.spot.mkdir(a.Name, attr)
	}
	if err := mkdirAt(a.dir, a.Name); err != nil {
		return err
	}
	if err := setAttr(a.dir, a.Name, Directory, attr); err != nil {
		return errors.Join(err, unlinkAt(a.dir, a.Name, true))
	}
	return nil
}

// Symlink makes a link to target, byte for byte, or replaces the link that is here by it, in one step. Anything but a
// link that is here is an fs.ErrExist.
func (a *At) Symlink(target string) error {
	if err := a.notSlash(); err != nil {
		return err
	}
	if a.spot != nil {
		return a.spot.symlink(a.Name, target)
	}
	old, err := a.Capture()
	if err != nil {
		return err
	}
	switch old.Kind {
	case Absent:
		return symlinkAt(target, a.dir, a.Name)
	case Symlink:
		temp := tempName()
		if err := symlinkAt(target, a.dir, temp); err != nil {
			return err
		}
		if err := renameAt(a.dir, temp, a.dir, a.Name, true); err != nil {
			return errors.Join(err, unlinkAt(a.dir, temp, false))
		}
		return nil
	}
	return fs.ErrExist
}

// Remove removes a file, a link or an empty directory. The root and a mount point are refused.
func (a *At) Remove() error {
	meta, err := a.removable()
	if err != nil {
		return err
	}
	if a.spot != nil {
		return a.spot.remove(a.Name, false)
	}
	return unlinkAt(a.dir, a.Name, meta.Kind == Directory)
}

// RemoveAll removes what is here, a directory with all that is below it. It follows no link, and refuses, before it
// removes anything, a tree in which a file system is mounted. An error later leaves a part of the tree.
func (a *At) RemoveAll(ctx context.Context) error {
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
	if a.spot != nil {
		return a.spot.remove(a.Name, true)
	}
	return removeTree(ctx, a.dir, a.Name)
}

// NoMountsBelow refuses a directory below which a file system is mounted.
func (a *At) NoMountsBelow() error {
	if a.spot != nil {
		return a.spot.noMountsBelow(a.Name)
	}
	return noMountsBelow(a.dir, a.Name)
}

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

// Rename moves what is here to another place of the same mounted file system, in one step. What is there is replaced if
// replace is set, and an fs.ErrExist otherwise. Two names of one object are left as they are, as rename(2) does.
func (a *At) Rename(to *At, replace bool) error {
	if to.slash {
		if meta, err := a.Stat(); err != nil || meta.Kind != Directory {
			return errors.Join(err, errSlash)
		}
	}
	if a.spot != nil {
		return a.spot.rename(a.Name, to.spot, to.Name, replace)
	}
	return renameAt(a.dir, a.Name, to.dir, to.Name, replace)
}

// SetAttr sets what attr says on the object here, of kind File, Directory or a special file.
func (a *At) SetAttr(attr Attr) error {
	if a.spot != nil {
		return a.spot.setAttr(a.Name, attr)
	}
	meta, err := a.Stat()
	if err != nil {
		return err
	}
	return setAttr(a.dir, a.Name, meta.Kind, attr)
}

// Apply gives the object here, which must be of the same kind, the owner, extended attributes, mode and time of
// modification of meta; what is so already is not touched, so that it can be done again. It neither changes content nor
// makes anything durable.
func (a *At) Apply(meta Meta) error {
	if a.spot != nil {
		return a.spot.apply(a.Name, meta)
	}
	return applyAt(a.dir, a.Name, meta)
}

// Make makes an object without content from its description: a directory, a link or a special file. Nothing may be
// here. It takes the name only when it is complete, but a directory.
func (a *At) Make(meta Meta) error {
	if meta.Kind == File || meta.Kind == Absent {
		return fault.Invalid("a %s cannot be made from its description", meta.Kind)
	}
	temp := tempName()
	if err := makeAt(a.dir, temp, meta); err != nil {
		return err
	}
	err := applyAt(a.dir, temp, meta)
	if err == nil {
		err = renameAt(a.dir, temp, a.dir, a.Name, false)
	}
	if err != nil {
		return errors.Join(err, unlinkAt(a.dir, temp, meta.Kind == Directory))
	}
	return nil
}

// CopyContent copies the content of the regular file here into a new file at to, of mode 0600 and durable but for its
// name. Where the file system can share blocks it does, else holes stay holes. A file that shrinks meanwhile is
// fault.ErrChanged, and where it does not fit nothing is begun. On an error nothing is left at to.
func (a *At) CopyContent(ctx context.Context, to *At) (err error) {
	from, err := a.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := createAt(to.dir, to.Name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlinkAt(to.dir, to.Name, false))
		}
	}()
	if err := copyFitting(ctx, file, from); err != nil {
		_ = file.Close()
		return err
	}
	return syncAndClose(file)
}

// syncAndClose makes a file durable and closes it. A sync that failed is not tried again: the kernel would call the
// second one a success, with the data lost.
func syncAndClose(file *os.File) error {
	err := fault.Cause(file.Sync())
	return errors.Join(err, fault.Cause(file.Close()))
}

// SyncDir makes durable the names in the directory that the place is in.
func (a *At) SyncDir() error {
	if a.spot != nil {
		return nil
	}
	return syncDir(a.dir)
}

// Sync makes durable the content and the state of the file or directory here.
func (a *At) Sync() error {
	if a.spot != nil {
		return nil
	}
	meta, err := a.Stat()
	if err != nil {
		return err
	}
	switch meta.Kind {
	case Directory:
		dir, err := a.OpenDir()
		if err != nil {
			return err
		}
		defer dir.Close()
		return syncDir(dir.handle)
	case File:
		file, err := a.Open()
		if err != nil {
			return err
		}
		return syncAndClose(file)
	}
	return a.SyncDir() // a link or a special file lives in its inode, which goes with the directory
}
