package power

import (
	"context"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// running is a machine that cannot be shut down.
func running(*guest.Guest) machine {
	why := func() error { return fault.Unsupported("it is not there on Windows yet") }
	return machine{
		why: why, tell: func(context.Context, string) {},
		act: func(context.Context, string) error { return why() },
	}
}

var began = time.Now()

// bootTime counts from the start of the agent: nothing is kept beyond it here.
func bootTime() time.Duration { return time.Since(began) }

// waitUntil waits until that time, or until ctx ends: then it returns the cause.
func waitUntil(ctx context.Context, at time.Duration) error {
	timer := time.NewTimer(at - bootTime())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}
