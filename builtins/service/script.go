package service

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restoreOp is the inverse of all that the room does.
const (
	restoreOp = "service.restore"
	rereadOp  = "service.reread"
)

// scriptRows are the operations as scripts call them, and those that the journal and the end of a script do.
func (r *Room) scriptRows() []builtins.Op {
	rows := []builtins.Op{
		{
			Name: "service.list", Usage: "([filter]) services", Summary: "the services with their states",
			Access: builtins.Of(func(in *pb.ServiceListArgs) builtins.Access {
				return listAccess(&pb.ListServicesRequest{Filter: in.Filter})
			}),
			Handler: builtins.Handle(r.scriptList),
		},
		{
			Name: "service.status", Usage: "(name)", Summary: "the state of a unit; one that is not there is an error",
			Access:  builtins.Of(func(in *pb.ServiceArgs) builtins.Access { return builtins.Access{Objects: objects(in.Name)} }),
			Handler: builtins.Handle(r.status),
		},
		{
			Name: "service.daemon_reload", Usage: "()",
			Summary: "have the service manager read its files again; a changed file of a unit that is started needs no such call",
			Mutates: true, Predictable: true, Inverse: restoreOp,
			Access:  builtins.Of(func(*pb.NoArgs) builtins.Access { return builtins.Access{Objects: objects("*")} }), // of all units
			Handler: builtins.Handle(r.daemonReload),
		},
		{
			Name: restoreOp, Usage: "(unit)", Summary: "bring back the state of a unit",
			Mutates: true, Internal: true, Access: builtins.Of(restoreAccess), Handler: builtins.Handle(r.restore),
		},
		{
			Name: "service.notified", Usage: "(unit, [action])", Summary: "do what tx.notify asked for, before the commit",
			Mutates: true, Internal: true, Predictable: true, Partial: true, Inverse: restoreOp,
			Access: builtins.Of(notifyAccess), Handler: builtins.Handle(r.notified),
		},
		{
			Name: "service.settled", Usage: "(unit, [action])", Summary: "see that a unit is active two seconds after that",
			Internal: true, Access: builtins.Of(notifyAccess), Handler: builtins.Handle(r.settled),
		},
		{
			Name: rereadOp, Usage: "()", Summary: "have the service manager read links that were changed",
			Internal: true, Handler: builtins.Handle(r.reread),
		},
	}
	for action, summary := range map[string]string{
		"start": "start a unit, unless it is active", "stop": "stop a unit", "restart": "restart a unit, or start it",
		"reload": "have a unit read its configuration again",
	} {
		rows = append(rows, builtins.Op{
			Name: "service." + action, Usage: "(name) changed", Summary: summary,
			Mutates: true, Predictable: true, Partial: true, Inverse: restoreOp,
			Access: builtins.Of(func(in *pb.ServiceRunArgs) builtins.Access { return builtins.Access{Objects: objects(in.Name)} }),
			Handler: builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.ServiceRunArgs) (*pb.Changed, error) {
				return r.scriptAct(ctx, call, "service."+action, action, in)
			}),
		})
	}
	for _, verb := range []struct {
		name, summary string
		do            func(context.Context, *builtins.Call, string, unit) (bool, error)
		now           string
	}{
		{"enable", "have a unit start with the guest", r.enable, "start"},
		{"disable", "no longer have a unit start with the guest", r.disable, "stop"},
		{"mask", "keep a unit from being started at all", r.mask, "stop"},
		{"unmask", "take back what mask did", r.unmask, ""},
	} {
		rows = append(rows, builtins.Op{
			Name: "service." + verb.name, Usage: "(name) changed", Summary: verb.summary,
			Mutates: true, Predictable: true, Inverse: restoreOp, Access: builtins.Of(r.enableAccess),
			Handler: builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.ServiceEnableArgs) (*pb.Changed, error) {
				return r.scriptEnable(ctx, call, "service."+verb.name, in, verb.do, verb.now)
			}),
		})
	}
	return rows
}

func (r *Room) enableAccess(in *pb.ServiceEnableArgs) builtins.Access {
	return builtins.Access{Objects: objects(in.Name), Writes: r.linkDirs()}
}

func notifyAccess(in *pb.ServiceNotifyArgs) builtins.Access {
	return builtins.Access{Objects: objects(in.Unit)}
}

func restoreAccess(in *pb.ServiceRestore) builtins.Access {
	return builtins.Access{Objects: objects(in.Unit)}
}

