package journal

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Mark is a point that Revert goes back to: the number of steps before it.
type Mark int

// Mark ends a call that succeeded. It notes the state after the call of each object with a before-image, by which a rollback
// knows whether somebody else changed the object since. It writes nothing.
func (t *Tx) Mark() Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.steps[t.markedSteps:] {
		if s.reverted || s.moved != "" || s.inverse != "" || s.irreversible {
			continue
		}
		record, err := t.record(s)
		if err != nil { // without the states a rollback takes what it finds for the script's own
			continue
		}
		for i, o := range record.GetKeep().GetObjects() {
			if o.Tree {
				continue
			}
			if state := t.journal.currentState(o); state != nil {
				s.setAfter(uint32(i), state)
				t.unloggedAfter = append(t.unloggedAfter, &pb.JournalLeft{Step: s.number, Object: uint32(i), State: state})
			}
		}
	}
	t.markedSteps = len(t.steps)
	return Mark(len(t.steps))
}

// currentState returns the state of what is at an object's path; nil if it cannot be read.
func (j *Journal) currentState(o *pb.JournalObject) *pb.JournalState {
	at, err := j.config.Root.Exact(o.Path)
	if err != nil {
		return nil
	}
	defer at.Close()
	meta, err := at.Capture()
	if err != nil {
		return nil
	}
	state := toState(meta)
	if o.State.Mtime == nil {
		state.Mtime = nil
		if meta.Kind == fsys.File {
			state.Content, _ = at.ReadFile(maxSetting)
		}
	}
	return state
}

// Revert undoes all steps since the mark, newest first, as Rollback does. An error makes the transaction fail for good.
func (t *Tx) Revert(ctx context.Context, to Mark) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != running {
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	}
	p := t.newPass()
	p.inScript = true
	var reverted []*step
	for _, s := range undoOrder(t.steps[to:]) {
		if s.reverted {
			continue
		}
		record, err := t.record(s)
		if err == nil {
			err = t.checkMounts(record)
		}
		if err != nil {
			return t.fail(err)
		}
		if done := p.undoFirstError(ctx, s, record); done.Err != nil {
			return t.fail(fault.On(done.Target, done.Err))
		}
		reverted = append(reverted, s)
	}
	if err := p.flush(); err != nil { // before any record says that it is so
		return t.fail(err)
	}
	for _, s := range reverted {
		t.markReverted(s)
	}
	t.markedSteps = len(t.steps)
	return nil
}
