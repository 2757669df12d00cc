package service

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// moreActions are the actions that the contract does not have.
const moreActions = "reload"

// platform is empty: all that is known of services the manager knows.
type platform struct{}

func newPlatform(*guest.Guest) platform { return platform{} }

// live is what manages the services of the running machine.
func (r *Room) live() system {
	if !r.guest.Live {
		return none
	}
	return bySCM
}

func (r *Room) open(context.Context) (manager, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("no services run in a tree that is not booted")
	}
	return openSCM()
}

// openList connects to the manager for many questions.
func (r *Room) openList(ctx context.Context) (manager, error) { return r.open(ctx) }

// linkDirs are none: how a service starts stands in no file.
func (r *Room) linkDirs() []string { return nil }

// mayEndOwn returns why the agent's own service cannot be stopped or restarted.
func mayEndOwn(action string) error {
	if action == "restart" {
		return fault.Unsupported(
			"the service manager of Windows restarts no service, and the agent cannot start itself when it has ended")
	}
	return nil
}

// mayStart returns why a service cannot be started.
func mayStart(s *state) error {
	if s.file == startWord(startDisabled) {
		return errDisabled()
	}
	return nil
}

func errDisabled() error {
	return &fault.Error{Err: fault.Refuse("it is disabled"), Hint: "service.enable takes that back"}
}

func (r *Room) mayHaveCome(*builtins.Call, unit) bool { return false }

func (r *Room) pretendFiles(*builtins.Call, *state) {}

func (r *Room) fileState(*builtins.Call, unit) (*state, error) { return nil, errNone }

var (
	startAuto     = &pb.ServiceStart{Type: serviceAuto}
	startDisabled = &pb.ServiceStart{Type: serviceDisabled}
)

// enable has a service start with the guest. One that starts a while after the others does so already.
func (r *Room) enable(ctx context.Context, call *builtins.Call, op string, u unit) (bool, error) {
	return r.setStart(ctx, call, op, u, startAuto, "enabled")
}

// disable keeps a service from being started at all, as Windows means the word.
func (r *Room) disable(ctx context.Context, call *builtins.Call, op string, u unit) (bool, error) {
	return r.setStart(ctx, call, op, u, startDisabled, "disabled")
}

func (r *Room) mask(context.Context, *builtins.Call, string, unit) (bool, error) {
	return false, &fault.Error{
		Err:  fault.Unsupported("Windows masks no services"),
		Hint: "service.disable keeps one from being started there, by anybody",
	}
}

func (r *Room) unmask(ctx context.Context, call *builtins.Call, op string, u unit) (bool, error) {
	return r.mask(ctx, call, op, u)
}

// setStart makes a service start as is said. The caller has announced its inverse.
func (r *Room) setStart(
	ctx context.Context, call *builtins.Call, op string, u unit, as *pb.ServiceStart, action string,
) (changed bool, err error) {
	m, err := r.open(ctx)
	if err != nil {
		return false, err
	}
	defer m.close()
	s, err := m.unit(ctx, u)
	if err != nil {
		return false, err
	}
	have := r.pretended(call, s).file
	if have == startWord(as) || as.Type == serviceAuto && have == startWord(&pb.ServiceStart{Type: serviceAuto, Delayed: true}) {
		return false, nil
	}
	if call.DryRun != nil {
		pretend(call, s.unit, func(p *pretence) { p.file = startWord(as) })
	} else if err := m.startAs(ctx, s.unit, as); err != nil {
		return false, err
	}
	call.ReportApplied(&pb.Change{Op: op, Target: string(s.unit), Action: action})
	return true, nil
}