func (r *Room) scriptList(ctx context.Context, call *builtins.Call, in *pb.ServiceListArgs) (*pb.ServiceList, error) {
	found, err := r.find(ctx, in.Filter, in.Running && call.DryRun == nil)
	if err != nil {
		return nil, err
	}
	out := &pb.ServiceList{}
	for _, s := range found {
		if told := r.pretended(call, s).message(); !in.Running || told.Running {
			out.Services = append(out.Services, told)
		}
	}
	return out, nil
}

func (s *state) message() *pb.Service {
	return &pb.Service{
		Name: string(s.unit), Description: cmp.Or(s.details, s.description), Load: s.load, Active: s.active, Sub: s.sub, Enabled: s.file,
		Running: s.runs(), Pid: s.pid, MemoryBytes: s.memory, Result: s.result,
	}
}

// status returns the state of a unit; in a tree that is not booted whether it is enabled.
func (r *Room) status(ctx context.Context, call *builtins.Call, in *pb.ServiceArgs) (*pb.Service, error) {
	u, err := parseUnit(in.Name)
	if err != nil {
		return nil, err
	}
	s, err := r.stateOf(ctx, call, u)
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	return s.message(), nil
}

// stateOf returns the state of a unit as a call sees it: what a dry run pretends, too.
func (r *Room) stateOf(ctx context.Context, call *builtins.Call, u unit) (*state, error) {
	if r.live() == none {
		return r.fileState(call, u)
	}
	m, err := r.openFresh(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	s, err := m.unit(ctx, u)
	if call.DryRun == nil {
		return s, err
	}
	if errors.Is(err, fs.ErrNotExist) { // its file may be pretended
		s, err = r.fileState(call, u)
	}
	if err != nil {
		return nil, err
	}
	return r.pretended(call, s), nil
}

// pretence is what a dry run pretends of a unit, where it pretends something.
type pretence struct {
	active *bool
	file   string // how it is enabled, where that stands in no file; empty: as it is
}

// pretended returns the state of a unit with what a dry run pretends.
func (r *Room) pretended(call *builtins.Call, s *state) *state {
	if call.DryRun == nil || s == nil {
		return s
	}
	with := *s
	r.pretendFiles(call, &with)
	if units, ok := call.DryRun.Pretended[kind].(map[unit]pretence); ok {
		p := units[s.unit]
		if p.active != nil && *p.active != with.runs() {
			with.active, with.sub, with.pid, with.memory = "inactive", "dead", 0, 0
			if *p.active {
				with.active, with.sub = "active", ""
			}
		}
		if p.file != "" {
			with.file = p.file
		}
	}
	return &with
}

// pretend notes what a unit would be.
func pretend(call *builtins.Call, u unit, change func(*pretence)) {
	if call.DryRun.Pretended == nil {
		call.DryRun.Pretended = map[string]any{}
	}
	units, ok := call.DryRun.Pretended[kind].(map[unit]pretence)
	if !ok {
		units = map[unit]pretence{}
		call.DryRun.Pretended[kind] = units
	}
	p := units[u]
	change(&p)
	units[u] = p
}

// daemonReload changes no state of the guest that one could see, so it is not among the changes. Where no manager runs, the one
// of the next boot reads the files.
func (r *Room) daemonReload(ctx context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.Nothing, error) {
	if call.DryRun != nil || r.live() == none {
		return &pb.Nothing{}, nil
	}
	m, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if call.Tx != nil {
		if err := call.Tx.UndoLast(ctx, restoreOp, &pb.ServiceRestore{BootId: facts.BootID()}); err != nil {
			return nil, err
		}
	}
	return &pb.Nothing{}, m.reload(ctx)
}

// scriptAct is service.start, stop, restart and reload.
func (r *Room) scriptAct(ctx context.Context, call *builtins.Call, op, action string, in *pb.ServiceRunArgs) (*pb.Changed, error) {
	u, err := parseUnit(in.Name)
	if err != nil {
		return nil, err
	}
	if in.Timeout < 0 {
		return nil, fault.On(u.short(), fault.Invalid("timeout is negative"))
	}
	if in.Timeout > 0 {
		limited, cancel := context.WithTimeout(ctx, time.Duration(min(in.Timeout, 1e9)*float64(time.Second)))
		defer cancel()
		ctx = limited
	}
	changed, err := r.actOn(ctx, call, op, action, u)
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	return &pb.Changed{Changed: changed}, nil
}

// actOn does, or predicts, an action of a script on a unit.
func (r *Room) actOn(ctx context.Context, call *builtins.Call, op, action string, u unit) (bool, error) {
	m, err := r.openFresh(ctx)
	if err != nil {
		return false, err
	}
	defer m.close()
	if call.DryRun != nil {
		return r.predict(ctx, call, op, action, u)
	}
	s, err := m.unit(ctx, u)
	if errors.Is(err, fs.ErrNotExist) && r.mayHaveCome(call, u) {
		if err = m.reload(ctx); err == nil {
			s, err = m.unit(ctx, u)
		}
	}
	if err != nil {
		return false, err
	}
	if own := m.own(ctx); s.unit == own && action != "start" {
		return false, &fault.Error{
			Err:  fault.Refuse("it is the agent's own, whose end would be that of the script"),
			Hint: "service_control of a host does it, when it has answered",
		}
	}
	return r.act(ctx, m, call, op, action, s)
}

// predict is what an action would do. That the unit starts well is presumed.
func (r *Room) predict(ctx context.Context, call *builtins.Call, op, action string, u unit) (bool, error) {
	s, err := r.stateOf(ctx, call, u)
	switch {
	case err != nil:
		return false, err
	case s.load == "masked" && action != "stop":
		return false, &fault.Error{Err: fault.Refuse("it is masked"), Hint: "service.unmask takes that back"}
	case action == "start" && s.runs(), action == "stop" && (s.active == "inactive" || s.active == "failed"):
		return false, nil
	case action == "reload" && !s.runs():
		return false, fault.Refuse("it is %s, and only what is active can be reloaded", s.active)
	}
	if err := mayStart(s); err != nil && action != "stop" {
		return false, err
	}
	active := action != "stop"
	pretend(call, s.unit, func(p *pretence) { p.active = &active })
	call.ReportApplied(&pb.Change{Op: op, Target: string(s.unit), Action: actions[action]})
	return true, nil
}

// scriptEnable is service.enable, disable, mask and unmask: links, and where the guest runs the manager reloads.
func (r *Room) scriptEnable(
	ctx context.Context, call *builtins.Call, op string, in *pb.ServiceEnableArgs,
	do func(context.Context, *builtins.Call, string, unit) (bool, error), now string,
) (*pb.Changed, error) {
	u, err := parseUnit(in.Name)
	if err != nil {
		return nil, err
	}
	changed, err := r.linked(ctx, call, op, u, do)
	if err == nil && in.Now && now != "" && r.live() != none {
		var also bool
		also, err = r.actOn(ctx, call, op, now, u)
		changed = changed || also
	}
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	return &pb.Changed{Changed: changed}, nil
}

// putsOff are the operations whose links are of no consequence until something is done to a unit. That the manager reads its
// files again takes it longer than all the rest, and once is enough.
var putsOff = map[string]bool{"service.enable": true, "service.disable": true}

// reread has the manager read its files again, if nothing has had it do so since links were changed.
func (r *Room) reread(ctx context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.Nothing, error) {
	if call.DryRun != nil || r.live() == none {
		return &pb.Nothing{}, nil
	}
	m, err := r.openFresh(ctx)
	if err != nil {
		return nil, err
	}
	m.close()
	return &pb.Nothing{}, nil
}

// openFresh is open for what depends on the links of units: the manager has read all that were changed.
func (r *Room) openFresh(ctx context.Context) (manager, error) {
	m, err := r.open(ctx)
	if err != nil || !r.unread.Load() {
		return m, err
	}
	if err := m.reload(ctx); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// linked changes links of a unit in a transaction or without one.
func (r *Room) linked(
	ctx context.Context, call *builtins.Call, op string, u unit,
	do func(context.Context, *builtins.Call, string, unit) (bool, error),
) (bool, error) {
	var m manager
	if r.live() != none && call.DryRun == nil {
		var err error
		if m, err = r.open(ctx); err != nil {
			return false, err
		}
		defer m.close()
		if call.Tx != nil {
			was := &pb.ServiceRestore{Unit: string(u), BootId: facts.BootID()}
			if s, err := m.unit(ctx, u); err == nil {
				was.Active, was.Invocation, was.Start = s.runs(), s.invocation, s.start
			}
			if err := call.Tx.UndoLast(ctx, restoreOp, was); err != nil {
				return false, err
			}
		}
	}
	changed, err := do(ctx, call, op, u)
	switch {
	case err != nil || m == nil || !changed:
	case call.Pending != nil && putsOff[op] && r.live() == bySystemd:
		r.unread.Store(true)
		err = call.BeforeCommit(builtins.Pending{Action: builtins.Action{Op: rereadOp, Args: &pb.NoArgs{}, Target: "daemon-reload"}})
	default:
		err = m.reload(ctx)
	}
	if m != nil && call.Tx != nil && err == nil && !changed {
		call.Tx.NotBegun()
	}
	return changed, err
}
