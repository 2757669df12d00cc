package call

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// checkFrozen returns an error if a request of a host would meet a frozen file system.
func (d *decision) checkFrozen() error {
	if d.config.Frozen == nil {
		return nil
	}
	return d.config.Frozen.Check(d.access)
}

// enter begins a request of a host that changes files: a freeze waits until leave. A command is not waited for: it may run for
// hours, and its writes wait for the thaw by themselves.
func (d *decision) enter(ctx context.Context) (leave func(), err error) {
	if d.config.Frozen == nil || len(d.access.Writes) == 0 || len(d.access.Commands) > 0 || !d.op.Changes(d.in) {
		return func() {}, nil
	}
	return d.config.Frozen.Enter(ctx, d.access, false)
}

// enterScript waits until a call of a script meets no frozen file system. A freeze then waits until leave, where the call changes
// something, so that a snapshot has all of it or nothing.
func (d *decision) enterScript(ctx context.Context, changes bool) (leave func(), err error) {
	leave = func() {}
	switch {
	case d.config.Frozen == nil:
		return leave, nil
	case changes:
		return d.config.Frozen.EnterScript(ctx, d.access)
	}
	return leave, d.config.Frozen.Await(ctx, d.access)
}

// enterOwn is enterScript for a request of a host with a transaction of its own.
func (d *decision) enterOwn(ctx context.Context) (leave func(), err error) {
	if d.config.Frozen == nil {
		return func() {}, nil
	}
	return d.config.Frozen.EnterScript(ctx, builtins.Access{Writes: d.access.Writes})
}
