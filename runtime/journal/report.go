package journal

import (
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Report is the outcome of a rollback.
type Report struct {
	// Steps are the outcomes of the steps, newest first. Of a target that several steps restored, and of which there is nothing
	// else to report, there is one.
	Steps []Undone
	// Ran is what the rollback ran, in its order, also before an interruption: inverses with what they are about and their
	// time.
	Ran []*pb.Change
	// Err is why the rollback as a whole may be incomplete: an error of the journal's disk, or the cause of ctx. Else nil.
	Err error
	// Halted: the rollback is incomplete; the next Recover goes on with it.
	Halted bool
	// Left are the numbers of the steps that a rollback which Halted did not come to.
	Left []uint64
	// Waiting is the mount that Recover waits for: to be there, to be writable, or to have space, since the next step changed something on
	// it. Empty: it waits for none.
	Waiting string

	restored map[string]bool     // the targets in Steps of which there is nothing else to report
	tell     func(string) string // takes secrets out of a text; nil: there are none
}

// told returns a text without secrets.
func (r Report) told(text string) string {
	if r.tell == nil {
		return text
	}
	return r.tell(text)
}

// Undone is the outcome of undoing one object or operation.
type Undone struct {
	// Step counts from 1.
	Step uint64
	// Op is the inverse that ran, or "restore" for an object of the file system.
	Op string
	// Target is a path; empty for an operation.
	Target string
	// Conflict is where somebody else's version of the object was put; empty: there was none.
	Conflict string
	// Reset are attributes that others had set, and the transaction, too: they are as before again.
	Reset []string
	// Err is why it could not be undone.
	Err error
	// Irreversible is a change that was declared irreversible, or an undeclared one; nil for all else.
	Irreversible *pb.Change
	// Ran is what ran to undo it; nil for an object of the file system.
	Ran *pb.Change

	half bool // the disk was full when the object was half restored
}

// add appends a step. If it moved a directory aside, the conflicts that were put into that directory moved with it.
func (r *Report) add(u Undone) {
	for i := range r.Steps {
		if old := &r.Steps[i].Conflict; u.Conflict != "" && *old != "" && fsys.Within(*old, u.Target) {
			*old = u.Conflict + (*old)[len(u.Target):]
		}
	}
	if u.Err == nil && u.Conflict == "" && len(u.Reset) == 0 && u.Irreversible == nil {
		if r.restored[u.Target] {
			return
		}
		if r.restored == nil {
			r.restored = map[string]bool{}
		}
		r.restored[u.Target] = true
	}
	r.Steps = append(r.Steps, u)
}

// Status returns the script's status for the reply.
func (r Report) Status() pb.ScriptStatus {
	if r.Err != nil || slices.ContainsFunc(r.Steps, func(u Undone) bool { return u.Err != nil }) {
		return pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED
	}
	if slices.ContainsFunc(r.Steps, func(u Undone) bool { return u.Irreversible != nil }) {
		return pb.ScriptStatus_SCRIPT_STATUS_PARTIAL
	}
	return pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
}

// NotUndone lists for the reply what could not be undone, without secrets. Each target is followed by the reason.
func (r Report) NotUndone() []*pb.Change {
	var list []*pb.Change
	for _, u := range r.Steps {
		switch {
		case u.Irreversible != nil:
			c := proto.Clone(u.Irreversible).(*pb.Change)
			c.Target, c.State, c.Reversible = r.told(c.Target), pb.ChangeState_CHANGE_STATE_NOT_UNDONE, false
			list = append(list, c)
		case u.Err != nil:
			list = append(list, &pb.Change{
				Op: u.Op, Target: r.told(fault.On(u.Target, u.Err).Error()), Action: "restore",
				State: pb.ChangeState_CHANGE_STATE_NOT_UNDONE,
			})
		}
	}
	return list
}

// Settle sets the state of each change by what became of its target, for one who does not know which change is of which step.
// Where a step that failed has no target of a change, all that is known of the changes without a step is unknown.
func (r Report) Settle(changes []*pb.Change) {
	fails, restored := map[string]bool{}, map[string]bool{}
	for _, u := range r.Steps {
		if u.Err != nil || u.Irreversible != nil {
			fails[r.told(u.Target)] = true
		} else {
			restored[r.told(u.Target)] = true
		}
	}
	stray := r.Halted || r.Err != nil
	for target := range fails {
		stray = stray || !slices.ContainsFunc(changes, func(c *pb.Change) bool { return c.Target == target })
	}
	for _, c := range changes {
		c.State = pb.ChangeState_CHANGE_STATE_UNDONE
		switch {
		case fails[c.Target]:
			c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
		case stray && !restored[c.Target]:
			c.State = pb.ChangeState_CHANGE_STATE_UNKNOWN
		}
	}
}

// Conflicts lists the paths where other people's versions of restored objects were put.
func (r Report) Conflicts() []string {
	var list []string
	for _, u := range r.Steps {
		if u.Conflict != "" {
			list = append(list, u.Conflict)
		}
	}
	return list
}

// halt notes why a rollback stopped before its end.
func (r *Report) halt(err error) {
	var wait *waitingError
	if errors.As(err, &wait) {
		r.Waiting = wait.mount
	}
	if r.Halted = true; err != errDeferred {
		r.Err = err
	}
}
