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
)

// move gives what is at `from` the path `to`. A file or link that is at `to` is replaced by a file or link. Where nothing
// is at `from` and something at `to`, the move has happened already: so it can be repeated.
func (r *Room) move(ctx context.Context, call *builtins.Call, in *pb.FromToArgs) (_ *pb.Changed, err error) {
	from, err := r.begin(call, "file.move", in.From, edit.Options{Whole: true})
	if err != nil {
		return nil, fault.On(in.From, err)
	}
	defer from.Close()
	to, err := r.begin(call, "file.move", in.To, edit.Options{})
	if err != nil {
		return nil, fault.On(in.To, err)
	}
	defer to.End(&err)
	switch {
	case from.Absent() && to.Absent():
		return nil, fault.On(from.Path, fs.ErrNotExist)
	case from.Absent() || from.Path == to.Path:
		return &pb.Changed{}, nil
	}
	if call.Undo && !to.Absent() { // an older agent undoes a move by another one
		if from.Old.Same(to.Old) {
			return &pb.Changed{Changed: true}, from.At.Remove()
		}
		if err := r.edit.PutAside(to.At, to.Path); err != nil {
			return nil, fault.On(to.Path, err)
		}
		to.Old = fsys.Meta{Kind: fsys.Absent}
	}
	if err := movable(from, to); err != nil {
		return nil, err
	}
	if err := from.moveTo(ctx, to); err != nil {
		return nil, err
	}
	from.Report("deleted", nil)
	to.Report(to.PutAction(), nil)
	return &pb.Changed{Changed: true}, nil
}

// movable returns why a move must not be.
func movable(from, to *change) error {
	switch {
	case from.At.IsRoot() || from.Old.Mounted:
		return fault.On(from.Path, fault.Refuse("the root of a file system is not moved"))
	case fsys.Within(to.Path, from.Path):
		return fault.Invalid("is inside %s", from.Path)
	case from.Old.Kind == fsys.Directory:
		if !to.Absent() {
			return fs.ErrExist
		}
		return fault.On(from.Path, from.At.NoMountsBelow())
	case to.Absent():
		return nil
	case from.Old.Links > 1:
		// Renaming over another name of the same file does nothing, and a copy kept of it would part its names.
		return fault.On(from.Path, fault.Refuse("the file has %d names, and another file is in its way", from.Old.Links))
	}
	return to.At.CheckReplace(to.Old)
}

// moveTo renames, and copies where the two places are on different file systems.
func (c *change) moveTo(ctx context.Context, to *change) error {
	if to.Absent() {
		if c.Call.Tx != nil {
			// The way back is a move, which leaves its time on both directories: they are kept themselves.
			if err := c.Call.Tx.Before(ctx, fsys.Parent(c.Path), fsys.Parent(to.Path)); err != nil {
				return err
			}
			if err := c.Call.Tx.Undo(ctx, edit.Moved, edit.Object(c.Path, c.Old, to.Path)); err != nil {
				return err
			}
		}
		return c.rename(ctx, to, false)
	}
	if err := to.PredictCost(); err != nil {
		return err
	}
	if err := to.Prepare(ctx, c.Path); err != nil {
		return err
	}
	if err := c.CheckKept(); err != nil {
		return err
	}
	return c.rename(ctx, to, true)
}

func (c *change) rename(ctx context.Context, to *change, kept bool) error {
	err := c.At.Rename(to.At, !to.Absent())
	if errors.Is(err, syscall.EXDEV) {
		return c.carry(ctx, to, kept)
	}
	if err != nil {
		return err
	}
	if err := to.SyncDir(to.At); err != nil {
		return err
	}
	return c.SyncDir(c.At)
}

// carry moves a file or a link to another file system: complete there, then gone here.
func (c *change) carry(ctx context.Context, to *change, kept bool) error {
	if c.Old.Kind != fsys.File && c.Old.Kind != fsys.Symlink {
		return fault.Unsupported("a %s cannot be moved to another file system", typeOf(c.Old.Kind))
	}
	if c.Old.Links > 1 {
		return fault.On(c.Path, fault.Refuse("the file has %d names, which a copy on another file system would part", c.Old.Links))
	}
	if !kept {
		if err := to.Prepare(ctx, c.Path); err != nil {
			return err
		}
	}
	if err := c.carryCopy(ctx, to); err != nil {
		return err
	}
	if err := c.At.Remove(); err != nil {
		if to.Absent() {
			err = errors.Join(err, to.At.Remove())
		}
		return err
	}
	return c.SyncDir(c.At)
}

func (c *change) carryCopy(ctx context.Context, to *change) error {
	if c.Old.Kind == fsys.File {
		return c.Duplicate(ctx, to.Change)
	}
	if !to.Absent() && to.Old.Kind != fsys.Symlink {
		return fs.ErrExist
	}
	if err := to.At.Symlink(c.Old.Target); err != nil {
		return err
	}
	if err := to.At.Apply(c.Old); err != nil {
		return errors.Join(err, to.At.Remove())
	}
	return to.SyncDir(to.At)
}
