package clock

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/privilege"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// running is the machine that the agent is a process of. Its hardware clock is set by Windows itself.
func running(*guest.Guest) system {
	return system{
		why: maySet, now: time.Now,
		step:   func(by time.Duration) error { return setSystemTime(time.Now().Add(by)) },
		setRTC: func(time.Time) (bool, error) { return false, nil },
		hostOffset: func(context.Context, bool) (time.Duration, error) {
			return 0, fault.Unsupported("Windows sees no clock of its host")
		},
		daemon: newTimeService().correct,
	}
}

// maySet returns why the agent may not set the clock.
func maySet() error {
	if err := privilege.Enable(privilege.SystemTime); err != nil {
		return fault.Unsupported("the agent may not set the clock: %v", err)
	}
	return nil
}

// setSystemTime sets the clock, which Windows does in whole milliseconds: the next one is waited for.
func setSystemTime(at time.Time) error {
	if err := privilege.Enable(privilege.SystemTime); err != nil {
		return err
	}
	next := at.Truncate(time.Millisecond).Add(time.Millisecond)
	time.Sleep(next.Sub(at))
	utc := next.UTC()
	to := windows.Systemtime{
		Year: uint16(utc.Year()), Month: uint16(utc.Month()), Day: uint16(utc.Day()),
		Hour: uint16(utc.Hour()), Minute: uint16(utc.Minute()), Second: uint16(utc.Second()), Milliseconds: uint16(utc.Nanosecond() / 1e6),
	}
	set := windows.NewLazySystemDLL("kernel32.dll").NewProc("SetSystemTime")
	if ok, _, err := set.Call(uintptr(unsafe.Pointer(&to))); ok == 0 {
		return fault.Cause(err)
	}
	return nil
}

const (
	serviceName = "W32Time"
	sourceW32   = "w32time"
	// askTime bounds the wait for one answer of a server, and resyncTime that for the service to correct the clock: a host
	// waits for 30 s.
	askTime    = 3 * time.Second
	resyncTime = 20 * time.Second
	lookEvery  = 2 * time.Second // at the server, who must not be flooded
)

// timeService is the time service of Windows. Its functions can be replaced by tests.
type timeService struct {
	// running reports whether the service runs; errors.ErrUnsupported: there is none.
	running func() (bool, error)
	// restart starts it again, which makes it ask its servers at once.
	restart func(ctx context.Context) error
	// servers are those that it asks.
	servers func() ([]string, error)
	// offset is how far a server's clock is ahead of the guest's.
	offset func(ctx context.Context, server string) (time.Duration, error)
}

func newTimeService() timeService {
	return timeService{running: serviceRuns, restart: restartService, servers: configuredServers, offset: askServer}
}

// correct has the service correct the clock, and sees by its own servers that it did.
func (s timeService) correct(ctx context.Context, _, measure bool) (corrected, error) {
	done := corrected{source: sourceW32}
	on, err := s.running()
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return done, fault.Unsupported("not supported without set_time: Windows sees no clock of its host, and %v", err)
	case err != nil:
		return done, err
	case !on:
		return done, fault.Refuse("the guest sees no clock of its host, and %s does not run in it; it stays off", serviceName)
	}
	servers, err := s.servers()
	if err != nil {
		return done, err
	}
	server, before, err := s.ask(ctx, servers)
	if err != nil {
		return done, err
	}
	done.before, done.after = before, before
	if measure || before.Abs() < syncedBelow {
		return done, nil
	}
	late := fault.Wrapf(context.DeadlineExceeded, "%s has not corrected the clock within %v", serviceName, resyncTime)
	ctx, cancel := context.WithTimeoutCause(ctx, resyncTime, late)
	defer cancel()
	if err := s.restart(ctx); err != nil {
		return done, fault.On(serviceName, err)
	}
	for {
		if done.after, err = s.offset(ctx, server); err == nil && done.shrank() == nil {
			done.method = pb.ClockMethod_CLOCK_METHOD_STEP // it can have come so far in no other way
			return done, nil
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return done, context.Cause(ctx)
		}
	}
}

// ask returns the offset of the first server that answers.
func (s timeService) ask(ctx context.Context, servers []string) (string, time.Duration, error) {
	var all error
	for _, server := range servers {
		offset, err := s.offset(ctx, server)
		if err == nil {
			return server, offset, nil
		}
		all = errors.Join(all, fault.On(server, err))
	}
	if all == nil {
		all = fault.Unsupported("no servers are configured")
	}
	return "", 0, all
}
