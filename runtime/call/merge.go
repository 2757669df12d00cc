package call

import (
	"bytes"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Where a script changes a file by several calls its list of changes has the file once, with one diff. That needs the content
// from before the first change and that of after the last one, which are held as long as the run is.

// maxContents bounds what is held of contents, in bytes: over it changes are reported one by one.
const maxContents = 2 << 20

// edits are the changes of one file that follow each other: each found what the one before had left.
type edits struct {
	old     []byte
	diff    func(old, new []byte) (text string, truncated bool)
	changes []*pb.Change
	news    [][]byte
}

// contents are the edits of a run, by the path of the file. A file that something else was done to begins anew.
type contents struct {
	open   map[string]*edits
	closed []*edits
	bytes  int
}

// add notes what a change made of a file.
func (c *contents) add(told builtins.Contents) {
	change, old, new := told.Change, told.Old, told.New
	e := c.open[change.Target]
	if e != nil && !(old != nil && change.Action == "modified" && bytes.Equal(e.news[len(e.news)-1], old)) {
		c.end(change.Target)
		e = nil
	}
	size := len(new) + perItem
	if e == nil {
		size += len(old)
	}
	if c.bytes+size > maxContents {
		c.end(change.Target)
		return
	}
	c.bytes += size
	if e == nil {
		if c.open == nil {
			c.open = map[string]*edits{}
		}
		e = &edits{old: old, diff: told.Diff}
		c.open[change.Target] = e
	}
	e.changes, e.news = append(e.changes, change), append(e.news, new)
}

// other notes a change without contents: later changes of the file are not merged with earlier ones.
func (c *contents) other(change *pb.Change) { c.end(change.Target) }

func (c *contents) end(path string) {
	if e := c.open[path]; e != nil {
		c.closed = append(c.closed, e)
		delete(c.open, path)
	}
}

// forget takes back the note of a change that was taken back.
func (c *contents) forget(change *pb.Change) {
	drop := func(e *edits) (empty bool) {
		last := len(e.changes) - 1
		if e.changes[last] == change {
			e.changes, e.news = e.changes[:last], e.news[:last]
		}
		return len(e.changes) == 0
	}
	if e := c.open[change.Target]; e != nil && drop(e) {
		delete(c.open, change.Target)
	}
	c.closed = slices.DeleteFunc(c.closed, drop)
}

// all are the edits that have several changes.
func (c *contents) all() (list []*edits) {
	for _, e := range c.open {
		list = append(list, e)
	}
	return slices.DeleteFunc(append(list, c.closed...), func(e *edits) bool { return len(e.changes) < 2 })
}

// Merged are the changes that were made, with each file that several calls edited once, and its whole diff. It is for the end
// of the run, whose list it changes.
func (r *Run) Merged() []*pb.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := map[*pb.Change]bool{}
	for _, e := range r.contents.all() {
		first := e.changes[0]
		r.held.remove(first)
		for _, change := range e.changes[1:] {
			gone[change] = true
			r.held.remove(change)
			change.Diff = ""
		}
		first.Diff, first.DiffTruncated = e.diff(e.old, e.news[len(e.news)-1])
		r.held.add(first)
	}
	return slices.DeleteFunc(slices.Clone(r.changes), func(change *pb.Change) bool { return gone[change] })
}

// settleMerged has the first change of a file report the outcome of all.
func (r *Run) settleMerged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.contents.all() {
		for _, change := range e.changes[1:] {
			if change.State == pb.ChangeState_CHANGE_STATE_NOT_UNDONE {
				e.changes[0].State = change.State
			}
		}
	}
}
