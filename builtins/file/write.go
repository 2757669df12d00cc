package file

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxContent is the most bytes that a script reads or rewrites in place at once: what one message can hold.
const maxContent = 16 << 20

// wanted is what a file shall be.
type wanted struct {
	op, path string
	attr     fsys.Attr
	parents  bool
	backup   bool
	inplace  bool
	follow   bool
	add      bool   // content comes behind what is there
	content  []byte // what the file, or what is added to it, shall be
	// edit makes the content of what is there; a file that is not there is nil. It is used instead of content.
	edit func(old []byte) ([]byte, error)
}

func (r *Room) write(ctx context.Context, call *builtins.Call, in *pb.WriteFileArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, wanted{
		op: "file.write", path: in.Path, attr: attr, content: in.Content,
		parents: in.Parents, backup: in.Backup, inplace: in.Inplace, follow: in.Inplace,
	})
}

func (r *Room) append(ctx context.Context, call *builtins.Call, in *pb.WriteFileArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, wanted{
		op: "file.append", path: in.Path, attr: attr, content: in.Content,
		parents: in.Parents, backup: in.Backup, inplace: in.Inplace, follow: true, add: true,
	})
}

// put makes a file what it shall be.
func (r *Room) put(ctx context.Context, call *builtins.Call, w wanted) (_ *pb.Changed, err error) {
	c, err := r.begin(call, w.op, w.path, place{follow: w.follow, parents: w.parents})
	if err != nil {
		return nil, fault.On(w.path, err)
	}
	defer c.end(&err)
	if w.edit != nil {
		if w.content, err = c.edited(w.edit); err != nil {
			return nil, err
		}
		if w.content == nil && c.absent() { // nothing is to be made
			return &pb.Changed{}, nil
		}
	}
	if same, err := c.has(w); err != nil || same && !differs(c.old, w.attr) {
		return &pb.Changed{}, err
	} else if same {
		return c.setAttr(ctx, w.attr)
	}
	if err := c.writable(w); err != nil {
		return nil, err
	}
	content := c.newShown()
	c.show(content, w)
	if err := c.putContent(ctx, w); err != nil {
		return nil, err
	}
	c.report(c.put(), content)
	return &pb.Changed{Changed: true}, nil
}

// has says whether the content is there already.
func (c *change) has(w wanted) (bool, error) {
	if c.old.Kind != fsys.File {
		return false, nil
	}
	if w.add {
		return len(w.content) == 0, nil
	}
	if c.old.Size != int64(len(w.content)) && c.old.Size != 0 { // a file of /proc has size 0
		return false, nil
	}
	have, err := c.at.ReadFile(int64(len(w.content)))
	if errors.Is(err, fault.ErrTooLarge) {
		return false, nil
	}
	return bytes.Equal(have, w.content), err
}

// writable refuses early what the write itself would refuse after something else was done.
func (c *change) writable(w wanted) error {
	switch {
	case c.at == nil:
		return nil
	case !w.inplace || c.absent():
		return c.at.CanReplace()
	case c.old.Kind == fsys.Directory:
		return syscall.EISDIR
	case c.old.Kind != fsys.File:
		return fault.Refuse("is a %s, not a regular file", typeOf(c.old.Kind))
	case !w.add && c.old.Size > maxContent:
		return fault.Wrapf(fault.ErrTooLarge, "the file has more than %d bytes, too many to be kept while it is written in place", maxContent)
	}
	return nil
}

func (c *change) show(content *shown, w wanted) {
	mode := uint32(0o644)
	if c.old.Kind == fsys.File {
		mode = c.old.Mode
	}
	if w.attr.Mode != nil {
		mode = *w.attr.Mode
	}
	text := w.content
	if w.add {
		text = append(append([]byte{}, content.old...), text...)
	}
	content.becomes(text, mode)
	content.long = content.long || len(text) > diff.MaxText
}

// putContent does it: what was there is kept, and the new content is complete beside it, before anything is touched.
func (c *change) putContent(ctx context.Context, w wanted) error {
	backup := w.backup && !c.absent()
	var others []string
	if backup {
		others = append(others, c.path+backupSuffix)
	}
	if err := c.prepare(ctx, others...); err != nil {
		return err
	}
	if w.inplace && !c.absent() {
		if backup {
			if err := c.backup(ctx); err != nil {
				return err
			}
		}
		return c.rewrite(ctx, w)
	}
	staged, err := c.stage(ctx, w)
	if err != nil {
		return err
	}
	if backup {
		if err := c.backup(ctx); err != nil {
			return errors.Join(err, staged.Discard())
		}
	}
	return staged.Commit(w.attr, c.durable())
}

func (c *change) stage(ctx context.Context, w wanted) (*fsys.Staged, error) {
	staged, err := c.at.Stage()
	if err != nil {
		return nil, err
	}
	if w.add && !c.absent() {
		err = c.copyOld(ctx, staged.File)
	}
	if err == nil {
		_, err = staged.File.Write(w.content)
	}
	if err != nil {
		return nil, errors.Join(fault.Cause(err), staged.Discard())
	}
	return staged, nil
}

// copyOld puts the content that is there into a new file, and leaves it at its end.
func (c *change) copyOld(ctx context.Context, to *os.File) error {
	from, err := c.at.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	if err := fsys.CopyFile(ctx, to, from); err != nil {
		return err
	}
	_, err = to.Seek(0, io.SeekEnd)
	return err
}

// rewrite changes the file that is there. Where that fails it gets its old content back.
func (c *change) rewrite(ctx context.Context, w wanted) (err error) {
	file, err := c.at.OpenInPlace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fault.Cause(file.Close())) }()
	at := c.old.Size // what is before it stays
	var old []byte
	if !w.add {
		at = 0
		if old, err = c.at.ReadFile(maxContent); err != nil {
			return err
		}
	}
	err = fill(file, at, w.content)
	if err == nil {
		err = c.at.SetAttr(w.attr)
	}
	if err != nil {
		return errors.Join(err, fill(file, at, old), c.at.Apply(c.old))
	}
	return nil
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

// backupSuffix is what a backup has behind the name of its file.
const backupSuffix = ".bak"

// backup keeps what is there as a second file.
func (c *change) backup(ctx context.Context) (err error) {
	b, err := c.room.begin(c.call, c.op, c.path+backupSuffix, place{})
	if err != nil {
		return err
	}
	defer b.end(&err)
	if c.old.Kind == fsys.Symlink {
		if err = b.at.Symlink(c.old.Target); err == nil {
			err = b.syncDir(b.at)
		}
	} else {
		err = c.duplicate(ctx, b)
	}
	if err == nil {
		b.report(b.put(), nil)
	}
	return err
}

// duplicate makes the place of another change an exact copy of the file that is here.
func (c *change) duplicate(ctx context.Context, to *change) error {
	if err := to.at.CanReplace(); err != nil {
		return err
	}
	staged, err := to.at.Stage()
	if err != nil {
		return err
	}
	if err := c.copyOld(ctx, staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	return staged.Restore(c.old, to.durable())
}
