package file

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) mkdir(ctx context.Context, call *builtins.Call, in *pb.MkdirArgs) (_ *pb.Changed, err error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	c, err := r.begin(call, "file.mkdir", in.Path, place{follow: true, parents: in.Parents})
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.end(&err)
	switch {
	case c.old.Kind == fsys.Directory && !differs(c.old, attr):
		return &pb.Changed{}, nil
	case c.old.Kind == fsys.Directory:
		return c.setAttr(ctx, attr)
	case !c.absent():
		return nil, fs.ErrExist
	}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	if err := c.at.Mkdir(attr); err != nil {
		return nil, err
	}
	if err := c.syncDir(c.at); err != nil {
		return nil, err
	}
	c.report("created", nil)
	return &pb.Changed{Changed: true}, nil
}

// setAttr changes nothing but attributes. They are put back where one of them cannot be set.
func (c *change) setAttr(ctx context.Context, attr fsys.Attr) (*pb.Changed, error) {
	keep, sync := c.prepare, c.durable()
	if c.old.Kind == fsys.File && c.old.Size > maxKept && c.call.Tx != nil {
		keep, sync = c.keepAttr, true // a commit does not know the path
	}
	if err := keep(ctx); err != nil {
		return nil, err
	}
	if err := c.at.SetAttr(attr); err != nil {
		return nil, errors.Join(err, c.at.Apply(c.old))
	}
	if sync {
		if err := forced(c.at); err != nil {
			return nil, err
		}
	}
	c.report("modified", nil)
	return &pb.Changed{Changed: true}, nil
}

// maxKept is the size of the largest file whose content is kept, too, where only its attributes change: to copy a large
// one would cost time and space that nobody expects of a chmod.
const maxKept = 1 << 20

// keepAttr keeps the attributes of a file alone.
func (c *change) keepAttr(ctx context.Context, _ ...string) error {
	was := &pb.JournalObject{Path: c.path, State: &pb.JournalState{Mode: c.old.Mode, Uid: c.old.UID, Gid: c.old.GID}}
	for name, value := range c.old.Xattrs {
		was.State.Xattrs = append(was.State.Xattrs, &pb.JournalXattr{Name: []byte(name), Value: value})
	}
	return c.call.Tx.Undo(ctx, "file.attributes", was)
}

