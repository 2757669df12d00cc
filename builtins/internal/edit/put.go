package edit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// File is what a file shall be.
type File struct {
	// Op is the operation, for the list of changes, and Path the file. Required.
	Op, Path string
	// Attr are the owner, group and mode; what is not said stays as it is.
	Attr fsys.Attr
	// Parents makes missing directories above, Backup keeps the old file as Path.bak, InPlace writes into the file that is
	// there instead of replacing it, Follow goes through a safe link, Append puts Content after what is there.
	Parents, Backup, InPlace, Follow, Append bool
	// Content is what the file, or what is added to it, shall be.
	Content []byte
	// Edit makes the content of what is there; a file that is not there is nil, and a result that is nil too asks for none. It
	// is used instead of Content. The old content is its own: it may become the new one. Optional.
	Edit func(ctx context.Context, old []byte) ([]byte, error)
	// Validate is called with the path of the new file before that takes the place of the old one; an error leaves the old one
	// there. It is not called in a dry run, whose files no program sees, and goes neither with InPlace nor with Append.
	// Optional.
	Validate func(ctx context.Context, path string) error
	// Same reports whether a content is as good as Content. Nil: only the same bytes are.
	Same func(have []byte) bool
}

// MaxContent is the most bytes that are rewritten in place, or edited, at once: what one message can hold.
const MaxContent = 16 << 20

// MaxEdit is the most bytes that a file has before and after an Edit: it is in memory with what it becomes.
const MaxEdit = 8 << 20

// ErrTooLarge is what an Edit returns that would make a file of more than MaxEdit bytes. It finds out before it makes them.
var ErrTooLarge = fault.Wrapf(fault.ErrTooLarge, "the file would have more than %d bytes", MaxEdit)

// Put makes a file what it shall be, and returns whether that changed anything.
func (e *Editor) Put(ctx context.Context, call *builtins.Call, w File) (changed bool, err error) {
	c, err := e.Begin(call, w.Op, w.Path, Options{Follow: w.Follow, Parents: w.Parents})
	if err != nil {
		return false, fault.On(w.Path, err)
	}
	defer c.End(&err)
	if w.Validate != nil && (w.InPlace || w.Append) {
		return false, fault.Invalid("validate looks at a new file that takes the place of the old one, and here the old one is written to")
	}
	if err := c.trust(w); err != nil {
		return false, err
	}
	w.InPlace = w.InPlace || w.Append && c.Old.AppendOnly // the kernel allows nothing else
	if w.Edit != nil {
		if w.Content, err = c.edited(ctx, w.Edit); err != nil {
			return false, err
		}
		if w.Content == nil && c.Absent() { // nothing is to be made
			return false, nil
		}
	}
	if same, err := c.has(w); err != nil || same && !Differs(c.Old, w.Attr) {
		return false, err
	} else if same {
		return c.SetAttr(ctx, w.Attr)
	}
	if err := c.writable(w); err != nil {
		return false, err
	}
	content := c.OldContent()
	c.show(content, w)
	if err := c.putContent(ctx, w); err != nil {
		return false, err
	}
	c.Report(c.PutAction(), content)
	return true, nil
}

// trust finds out whether what is there may have been put there by another user. Then nothing is made of its content,
// which is his, and nothing is written into it, which he may have open.
func (c *Change) trust(w File) (err error) {
	if c.At == nil {
		return nil
	}
	trusted, err := c.At.Trusted(c.Old, w.Attr.UID)
	if err == nil && !trusted && (w.InPlace || w.Append || w.Edit != nil) {
		err = &fault.Error{
			Err:  fault.Refuse("it belongs to user %d, and others can put files into the directory", c.Old.UID),
			Hint: "write the whole file, or say that it shall be his: the owner",
		}
	}
	c.untrusted = !trusted
	return err
}

// edited is what an edit makes of the file that is there.
func (c *Change) edited(ctx context.Context, edit func(context.Context, []byte) ([]byte, error)) ([]byte, error) {
	if c.Absent() {
		return edit(ctx, nil)
	}
	if c.Old.Kind != fsys.File {
		return nil, c.writable(File{}) // which says what is wrong with it
	}
	if err := builtins.Large(ctx, c.Old.Size); err != nil {
		return nil, err
	}
	old, err := c.At.ReadFile(MaxEdit)
	if err != nil {
		return nil, err
	}
	return edit(ctx, old)
}

