// Package service lists the services of the guest, starts and stops them, and says which ones start by themselves.
//
//	hosts    list_services, service_control ─┐
//	scripts  service.start, enable, …  ──────┼─► systemd by D-Bus: jobs that are waited for, states
//	         tx.notify ─► notified, settled ─┘   OpenRC by rc-service; on Windows the service control manager
//	         service.enable, disable, mask ────► links in /etc, kept by the transaction; also in a tree that is not booted
//	journal  service.restore ──────────────────► the state before, when the files are as before
//
// Names are those of units, of which .service may be left out; on Windows those of services, in any case.
//
// Not here: the text of units, which the file room writes, and when tx.notify comes (runtime/call).
package service

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are those of units without .service.
const kind = "service"

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest *guest.Guest

	mu sync.Mutex
	platform
	acted  map[unit]acted // what was notified, until it is checked
	own    sync.WaitGroup // what is done to the agent's own unit
	closed chan struct{}
	unread atomic.Bool // links were changed that systemd has not read
}

// New makes the room.
func New(g *guest.Guest) *Room {
	return &Room{guest: g, platform: newPlatform(g), acted: map[unit]acted{}, closed: make(chan struct{})}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	list, control := "", ""
	if r.live() != none {
		list, control = "service_list", "service_control"
	}
	room := builtins.Room{Name: "service", Scope: kind, Close: r.close, Ops: append(r.scriptRows(), []builtins.Op{
		{
			Name: "list_services", Capability: list, Summary: "the services with their states",
			Access: builtins.Of(listAccess), Handler: builtins.Handle(r.list),
		},
		{
			Name: "service_control", Capability: control, Summary: "start, stop, enable or disable a service",
			Mutates: true, Readonly: builtins.Of(asks), Transaction: true, Inverse: restoreOp,
			NoTransaction: builtins.Of(func(in *pb.ServiceControlRequest) bool { return r.linking(in.Action) == nil }),
			Access:        builtins.Of(r.controlAccess), Handler: builtins.Handle(r.control),
		},
	}...)}
	if control != "" {
		room.Features = features
	}
	return room
}

// features are the actions that the contract does not have.
func features() map[string]string { return map[string]string{"service_control": moreActions} }

// close waits for what is done to the agent's own unit.
func (r *Room) close() error {
	close(r.closed)
	r.own.Wait()
	return nil
}

func listAccess(in *pb.ListServicesRequest) (access builtins.Access) {
	if in.Filter != "" {
		access.Objects = objects(in.Filter)
	}
	return access
}

func (r *Room) controlAccess(in *pb.ServiceControlRequest) builtins.Access {
	access := builtins.Access{Objects: objects(in.Name)}
	if r.linking(in.Action) != nil {
		access.Writes = r.linkDirs()
	}
	return access
}

// linking is what an action of hosts does to the links of a unit; nil: nothing.
func (r *Room) linking(action pb.ServiceAction) func(context.Context, *builtins.Call, string, unit) (bool, error) {
	switch action {
	case pb.ServiceAction_SERVICE_ACTION_ENABLE:
		return r.enable
	case pb.ServiceAction_SERVICE_ACTION_DISABLE:
		return r.disable
	case pb.ServiceAction_SERVICE_ACTION_MASK:
		return r.mask
	case pb.ServiceAction_SERVICE_ACTION_UNMASK:
		return r.unmask
	}
	return nil
}

// asks says of a request that it only asks for the state.
func asks(in *pb.ServiceControlRequest) bool {
	return in.Action == pb.ServiceAction_SERVICE_ACTION_STATUS
}

// objects is the unit of a name, as needs and rules have it.
func objects(name string) []builtins.Object {
	return []builtins.Object{{Kind: kind, Name: strings.TrimSuffix(name, suffix)}}
}

// system is what manages the services.
type system int

const (
	none system = iota
	bySystemd
	byOpenRC
	bySCM // the service control manager of Windows
)

// errNone is the error where nothing manages services.
var errNone = fault.Unsupported("there is no service manager in this guest")

// state is what is known of a unit.
type state struct {
	unit                                               unit
	description, load, active, sub, file, kind, result string
	details                                            string // what it says it is beyond the description; empty: no more
	invocation                                         string
	start                                              *pb.ServiceStart // how Windows starts it; nil elsewhere
	pid                                                uint32
	memory                                             uint64
	reload, conditions, triggered                      bool // it needs a daemon-reload; its conditions were met; others start it
}

// runs reports whether a unit is active.
func (s *state) runs() bool { return s.active == "active" || s.active == "reloading" }

// word is the state as hosts know it: of a unit that is active how it is.
func (s *state) word() string {
	if s.active == "active" && s.sub != "" {
		return s.sub
	}
	return s.active
}

// manager starts and stops units of the running machine.
type manager interface {
	// unit returns the state of a unit; fs.ErrNotExist where there is none.
	unit(ctx context.Context, u unit) (*state, error)
	// list returns all services.
	list(ctx context.Context) ([]*state, error)
	// do does an action and waits for its end. An error has the last lines that the unit wrote.
	do(ctx context.Context, action string, u unit) error
	// reload has the manager read its files again.
	reload(ctx context.Context) error
	// startAs has a unit start as it did before; nil: that stands in files.
	startAs(ctx context.Context, u unit, as *pb.ServiceStart) error
	// failed is the error of a unit that does not do what it shall, with what it says itself of that.
	failed(ctx context.Context, s *state, words string) error
	// forget makes a unit that failed one that is inactive.
	forget(ctx context.Context, u unit) error
	// own is the unit that the agent is of; empty: none.
	own(ctx context.Context) unit
	close()
}

