package file

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strconv"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// move gives what is at `from` the path `to`. A file or link that is at `to` is replaced by a file or link. Where nothing
// is at `from` and something at `to`, the move has happened already: so it can be repeated, and be its own inverse.
func (r *Room) move(ctx context.Context, call *builtins.Call, in *pb.FromToArgs) (_ *pb.Changed, err error) {
	from, err := r.begin(call, "file.move", in.From, place{whole: true})
	if err != nil {
		return nil, fault.On(in.From, err)
	}
	defer from.close()
	to, err := r.begin(call, "file.move", in.To, place{})
	if err != nil {
		return nil, fault.On(in.To, err)
	}
	defer to.end(&err)
	switch {
	case from.absent() && to.absent():
		return nil, fault.On(from.path, fs.ErrNotExist)
	case from.absent() || from.path == to.path:
		return &pb.Changed{}, nil
	}
	if call.TakesBack && !to.absent() {
		if done, err := from.makeWay(to); done || err != nil {
			return &pb.Changed{Changed: true}, err
		}
	}
	if err := movable(from, to); err != nil {
		return nil, err
	}
	if err := from.moveTo(ctx, to); err != nil {
		return nil, err
	}
	from.report("deleted", nil)
	to.report(to.put(), nil)
	return &pb.Changed{Changed: true}, nil
}

// movable says why a move must not be.
func movable(from, to *change) error {
	switch {
	case from.at.IsRoot() || from.old.Mounted:
		return fault.On(from.path, fault.Refuse("the root of a file system is not moved"))
	case fsys.Within(to.path, from.path):
		return fault.Invalid("is inside %s", from.path)
	case from.old.Kind == fsys.Directory:
		if !to.absent() {
			return fs.ErrExist
		}
		return fault.On(from.path, from.at.NoMountsBelow())
	case to.absent():
		return nil
	case from.old.Links > 1:
		// Renaming over another name of the same file does nothing, and a copy kept of it would part its names.
		return fault.On(from.path, fault.Refuse("the file has %d names, and another file is in its way", from.old.Links))
	}
	return to.at.CanReplace()
}

// inTheWay is behind the name of what somebody else put where something is moved back to.
const inTheWay = ".quantix-conflict"

// makeWay puts aside what somebody else made meanwhile at the place that something comes back to: a rollback must not cost
// others their files. done: it is the very file, by both names, which a crash can leave of a move.
func (c *change) makeWay(to *change) (done bool, err error) {
	if c.old.Same(to.old) {
		return true, c.at.Remove()
	}
	for n := 1; n < 1000; n++ {
		name := to.path + inTheWay
		if n > 1 {
			name += "-" + strconv.Itoa(n)
		}
		aside, err := to.root.At(name)
		if err != nil {
			return false, err
		}
		err = errors.Join(to.at.Rename(aside, false), aside.Close())
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			to.old = fsys.Meta{Kind: fsys.Absent}
		}
		return false, err
	}
	return false, fs.ErrExist
}

// moveTo renames, and copies where the two places are on different file systems.
func (c *change) moveTo(ctx context.Context, to *change) error {
	if to.absent() {
		if c.call.Tx != nil {
			// The way back is a move, which leaves its time on both directories: they are kept themselves.
			if err := c.call.Tx.Before(ctx, path.Dir(c.path), path.Dir(to.path)); err != nil {
				return err
			}
			back := &pb.FromToArgs{From: to.path, To: c.path}
			if err := c.call.Tx.Undo(ctx, "file.move", back); err != nil {
				return err
			}
		}
		return c.rename(ctx, to, false)
	}
	if err := to.prepare(ctx, c.path); err != nil {
		return err
	}
	return c.rename(ctx, to, true)
}

func (c *change) rename(ctx context.Context, to *change, kept bool) error {
	err := c.at.Rename(to.at, !to.absent())
	if errors.Is(err, syscall.EXDEV) {
		return c.carry(ctx, to, kept)
	}
	if err != nil {
		return err
	}
	if err := to.syncDir(to.at); err != nil {
		return err
	}
	return c.syncDir(c.at)
}

// carry moves a file or a link to another file system: complete there, then gone here.
func (c *change) carry(ctx context.Context, to *change, kept bool) error {
	if c.old.Kind != fsys.File && c.old.Kind != fsys.Symlink {
		return fault.Unsupported("a %s cannot be moved to another file system", typeOf(c.old.Kind))
	}
	if c.old.Links > 1 {
		return fault.On(c.path, fault.Refuse("the file has %d names, which a copy on another file system would part", c.old.Links))
	}
	if !kept {
		if err := to.prepare(ctx, c.path); err != nil {
			return err
		}
	}
	if err := c.carryCopy(ctx, to); err != nil {
		return err
	}
	if err := c.at.Remove(); err != nil {
		if to.absent() {
			err = errors.Join(err, to.at.Remove())
		}
		return err
	}
	return c.syncDir(c.at)
}

func (c *change) carryCopy(ctx context.Context, to *change) error {
	if c.old.Kind == fsys.File {
		return c.duplicate(ctx, to)
	}
	if !to.absent() && to.old.Kind != fsys.Symlink {
		return fs.ErrExist
	}
	if err := to.at.Symlink(c.old.Target); err != nil {
		return err
	}
	if err := to.at.Apply(c.old); err != nil {
		return errors.Join(err, to.at.Remove())
	}
	return to.syncDir(to.at)
}
