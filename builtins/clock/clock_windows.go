package clock

import (
	"context"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// running is a machine whose clock cannot be set.
func running(*guest.Guest) system {
	why := func() error { return fault.Unsupported("it is not there on Windows yet") }
	return system{
		why: why, now: time.Now,
		step:       func(time.Duration) error { return why() },
		slew:       func(time.Duration) (time.Duration, error) { return 0, why() },
		setRTC:     func(time.Time) (bool, error) { return false, nil },
		hostOffset: func(context.Context, bool) (time.Duration, error) { return 0, why() },
		daemon: func(context.Context, bool, bool) (corrected, error) {
			none := corrected{source: sourceChrony}
			if none.after.Abs() > syncedBelow {
				none.source = sourceSystem
			}
			return none, why()
		},
	}
}
