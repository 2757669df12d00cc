package call

import (
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Bounds of what the agent holds in memory for one run, in bytes.
const (
	// maxHeld bounds the list of changes and what is to be done after the commit. It is seen before a call that changes
	// something: one call may go over it.
	maxHeld = 4 << 20
	// maxDiffs bounds the diffs of all changes together: the protocol's bound for a reply.
	maxDiffs = 512 << 10
	// perItem is what a change, or an action, takes beside its texts.
	perItem = 200
)

var errHeld = fault.Wrapf(fault.ErrTooLarge,
	"what the script has changed, or wants done after the commit, takes more than %d bytes to report", maxHeld)

// held counts what a run holds.
type held struct{ bytes, diffs int }

// add counts a change, and drops its diff where all diffs together would be too long.
func (h *held) add(change *pb.Change) {
	if h.diffs+len(change.Diff) > maxDiffs {
		change.Diff, change.DiffTruncated = "", true
	}
	h.diffs += len(change.Diff)
	h.bytes += sizeOf(change)
}

// remove takes a change out of the count.
func (h *held) remove(change *pb.Change) {
	h.diffs -= len(change.Diff)
	h.bytes -= sizeOf(change)
}

func sizeOf(change *pb.Change) int {
	return len(change.Op) + len(change.Target) + len(change.Action) + perItem
}

// full reports whether the run holds so much that nothing more may be changed.
func (r *Run) full() bool { return r.room() <= 0 }

// room is how much more the run may hold.
func (r *Run) room() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maxHeld - r.held.bytes
}
