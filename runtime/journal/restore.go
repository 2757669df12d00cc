package journal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restorer restores one object from its before-image. It decides by what is there, so that it can be interrupted anywhere
// and run again.
type restorer struct {
	pass   *undoPass
	ctx    context.Context
	object *pb.JournalObject
	at     *fsys.At
	was    fsys.Meta
	is     fsys.Meta
	// conflict is where somebody else's version of the object was put, and reset what they set that is as before again.
	conflict string
	reset    []string
	// began: the object may be half restored.
	began bool
	// unreadable: the content cannot be compared, since the mode or a lease forbids to read it.
	unreadable bool
	// partly: extended attributes in `is` are not all, see captureAny.
	partly bool
}

// restore restores an object from its before-image. after is the state in which the step left it; nil: unknown.
func (p *undoPass) restore(ctx context.Context, o *pb.JournalObject, after *pb.JournalState) (c conflict, err error) {
	if untouched(o.State, after) {
		return c, nil // the transaction did not change it, so it keeps what others made of it since
	}
	at, err := p.tx.journal.config.Root.Exact(o.Path)
	if err != nil && ignoreGone(err) == nil && fsys.Kind(o.State.Kind) == fsys.Absent {
		return c, nil // its directory is not there either
	}
	if err != nil {
		return c, err
	}
	defer at.Close()
	if err := p.checkParent(at, o.ParentIno, o.ParentBorn); err != nil {
		return c, err
	}
	p.sweepTempFiles(parent(o.Path))
	r := &restorer{pass: p, ctx: ctx, object: o, at: at, was: fromState(o.State)}
	if err = r.capture(); err != nil {
		return c, err
	}
	if o.State.Mtime == nil {
		err := r.restoreKernelSetting(after)
		return conflict{put: r.conflict}, err
	}
	if other, err := r.otherDirectory(after); other || err != nil {
		return conflict{put: r.conflict}, err
	}
	err = r.restoreObject(after)
	if c = (conflict{put: r.conflict, reset: r.reset, began: r.began}); err != nil {
		c.reset = nil
		return c, err
	}
	p.markDirty(o.Path)
	if err := p.tx.journal.setDirMtime(at, o.ParentMtime); err != nil {
		return c, err
	}
	err = r.verify()
	if err == nil {
		c.apart = r.was.Kind == fsys.File && r.is.Links < r.was.Links && !r.kept()
		p.tx.noteMade(r.was, r.is)
	}
	return c, err
}

func (r *restorer) do(step string, act func() error) error {
	r.began = r.began || step != "restore.aside" // which leaves the object whole
	if r.is.AppendOnly || r.is.Immutable {
		if err := r.at.Unlock(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		r.is = r.is.Unlocked()
	}
	return r.pass.tx.journal.do(step, act)
}

func (r *restorer) restoreObject(after *pb.JournalState) error {
	if after != nil {
		r.was, r.reset = r.merge(after)
	}
	if len(r.object.Tail) > 0 {
		return r.cutBack(after != nil && !unchanged(after, r.is))
	}
	done, err := r.restoreAttributes()
	if done || err != nil {
		return err
	}
	if after != nil && !unchanged(after, r.is) {
		if err := r.keepConflict(); err != nil {
			return err
		}
		if r.conflict != "" {
			r.reset = nil // theirs is kept whole
		}
	}
	switch r.was.Kind {
	case fsys.Absent:
		return r.remove()
	case fsys.File:
		return r.restoreFile()
	}
	link, dir := r.was.Kind == fsys.Symlink, r.was.Kind == fsys.Directory
	if r.is.Kind != r.was.Kind || r.is.Rdev != r.was.Rdev || !link && !dir && !r.kept() {
		return r.replace()
	}
	if link && (r.is.Target != r.was.Target || !r.kept()) {
		if err := r.do("restore.link", func() error { return r.at.Symlink(r.was.Target) }); err != nil {
			return err
		}
		if r.is, err = r.at.Capture(); err != nil {
			return err
		}
		if r.is.Kind != r.was.Kind || r.is.Target != r.was.Target {
			return fault.ErrChanged
		}
	}
	return r.apply()
}

// restoreAttributes restores the attributes and returns true if all else is as it was.
func (r *restorer) restoreAttributes() (bool, error) {
	if r.is.Kind != r.was.Kind {
		return false, nil
	}
	switch r.was.Kind {
	case fsys.Absent:
		return true, nil
	case fsys.File:
		// Another file with several names is not changed in place: that would change it under its other names, too.
		if !r.kept() && (r.object.Link != "" || r.is.Links > 1) {
			return false, nil
		}
		equal, err := r.contentEqual()
		if r.unreadable && r.kept() { // its mode forbids even its owner to open it
			if err := r.do("restore.mode", func() error { return r.at.SetAttrOf(r.is, fsys.Attr{Mode: &r.was.Mode}) }); err != nil {
				return false, err
			}
			r.unreadable, r.is.Mode = false, r.was.Mode
			equal, err = r.contentEqual()
		}
		if !equal || err != nil {
			return false, err
		}
	default:
		if r.is.Target != r.was.Target || r.is.Rdev != r.was.Rdev {
			return false, nil
		}
	}
	if r.is.Kind != fsys.Directory && !r.kept() && !r.isImage() && firstDifference(r.was, r.is) != "" {
		return false, nil
	}
	return true, r.apply()
}

// apply sets the attributes of what capture read, if they differ.
func (r *restorer) apply() error {
	if firstDifference(r.was, r.is) == "" {
		return nil
	}
	return r.do("restore.apply", func() error { return r.at.Of(r.is).Apply(r.was) })
}

// remove removes what the transaction created.
func (r *restorer) remove() error {
	if r.is.Kind == fsys.Absent {
		return nil
	}
	err := r.do("restore.remove", r.at.Remove)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return r.makeWay() // newer steps are undone, so what is still in it is somebody else's
	}
	return ignoreNotExist(err)
}

