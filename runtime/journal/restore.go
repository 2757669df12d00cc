package journal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restoring is one object on its way back to what it was. What must be done is seen from what is there, so that it can
// be interrupted anywhere and begun again.
type restoring struct {
	pass *pass
	ctx  context.Context
	o    *pb.JournalObject
	at   *fsys.At
	was  fsys.Meta
	is   fsys.Meta
	// conflict is where something of somebody else's was put.
	conflict string
	// unreadable: the content cannot be compared, for the mode that the file has.
	unreadable bool
}

// restore makes an object what it was. left is what the transaction left there, if that is known.
func (p *pass) restore(ctx context.Context, o *pb.JournalObject, left *pb.JournalState) (conflict string, err error) {
	if idle(o.State, left) {
		return "", nil // the transaction did nothing to it, so what others did since is none of its business
	}
	at, err := p.tx.journal.config.Root.Exact(o.Path)
	if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) && fsys.Kind(o.State.Kind) == fsys.Absent {
		return "", nil // nor is the directory
	}
	if err != nil {
		return "", err
	}
	defer at.Close()
	if err := p.sweep(parent(o.Path)); err != nil {
		return "", err
	}
	r := &restoring{pass: p, ctx: ctx, o: o, at: at, was: fromState(o.State)}
	if r.is, err = at.Capture(); err != nil {
		return "", err
	}
	if o.State.Mtime == nil {
		return "", r.setting()
	}
	if err := r.object(left); err != nil {
		return r.conflict, err
	}
	p.touched(o.Path)
	if err := p.tx.journal.setMtime(parent(o.Path), o.ParentMtime); err != nil {
		return r.conflict, err
	}
	return r.conflict, r.verify()
}

func (r *restoring) do(step string, act func() error) error { return r.pass.tx.journal.do(step, act) }

func (r *restoring) object(left *pb.JournalState) error {
	done, err := r.same()
	if done || err != nil {
		return err
	}
	if left != nil && !unchanged(left, r.is) {
		if err := r.putAside(); err != nil {
			return err
		}
	}
	switch r.was.Kind {
	case fsys.Absent:
		return r.remove()
	case fsys.File:
		return r.file()
	}
	if r.is.Kind != r.was.Kind || r.is.Rdev != r.was.Rdev {
		return r.replace()
	}
	if r.is.Target != r.was.Target {
		if err := r.do("restore.link", func() error { return r.at.Symlink(r.was.Target) }); err != nil {
			return err
		}
	}
	return r.apply()
}

// same says whether nothing is to be done but to the attributes, which it does.
func (r *restoring) same() (bool, error) {
	if r.is.Kind != r.was.Kind {
		return false, nil
	}
	switch r.was.Kind {
	case fsys.Absent:
		return true, nil
	case fsys.File:
		// Another file with more names is not touched: it is somebody's elsewhere, too.
		if r.is.Ino != r.was.Ino && (r.o.Link != "" || r.is.Links > 1) {
			return false, nil
		}
		equal, err := r.content()
		if r.unreadable && r.is.Ino == r.was.Ino { // it is the mode that keeps its owner from opening it
			if err := r.do("restore.mode", func() error { return r.at.SetAttr(fsys.Attr{Mode: &r.was.Mode}) }); err != nil {
				return false, err
			}
			r.unreadable, r.is.Mode = false, r.was.Mode
			equal, err = r.content()
		}
		if !equal || err != nil {
			return false, err
		}
	default:
		if r.is.Target != r.was.Target || r.is.Rdev != r.was.Rdev {
			return false, nil
		}
	}
	return true, r.apply()
}

// apply sets the attributes. What is so already is not touched.
func (r *restoring) apply() error {
	if difference(r.was, r.is) == "" {
		return nil
	}
	return r.do("restore.apply", func() error { return r.at.Apply(r.was) })
}

// remove makes that nothing is there.
func (r *restoring) remove() error {
	if r.is.Kind == fsys.Absent {
		return nil
	}
	err := r.do("restore.remove", r.at.Remove)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return r.clear() // what is in it is not the transaction's: that was taken back before
	}
	return notThere(err)
}

// clear makes way for what was there: what a command made within what it said it touches goes, all else is kept aside.
func (r *restoring) clear() error {
	if r.is.Kind == fsys.Absent {
		return nil
	}
	if r.o.Tree {
		return notThere(r.do("restore.clear", func() error { return r.at.RemoveAll(r.ctx) }))
	}
	if r.is.Kind != fsys.Directory {
		return notThere(r.do("restore.remove", r.at.Remove))
	}
	return r.rename()
}

