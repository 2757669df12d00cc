package service

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restore is the inverse: it comes when all files are as they were, and has the manager read them again.
func (r *Room) restore(ctx context.Context, _ *builtins.Call, in *pb.ServiceRestore) (*pb.Nothing, error) {
	if r.live() == none {
		return &pb.Nothing{}, nil
	}
	m, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.reload(ctx); err != nil || in.Unit == "" {
		return &pb.Nothing{}, err
	}
	if err := r.bringBack(ctx, m, in); err != nil {
		return nil, fault.On(unit(in.Unit).short(), err)
	}
	return &pb.Nothing{}, nil
}

// bringBack makes a unit as active as it was.
func (r *Room) bringBack(ctx context.Context, m manager, in *pb.ServiceRestore) error {
	u := unit(in.Unit)
	s, err := m.unit(ctx, u)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it came with the script, and does not run
	}
	if err != nil {
		return err
	}
	if in.Start != nil {
		if err := m.startAs(ctx, u, in.Start); err != nil {
			return err
		}
	}
	sameBoot := in.BootId == facts.BootID()
	switch {
	case in.Action == "" && sameBoot: // nothing was done to it
		return nil
	case in.Active && s.runs():
		return r.renew(ctx, m, in, s)
	case in.Active:
		if s.active == "failed" {
			if err := m.forget(ctx, u); err != nil { // which also lets it start again at once
				return err
			}
		}
		return m.do(ctx, "start", u)
	case s.active == "failed":
		return m.forget(ctx, u)
	case s.active == "inactive":
		return nil
	case in.Action == "" && s.triggered: // the next boot was begun with what others start
		return nil
	}
	if err := m.do(ctx, "stop", u); err != nil {
		return err
	}
	if s, err := m.unit(ctx, u); err == nil && s.active == "failed" {
		return m.forget(ctx, u)
	}
	return nil
}

// renew has a unit that runs, as it did, run with the files as they were.
func (r *Room) renew(ctx context.Context, m manager, in *pb.ServiceRestore, s *state) error {
	switch {
	case strings.HasPrefix(in.Action, "reload"):
		if s.reload || m.do(ctx, "reload", s.unit) != nil {
			return m.do(ctx, "restart", s.unit)
		}
	case in.Action == "restart" && (s.invocation == "" || s.invocation != in.Invocation):
		return m.do(ctx, "restart", s.unit)
	}
	return nil
}

// settleTime is how long a unit is watched after what was notified.
const (
	settleTime = 2 * time.Second
	settleLook = 100 * time.Millisecond
)

// notified does what tx.notify asked for. In a tree that is not booted nothing runs, so nothing is to be done.
func (r *Room) notified(ctx context.Context, call *builtins.Call, in *pb.ServiceNotifyArgs) (*pb.Changed, error) {
	if r.live() == none {
		return &pb.Changed{}, nil
	}
	u, action, err := notification(in)
	if err != nil {
		return nil, err
	}
	changed, err := r.actOn(ctx, call, "tx.notify", action, u)
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	if call.DryRun == nil {
		did := acted{at: time.Now()}
		if did.invocation, err = r.invocation(ctx, u); err != nil {
			return nil, fault.On(u.short(), err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.acted[u] = did
	}
	return &pb.Changed{Changed: changed}, nil
}

// acted is when something was done to a unit, and the invocation that runs since.
type acted struct {
	at         time.Time
	invocation string
}

// invocation is that of a unit which runs now.
func (r *Room) invocation(ctx context.Context, u unit) (string, error) {
	m, err := r.open(ctx)
	if err != nil {
		return "", err
	}
	defer m.close()
	s, err := m.unit(ctx, u)
	if err != nil {
		return "", err
	}
	return s.invocation, nil
}

// notification reads what tx.notify asked for.
func notification(in *pb.ServiceNotifyArgs) (unit, string, error) {
	action := in.Action
	if action == "" {
		action = "restart"
	}
	if _, known := actions[action]; !known || action == "stop" {
		return "", "", fault.Invalid("there is no action %.40q", action)
	}
	u, err := parseUnit(in.Unit)
	return u, action, err
}

// settled sees that a unit stays active for a while after what was done to it. One of type oneshot may have ended well.
func (r *Room) settled(ctx context.Context, call *builtins.Call, in *pb.ServiceNotifyArgs) (*pb.Nothing, error) {
	u, _, err := notification(in)
	if err != nil || r.live() == none || call.DryRun != nil {
		return &pb.Nothing{}, err
	}
	r.mu.Lock()
	did := r.acted[u]
	delete(r.acted, u)
	r.mu.Unlock()
	if err := r.watch(ctx, u, did); err != nil {
		return nil, fault.On(u.short(), err)
	}
	return &pb.Nothing{}, nil
}

// watch polls a unit until it is settled.
func (r *Room) watch(ctx context.Context, u unit, did acted) error {
	m, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	for {
		s, err := m.unit(ctx, u)
		if err != nil {
			return err
		}
		ended := s.active == "inactive" && s.kind == "oneshot" && s.result == "success"
		if !s.runs() && !ended || s.invocation != did.invocation {
			words := "it did not stay active: it is " + s.active
			if s.sub != "" {
				words += " (" + s.sub + ")"
			}
			if s.invocation != did.invocation {
				words = "it did not stay active: it was started once more"
			}
			return m.failed(ctx, s, words)
		}
		if ended || time.Since(did.at) >= settleTime {
			return nil
		}
		select {
		case <-time.After(settleLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
