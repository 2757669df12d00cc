package call

import (
	"slices"

	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Undone sets the state of each change of the run by what a rollback says became of its steps, and returns those that the
// rollback did not come to: one that halted left them as the script made them, until the next start.
func (r *Run) Undone(report journal.Report) (notReached []*pb.Change) {
	var stays []journal.Undone
	for _, u := range report.Steps {
		if u.Err != nil || u.Irreversible != nil {
			stays = append(stays, u)
		}
	}
	for n, call := range r.made {
		next, last := len(r.changes), ^uint64(0)
		if n+1 < len(r.made) {
			next, last = r.made[n+1].first, uint64(r.made[n+1].mark)
		}
		own := r.changes[min(call.first, next):next]
		leaves := func(c *pb.Change) bool {
			return slices.ContainsFunc(stays, func(u journal.Undone) bool {
				return u.Step > uint64(call.mark) && u.Step <= last && r.concerns(u, c, own)
			})
		}
		left := slices.ContainsFunc(report.Left, func(step uint64) bool { return step > uint64(call.mark) && step <= last })
		for _, c := range own {
			c.State = pb.ChangeState_CHANGE_STATE_UNDONE
			switch {
			case left:
				c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
				notReached = append(notReached, c)
			case leaves(c):
				c.State = pb.ChangeState_CHANGE_STATE_NOT_UNDONE
			}
		}
	}
	r.settleMerged()
	return notReached
}

// concerns reports whether a step that was not taken back leaves a change of its call: that of its target, and where none
// has that for its target, as with a command that touches files, each.
func (r *Run) concerns(u journal.Undone, c *pb.Change, own []*pb.Change) bool {
	target := u.Target
	if r.config.Hide != nil {
		target = r.config.Hide(target)
	}
	return target == c.Target || !slices.ContainsFunc(own, func(c *pb.Change) bool { return c.Target == target })
}
