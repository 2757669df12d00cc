package fsys

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxDepth bounds the descriptors that the removal of a tree holds open.
const maxDepth = 64

// remover removes a tree. A directory deeper than maxDepth is moved up to the top of the tree and is removed from
// there, so that no depth exhausts descriptors.
type remover struct {
	ctx context.Context
	top handle
	mnt uint64
	own func(dir Meta) bool // nil: all are removed
}

func removeTree(ctx context.Context, dir handle, name string, own func(dir Meta) bool) error {
	mnt, err := mountID(dir, name)
	if err != nil {
		return err
	}
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := &remover{ctx: ctx, top: fd, mnt: mnt, own: own}
	if err := r.checkOwn(fd); err != nil {
		return err
	}
	return r.emptyAndRemove(fd, dir, name, 0)
}

// emptyAndRemove removes a directory that is open as fd, also where flags of chattr(1) forbid to take names out of it.
func (r *remover) emptyAndRemove(fd, dir handle, name string, depth int) error {
	if err := unlockAt(fd, "."); err != nil {
		return err
	}
	for {
		err := r.empty(fd, depth)
		if err != nil {
			return err
		}
		// Not empty again: a deep directory came up, the file system left names out that were after removed ones, or somebody
		// still writes here, which the context bounds.
		if err = unlinkAt(dir, name, true); err != unix.ENOTEMPTY {
			return err
		}
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
	}
}

// empty removes everything in a directory.
func (r *remover) empty(dir handle, depth int) error {
	return eachName(dir, func(name string) error {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		if err := r.remove(dir, name, depth); err != nil && err != unix.ENOENT {
			return fault.On(text.EscapePath(name), err)
		}
		return nil
	})
}

func (r *remover) remove(dir handle, name string, depth int) error {
	err := unlinkAt(dir, name, false)
	if err != unix.EISDIR && err != unix.EPERM { // EPERM: a directory too, on some file systems
		return err
	}
	fd, e := openDir(dir, name)
	if e == unix.ENOTDIR || e == unix.ELOOP {
		return unlinkLocked(dir, name)
	}
	if e != nil {
		return e
	}
	defer unix.Close(fd)
	if mnt, err := mountID(fd, ""); err != nil || mnt != r.mnt {
		return fault.Refuse("a file system is mounted here")
	}
	if err := r.checkOwn(fd); err != nil {
		return err
	}
	if depth >= maxDepth {
		return renameAt(dir, name, r.top, tempName(), false)
	}
	return r.emptyAndRemove(fd, dir, name, depth+1)
}

// unlinkLocked removes a file that flags of chattr(1) keep from that. If it has other names it keeps them.
func unlinkLocked(dir handle, name string) error {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return err
	}
	defer o.close()
	meta, err := o.capture()
	switch {
	case err != nil && !errors.Is(err, fault.ErrTooLarge):
		return err
	case !meta.locked():
		return unix.EPERM
	}
	if err := o.setFlags(meta.Kind, unlocked(meta.Xattrs)); err != nil {
		return err
	}
	if err = unlinkAt(dir, name, false); err == nil && meta.Links == 1 {
		return nil
	}
	return errors.Join(err, o.setFlags(meta.Kind, meta.Xattrs))
}

// checkOwn refuses a directory that is another's. Nothing is removed in it before: who moves it into the tree cannot empty it
// so.
func (r *remover) checkOwn(dir handle) error {
	if r.own == nil {
		return nil
	}
	meta, err := statAt(dir, ".")
	if err == nil && !r.own(meta) {
		err = fault.Wrapf(fault.ErrChanged, "a directory that somebody moved here")
	}
	return err
}