// replace puts a directory, a link or a special file where something else or nothing is.
func (r *restoring) replace() error {
	if err := r.clear(); err != nil {
		return err
	}
	return r.do("restore.make", func() error { return r.at.Make(r.was) })
}

// putAside keeps what somebody else put in the place of the object, or wrote into it.
func (r *restoring) putAside() error {
	if r.is.Kind == fsys.Absent || r.is.Kind == fsys.Directory && r.was.Kind == fsys.Directory {
		return nil
	}
	if r.is.Kind == fsys.File && r.is.Ino == r.was.Ino {
		return r.copyAside()
	}
	return r.rename()
}

func (r *restoring) rename() error {
	return r.aside(func(to *fsys.At) error {
		return r.do("restore.aside", func() error { return r.at.Rename(to, false) })
	}, true)
}

func (r *restoring) copyAside() error {
	return r.aside(func(to *fsys.At) error {
		return r.do("restore.aside", func() error {
			if err := r.at.CopyContent(r.ctx, to); err != nil {
				return err
			}
			return to.Apply(r.is)
		})
	}, false)
}

// aside finds a free name beside the object.
func (r *restoring) aside(put func(*fsys.At) error, moved bool) error {
	suffix := r.pass.tx.conflictSuffix()
	base := r.at.Name
	if len(base)+len(suffix)+4 > 255 {
		base = base[:255-len(suffix)-4]
	}
	for n := 1; n < 1000; n++ {
		candidate := base + suffix
		if n > 1 {
			candidate += "-" + strconv.Itoa(n)
		}
		path := below(parent(r.o.Path), candidate)
		to, err := r.pass.tx.journal.config.Root.Exact(path)
		if err != nil {
			return err
		}
		err = errors.Join(put(to), to.Close())
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			r.conflict = path
			r.pass.touched(path)
			if moved {
				r.is = fsys.Meta{Kind: fsys.Absent}
			}
		}
		return err
	}
	return fs.ErrExist
}

// file makes the object the file that it was. The same file gets its content back in place, so that it stays the same
// for its other names and for those who have it open.
func (r *restoring) file() error {
	if r.is.Kind == fsys.Directory {
		if err := r.clear(); err != nil {
			return err
		}
	}
	if r.is.Kind == fsys.File && r.is.Ino != r.was.Ino || r.is.Kind != fsys.File {
		linked, err := r.relink()
		if err != nil {
			return err
		}
		if !linked {
			err := r.spaced(r.renew)
			if errors.Is(err, syscall.ENOSPC) && r.is.Kind == fsys.File && r.is.Links <= 1 {
				err = r.overwrite() // there is no room for both
			}
			return err
		}
	}
	if equal, err := r.content(); err != nil {
		return err
	} else if !equal {
		err := r.do("restore.rewrite", r.rewrite)
		if err != nil && r.is.Links <= 1 { // such as a program that runs
			return r.spaced(r.renew)
		}
		if err != nil {
			return err
		}
	}
	return r.applyAnew()
}

// overwrite puts what was kept into another file that has the place.
func (r *restoring) overwrite() error {
	if err := r.do("restore.rewrite", r.rewrite); err != nil {
		return err
	}
	return r.applyAnew()
}

// applyAnew is apply after the content was written.
func (r *restoring) applyAnew() (err error) {
	if r.is, err = r.at.Capture(); err != nil {
		return err
	}
	return r.apply()
}

// relink gives the name back to the very file that it was of, if that was kept.
func (r *restoring) relink() (bool, error) {
	if r.o.Link == "" {
		return false, nil
	}
	kept, err := r.pass.tx.journal.state.At(inState(r.pass.tx.ID(), r.o.Link))
	if err != nil {
		return false, err
	}
	defer kept.Close()
	if _, err := kept.Stat(); err != nil {
		return false, notThere(err)
	}
	if r.is.Kind != fsys.Absent {
		if err := r.do("restore.remove", r.at.Remove); err != nil {
			return false, err
		}
	}
	if err := r.do("restore.relink", func() error { return kept.Link(r.at) }); err != nil {
		return false, err
	}
	r.is, err = r.at.Capture()
	return true, err
}

// spaced does something that needs space, and if there is none once more with the space that the journal does not need.
func (r *restoring) spaced(act func() error) error {
	err := act()
	if errors.Is(err, syscall.ENOSPC) && r.pass.tx.log != nil && r.pass.tx.log.shrink() == nil {
		err = act()
	}
	return err
}

