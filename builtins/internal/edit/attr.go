package edit

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Inverse is the operation that a change of attributes names for its undo where before-images would cost too much. Rows whose
// functions use Put with Attr, or SetAttr, declare it.
const Inverse = "file.attributes"

// Differs reports whether an object has to be changed to have the attributes.
func Differs(have fsys.Meta, want fsys.Attr) bool {
	return want.Mode != nil && *want.Mode != have.Mode || want.UID != nil && *want.UID != have.UID || want.GID != nil && *want.GID != have.GID
}

// SetAttr changes nothing but attributes. They are put back where one of them cannot be set.
func (c *Change) SetAttr(ctx context.Context, attr fsys.Attr) (changed bool, err error) {
	keep, sync := c.Prepare, c.Durable()
	if c.Old.Kind == fsys.File && c.Old.Size > maxKept && c.Call.Tx != nil {
		keep, sync = c.keepAttr, true // a commit does not know the path
	}
	if err := keep(ctx); err != nil {
		return false, err
	}
	if err := c.At.SetAttrOf(c.Old, attr); err != nil {
		same := c.Old
		same.Born = fsys.Time{} // on overlayfs another one by now
		return false, errors.Join(err, c.At.Of(same).Apply(c.Old))
	}
	if sync {
		if err := forced(c.At); err != nil {
			return false, err
		}
	}
	c.Report("modified", nil)
	return true, nil
}

// maxKept is the size of the largest file whose content is kept, too, where only its attributes change: to copy a large
// one would cost time and space that nobody expects of a chmod.
const maxKept = 1 << 20

// keepAttr keeps the attributes of a file alone.
func (c *Change) keepAttr(ctx context.Context, _ ...string) error {
	return c.Call.Tx.Undo(ctx, Inverse, Object(c.Path, c.Old, ""))
}

// forced makes the attributes of what is at a place durable, unless its mode forbids opening it.
func forced(at *fsys.At) error {
	if err := at.Sync(); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// Link is a symbolic link that shall be.
type Link struct {
	// Op is the operation, for the list of changes; Path is where the link stands, and Target where it leads, byte for byte.
	// Required.
	Op, Path, Target string
	// Parents makes missing directories above. Optional.
	Parents bool
	// Same reports whether a target is as good as Target. Nil: only the same text is.
	Same func(target string) bool
	// Replace lets the link take the place of a regular file.
	Replace bool
}

// Symlink makes a link, or replaces the one that is there, and returns whether that changed anything.
func (e *Editor) Symlink(ctx context.Context, call *builtins.Call, w Link) (changed bool, err error) {
	c, err := e.Begin(call, w.Op, w.Path, Options{Parents: w.Parents})
	if err != nil {
		return false, fault.On(w.Path, err)
	}
	defer c.End(&err)
	same := w.Same
	if same == nil {
		same = func(target string) bool { return target == w.Target }
	}
	trusted := false
	if c.At != nil {
		trusted, _ = c.At.Trusted(c.Old, nil) // another user's link is replaced by one of the agent's own
	}
	switch {
	case w.Target == "":
		return false, fault.Invalid("the target is empty")
	case strings.ContainsRune(w.Target, 0):
		return false, fault.Invalid("the target has a zero byte")
	case c.Old.Kind == fsys.Symlink && trusted && same(c.Old.Target):
		return false, nil
	case c.Old.Kind != fsys.Symlink && !c.Absent() && !(w.Replace && c.Old.Kind == fsys.File):
		return false, fs.ErrExist
	}
	overFile := !c.Absent() && c.Old.Kind == fsys.File
	if overFile {
		if err := c.At.CheckReplace(c.Old); err != nil {
			return false, err
		}
	}
	if err := c.Prepare(ctx); err != nil {
		return false, err
	}
	link := c.At.Symlink // where directories are missing, Prepare has made them
	if overFile {
		link = c.At.ReplaceBySymlink
	}
	if err := link(w.Target); err != nil {
		return false, err
	}
	if err := c.SyncDir(c.At); err != nil {
		return false, err
	}
	c.Report(c.PutAction(), &Content{link: text.EscapePath(w.Target)})
	return true, nil
}

// RemoveLink removes a symbolic link, and returns whether one was there. What else is there stays, and is an error.
func (e *Editor) RemoveLink(ctx context.Context, call *builtins.Call, op, path string) (changed bool, err error) {
	c, err := e.Begin(call, op, path, Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.On(path, err)
	}
	defer c.End(&err)
	switch {
	case c.Absent():
		return false, nil
	case c.Old.Kind != fsys.Symlink:
		return false, fault.Refuse("it is a %s, and no link", c.Old.Kind)
	}
	if err := c.Prepare(ctx); err != nil {
		return false, err
	}
	if err := c.At.Remove(); err != nil {
		return false, err
	}
	if err := c.SyncDir(c.At); err != nil {
		return false, err
	}
	c.Report("deleted", &Content{link: text.EscapePath(c.Old.Target)})
	return true, nil
}