// has reports whether the content is there already.
func (c *Change) has(w File) (bool, error) {
	if c.Old.Kind != fsys.File || c.untrusted {
		return false, nil
	}
	if w.Append {
		return len(w.Content) == 0, nil
	}
	if w.Same != nil {
		have, err := c.At.ReadFile(MaxContent)
		return err == nil && w.Same(have), err
	}
	if c.Old.Size != int64(len(w.Content)) && c.Old.Size != 0 { // a file of /proc has size 0
		return false, nil
	}
	have, err := c.At.ReadFile(int64(len(w.Content)))
	if errors.Is(err, fault.ErrTooLarge) {
		return false, nil
	}
	return bytes.Equal(have, w.Content), err
}

// writable refuses early what the write itself would refuse after something else was done.
func (c *Change) writable(w File) error {
	switch {
	case c.At == nil:
		return nil
	case !w.InPlace || c.Absent():
		return c.At.CheckReplace(c.Old)
	case c.Old.Kind == fsys.Directory:
		return syscall.EISDIR
	case c.Old.Kind != fsys.File:
		return fault.Refuse("is a %s, not a regular file", strings.ReplaceAll(string(c.Old.Kind), "_", " "))
	case c.Old.Immutable || c.Old.AppendOnly && !w.Append:
		return c.Old.CheckLocked("the file")
	case !w.Append && c.Old.Size > MaxContent:
		return fault.Wrapf(fault.ErrTooLarge, "the file has more than %d bytes, too many to be kept while it is written in place", MaxContent)
	}
	return nil
}

func (c *Change) show(content *Content, w File) {
	mode := uint32(0o644)
	switch {
	case c.Old.Kind == fsys.File && !c.untrusted:
		mode = c.Old.Mode
	case c.At != nil:
		inherited, err := c.At.NewFileMode()
		content.hidden = content.hidden || err != nil
		mode = inherited
	}
	if w.Attr.Mode != nil {
		mode = *w.Attr.Mode
	}
	text := w.Content
	if w.Append && !content.hidden && !content.long {
		text = append(append([]byte{}, content.old...), text...)
	}
	content.Becomes(text, mode)
	content.long = content.long || len(text) > diff.MaxText
}

// putContent does it: what was there is kept, and the new content is complete beside it, before anything is touched.
func (c *Change) putContent(ctx context.Context, w File) error {
	if c.appendable(w) {
		if err := c.Call.Tx.BeforeAppend(ctx, c.Path); err != nil {
			return err
		}
		if err := c.CheckKept(); err != nil {
			return err
		}
		return c.rewrite(w)
	}
	if !c.grows(w) {
		if err := c.PredictCost(); err != nil {
			return err
		}
	}
	backup := w.Backup && !c.Absent()
	var others []string
	if backup {
		others = append(others, c.Path+BackupSuffix)
	}
	if err := c.Prepare(ctx, others...); err != nil {
		return err
	}
	if w.InPlace && !c.Absent() {
		if backup {
			if err := c.backup(ctx); err != nil {
				return err
			}
		}
		return c.rewrite(w)
	}
	staged, err := c.stage(ctx, w)
	if err != nil {
		return err
	}
	if w.Validate != nil && c.Call.DryRun == nil {
		if err := staged.Show(func(path string) error { return w.Validate(ctx, path) }); err != nil {
			return errors.Join(err, staged.Discard())
		}
	}
	if backup {
		if err := c.backup(ctx); err != nil {
			return errors.Join(err, staged.Discard())
		}
	}
	return c.Commit(staged, w.Attr)
}

// grows reports whether a large file gets no more than something after it.
func (c *Change) grows(w File) bool {
	return w.Append && !w.Backup && c.Old.Kind == fsys.File && c.Old.Size > maxKept
}

// appendable reports whether something is put after a file in place, so that neither a copy of it is made nor one kept: a
// large file, in a transaction, which cuts it back. One that cannot be written in place, such as a running program, is
// replaced.
func (c *Change) appendable(w File) bool {
	if c.Call.Tx == nil || !c.grows(w) {
		return false
	}
	if pseudo, err := c.At.Pseudo(); err != nil || pseudo {
		return false
	}
	file, err := c.openInPlace(w)
	if err != nil {
		return false
	}
	_ = file.Close()
	return true
}

// openInPlace opens the file that is there for what is to be written into it.
func (c *Change) openInPlace(w File) (*os.File, error) {
	if w.Append && c.Old.AppendOnly {
		return c.At.OpenAppend()
	}
	return c.At.OpenInPlace()
}

func (c *Change) stage(ctx context.Context, w File) (*fsys.Staged, error) {
	staged, err := c.At.Stage()
	if err != nil {
		return nil, err
	}
	if w.Append && !c.Absent() {
		err = c.CopyOld(ctx, staged.File)
	}
	if err == nil {
		_, err = staged.File.Write(w.Content)
	}
	if err != nil {
		return nil, errors.Join(fault.Cause(err), staged.Discard())
	}
	return staged, nil
}