// renew makes a new file of what was kept. One that is in the way is replaced in one step.
func (r *restoring) renew() error {
	if r.o.Image != "" {
		image, err := r.image()
		if err != nil {
			return err
		}
		defer image.Close()
		same, err := fsys.SameMount(image, r.at)
		if err != nil {
			return err
		}
		if same { // the image itself is the file: that needs no space
			return r.moveBack(image)
		}
	}
	staged, err := r.at.Stage()
	if err != nil {
		return err
	}
	if err := r.pour(staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	ended := false
	err = r.do("restore.replace", func() error { ended = true; return staged.Restore(r.was, false) })
	if !ended {
		err = errors.Join(err, staged.Discard())
	}
	return err
}

func (r *restoring) moveBack(image *fsys.At) error {
	if err := r.do("restore.image", func() error { return image.Apply(r.was) }); err != nil {
		return err
	}
	if err := r.do("restore.imagesync", image.Sync); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return r.do("restore.rename", func() error { return image.Rename(r.at, true) })
}

// image is the place of the kept content.
func (r *restoring) image() (*fsys.At, error) {
	return r.pass.tx.journal.state.At(inState(r.pass.tx.ID(), r.o.Image))
}

// pour writes what was kept into an empty file.
func (r *restoring) pour(to *os.File) error {
	if r.o.Image == "" {
		_, err := to.Write(r.o.Content)
		return fault.Cause(err)
	}
	from, err := r.openImage()
	if err != nil {
		return err
	}
	defer from.Close()
	return fsys.CopyFile(r.ctx, to, from)
}

func (r *restoring) openImage() (*os.File, error) {
	image, err := r.image()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	return image.Open()
}

// rewrite puts the content back into the file that is there.
func (r *restoring) rewrite() error {
	file, err := r.at.OpenInPlace()
	if err != nil {
		return err
	}
	err = fault.Cause(file.Truncate(0))
	if err == nil {
		err = r.pour(file)
	}
	if err == nil {
		err = fault.Cause(file.Sync())
	}
	return errors.Join(err, fault.Cause(file.Close()))
}

// content compares what is in the file with what was.
func (r *restoring) content() (bool, error) {
	if r.is.Kind != fsys.File {
		return false, nil
	}
	if r.o.Image == "" && r.is.Size != int64(len(r.o.Content)) && r.o.State.Mtime != nil {
		return false, nil
	}
	have, err := r.at.Open()
	if errors.Is(err, os.ErrPermission) {
		r.unreadable = true
		return false, nil // it is replaced
	}
	if err != nil {
		return false, err
	}
	defer have.Close()
	if r.o.Image == "" {
		return equal(have, bytes.NewReader(r.o.Content))
	}
	kept, err := r.openImage()
	if errors.Is(err, fs.ErrNotExist) {
		if r.is.Ino == r.o.ImageIno { // it is the image itself, moved back
			return true, nil
		}
		return false, fault.Wrapf(fault.ErrCorrupt, "the content that was kept is gone")
	}
	if err != nil {
		return false, err
	}
	defer kept.Close()
	return fsys.SameContent(r.ctx, have, kept)
}

// equal compares contents to their ends.
func equal(a, b io.Reader) (bool, error) {
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

// setting restores a setting of the kernel: it has a content, and nothing else that lasts.
func (r *restoring) setting() error {
	if r.was.Kind == fsys.Absent && r.is.Kind != fsys.Absent {
		return r.do("restore.remove", r.at.Remove)
	}
	if r.was.Kind != r.is.Kind || r.was.Kind == fsys.Directory && r.is.Mode != r.was.Mode {
		return fault.Wrapf(fault.ErrChanged, "is a %s, and was a %s", r.is.Kind, r.was.Kind)
	}
	if r.was.Kind != fsys.File {
		return nil
	}
	if equal, err := r.content(); equal || err != nil {
		return err
	}
	return r.do("restore.rewrite", func() error {
		file, err := r.at.OpenInPlace()
		if err != nil {
			return err
		}
		_, err = file.Write(r.o.Content)
		return errors.Join(fault.Cause(err), fault.Cause(file.Close()))
	})
}

// verify looks whether it is as it was.
func (r *restoring) verify() error {
	var err error
	if r.is, err = r.at.Capture(); err != nil {
		return err
	}
	if what := difference(r.was, r.is); what != "" {
		return fault.Wrapf(fault.ErrChanged, "its %s is not as it was", what)
	}
	if r.was.Kind != fsys.File {
		return nil
	}
	r.unreadable = false
	equal, err := r.content()
	if err == nil && !equal && !r.unreadable {
		err = fault.Wrapf(fault.ErrChanged, "its content is not as it was")
	}
	return err
}