// The actions on a unit that runs, and what a change is called that one made.
var actions = map[string]string{
	"start": "started", "stop": "stopped", "restart": "restarted", "reload": "reloaded", "reload-or-restart": "reloaded",
}

// list is list_services.
func (r *Room) list(ctx context.Context, _ *builtins.Call, in *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	found, err := r.find(ctx, in.Filter, in.RunningOnly)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, fault.Unsupported("not supported: %v", err)
	}
	if err != nil {
		return nil, err
	}
	out := &pb.ListServicesResponse{Success: true}
	for _, s := range found {
		out.Services = append(out.Services, s.info())
	}
	return out, nil
}

// info is a service in the words of the contract.
func (s *state) info() *pb.ServiceInfo {
	return &pb.ServiceInfo{
		Name: s.unit.short(), DisplayName: s.description, State: s.word(), StartType: startType(s.file),
		Description: cmp.Or(s.details, s.description), Pid: s.pid, MemoryBytes: s.memory,
	}
}

// find returns the services whose name has filter in it, in any case, sorted.
func (r *Room) find(ctx context.Context, filter string, running bool) ([]*state, error) {
	m, err := r.openList(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	list, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	filter = strings.ToLower(filter)
	list = slices.DeleteFunc(list, func(s *state) bool {
		return !strings.Contains(strings.ToLower(s.unit.short()), strings.TrimSuffix(filter, suffix)) || running && s.sub != "running"
	})
	slices.SortFunc(list, func(a, b *state) int { return strings.Compare(string(a.unit), string(b.unit)) })
	return list, nil
}

// startType is how a unit is enabled in the words of the contract.
func startType(file string) string {
	switch file {
	case "enabled":
		return "auto"
	case "static":
		return "manual"
	}
	return file
}

// nativeTime bounds the wait for a job that a host asked for: a host waits for 30 s.
const nativeTime = 25 * time.Second

// control is service_control.
func (r *Room) control(ctx context.Context, call *builtins.Call, in *pb.ServiceControlRequest) (*pb.ServiceControlResponse, error) {
	u, err := parseUnit(in.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, nativeTime, context.DeadlineExceeded)
	defer cancel()
	m, err := r.openFresh(ctx)
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	defer m.close()
	s, err := m.unit(ctx, u)
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	changed, change := false, r.linking(in.Action)
	switch action := hostActions[in.Action]; {
	case in.Action == pb.ServiceAction_SERVICE_ACTION_STATUS:
	case change != nil:
		changed, err = r.linked(ctx, call, "service_control", u, change)
	case action == "":
		err = fault.Invalid("there is no action %d", in.Action)
	case (action == "stop" || action == "restart") && s.unit == m.own(ctx):
		if err := mayEndOwn(action); err != nil {
			return nil, fault.On(u.short(), err)
		}
		return r.endOwn(call, action, s), nil
	default:
		changed, err = r.act(ctx, m, call, "service_control", action, s)
	}
	if err == nil {
		s, err = m.unit(ctx, u)
	}
	if err != nil {
		return nil, fault.On(u.short(), err)
	}
	return &pb.ServiceControlResponse{Success: true, NewState: s.word(), Changed: changed, Service: s.info()}, nil
}

// hostActions are the actions of hosts on what runs.
var hostActions = map[pb.ServiceAction]string{
	pb.ServiceAction_SERVICE_ACTION_START: "start", pb.ServiceAction_SERVICE_ACTION_STOP: "stop",
	pb.ServiceAction_SERVICE_ACTION_RESTART: "restart", pb.ServiceAction_SERVICE_ACTION_RELOAD: "reload",
}

// endOwn stops or restarts the agent's own unit when the reply is on its way.
func (r *Room) endOwn(call *builtins.Call, action string, s *state) *pb.ServiceControlResponse {
	replied := make(chan struct{})
	call.OnceReplied(func() { close(replied) })
	r.own.Go(func() {
		select {
		case <-replied:
		case <-r.closed:
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), nativeTime)
		defer cancel()
		go func() { // the job ends this process, which must not wait for the job
			select {
			case <-r.closed:
				cancel()
			case <-ctx.Done():
			}
		}()
		if m, err := r.open(ctx); err == nil { // nobody is left to report to
			defer m.close()
			_ = m.do(ctx, action, s.unit)
		}
	})
	return &pb.ServiceControlResponse{Success: true, NewState: "deactivating", Changed: true}
}

// act does an action on a unit, unless there is nothing to do, and returns whether it did.
func (r *Room) act(ctx context.Context, m manager, call *builtins.Call, op, action string, s *state) (bool, error) {
	switch {
	case s.load == "masked" && action != "stop":
		return false, &fault.Error{Err: fault.Refuse("it is masked"), Hint: "service.unmask takes that back"}
	case action == "start" && s.runs(), action == "stop" && (s.active == "inactive" || s.active == "failed"):
		return false, nil
	case action == "reload" && !s.runs():
		return false, fault.Refuse("it is %s, and only what is active can be reloaded", s.active)
	}
	if s.reload && action != "stop" {
		if err := m.reload(ctx); err != nil {
			return false, err
		}
	}
	if call.Tx != nil {
		err := call.Tx.UndoLast(ctx, restoreOp, &pb.ServiceRestore{
			Unit: string(s.unit), Active: s.runs() || s.active == "activating", Invocation: s.invocation, Action: action,
			BootId: facts.BootID(),
		})
		if err != nil {
			return false, err
		}
	}
	if err := m.do(ctx, action, s.unit); err != nil {
		return false, err
	}
	call.ReportApplied(&pb.Change{Op: op, Target: string(s.unit), Action: actions[action]})
	return true, nil
}

// errFailed is the cause of the error of a unit that does not do what it shall.
var errFailed = errors.New("the unit failed")
