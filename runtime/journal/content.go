package journal

import (
	"bytes"
	"context"
	"errors"
	"os"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// How the content of a before-image comes to its place: as a new file, as the image itself, or over what is there.

// recreate makes a new file from the before-image. It replaces another file in one step.
func (r *restorer) recreate() error {
	if r.object.Image != "" {
		image, err := r.imageAt()
		if err != nil {
			return err
		}
		defer image.Close()
		same, err := fsys.SameMount(image, r.at)
		if err != nil {
			return err
		}
		if same { // renaming the image needs no space
			return r.renameImage(image)
		}
	}
	return r.replaceBy(r.copyContent)
}

// replaceBy puts a new file in place of what is there, with the content that fill writes.
func (r *restorer) replaceBy(fill func(to *os.File) error) error {
	staged, err := r.at.Stage()
	if err != nil {
		return err
	}
	if err := fill(staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	made, err := fsys.StatFile(staged.File)
	if err != nil {
		return errors.Join(err, staged.Discard())
	}
	ended := false
	err = r.do("restore.replace", func() error { ended = true; return staged.Restore(r.was, false) })
	if !ended {
		return errors.Join(err, staged.Discard())
	}
	if err != nil {
		return err
	}
	return r.lockAgain(made)
}

func (r *restorer) renameImage(image *fsys.At) error {
	if err := r.do("restore.image", func() error { return image.Apply(r.was.Unlocked()) }); err != nil {
		return err
	}
	if err := r.do("restore.imagesync", image.Sync); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	made, err := image.Stat()
	if err != nil {
		return err
	}
	if err := r.do("restore.rename", func() error { return image.Rename(r.at, true) }); err != nil {
		return err
	}
	return r.lockAgain(made)
}

// lockAgain sets the flags that forbid to change the object that was made, which would have forbidden to give it its name.
func (r *restorer) lockAgain(made fsys.Meta) error {
	if firstDifference(r.was, r.was.Unlocked()) == "" {
		return nil
	}
	r.is = made
	return r.captureAndApply()
}

// imageAt returns the place of the image.
func (r *restorer) imageAt() (*fsys.At, error) {
	return r.pass.tx.journal.state.At(txFilePath(r.pass.tx.ID(), r.object.Image))
}

// copyContent writes the content of the before-image into an empty file.
func (r *restorer) copyContent(to *os.File) error {
	if r.object.Image == "" {
		_, err := to.Write(r.object.Content)
		return fault.Cause(err)
	}
	from, err := r.openImage()
	if err != nil {
		return err
	}
	defer from.Close()
	return fsys.CopyFile(r.ctx, to, from)
}

func (r *restorer) openImage() (*os.File, error) {
	image, err := r.imageAt()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	return image.Open()
}

// rewrite writes the content of the before-image into the file that is there.
func (r *restorer) rewrite() error {
	file, err := r.openInPlace()
	if err != nil {
		return err
	}
	// The content is not for those whom the step allowed to read the file.
	_, err = r.at.Narrow(file, r.is, fsys.Attr{Mode: &r.was.Mode, UID: &r.was.UID, GID: &r.was.GID})
	if err == nil {
		err = r.overwrite(file)
	}
	if err == nil {
		err = fault.Cause(file.Sync())
	}
	return errors.Join(err, fault.Cause(file.Close()))
}

// overwrite writes the content of the before-image into a file. Where others have filled the disk meanwhile the file stays as
// it is.
func (r *restorer) overwrite(file *os.File) error {
	err := r.overwriteDense(file)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err := fault.Cause(file.Truncate(0)); err != nil {
		return err
	}
	return r.copyContent(file)
}

// overwriteDense is overwrite but for content with holes, and where no space can be taken beforehand: that is
// errors.ErrUnsupported.
func (r *restorer) overwriteDense(file *os.File) error {
	if r.object.Image == "" { // so little is not begun again and again where one recovery after the other is stopped
		return fsys.Overwrite(context.WithoutCancel(r.ctx), file, bytes.NewReader(r.object.Content), int64(len(r.object.Content)))
	}
	from, err := r.openImage()
	if err != nil {
		return err
	}
	defer from.Close()
	if sparse, err := fsys.IsSparse(from); sparse || err != nil {
		return errors.Join(err, errors.ErrUnsupported)
	}
	return fsys.Overwrite(r.ctx, file, from, r.was.Size)
}
