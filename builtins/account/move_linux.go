package account

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// homeMove is a home directory that gets another path.
type homeMove struct {
	from, to string
	uid      uint32 // whose it is before the call
}

// errOtherFileSystem is the refusal to copy a home directory, which could neither be cheap nor be taken back in one step.
var errOtherFileSystem = &fault.Error{
	Err:  fault.Unsupported("the home directory is not moved to another file system"),
	Hint: "copy it by a command, and call account.modify without move_home",
}

// moveHome plans that the home directory of a user goes where passwd says that it is from now on. Where nothing is at the
// former place it has been moved, or never was; what is not the user's alone is refused.
func (p *plan) moveHome(root *fsys.Root, was, u *user) error {
	if was.home == u.home || was.home == "" {
		return nil
	}
	if err := checkPath("the former home", was.home); err != nil { // nor do rules know what it is
		return fault.Refuse("the home directory is not moved: %v", err)
	}
	if p.owner != nil {
		p.owner.home = u.home // it is there when owners change
	}
	meta, there, err := isThere(root, was.home)
	if err != nil || !there {
		return err
	}
	from, err := root.Resolve(was.home, false)
	if err != nil {
		return fault.On(was.home, err)
	}
	to, err := root.Resolve(u.home, false)
	if err != nil {
		return fault.On(u.home, err)
	}
	if from == to { // by another name
		return nil
	}
	other := p.homeOfOther(u.name, was.home)
	switch {
	case meta.Kind != fsys.Directory:
		return fault.On(was.home, fault.Refuse("the home directory is a %s", meta.Kind))
	case meta.UID != was.uid:
		return fault.On(was.home, fault.Refuse("the home directory belongs to user %d, and the user is %d", meta.UID, was.uid))
	case other != "":
		return fault.On(was.home, fault.Refuse("it is the home directory of %s as well, or has that in it", other))
	case fsys.Within(to, from):
		return fault.On(u.home, fault.Invalid("is inside %s, which is to be moved", from))
	}
	if _, there, err := isThere(root, u.home); err != nil {
		return err
	} else if there {
		return fault.On(u.home, fault.Wrapf(fs.ErrExist, "the home directory %s is not moved to what is there", from))
	}
	p.move = &homeMove{from: from, to: to, uid: was.uid}
	return nil
}

// movable refuses a move that cannot be, and returns what must be kept before it: the times of the directories that it changes,
// and that others are missing.
func (w *writing) movable(m *homeMove) (keep []string, err error) {
	from, err := w.edit.Begin(w.call, w.op, m.from, edit.Options{Whole: true})
	if err != nil {
		return nil, fault.On(m.from, err)
	}
	defer from.Close()
	if from.At.IsRoot() || from.Old.Mounted {
		return nil, fault.On(m.from, fault.Refuse("the root of a file system is not moved"))
	}
	if err := from.At.NoMountsBelow(); err != nil {
		return nil, fault.On(m.from, err)
	}
	if err := w.guest.Guard(m.to, false); err != nil {
		return nil, fault.On(m.to, err)
	}
	if err := w.sameFileSystem(m); err != nil {
		return nil, fault.On(m.to, err)
	}
	missing, err := w.root.Missing(m.to)
	if err != nil {
		return nil, fault.On(m.to, err)
	}
	if len(missing) == 0 {
		return []string{fsys.Parent(m.from), fsys.Parent(m.to)}, nil
	}
	return append([]string{fsys.Parent(m.from), fsys.Parent(missing[0])}, missing...), nil
}

// sameFileSystem refuses a move between mounts. It looks at the real files: those of a dry run have none.
func (w *writing) sameFileSystem(m *homeMove) error {
	files, place := w.guest.Files, m.to
	missing, err := files.Missing(m.to)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		place = missing[0]
	}
	to, err := files.At(place)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := files.At(m.from)
	if errors.Is(err, fs.ErrNotExist) && w.call.DryRun != nil {
		return nil // made by the script itself
	}
	if err != nil {
		return err
	}
	defer from.Close()
	same, err := fsys.SameMount(from, to)
	if err == nil && !same {
		err = errOtherFileSystem
	}
	return err
}

// moveHome moves a home directory. What a rollback does is recorded before, with what identifies the directory.
func (w *writing) moveHome(ctx context.Context, m *homeMove) error {
	to, made, err := w.root.MakeParents(m.to, w.call.Tx == nil)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, dir := range made {
		w.report(dir.Path, "created")
	}
	from, err := w.root.At(m.from)
	if err != nil {
		return fault.On(m.from, err)
	}
	defer from.Close()
	meta, err := from.Stat()
	if err != nil {
		return fault.On(m.from, err)
	}
	if meta.Kind != fsys.Directory || meta.UID != m.uid {
		return fault.On(m.from, fault.Wrapf(fault.ErrChanged, "another %s is there now", meta.Kind))
	}
	if w.call.Tx != nil {
		if err := w.call.Tx.Undo(ctx, inverse, edit.Object(m.from, meta, m.to)); err != nil {
			return err
		}
	}
	if err := renameHome(from, to, w.call.Tx == nil && w.call.DryRun == nil); err != nil {
		return err
	}
	if err := w.leads(m.to, meta); err != nil {
		return errors.Join(fault.On(m.to, err), to.Rename(from, false))
	}
	w.report(m.from, "deleted")
	w.report(m.to, "created")
	if running, err := w.processes(m.uid); err == nil && running != "" {
		w.call.Warn("the home directory " + m.from + " is moved while the user has processes: " + running)
	}
	return nil
}

// leads returns why a path does not lead to what was put there: it, or a directory above it, may have been exchanged.
func (w *writing) leads(path string, there fsys.Meta) error {
	var is fsys.Meta
	at, err := w.root.Exact(path)
	if err == nil {
		is, err = at.Stat()
		_ = at.Close()
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && !is.Same(there) {
		return fault.Wrapf(fault.ErrChanged, "the path leads elsewhere by now")
	}
	return err
}

// renameHome moves a directory, which keeps its time also on file systems where a move is a change of it.
func renameHome(from, to *fsys.At, durable bool) error {
	was, err := from.Capture()
	if err != nil {
		return err
	}
	err = from.Rename(to, false)
	if errors.Is(err, syscall.EXDEV) { // a subvolume, a lower layer of overlayfs, or the quota of another project
		return errOtherFileSystem
	}
	if err != nil {
		return err
	}
	is, err := to.Capture()
	if err == nil && !is.Same(was) {
		err = fault.Wrapf(fault.ErrChanged, "another %s took its place", is.Kind)
	}
	if err == nil && is.Mtime != was.Mtime {
		err = to.Of(is).Apply(was)
	}
	if err == nil && durable {
		err = errors.Join(to.SyncDir(), from.SyncDir())
	}
	return err
}
