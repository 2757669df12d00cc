package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A file that only grows needs no copy: cut back to its old length it is as it was. What is before that is trusted to
// be the same if its end is.

// maxTail is how much of the end of a file is summed, in bytes.
const maxTail = 64 << 10

// BeforeAppend implements builtins.Tx.
func (t *Tx) BeforeAppend(ctx context.Context, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil {
		return err
	}
	return t.keep(&snapshotter{tx: t, ctx: ctx, grows: true}, []string{path}, nil)
}

// tailOf sums the end of the content that a file had when it had this size.
func tailOf(file *os.File, size int64) ([]byte, error) {
	sum := sha256.New()
	n := min(size, maxTail)
	switch read, err := io.Copy(sum, io.NewSectionReader(file, size-n, n)); {
	case err != nil:
		return nil, fault.Cause(err)
	case read < n:
		return nil, fault.Wrapf(fault.ErrChanged, "the file has become shorter")
	}
	return sum.Sum(nil), nil
}

// tailAt sums the end of the content of a file.
func tailAt(at *fsys.At, meta fsys.Meta) ([]byte, error) {
	file, err := at.Of(meta).Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return tailOf(file, meta.Size)
}

// cutBack restores a file to which something was appended. grown: others have changed it since the step.
func (r *restorer) cutBack(grown bool) error {
	other := r.is.Kind != fsys.File || r.is.Size < r.was.Size
	if !other {
		var err error
		if other, err = r.pass.exchanged(r.at, r.object.Path, r.was, r.is); err != nil {
			return err
		}
	}
	if other {
		return fault.Wrapf(fault.ErrChanged, "what was appended is not undone: it is not the file any more that it was")
	}
	tail, err := r.tail()
	if err != nil {
		return err
	}
	if !bytes.Equal(tail, r.object.Tail) {
		return settledError{fault.Wrapf(fault.ErrChanged, "what was appended is not undone: what is before it has changed")}
	}
	if r.is.Size > r.was.Size {
		if grown {
			if err := r.withConflictName(r.copyTail, false); err != nil {
				return err
			}
		}
	}
	if r.is.Links <= 1 && r.widened() { // who could open it meanwhile would go on to write it
		err := r.recut()
		if !noSpace(err) {
			return err
		}
	}
	if r.is.Size > r.was.Size {
		if err := r.do("restore.cut", r.cut); err != nil {
			return err
		}
	}
	return r.captureAndApply()
}

// recut puts a copy of what the content was in the place of the file.
func (r *restorer) recut() error {
	from, err := r.openLeased()
	if err != nil {
		return err
	}
	defer from.Close()
	return r.replaceBy(func(to *os.File) error {
		_, err := io.Copy(to, io.NewSectionReader(from, 0, r.was.Size))
		return fault.Cause(err)
	})
}

// tailEqual reports whether a file has the length and the end that it had.
func (r *restorer) tailEqual() (bool, error) {
	if r.is.Size != r.was.Size {
		return false, nil
	}
	tail, err := r.tail()
	return bytes.Equal(tail, r.object.Tail), err
}

// tail sums the end of what the content was.
func (r *restorer) tail() ([]byte, error) {
	file, err := r.openLeased()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return tailOf(file, r.was.Size)
}

// openLeased opens the object for reading, and waits for whoever holds a lease on it: it cannot be replaced instead.
func (r *restorer) openLeased() (*os.File, error) {
	file, err := r.open()
	if errors.Is(err, syscall.EAGAIN) {
		return r.at.Of(r.is).OpenLeased()
	}
	return file, err
}

func (r *restorer) cut() error {
	file, err := r.at.Of(r.is).OpenInPlace()
	if errors.Is(err, syscall.EAGAIN) { // it cannot be replaced instead
		file, err = r.at.Of(r.is).OpenLeased()
	}
	if err != nil {
		return err
	}
	err = fault.Cause(file.Truncate(r.was.Size))
	if err == nil {
		err = fault.Cause(file.Sync())
	}
	return errors.Join(err, fault.Cause(file.Close()))
}

// copyTail saves what is after the old end, in which there is something of others, as a file of its own.
func (r *restorer) copyTail(to *fsys.At) error {
	if _, err := to.Stat(); err == nil {
		return os.ErrExist
	}
	from, err := r.openLeased()
	if err != nil {
		return err
	}
	defer from.Close()
	staged, err := to.Stage()
	if err != nil {
		return err
	}
	if _, err := io.Copy(staged.File, io.NewSectionReader(from, r.was.Size, r.is.Size-r.was.Size)); err != nil {
		return errors.Join(fault.Cause(err), staged.Discard())
	}
	return r.do("restore.aside", func() error { return staged.Restore(r.is, true) })
}
