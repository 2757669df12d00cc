package clock

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// daemonTime bounds how long a daemon is waited for: a host waits for 30 s.
	daemonTime = 20 * time.Second
	lookEvery  = 100 * time.Millisecond
	chronyTime = 5 * time.Second // of one question to chronyd
)

// daemons are the time daemons that can be asked what they measure.
type daemons struct {
	run     *proc.Runner
	program string // chronyc
}

// correct has the daemon that runs correct the clock, and waits until it has begun to.
func (d daemons) correct(ctx context.Context, force, measure bool) (corrected, error) {
	late := fault.Wrapf(context.DeadlineExceeded, "the time daemon got no answer from its servers within %v", daemonTime)
	ctx, cancel := context.WithTimeoutCause(ctx, daemonTime, late)
	defer cancel()
	if now, err := d.tracking(ctx); err == nil {
		return d.byChrony(ctx, now, force, measure)
	}
	return byTimesyncd(ctx, measure)
}

// tracked is what chronyd knows of the clock.
type tracked struct {
	offset time.Duration // the time minus the clock
	synced bool
}

// tracking asks chronyd; an error: it does not run, or is not there.
func (d daemons) tracking(ctx context.Context) (tracked, error) {
	out, err := d.chronyc(ctx, "-c", "tracking")
	if err != nil {
		return tracked{}, err
	}
	return parseTracking(string(out))
}

// parseTracking reads what chronyc(1) prints with -c: the fifth field is by how many seconds the clock is slow, and the last
// says whether it is synchronised.
func parseTracking(line string) (t tracked, err error) {
	fields := strings.Split(strings.TrimSpace(line), ",")
	if len(fields) < 14 {
		return t, fault.Wrapf(fault.ErrOutput, "chronyc tracking printed %d fields", len(fields))
	}
	seconds, err := strconv.ParseFloat(fields[4], 64)
	if err != nil {
		return t, fault.Wrapf(fault.ErrOutput, "chronyc tracking printed the offset %q", fields[4])
	}
	last := fields[len(fields)-1]
	return tracked{offset: time.Duration(seconds * float64(time.Second)), synced: last != "Not synchronised"}, nil
}

func (d daemons) chronyc(ctx context.Context, args ...string) ([]byte, error) {
	if d.run == nil {
		return nil, fault.Unsupported("no commands are run here")
	}
	result, err := d.run.Run(ctx, proc.Spec{Argv: append([]string{d.program, "-n"}, args...), Tied: true, Timeout: chronyTime})
	if err != nil {
		return nil, err
	}
	return result.Stdout, fault.On("chronyc "+args[len(args)-1], result.Err())
}

// byChrony has chronyd measure, and correct at once what it has measured where that is a step. What is less it slews by itself.
func (d daemons) byChrony(ctx context.Context, now tracked, force, measure bool) (corrected, error) {
	done := corrected{source: sourceChrony, before: now.offset, after: now.offset}
	if measure {
		if !now.synced {
			return done, fault.Wrapf(fault.ErrOutput, "chrony is not synchronised, so it knows no offset")
		}
		return done, nil
	}
	if _, err := d.chronyc(ctx, "burst", "4/4"); err != nil {
		return done, err
	}
	for !now.synced {
		if err := pause(ctx); err != nil {
			return done, err
		}
		var err error
		if now, err = d.tracking(ctx); err != nil {
			return done, err
		}
	}
	done.before, done.after, done.method = now.offset, now.offset, pb.ClockMethod_CLOCK_METHOD_SLEW
	if done.before.Abs() < syncedBelow {
		done.method = pb.ClockMethod_CLOCK_METHOD_NONE
		return done, nil
	}
	if force || now.offset.Abs() >= slewBelow {
		done.method = pb.ClockMethod_CLOCK_METHOD_STEP
		if _, err := d.chronyc(ctx, "makestep"); err != nil {
			return done, err
		}
	}
	for {
		after, err := d.tracking(ctx)
		if err != nil {
			return done, err
		}
		done.after = after.offset
		if done.shrank() == nil {
			return done, nil
		}
		if pause(ctx) != nil {
			return done, done.shrank()
		}
	}
}

