package account

import (
	"bytes"
	"context"
	"errors"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// change does what a plan asks for: what it makes of the files is compared with them, and nothing is touched where they are as
// they shall be. Else it is made again under the locks, since others may have changed the files meanwhile.
func (r *Room) change(
	ctx context.Context, call *builtins.Call, op, name string, fill func(*fsys.Root, *plan) error,
) (*pb.Changed, error) {
	// The paths of the files are root's alone, so they mean the same now as when rules were held against them; but what is
	// there changes whenever another tool changes an account.
	own := *call
	own.Checked = nil
	var names *nameService
	changed, err := r.changeFiles(ctx, &own, op, func(root *fsys.Root) (_ *plan, err error) {
		if names == nil {
			names = r.names(ctx, root)
		}
		p := &plan{defaults: readDefaults(root), names: names, today: r.today()}
		if p.db, err = readDatabase(root); err != nil {
			return nil, err
		}
		return p, fill(root, p)
	})
	if err != nil {
		return nil, on(name, err)
	}
	return &pb.Changed{Changed: changed}, nil
}

// on is fault.On with the details of an error within.
func on(name string, err error) error {
	var inner *fault.Error
	if !errors.As(err, &inner) {
		return fault.On(name, err)
	}
	return &fault.Error{Object: name, Err: err, Hint: inner.Hint, Details: inner.Details}
}

func (r *Room) changeFiles(
	ctx context.Context, call *builtins.Call, op string, make func(*fsys.Root) (*plan, error),
) (changed bool, err error) {
	root, err := r.files(call)
	if err != nil {
		return false, err
	}
	if p, err := make(root); err != nil || p.empty() {
		return false, err
	}
	w := &writing{Room: r, call: call, op: op, root: root}
	defer func() { err = errors.Join(err, w.end()) }()
	if err := w.lock(ctx); err != nil {
		return false, err
	}
	if err := w.waitForTools(ctx); err != nil {
		return false, err
	}
	if w.plan, err = make(root); err != nil || w.plan.empty() {
		return false, err
	}
	return true, w.write(ctx)
}

// writing is a plan that is being carried out.
type writing struct {
	*Room
	call *builtins.Call
	op   string
	root *fsys.Root
	plan *plan

	files []*file
	locks locks
}

// file is one of the files on its way.
type file struct {
	*records
	change *edit.Change
}

// end frees all that is held.
func (w *writing) end() error {
	for _, f := range w.files {
		f.change.Close()
	}
	return w.locks.release()
}

// write keeps all that it changes, in one step of the transaction, and then changes it: the home directory first, then the
// files, of which passwd is the last, then what goes.
func (w *writing) write(ctx context.Context) error {
	keep, err := w.begin()
	if err != nil {
		return err
	}
	if err := w.waitForLocks(ctx, w.locks.paths); err != nil {
		return err
	}
	if err := w.announceFlush(ctx); err != nil {
		return err
	}
	if err := w.call.Before(ctx, append(keep, w.locks.paths...)...); err != nil {
		return err
	}
	if err := w.lockFiles(ctx); err != nil {
		return err
	}
	if err := w.unchanged(); err != nil {
		return err
	}
	if err := w.furnish(ctx); err != nil {
		return err
	}
	if m := w.plan.move; m != nil {
		if err := w.moveHome(ctx, m); err != nil {
			return fault.On(m.to, err)
		}
	}
	for _, f := range w.files {
		if err := w.replace(f); err != nil {
			return fault.On(f.path, err)
		}
	}
	for _, path := range w.plan.take {
		if err := w.takeAway(ctx, path); err != nil {
			return fault.On(path, err)
		}
	}
	if w.plan.owner != nil {
		if err := w.chownHome(ctx); err != nil {
			return err
		}
	}
	if err := w.verify(); err != nil {
		return err
	}
	return w.finish(ctx)
}

// begin looks at the files, and returns what must be kept before anything is done.
func (w *writing) begin() (keep []string, err error) {
	for _, r := range w.plan.db.files() {
		c, err := w.edit.Begin(w.call, w.op, r.path, edit.Options{Follow: true})
		if err != nil {
			return nil, fault.On(r.path, err)
		}
		w.files = append(w.files, &file{r, c})
		if err := c.At.CanReplace(); err != nil {
			return nil, fault.On(r.path, err)
		}
		keep = append(keep, c.Path)
		if w.call.DryRun == nil {
			w.locks.paths = append(w.locks.paths, c.Path+lockSuffix)
		}
	}
	more, err := w.furnished()
	if err == nil && w.plan.move != nil {
		var parents []string
		parents, err = w.movable(w.plan.move)
		more = append(more, parents...)
	}
	return append(keep, more...), err
}

// unchanged refuses to go on where somebody has changed a file who knows none of the locks.
func (w *writing) unchanged() error {
	for _, f := range w.files {
		now, err := f.change.At.ReadFile(maxRecords)
		if err == nil && !bytes.Equal(now, f.was) {
			err = fault.Wrapf(fault.ErrChanged, "others write to it at the same time, without its lock")
		}
		if err != nil {
			return fault.On(f.path, err)
		}
	}
	return nil
}

// replace writes the new content of a file. The change has no diff for the shadow files, whatever their modes are, nor for a
// passwd that contains hashes.
func (w *writing) replace(f *file) error {
	c, content := f.change, f.bytes()
	shown := c.OldContent().Becomes(content, c.Old.Mode)
	if f.path == shadowFile || f.path == gshadowFile || f.path == passwdFile && w.plan.db.shadow.absent {
		shown = edit.Hidden()
	}
	staged, err := c.At.Stage()
	if err != nil {
		return err
	}
	if _, err := staged.File.Write(content); err != nil {
		return errors.Join(fault.Cause(err), staged.Discard())
	}
	if err := staged.Commit(fsys.Attr{}, c.Durable()); err != nil {
		return err
	}
	c.Report("modified", shown)
	return nil
}

// verify sees that the files are what they shall be.
func (w *writing) verify() error {
	for _, f := range w.files {
		now, err := f.change.At.ReadFile(maxRecords)
		if err == nil && !bytes.Equal(now, f.bytes()) {
			err = fault.Wrapf(fault.ErrChanged, "others have changed it again, without its lock")
		}
		if err != nil {
			return fault.On(f.path, err)
		}
	}
	return nil
}

// takeAway removes what is at a path, with all that is below.
func (w *writing) takeAway(ctx context.Context, path string) error {
	c, err := w.edit.Begin(w.call, w.op, path, edit.Options{Whole: true})
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Absent() {
		return nil
	}
	if c.Old.Mounted {
		return fault.Refuse("a file system is mounted here")
	}
	if c.Old.UID != w.plan.taken { // as it did a moment before
		return fault.Wrapf(fault.ErrChanged, "it belongs to user %d now", c.Old.UID)
	}
	if c.Old.Kind == fsys.Directory {
		if err := c.At.NoMountsBelow(); err != nil {
			return err
		}
	}
	if w.call.Tx != nil {
		err = w.call.Tx.Take(ctx, c.Path, c.Old)
	} else if err = c.At.RemoveAll(ctx); err == nil {
		err = c.At.SyncDir()
	}
	if err == nil {
		c.Report("deleted", nil)
	}
	return err
}

// isThere reports whether something is at a path.
func isThere(root *fsys.Root, path string) (fsys.Meta, bool, error) {
	at, err := root.At(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fsys.Meta{}, false, nil
	}
	if err != nil {
		return fsys.Meta{}, false, fault.On(path, err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if errors.Is(err, fs.ErrNotExist) {
		return meta, false, nil
	}
	return meta, err == nil, fault.On(path, err)
}
