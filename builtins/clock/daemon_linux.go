package clock

import (
	"context"
	"errors"
	"io/fs"
	"math"
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
	offset    time.Duration // the time minus the clock
	reference string        // when the measurement was made that this is based on; another one has another text
	synced    bool
}

// tracking asks chronyd; an error: it does not run, or is not there.
func (d daemons) tracking(ctx context.Context) (tracked, error) {
	out, err := d.chronyc(ctx, "-c", "tracking")
	if err != nil {
		return tracked{}, err
	}
	return parseTracking(string(out))
}

// parseTracking reads what chronyc(1) prints with -c: the fourth field is the reference time, the fifth is by how many seconds
// the clock is slow, and the last reports whether it is synchronised.
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
	return tracked{time.Duration(seconds * float64(time.Second)), fields[3], last != "Not synchronised"}, nil
}

// measured is when chronyd last had answers of its sources.
type measured struct {
	// follows reports whether it follows a source: else none has answered, or what they say does not fit together.
	follows bool
	// age is how long ago that source answered, and newest how long ago any did; both in whole seconds, cut off.
	age, newest time.Duration
}

func (d daemons) measured(ctx context.Context) (measured, error) {
	out, err := d.chronyc(ctx, "-c", "sources")
	if err != nil {
		return measured{}, err
	}
	return parseSources(string(out))
}

// parseSources reads what chronyc(1) prints with -c: the second field of the source that is followed is a star, and the
// seventh is how many seconds ago a source answered, 2^32-1: never.
func parseSources(lines string) (m measured, err error) {
	m.newest = math.MaxUint32 * time.Second
	for line := range strings.Lines(lines) {
		fields := strings.Split(strings.TrimSpace(line), ",")
		if len(fields) < 10 {
			return m, fault.Wrapf(fault.ErrOutput, "chronyc sources printed %d fields", len(fields))
		}
		seconds, err := strconv.ParseUint(fields[6], 10, 32)
		if err != nil {
			return m, fault.Wrapf(fault.ErrOutput, "chronyc sources printed the time %q", fields[6])
		}
		age := time.Duration(seconds) * time.Second
		m.newest = min(m.newest, age)
		if fields[1] == "*" {
			m.follows, m.age = true, age
		}
	}
	return m, nil
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
		last, err := d.measured(ctx)
		if err == nil && (!last.follows || !now.synced) {
			err = fault.Wrapf(fault.ErrOutput, "chrony follows no source, so it knows no offset")
		}
		done.age = last.age
		return done, err
	}
	now, err := d.remeasure(ctx, now)
	if err != nil {
		return done, err
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

// remeasure has chronyd measure anew, and returns what it knows then. A clock that has jumped, as that of a guest which was
// paused, makes chronyd mistrust its source for minutes: then it is made to forget what it had measured, as chronyc(1) has it
// for a machine that is resumed.
func (d daemons) remeasure(ctx context.Context, before tracked) (tracked, error) {
	began := time.Now()
	if _, err := d.chronyc(ctx, "burst", "4/4"); err != nil {
		return before, err
	}
	for forgot := !before.synced; ; {
		now, err := d.tracking(ctx)
		if err != nil {
			return now, err
		}
		if now.synced && now.reference != before.reference {
			return now, nil
		}
		last, err := d.measured(ctx)
		if err != nil {
			return now, err
		}
		if answered := last.newest+time.Second <= time.Since(began); answered && !last.follows && !forgot {
			forgot = true
			if _, err := d.chronyc(ctx, "reset", "sources"); err == nil { // else it is a chrony 3, which does not know this
				if _, err := d.chronyc(ctx, "burst", "4/4"); err != nil {
					return now, err
				}
			}
		}
		if err := pause(ctx); err != nil {
			return now, err
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
	busName      = "org.freedesktop.DBus"
	busPath      = "/org/freedesktop/DBus"
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
	last, err := lastAnswer(ctx, bus, timesync)
	if err != nil {
		return done, noSource(err)
	}
	if measure {
		if last.Packets == 0 {
			return done, fault.Wrapf(fault.ErrOutput, "%s has no answer of a server yet", timesyncUnit)
		}
		done.before, done.after = last.offset(), last.offset()
		done.age = max(time.Since(time.UnixMicro(int64(last.Destination))), 0)
		return done, nil
	}
	old, err := owner(ctx, bus)
	if err != nil {
		return done, noSource(err)
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
		now, err := owner(ctx, bus)
		if err != nil || now == old { // the old process is there until it has ended
			continue
		}
		m, err := lastAnswer(ctx, bus, now)
		if err != nil || m.Packets == 0 || m.Spike || m.Destination == last.Destination { // it is starting
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

// owner returns the name on the bus that the process alone has which is systemd-timesyncd now.
func owner(ctx context.Context, bus *sysbus.Conn) (name string, err error) {
	err = bus.Call(ctx, busName, busPath, busName+".GetNameOwner", []any{&name}, timesync)
	return name, err
}

// lastAnswer asks systemd-timesyncd, by a name of it on the bus, for the last answer that it has got.
func lastAnswer(ctx context.Context, bus *sysbus.Conn, name string) (m ntpMessage, err error) {
	var value dbus.Variant
	const get = "org.freedesktop.DBus.Properties.Get"
	err = bus.Call(ctx, name, timesyncPath, get, []any{&value}, timesync+".Manager", "NTPMessage")
	if err != nil {
		return m, err
	}
	return m, value.Store(&m)
}

// noSource is the error where nothing knows the time.
func noSource(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) {
		return fault.Unsupported("not supported without set_time: " +
			"the guest sees no clock of its host, and runs no time daemon that is known")
	}
	return err
}