func pause(ctx context.Context) error {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const (
	timedate     = "org.freedesktop.timedate1"
	timedatePath = "/org/freedesktop/timedate1"
	timesync     = "org.freedesktop.timesync1"
	timesyncPath = "/org/freedesktop/timesync1"
	timesyncUnit = "systemd-timesyncd.service"
	systemd      = "org.freedesktop.systemd1"
	systemdPath  = "/org/freedesktop/systemd1"
)

// ntpMessage is the property NTPMessage of org.freedesktop.timesync1(5): the last answer of a server. Times are in µs since
// 1970.
type ntpMessage struct {
	Leap, Version, Mode, Stratum              uint32
	Precision                                 int32
	RootDelay, RootDispersion                 uint64
	Reference                                 []byte
	Originate, Receive, Transmit, Destination uint64
	Spike                                     bool
	Packets, Jitter                           uint64
}

// offset is the server's time minus the clock's when the answer came (RFC 5905, section 8).
func (m ntpMessage) offset() time.Duration {
	there, back := int64(m.Receive)-int64(m.Originate), int64(m.Transmit)-int64(m.Destination)
	return time.Duration(there/2+back/2) * time.Microsecond
}

// byTimesyncd starts systemd-timesyncd again where it runs, which makes it ask its servers at once, and waits until it has
// corrected what it measured.
func byTimesyncd(ctx context.Context, measure bool) (corrected, error) {
	done := corrected{source: sourceSystem}
	bus, err := sysbus.Open(ctx)
	if err != nil {
		return done, noSource(err)
	}
	defer bus.Close()
	var on bool
	if err := bus.Property(ctx, timedate, timedatePath, timedate, "NTP", &on); err != nil {
		return done, noSource(err)
	}
	if !on {
		return done, fault.Refuse("the guest sees no clock of its host, and network time is turned off in it; it stays off")
	}
	last, err := lastAnswer(ctx, bus)
	if err != nil {
		return done, noSource(err)
	}
	if measure {
		if last.Packets == 0 {
			return done, fault.Wrapf(fault.ErrOutput, "%s has no answer of a server yet", timesyncUnit)
		}
		done.before, done.after = last.offset(), last.offset()
		return done, nil
	}
	began, from := time.Now(), rawTime()
	if err := bus.Call(ctx, systemd, systemdPath, systemd+".Manager.RestartUnit", nil, timesyncUnit, "replace"); err != nil {
		return done, err
	}
	for {
		if err := pause(ctx); err != nil {
			if done.before == 0 {
				return done, err
			}
			return done, done.shrank()
		}
		m, err := lastAnswer(ctx, bus)
		if err != nil || m.Packets == 0 || m.Spike { // it is starting
			continue
		}
		if done.before == 0 {
			done.before = m.offset()
		}
		moved := time.Now().Round(0).Sub(began.Round(0)) - (rawTime() - from)
		done.after = done.before - moved
		done.method = pb.ClockMethod_CLOCK_METHOD_SLEW
		if moved.Abs() >= slewBelow {
			done.method = pb.ClockMethod_CLOCK_METHOD_STEP
		}
		switch {
		case done.before.Abs() < syncedBelow:
			done.method, done.after = pb.ClockMethod_CLOCK_METHOD_NONE, done.before
			return done, nil
		case done.shrank() == nil:
			return done, nil
		}
	}
}

func lastAnswer(ctx context.Context, bus *sysbus.Conn) (m ntpMessage, err error) {
	var value dbus.Variant
	const get = "org.freedesktop.DBus.Properties.Get"
	err = bus.Call(ctx, timesync, timesyncPath, get, []any{&value}, timesync+".Manager", "NTPMessage")
	if err != nil {
		return m, err
	}
	return m, value.Store(&m)
}

// noSource is the error where nothing knows the time.
func noSource(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) {
		return fault.Unsupported("SyncTimeRequest without set_time is not supported: " +
			"the guest sees no clock of its host, and runs no time daemon that is known")
	}
	return err
}
