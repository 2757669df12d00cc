package builtins

import (
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// DryRun is the guest as a dry run pretends it to be. What an operation changes it changes here, and what it reads it reads
// here, so that it does and reports what it would without one. It belongs to one run, one call at a time.
type DryRun struct {
	// Files is the file system with all that was changed so far. Required.
	Files *fsys.Root
	// Pretended is what a room pretends beside files, under the room's name and of a type of its own; nil at first.
	Pretended map[string]any
	// Changed: something was pretended, so what really is no longer is what the script believes.
	Changed bool
	// Planned: a change was reported that does more than is pretended, such as a command with its plan. What a later call does
	// not find may be what it would have made.
	Planned bool
	// Ended is why nothing can be predicted any more; nil as long as it can.
	Ended error
}

// End ends the prediction: what change names would be done now, and nobody knows what comes of it. It returns the error for
// the script.
func (d *DryRun) End(call *Call, change *pb.Change) error {
	change.State = pb.ChangeState_CHANGE_STATE_UNKNOWN
	call.Report(change)
	d.Ended = fault.Refuse("the dry run ends here: what this would do is not known")
	return d.Ended
}
