package file

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func (r *Room) mkdir(ctx context.Context, call *builtins.Call, in *pb.MkdirArgs) (_ *pb.Changed, err error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	c, err := r.begin(call, "file.mkdir", in.Path, edit.Options{Follow: true, Parents: in.Parents})
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.End(&err)
	if err := c.trustedDir(attr); err != nil {
		return nil, err
	}
	switch {
	case c.Old.Kind == fsys.Directory && !edit.Differs(c.Old, attr):
		return &pb.Changed{}, nil
	case c.Old.Kind == fsys.Directory:
		return changed(c.SetAttr(ctx, attr))
	case !c.Absent():
		return nil, fs.ErrExist
	}
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	if err := c.At.Mkdir(attr); err != nil {
		return nil, err
	}
	if err := c.SyncDir(c.At); err != nil {
		return nil, err
	}
	c.Report("created", nil)
	return &pb.Changed{Changed: true}, nil
}

// trustedDir refuses a directory that another user made first where others can make one, as in /tmp: he would change
// what is put into it.
func (c *change) trustedDir(attr fsys.Attr) error {
	if c.At == nil || c.Old.Kind != fsys.Directory {
		return nil
	}
	trusted, err := c.At.Trusted(c.Old, attr.UID)
	if err == nil && !trusted {
		return fault.Refuse("it belongs to user %d, and others can put something into the directory above", c.Old.UID)
	}
	return nil
}

func (r *Room) chmod(ctx context.Context, call *builtins.Call, in *pb.ChmodArgs) (*pb.Changed, error) {
	mode, err := parseMode(in.Mode)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.changeAttr(ctx, call, "file.chmod", in.Path, fsys.Attr{Mode: mode})
}

func (r *Room) chown(ctx context.Context, call *builtins.Call, in *pb.ChownArgs) (*pb.Changed, error) {
	attr, err := r.ownersOf(call, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.changeAttr(ctx, call, "file.chown", in.Path, attr)
}

// changeAttr changes the attributes of what a path leads to, through a safe link.
func (r *Room) changeAttr(ctx context.Context, call *builtins.Call, op, path string, attr fsys.Attr) (_ *pb.Changed, err error) {
	c, err := r.begin(call, op, path, edit.Options{Follow: true})
	if err != nil {
		return nil, fault.On(path, err)
	}
	defer c.End(&err)
	if c.Absent() {
		return nil, fs.ErrNotExist
	}
	if !edit.Differs(c.Old, attr) {
		return &pb.Changed{}, nil
	}
	return changed(c.SetAttr(ctx, attr))
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.RemoveArgs) (_ *pb.Changed, err error) {
	c, err := r.begin(call, "file.remove", in.Path, edit.Options{Whole: true})
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.Changed{}, nil
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.End(&err)
	if c.Absent() {
		return &pb.Changed{}, nil
	}
	if err := c.removable(in.Recursive); err != nil {
		return nil, err
	}
	content := c.removed()
	if err := c.takeAway(ctx, in.Recursive); err != nil {
		return nil, err
	}
	c.Report("deleted", content)
	return &pb.Changed{Changed: true}, nil
}

// removable returns why what is there must not be removed.
func (c *change) removable(recursive bool) error {
	switch {
	case c.At.IsRoot():
		return fault.Refuse("the root directory is not removed")
	case c.Old.Mounted:
		return fault.Refuse("a file system is mounted here")
	case c.Old.Kind != fsys.Directory:
		return nil
	case recursive:
		return c.At.NoMountsBelow()
	}
	dir, err := c.At.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Each(func(string) error { return syscall.ENOTEMPTY })
}

// removed shows the content of a file that goes.
func (c *change) removed() *edit.Content {
	if c.Old.Kind != fsys.File {
		return nil
	}
	return c.OldContent()
}

func (c *change) takeAway(ctx context.Context, recursive bool) error {
	if c.Call.Tx != nil {
		return c.Call.Tx.Take(ctx, c.Path, c.Old)
	}
	remove := c.At.Remove
	if recursive {
		remove = func() error { return c.At.RemoveAll(ctx) }
	}
	if err := remove(); err != nil {
		return err
	}
	return c.At.SyncDir()
}

func (r *Room) symlink(ctx context.Context, call *builtins.Call, in *pb.SymlinkArgs) (*pb.Changed, error) {
	return changed(r.edit.Symlink(ctx, call, edit.Link{Op: "file.symlink", Path: in.Path, Target: text.UnescapePath(in.Target)}))
}

// copy makes `to` have the content of `from`. A new file gets the permission bits of the old one, without setuid and
// setgid; one that is there keeps its own attributes.
func (r *Room) copy(ctx context.Context, call *builtins.Call, in *pb.FromToArgs) (_ *pb.Changed, err error) {
	from, err := r.begin(call, "file.copy", in.From, edit.Options{Follow: true, Source: true})
	if err == nil && from.Absent() {
		from.Close()
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fault.On(in.From, err)
	}
	defer from.Close()
	to, err := r.begin(call, "file.copy", in.To, edit.Options{})
	if err != nil {
		return nil, fault.On(in.To, err)
	}
	defer to.End(&err)
	trusted, err := to.At.Trusted(to.Old, nil)
	if err != nil {
		return nil, err
	}
	if same, err := sameContent(ctx, from, to); same && trusted || err != nil {
		return &pb.Changed{}, err
	}
	if err := to.At.CheckReplace(to.Old); err != nil {
		return nil, err
	}
	attr := fsys.Attr{}
	if to.Old.Kind != fsys.File || !trusted {
		attr.Create = new(from.Old.Mode & 0o777)
	}
	mode := to.Old.Mode
	if attr.Create != nil {
		mode = *attr.Create
	}
	content := to.OldContent().With(from.OldContent(), mode)
	if err := to.copyFrom(ctx, from, attr); err != nil {
		return nil, err
	}
	to.Report(to.PutAction(), content)
	return &pb.Changed{Changed: true}, nil
}

func (c *change) copyFrom(ctx context.Context, from *change, attr fsys.Attr) error {
	if err := c.PredictCost(); err != nil {
		return err
	}
	if err := c.Prepare(ctx); err != nil {
		return err
	}
	staged, err := c.At.Stage()
	if err != nil {
		return err
	}
	if err := from.CopyOld(ctx, staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	return c.Commit(staged, attr)
}

// sameContent compares two files; a place without a file is never the same.
func sameContent(ctx context.Context, a, b *change) (bool, error) {
	one, err := a.At.Open()
	if err != nil {
		return false, fault.On(a.Path, err)
	}
	defer one.Close()
	if b.Old.Kind != fsys.File || a.Old.Size != b.Old.Size {
		return false, nil
	}
	other, err := b.At.Open()
	if err != nil {
		return false, err
	}
	defer other.Close()
	return fsys.SameContent(ctx, one, other)
}