// attributes gives a file the attributes that keepAttr kept. One that somebody removed needs none.
func (r *Room) attributes(_ context.Context, _ *builtins.Call, in *pb.JournalObject) (*pb.Changed, error) {
	at, err := r.root.Exact(in.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.Changed{}, nil
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer at.Close()
	meta, err := at.Capture()
	if err != nil || meta.Kind != fsys.File {
		return &pb.Changed{}, fault.On(in.Path, err)
	}
	meta.Mode, meta.UID, meta.GID, meta.Xattrs = in.State.GetMode(), in.State.GetUid(), in.State.GetGid(), map[string][]byte{}
	for _, x := range in.State.GetXattrs() {
		meta.Xattrs[string(x.Name)] = x.Value
	}
	if err = at.Apply(meta); err == nil {
		err = forced(at)
	}
	return &pb.Changed{Changed: true}, fault.On(in.Path, err)
}

// forced makes the attributes of what is at a place durable, unless its mode forbids opening it.
func forced(at *fsys.At) error {
	if err := at.Sync(); !errors.Is(err, fs.ErrPermission) {
		return err
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
	attr, err := owners(r.files(call), in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.changeAttr(ctx, call, "file.chown", in.Path, attr)
}

// changeAttr changes the attributes of what a path leads to, through a safe link.
func (r *Room) changeAttr(ctx context.Context, call *builtins.Call, op, path string, attr fsys.Attr) (_ *pb.Changed, err error) {
	c, err := r.begin(call, op, path, place{follow: true})
	if err != nil {
		return nil, fault.On(path, err)
	}
	defer c.end(&err)
	if c.absent() {
		return nil, fs.ErrNotExist
	}
	if !differs(c.old, attr) {
		return &pb.Changed{}, nil
	}
	return c.setAttr(ctx, attr)
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.RemoveArgs) (_ *pb.Changed, err error) {
	c, err := r.begin(call, "file.remove", in.Path, place{whole: true})
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.Changed{}, nil
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.end(&err)
	if c.absent() {
		return &pb.Changed{}, nil
	}
	if err := c.removable(in.Recursive); err != nil {
		return nil, err
	}
	content := c.removed()
	if err := c.takeAway(ctx, in.Recursive); err != nil {
		return nil, err
	}
	c.report("deleted", content)
	return &pb.Changed{Changed: true}, nil
}

// removable says why what is there must not be removed.
func (c *change) removable(recursive bool) error {
	switch {
	case c.at.IsRoot():
		return fault.Refuse("the root directory is not removed")
	case c.old.Mounted:
		return fault.Refuse("a file system is mounted here")
	case c.old.Kind != fsys.Directory:
		return nil
	case recursive:
		return c.at.NoMountsBelow()
	}
	dir, err := c.at.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Names()
	if err == nil && len(names) > 0 {
		err = syscall.ENOTEMPTY
	}
	return err
}

// removed shows the content of a file that goes.
func (c *change) removed() *shown {
	if c.old.Kind != fsys.File {
		return nil
	}
	return c.newShown()
}

func (c *change) takeAway(ctx context.Context, recursive bool) error {
	if c.call.Tx != nil {
		return c.call.Tx.Take(ctx, c.path)
	}
	remove := c.at.Remove
	if recursive {
		remove = func() error { return c.at.RemoveAll(ctx) }
	}
	if err := remove(); err != nil {
		return err
	}
	return c.at.SyncDir()
}

func (r *Room) symlink(ctx context.Context, call *builtins.Call, in *pb.SymlinkArgs) (_ *pb.Changed, err error) {
	c, err := r.begin(call, "file.symlink", in.Path, place{})
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.end(&err)
	target := fsys.Unescape(in.Target)
	switch {
	case target == "":
		return nil, fault.Invalid("the target is empty")
	case c.old.Kind == fsys.Symlink && c.old.Target == target:
		return &pb.Changed{}, nil
	case c.old.Kind != fsys.Symlink && !c.absent():
		return nil, fs.ErrExist
	}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	if err := c.at.Symlink(target); err != nil {
		return nil, err
	}
	if err := c.syncDir(c.at); err != nil {
		return nil, err
	}
	c.report(c.put(), nil)
	return &pb.Changed{Changed: true}, nil
}

// copy makes `to` have the content of `from`. A new file gets the permission bits of the old one, without setuid and
// setgid; one that is there keeps its own attributes.
func (r *Room) copy(ctx context.Context, call *builtins.Call, in *pb.FromToArgs) (_ *pb.Changed, err error) {
	from, err := r.begin(call, "file.copy", in.From, place{follow: true, source: true})
	if err == nil && from.absent() {
		from.close()
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fault.On(in.From, err)
	}
	defer from.close()
	to, err := r.begin(call, "file.copy", in.To, place{})
	if err != nil {
		return nil, fault.On(in.To, err)
	}
	defer to.end(&err)
	if same, err := sameContent(ctx, from, to); same || err != nil {
		return &pb.Changed{}, err
	}
	if err := to.at.CanReplace(); err != nil {
		return nil, err
	}
	attr := fsys.Attr{}
	if to.old.Kind != fsys.File {
		attr.Mode = new(from.old.Mode & 0o777)
	}
	content := to.newShown()
	source := from.newShown()
	content.hidden, content.long = content.hidden || source.hidden, content.long || source.long
	content.becomes(source.old, or(attr.Mode, to.old.Mode))
	if err := to.copyFrom(ctx, from, attr); err != nil {
		return nil, err
	}
	to.report(to.put(), content)
	return &pb.Changed{Changed: true}, nil
}

func or(wanted *uint32, otherwise uint32) uint32 {
	if wanted != nil {
		return *wanted
	}
	return otherwise
}

func (c *change) copyFrom(ctx context.Context, from *change, attr fsys.Attr) error {
	if err := c.prepare(ctx); err != nil {
		return err
	}
	staged, err := c.at.Stage()
	if err != nil {
		return err
	}
	if err := from.copyOld(ctx, staged.File); err != nil {
		return errors.Join(err, staged.Discard())
	}
	return staged.Commit(attr, c.durable())
}

// sameContent compares two files; a place without a file is never the same.
func sameContent(ctx context.Context, a, b *change) (bool, error) {
	one, err := a.at.Open()
	if err != nil {
		return false, fault.On(a.path, err)
	}
	defer one.Close()
	if b.old.Kind != fsys.File || a.old.Size != b.old.Size {
		return false, nil
	}
	other, err := b.at.Open()
	if err != nil {
		return false, err
	}
	defer other.Close()
	return fsys.SameContent(ctx, one, other)
}