// makeWay frees the path. What a command made in a tree that it declared is removed, a directory of others is moved aside.
func (r *restorer) makeWay() error {
	if r.is.Kind == fsys.Absent {
		return nil
	}
	if r.object.Tree {
		return r.clear("restore.clear")
	}
	if r.is.Kind != fsys.Directory {
		return ignoreNotExist(r.do("restore.remove", r.at.Remove))
	}
	return r.moveAside()
}

// replace makes a directory, a link or a special file, in place of anything else.
func (r *restorer) replace() error {
	if err := r.makeWay(); err != nil {
		return err
	}
	return r.do("restore.make", func() error { return r.at.Make(r.was) })
}

// restoreFile restores a file. If the inode is still the same its content is written in place, for its other names and for
// those who have it open.
func (r *restorer) restoreFile() error {
	if r.is.Kind == fsys.Directory {
		if err := r.makeWay(); err != nil {
			return err
		}
	}
	if !r.kept() {
		linked, err := r.relink()
		if err != nil {
			return err
		}
		if !linked {
			err := r.retryWithFreedSpace(r.recreate)
			if noSpace(err) && r.is.Kind == fsys.File && r.is.Links <= 1 && r.ours() {
				err = r.rewriteAndApply() // the disk has no space for both
			}
			return err
		}
	}
	if equal, err := r.contentEqual(); err != nil {
		return err
	} else if !equal {
		if r.is.Links <= 1 && r.widened() { // who could open it meanwhile would read what was never for him
			return r.retryWithFreedSpace(r.recreate)
		}
		err := r.do("restore.rewrite", r.rewrite)
		if err != nil && (r.is.Links <= 1 || errors.Is(err, syscall.EAGAIN)) { // a running program cannot be written
			return r.retryWithFreedSpace(r.recreate)
		}
		if err != nil {
			return err
		}
	}
	return r.captureAndApply()
}

// rewriteAndApply writes the content and the attributes into the file that is there.
func (r *restorer) rewriteAndApply() error {
	if err := r.do("restore.rewrite", r.rewrite); err != nil {
		return err
	}
	return r.captureAndApply()
}

// captureAndApply calls apply once the content of what is there has been written.
func (r *restorer) captureAndApply() (err error) {
	if r.is, r.partly, err = captureAny(r.at.Of(r.is)); err != nil {
		return err
	}
	return r.apply()
}

// relink links the same file to its name again, if the snapshot holds a link to it.
func (r *restorer) relink() (bool, error) {
	if r.object.Link == "" {
		return false, nil
	}
	kept, err := r.pass.tx.journal.state.At(txFilePath(r.pass.tx.ID(), r.object.Link))
	if err != nil {
		return false, err
	}
	defer kept.Close()
	same, err := kept.Stat()
	if err != nil {
		return false, ignoreNotExist(err)
	}
	if r.is.Kind != fsys.Absent {
		if err := r.do("restore.remove", r.at.Remove); err != nil {
			return false, err
		}
	}
	if err := r.do("restore.relink", func() error { return kept.Link(r.at) }); err != nil {
		return false, err
	}
	r.is, err = r.at.Of(same).Capture()
	return true, err
}

// retryWithFreedSpace calls act, and if the disk is full again, with the space that the journal can free.
func (r *restorer) retryWithFreedSpace(act func() error) error {
	err := act()
	if noSpace(err) && r.pass.tx.log != nil && r.pass.tx.log.shrink() == nil {
		err = act()
	}
	return err
}

// contentEqual compares the content of the file with the before-image.
func (r *restorer) contentEqual() (bool, error) {
	if r.is.Kind != fsys.File {
		return false, nil
	}
	if len(r.object.Tail) > 0 {
		return r.tailEqual()
	}
	if r.object.Image == "" && r.is.Size != int64(len(r.object.Content)) && r.object.State.Mtime != nil {
		return false, nil
	}
	have, err := r.open()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EAGAIN) {
		r.unreadable = true
		return false, nil // it is replaced
	}
	if err != nil {
		return false, err
	}
	defer have.Close()
	if r.object.Image == "" {
		return readersEqual(have, bytes.NewReader(r.object.Content))
	}
	kept, err := r.openImage()
	if errors.Is(err, fs.ErrNotExist) {
		if r.isImage() { // moved back
			return true, nil
		}
		return false, fault.Wrapf(fault.ErrCorrupt, "the image with its content is missing")
	}
	if err != nil {
		return false, err
	}
	defer kept.Close()
	return fsys.SameContent(r.ctx, have, kept)
}

// readersEqual reports whether two readers return the same bytes.
func readersEqual(a, b io.Reader) (bool, error) {
	one, other := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := io.ReadFull(a, one)
		m, otherErr := io.ReadFull(b, other)
		if !bytes.Equal(one[:n], other[:m]) {
			return false, nil
		}
		for _, err := range []error{err, otherErr} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, fault.Cause(err)
			}
		}
		if err != nil || otherErr != nil {
			return true, nil
		}
	}
}

// verify checks that the object is as it was.
func (r *restorer) verify() error {
	if err := r.capture(); err != nil {
		return err
	}
	if what := firstDifference(r.was, r.is); what != "" {
		return fault.Wrapf(fault.ErrChanged, "%s not restored", what)
	}
	if r.was.Kind != fsys.File {
		return nil
	}
	r.unreadable = false
	equal, err := r.contentEqual()
	if err == nil && !equal && !r.unreadable {
		err = fault.Wrapf(fault.ErrChanged, "content not restored")
	}
	return err
}
