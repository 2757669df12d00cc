package call

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// keep takes over what a call wants done before and after the commit, each once.
func (r *Run) keep(s *scope) {
	for _, p := range s.before {
		r.pend(p)
	}
	for _, action := range s.after {
		same := func(a journal.Action) bool { return sameAction(builtins.Action(action), builtins.Action(a)) }
		if !slices.ContainsFunc(r.after, same) {
			r.after = append(r.after, action)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held.bytes += s.bytes
}

// keepOutliving takes over the checks that a call which failed wants done all the same.
func (r *Run) keepOutliving(s *scope) {
	for _, p := range s.before {
		if p.Outlives {
			r.pend(p)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held.bytes += s.bytes
}

// pend keeps what is to be done before the commit, unless it is kept already. What covers others stands in the place of the
// first.
func (r *Run) pend(p builtins.Pending) {
	at := -1
	list := make([]builtins.Pending, 0, len(r.before)+1)
	for _, q := range r.before {
		of := q.Op == p.Op && q.Target == p.Target
		switch {
		case of && q.Covers > p.Covers, sameAction(p.Action, q.Action):
			return
		case of && q.Covers < p.Covers && at < 0:
			at = len(list)
			list = append(list, p)
		case of && q.Covers < p.Covers:
		default:
			list = append(list, q)
		}
	}
	if at < 0 {
		list = append(list, p)
	}
	r.before = list
}

func sameAction(a, b builtins.Action) bool {
	return a.Op == b.Op && a.SameBoot == b.SameBoot && a.Target == b.Target && proto.Equal(a.Args, b.Args)
}

// BeforeCommit does what the calls of the script want done before the commit, in the order in which they said so, and then
// looks at what came of it. It belongs after the last line of the script, and returns the first error.
func (r *Run) BeforeCommit(ctx context.Context) error {
	var checks []builtins.Action
	for _, p := range r.before {
		if err := r.act(ctx, p.Action); err != nil {
			return err
		}
		if p.Check != nil {
			checks = append(checks, *p.Check)
		}
	}
	for _, check := range checks {
		if err := r.act(ctx, check); err != nil {
			return err
		}
	}
	return nil
}

// act does one action as a call of the script. Whether it may be done was decided when it was asked for.
func (r *Run) act(ctx context.Context, action builtins.Action) error {
	op := r.executor.config.Table.Script(action.Op)
	if op == nil {
		return fault.Unsupported("%s is not supported by this agent", action.Op)
	}
	d := r.decide(op)
	d.in = action.Args
	_, err := d.audited(func() (proto.Message, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, d.refusedBy(err)
		}
		return r.serve(ctx, d)
	})
	return err
}