// CopyOld puts the content that is there into a new file, and leaves it at its end.
func (c *Change) CopyOld(ctx context.Context, to *os.File) error {
	from, err := c.At.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	if err := c.still(from); err != nil {
		return err
	}
	if err := fsys.CopyFitting(ctx, to, from); err != nil {
		return err
	}
	_, err = to.Seek(0, io.SeekEnd)
	return err
}

// still refuses an open file that is not the one that was looked at. In a dry run nobody else changes what is
// pretended.
func (c *Change) still(file *os.File) error {
	if c.Call != nil && c.Call.DryRun != nil {
		return nil
	}
	meta, err := fsys.StatFile(file)
	if err == nil && !meta.Same(c.Old) {
		err = fault.Wrapf(fault.ErrChanged, "another file took its place meanwhile")
	}
	return err
}

// rewrite changes the file that is there. Where that fails it gets its old content back.
func (c *Change) rewrite(w File) (err error) {
	file, err := c.openInPlace(w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fault.Cause(file.Close())) }()
	if err := c.still(file); err != nil {
		return err
	}
	if info, err := file.Stat(); err == nil && w.Append && info.Size() != c.Old.Size {
		return fault.Wrapf(fault.ErrChanged, "others write to it at the same time")
	}
	at := c.Old.Size // what is before it stays
	var old []byte
	if !w.Append {
		at = 0
		if old, err = c.At.ReadFile(MaxContent); err != nil {
			return err
		}
	}
	if w.Append && c.Old.AppendOnly {
		err = c.extend(file, w)
	} else {
		err = c.fillAndSet(file, at, w)
	}
	if err == nil {
		err = c.At.CheckFile(file)
	}
	if err == nil {
		return nil
	}
	if c.Old.AppendOnly {
		err = errors.Join(err, c.At.ApplyFile(file, c.Old.Unlocked()))
	}
	return errors.Join(err, fill(file, at, old), c.At.ApplyFile(file, c.Old))
}

// fillAndSet is fill and the attributes. Who is not to read the new content does not see it in between.
func (c *Change) fillAndSet(file *os.File, at int64, w File) error {
	attr, err := c.At.Narrow(file, c.Old, w.Attr)
	if err == nil {
		err = fill(file, at, w.Content)
	}
	if err == nil {
		err = c.At.SetAttrFile(file, attr)
	}
	return err
}

// extend puts content after what is in a file with the flag a, which can be cut by nobody, and whose attributes nobody
// changes.
func (c *Change) extend(file *os.File, w File) error {
	if Differs(c.Old, w.Attr) {
		return c.Old.CheckLocked("the file")
	}
	if _, err := file.Write(w.Content); err != nil {
		return fault.Cause(err)
	}
	return fault.Cause(file.Sync())
}

// fill makes content the end of a file, from a place on, and durable.
func fill(file *os.File, at int64, content []byte) error {
	if _, err := file.Seek(at, io.SeekStart); err != nil {
		return fault.Cause(err)
	}
	if _, err := file.Write(content); err != nil {
		return fault.Cause(err)
	}
	if err := file.Truncate(at + int64(len(content))); err != nil {
		return fault.Cause(err)
	}
	if err := file.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // a file of /proc has nothing to sync
		return fault.Cause(err)
	}
	return nil
}

// BackupSuffix is what a backup has after the name of its file.
const BackupSuffix = ".bak"

// backup keeps what is there as a second file.
func (c *Change) backup(ctx context.Context) (err error) {
	b, err := c.editor.Begin(c.Call, c.Op, c.Path+BackupSuffix, Options{})
	if err != nil {
		return err
	}
	defer b.End(&err)
	if c.Old.Kind == fsys.Symlink {
		if err = b.At.Symlink(c.Old.Target); err == nil {
			err = b.SyncDir(b.At)
		}
	} else {
		err = c.Duplicate(ctx, b)
	}
	if err == nil {
		b.Report(b.PutAction(), nil)
	}
	return err
}

// Duplicate makes the place of another change an exact copy of the file that is here. The copy of one that is not
// trusted is for the agent's user alone.
func (c *Change) Duplicate(ctx context.Context, to *Change) error {
	if err := to.At.CheckReplace(to.Old); err != nil {
		return err
	}
	staged, err := to.At.Stage()
	if err != nil {
		return err
	}
	if err := c.CopyOld(ctx, staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	if c.untrusted {
		return to.Commit(staged, fsys.Attr{Mode: new(uint32(0o600)), UID: new(uint32(os.Geteuid()))})
	}
	return staged.Restore(c.Old, to.Durable())
}
