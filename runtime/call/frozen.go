package call

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// frozen says why a request of a host cannot be served: it would meet what is frozen.
func (d *decision) frozen() error {
	if d.config.Frozen == nil {
		return nil
	}
	return d.config.Frozen.Check(d.access)
}

// enter begins a request of a host that changes files, so that a freeze waits for its end. A command is not waited for: it may
// run for hours, and its writes wait for the thaw by themselves.
func (d *decision) enter(ctx context.Context) (leave func(), err error) {
	if d.config.Frozen == nil || len(d.access.Writes) == 0 || len(d.access.Commands) > 0 || !d.op.Changes(d.in) {
		return func() {}, nil
	}
	return d.config.Frozen.Enter(ctx, d.access, false)
}

// thawed waits until a call of a script can be served. One that changes something is under way from then on until leave, so
// that a snapshot has all of it or nothing.
func (d *decision) thawed(ctx context.Context, changes bool) (leave func(), err error) {
	leave = func() {}
	switch {
	case d.config.Frozen == nil:
		return leave, nil
	case changes:
		return d.config.Frozen.EnterScript(ctx, d.access)
	}
	return leave, d.config.Frozen.Await(ctx, d.access)
}

// enterOwn is thawed for the one operation of a transaction of a host.
func (d *decision) enterOwn(ctx context.Context) (leave func(), err error) {
	if d.config.Frozen == nil {
		return func() {}, nil
	}
	return d.config.Frozen.EnterScript(ctx, builtins.Access{Writes: d.access.Writes})
}
