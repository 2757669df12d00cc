package file

import (
	"context"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// change is one object on its way from what it is to what it shall be:
//
//	begin (look) ► nothing to do, or: prepare (keep, make parents) ► do it ► report ► end
//
// A dry run goes the same way over files that are a plan, so what it reports is what would be.
type change struct {
	room *Room
	root *fsys.Root
	call *builtins.Call
	op   string
	path string    // resolved
	at   *fsys.At  // nil as long as a directory above is missing
	old  fsys.Meta // what is there, complete
	// missing are the directories above that prepare makes, and made those that it made.
	missing, made []string
}

// place says how the object of a change is found.
type place struct {
	follow  bool // through a link that is there
	parents bool // with missing directories above it
	whole   bool // the change takes away what is below, too
	source  bool // it is only read
}

// begin looks at what is there. It changes nothing. The caller ends the change if there is no error.
func (r *Room) begin(call *builtins.Call, op, path string, how place) (*change, error) {
	c := &change{room: r, root: r.files(call), call: call, op: op, old: fsys.Meta{Kind: fsys.Absent}}
	var err error
	if how.parents {
		if c.missing, err = c.root.Missing(path); err != nil {
			return nil, err
		}
	}
	if len(c.missing) > 0 {
		c.path, err = c.root.Resolve(path, false)
	} else {
		err = c.look(path, how.follow)
	}
	if err == nil && !how.source {
		err = r.guard(c.path, how.whole)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *change) look(path string, follow bool) (err error) {
	resolve := c.root.At
	if follow {
		resolve = c.root.Follow
	}
	if c.at, err = resolve(path); err != nil {
		return err
	}
	c.path = c.at.Path
	c.old, err = c.at.Capture()
	return err
}

func (c *change) absent() bool { return c.old.Kind == fsys.Absent }

// prepare keeps what is there, and at other paths that the change touches, and makes the missing directories.
func (c *change) prepare(ctx context.Context, others ...string) (err error) {
	paths := append(append(append([]string{}, c.missing...), c.path), others...)
	if err := c.call.Before(ctx, paths...); err != nil {
		return err
	}
	return c.makeParents()
}

func (c *change) makeParents() (err error) {
	if len(c.missing) == 0 {
		return nil
	}
	if c.made, err = c.root.MakeParents(c.path, c.durable()); err != nil {
		return err
	}
	c.at, err = c.root.At(c.path)
	return err
}

// syncDir makes names durable, but in a transaction, whose commit does it once for all.
func (c *change) syncDir(at *fsys.At) error {
	if c.call.Tx != nil {
		return nil
	}
	return at.SyncDir()
}

// durable says whether a replaced file's name must be made durable at once.
func (c *change) durable() bool { return c.call.Tx == nil }

// end frees the change, takes back the directories that were made if it failed, and names the object in the error.
func (c *change) end(err *error) {
	c.close()
	if *err != nil {
		c.root.RemoveEmpty(c.made)
		*err = fault.On(c.path, *err)
	}
}

func (c *change) close() {
	if c.at != nil {
		_ = c.at.Close()
	}
}

// report tells of the change, and of the directories above that were made.
func (c *change) report(action string, content *shown) {
	for _, dir := range c.missing {
		c.tell(&pb.Change{Target: dir, Action: "created"})
	}
	told := &pb.Change{Target: c.path, Action: action}
	if content != nil {
		content.fill(told)
	}
	c.tell(told)
}

func (c *change) tell(told *pb.Change) {
	told.Op, told.State, told.Reversible = c.op, pb.ChangeState_CHANGE_STATE_APPLIED, c.call.Tx != nil
	if c.call.Plan != nil {
		told.State, told.Reversible = pb.ChangeState_CHANGE_STATE_WOULD, true
	}
	c.call.Report(told)
}

// put is "created" or "modified", whichever a new content is here.
func (c *change) put() string {
	if c.absent() {
		return "created"
	}
	return "modified"
}

// shown is what a change list shows of a file's content.
type shown struct {
	old, new []byte // nil: not there
	long     bool   // one of them was too long to be compared
	hidden   bool   // one of them is not for everybody
}

// newShown prepares to show the old content, as it is now, if all users may read it.
func (c *change) newShown() *shown {
	s := &shown{}
	if c.old.Kind != fsys.File {
		s.hidden = !c.public()
		return s
	}
	s.hidden = !c.public() || !worldReadable(c.old.Mode)
	s.long = c.old.Size > diff.MaxText
	if s.hidden || s.long {
		return s
	}
	old, err := c.at.ReadFile(diff.MaxText)
	if err != nil {
		s.long = true // it grew, or cannot be read; the change itself will say why
	}
	s.old = old
	return s
}

// public says whether users other than the owner get to the object at all. New directories are open to all.
func (c *change) public() bool {
	if c.at != nil {
		return c.at.Public
	}
	at, err := c.root.At(c.missing[0])
	if err != nil {
		return false
	}
	defer at.Close()
	return at.Public
}

// becomes sets the new content and the mode that it will have.
func (s *shown) becomes(content []byte, mode uint32) *shown {
	s.new = content
	if content == nil {
		s.new = []byte{}
	}
	s.hidden = s.hidden || !worldReadable(mode)
	return s
}

func (s *shown) fill(told *pb.Change) {
	switch {
	case s.hidden || !diff.IsText(s.old) || !diff.IsText(s.new):
		told.ContentHidden = true
	case s.long:
		told.DiffTruncated = true
	default:
		told.Diff, told.DiffTruncated = diff.Unified(told.Target, s.old, s.new)
	}
}

func worldReadable(mode uint32) bool { return fs.FileMode(mode)&0o004 != 0 }
