// Package edit changes files as a part of a transaction, one object at a time:
//
//	Begin (read what is there) ► nothing to do, or: Prepare (keep it, make parents) ► the change ► Report ► End
//	Put does all of this for the content of a file
//
// A dry run takes the same steps on an overlay, so it reports what a run would.
//
// Not here: which paths may be changed (Editor.Guard is injected), and what an operation makes of a file.
package edit

import (
	"context"
	"errors"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Editor changes files of one guest.
type Editor struct {
	// Guest is what it acts on. Required.
	Guest *guest.Guest
	// Guard refuses paths, each a resolved one; whole says that what is below goes too. Nil: none is refused.
	Guard func(path string, whole bool) error
}

// Change is the change of one object, from Begin to End.
type Change struct {
	// Call and Op are the call and the operation that make the change, and Root the file system.
	Call *builtins.Call
	Op   string
	Root *fsys.Root
	// Path is the resolved path.
	Path string
	// At is the place; nil as long as a directory above is missing.
	At *fsys.At
	// Old is what is there, complete unless Options.Plain was set.
	Old fsys.Meta
	// Made are the directories above that were made.
	Made []fsys.MadeDir

	editor    *Editor
	untrusted bool     // what is there is not fsys.At.Trusted
	separate  bool     // all other names of what is there are the transaction's own
	cost      uint64   // bytes that are copied to keep a large file, as far as a dry run knows
	missing   []string // the directories above that Prepare makes
}

// Options say how Begin finds the object of a change.
type Options struct {
	Follow  bool // through a link that is there
	Parents bool // with missing directories above it
	Whole   bool // the change takes away what is below, too
	Source  bool // it is only read
	Plain   bool // the extended attributes of what is there are not asked for
}

// Begin reads what is there, and changes nothing. Unless it fails the caller must call End. What an open transaction has changed
// is fault.ErrBusy to a call that is not part of it.
func (e *Editor) Begin(call *builtins.Call, op, path string, how Options) (*Change, error) {
	c := e.change(call, op)
	var err error
	if how.Parents {
		if c.missing, err = c.Root.Missing(path); err != nil {
			return nil, err
		}
	}
	if len(c.missing) > 0 {
		c.Path, err = c.Root.Resolve(path, false)
	} else {
		err = c.find(path, how)
	}
	return c.begun(how, err)
}

// BeginAt is Begin of an entry that was resolved before, such as one in a directory that is held open. The entry becomes the
// change's, and is closed on an error. Follow and Parents of how are not for it.
func (e *Editor) BeginAt(call *builtins.Call, op string, at *fsys.At, how Options) (*Change, error) {
	c := e.change(call, op)
	c.At = at
	return c.begun(how, c.look(how))
}

func (e *Editor) change(call *builtins.Call, op string) *Change {
	return &Change{editor: e, Root: e.Guest.Of(call), Call: call, Op: op, Old: fsys.Meta{Kind: fsys.Absent}}
}

// begun ends the beginning of a change that was found, or not.
func (c *Change) begun(how Options, err error) (*Change, error) {
	if err == nil && !how.Source && c.editor.Guard != nil {
		err = c.editor.Guard(c.Path, how.Whole)
	}
	if err == nil && !how.Source {
		err = c.Call.CheckKept(c.Path)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Change) find(path string, how Options) (err error) {
	resolve := c.Root.At
	if how.Follow {
		resolve = c.Root.Follow
	}
	if c.At, err = resolve(path); err != nil {
		return err
	}
	return c.look(how)
}

// look describes what is at the change's entry.
func (c *Change) look(how Options) (err error) {
	c.Path = c.At.Path
	if how.Plain {
		old, err := c.At.Stat()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		c.Old = old
		return err
	}
	if c.Old, err = c.At.Capture(); err != nil {
		return err
	}
	if c.Old.Kind == fsys.File && c.Old.Links > 1 && c.Call.Tx != nil {
		c.Old.Links -= min(c.Call.Tx.HeldNames(c.Old), c.Old.Links-1)
		c.separate = c.Old.Links == 1
	}
	return nil
}

// Commit gives a staged file the place of what is there.
func (c *Change) Commit(staged *fsys.Staged, attr fsys.Attr) error {
	attr.Separate = attr.Separate || c.separate
	return staged.Commit(attr, c.Durable())
}

// PredictCost finds out, in a dry run, how many bytes would be copied to keep a large file.
func (c *Change) PredictCost() error {
	if c.Call.DryRun == nil || c.Old.Kind != fsys.File || c.Old.Size <= maxKept {
		return nil
	}
	cost, err := c.At.CopyCost()
	c.cost = uint64(cost)
	return err
}

// Absent reports whether nothing is there.
func (c *Change) Absent() bool { return c.Old.Kind == fsys.Absent }

// Prepare keeps what is there, and at other paths that the change touches, and makes the missing directories.
func (c *Change) Prepare(ctx context.Context, others ...string) (err error) {
	paths := append(append(append([]string{}, c.missing...), c.Path), others...)
	if err := c.Call.Before(ctx, paths...); err != nil {
		return err
	}
	if err := c.CheckKept(); err != nil {
		return err
	}
	return c.MakeParents()
}

// CheckKept returns fault.ErrChanged where the transaction has kept another object than the one that is to be changed: who may
// exchange a directory on the way can lead the two looks to two places.
func (c *Change) CheckKept() error {
	if c.Call.Tx == nil || c.At == nil {
		return nil
	}
	dir, err := c.At.StatDir()
	if err != nil {
		return err
	}
	kept, ok := c.Call.Tx.Kept(c.Path)
	if ok && kept.Ino == c.Old.Ino && (kept.Dir == 0 || kept.Dir == dir.Ino) {
		return nil
	}
	if stable, err := c.At.StableInodes(); !stable && ok || err != nil {
		return err
	}
	c.Call.Tx.NotBegun()
	if kept.Dir == 0 || kept.Dir == dir.Ino {
		return fault.Wrapf(fault.ErrChanged, "another object came there meanwhile")
	}
	return fault.Wrapf(fault.ErrChanged, "a directory above was exchanged")
}

// MakeParents makes the missing directories above.
func (c *Change) MakeParents() (err error) {
	if len(c.missing) == 0 {
		return nil
	}
	if c.At, c.Made, err = c.Root.MakeParents(c.Path, c.Durable()); err != nil {
		return err
	}
	if c.Call.Tx == nil {
		return nil
	}
	is, err := c.At.Stat() // what nothing was kept of is not written over
	if err == nil && is.Kind != fsys.Absent || c.At.Path != c.Path {
		return fault.Wrapf(fault.ErrChanged, "a directory above was exchanged")
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// SyncDir makes names durable, but in a transaction, whose commit does it once for all.
func (c *Change) SyncDir(at *fsys.At) error {
	if c.Call.Tx != nil {
		return nil
	}
	return at.SyncDir()
}

// Durable reports whether a replaced file's name must be made durable at once.
func (c *Change) Durable() bool { return c.Call.Tx == nil }

// End frees the change, takes back the directories that were made if it failed, and names the object in the error.
func (c *Change) End(err *error) {
	c.Close()
	if *err != nil {
		c.Root.RemoveEmpty(c.Made)
		*err = fault.On(c.Path, *err)
	}
}

// Close frees a change that is not made.
func (c *Change) Close() {
	if c.At != nil {
		_ = c.At.Close()
	}
}

// Report reports the change, and the directories above that were made.
func (c *Change) Report(action string, content *Content) {
	for _, dir := range c.missing {
		c.Call.ReportApplied(&pb.Change{Op: c.Op, Target: dir, Action: "created"})
	}
	change := &pb.Change{Op: c.Op, Target: c.Path, Action: action, KeptBytes: c.cost}
	if content != nil {
		content.fill(change)
	}
	c.Call.ReportApplied(change)
	if content != nil && content.shown() && c.Call.Contents != nil {
		c.Call.Contents(builtins.Contents{
			Change: change, Old: content.old, New: content.new,
			Diff: func(old, new []byte) (string, bool) { return diff.Unified(change.Target, old, new) },
		})
	}
}

// PutAction is "created" or "modified", whichever a new content is here.
func (c *Change) PutAction() string {
	if c.Absent() {
		return "created"
	}
	return "modified"
}

// Content is what a change list shows of a file's content.
type Content struct {
	old, new []byte // nil: not there
	long     bool   // one of them was too long to be compared
	hidden   bool   // one of them is not for everybody
	link     string // the target of a link instead
}

// Hidden shows nothing of a content, whoever may read the file.
func Hidden() *Content { return &Content{hidden: true} }

// OldContent prepares to show the old content, as it is now, if all users may read it.
func (c *Change) OldContent() *Content {
	s := &Content{}
	if c.Old.Kind != fsys.File {
		s.hidden = !c.public()
		return s
	}
	s.hidden = !c.public() || !worldReadable(c.Old.Mode)
	s.long = c.Old.Size > diff.MaxText
	if s.hidden || s.long {
		return s
	}
	old, err := c.At.ReadFile(diff.MaxText)
	if err != nil {
		s.long = true // it grew, or cannot be read; the change itself will say why
	}
	s.old = old
	return s
}

// public reports whether users other than the owner get to the object at all. New directories are open to all.
func (c *Change) public() bool {
	if c.At != nil {
		return c.At.Public
	}
	at, err := c.Root.At(c.missing[0])
	if err != nil {
		return false
	}
	defer at.Close()
	return at.Public
}

// With adds that another file's old content comes in: what is not shown of it is not shown here.
func (s *Content) With(source *Content, mode uint32) *Content {
	s.hidden, s.long = s.hidden || source.hidden, s.long || source.long
	return s.Becomes(source.old, mode)
}

// Becomes sets the new content and the mode that it will have.
func (s *Content) Becomes(content []byte, mode uint32) *Content {
	s.new = content
	if content == nil {
		s.new = []byte{}
	}
	s.hidden = s.hidden || !worldReadable(mode)
	return s
}

// shown reports whether both contents are complete, and may be shown.
func (s *Content) shown() bool {
	return s.link == "" && !s.hidden && !s.long && diff.IsText(s.old) && diff.IsText(s.new)
}

func (s *Content) fill(change *pb.Change) {
	switch {
	case s.link != "":
		change.Diff = "-> " + s.link + "\n"
	case s.hidden || !diff.IsText(s.old) || !diff.IsText(s.new):
		change.ContentHidden = true
	case s.long:
		change.DiffTruncated = true
	default:
		change.Diff, change.DiffTruncated = diff.Unified(change.Target, s.old, s.new)
	}
}

func worldReadable(mode uint32) bool { return fs.FileMode(mode)&0o004 != 0 }
