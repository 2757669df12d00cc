// Package clock sets the guest's clock.
//
//	sync_time ─► set_time: the host says what time it is ──────────┐
//	         └─► the clock that KVM shows its guests (PTP) ─────────┼─► offset ─► step or slew ─► offset ─► hardware clock
//	         └─► the guest's own time daemon: chrony, timesyncd, ───┘  (a daemon corrects by itself, and is waited for)
//	             on Windows W32Time
//
// A reply contains measured offsets only: if the clock is no nearer to its source afterwards, the request fails. A daemon that
// was turned off stays off, and only servers that the guest uses already are asked.
//
// Not here: the time zone (host).
package clock

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// slewBelow is the offset below which the clock is not stepped unless that is forced: the kernel corrects 0.5 s in 17
	// minutes, at 500 ppm (adjtime(3)).
	slewBelow = 500 * time.Millisecond
	// exactBelow is the offset below which nothing is corrected: two reads of a clock are that far apart on a busy machine.
	exactBelow = time.Millisecond
	// syncedBelow is what a daemon may leave: over a network it does not get much nearer.
	syncedBelow = 10 * time.Millisecond
	// transitBelow is how far the time that is set and the moment of sending may be apart to mean the same moment.
	transitBelow = 10 * time.Second
)

// The times that can be set. Before the first there was no such guest; from the last on, 32-bit parts of file systems and
// clocks do not know what to do.
var (
	earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Sources of time, as replies name them.
const (
	sourceManual = "manual" // the request said it
	sourceHost   = "kvm-ptp"
	sourceChrony = "chrony"
	sourceSystem = "systemd-timesyncd"
)

// Config says how the room works. The zero value sets no clock.
type Config struct {
	// Machine says that the agent is the one of the running machine, and so may set its clock.
	Machine bool
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest  *guest.Guest
	config Config
	system system
	busy   chan struct{} // holds a token while a clock is being set
}

// system is the clock of the running machine. Tests have their own: theirs must not be set.
type system struct {
	// why returns why the clock cannot be set here; nil: it can.
	why func() error
	// now is the clock.
	now func() time.Time
	// step adds to the clock at once.
	step func(by time.Duration) error
	// slew adds to the clock by and by, and returns what is left of it. Nil: the clock is stepped in any case.
	slew func(by time.Duration) (left time.Duration, err error)
	// setRTC sets the hardware clock; false: there is none.
	setRTC func(at time.Time) (there bool, err error)
	// hostOffset is how far the clock that KVM shows is ahead of the guest's; an error of cause errors.ErrUnsupported: there
	// is none. load says that the kernel may be made to show it.
	hostOffset func(ctx context.Context, load bool) (time.Duration, error)
	// daemon has the guest's own time daemon correct the clock.
	daemon func(ctx context.Context, force, measure bool) (corrected, error)
}

// corrected is what became of a clock.
type corrected struct {
	source        string
	before, after time.Duration // the source's time minus the clock's
	method        pb.ClockMethod
	age           time.Duration // how long ago before was measured
}

// New makes the room for a guest.
func New(g *guest.Guest, config Config) *Room {
	return &Room{guest: g, config: config, system: running(g), busy: make(chan struct{}, 1)}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	capability, features := "", (func() map[string]string)(nil)
	if r.served() == nil {
		capability = "sync_time"
		features = func() map[string]string { return map[string]string{"sync_time": "measure,method"} }
	}
	return builtins.Room{Name: "clock", Features: features, Ops: []builtins.Op{{
		Name: "sync_time", Capability: capability, Summary: "set the clock, or measure how far it is off",
		Mutates: true, Readonly: builtins.Of(func(in *pb.SyncTimeRequest) bool { return in.Measure }),
		Access: builtins.Of(func(*pb.SyncTimeRequest) builtins.Access {
			return builtins.Access{Objects: []builtins.Object{{Kind: "clock", Name: "system"}}}
		}),
		Handler: builtins.Handle(r.sync),
	}}}
}

// served returns why no request can be served here.
func (r *Room) served() error {
	switch {
	case !r.guest.Live:
		return fault.Unsupported("not supported: a tree that is not booted has no clock")
	case !r.config.Machine:
		return fault.Unsupported("not supported: this agent is not the one that the machine is installed with")
	}
	if err := r.system.why(); err != nil {
		return fault.Unsupported("not supported: %v", err)
	}
	return nil
}

func (r *Room) sync(ctx context.Context, call *builtins.Call, in *pb.SyncTimeRequest) (*pb.SyncTimeResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	received := call.Received
	if received.IsZero() {
		received = time.Now()
	}
	var done corrected
	select {
	case r.busy <- struct{}{}:
		defer func() { <-r.busy }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if in.SetTime != nil {
		target, err := setTime(in.SetTime, call.Sent)
		if err != nil {
			return nil, err
		}
		done, err = r.correct(ctx, in, sourceManual, func(context.Context) (time.Duration, error) {
			elapsed := time.Since(received) // by the monotonic clock, which no step moves
			return target.Add(elapsed).Sub(r.system.now().Round(0)), nil
		})
		if err != nil {
			return nil, err
		}
		return r.reply(done), nil
	}
	if _, err := r.system.hostOffset(ctx, !in.Measure); err == nil {
		done, err = r.correct(ctx, in, sourceHost, func(ctx context.Context) (time.Duration, error) {
			return r.system.hostOffset(ctx, false)
		})
		if err != nil {
			return nil, err
		}
		return r.reply(done), nil
	}
	done, err := r.system.daemon(ctx, in.Force, in.Measure)
	if err != nil {
		return nil, err
	}
	return r.reply(done), nil
}

// setTime returns the time that was meant when the request was sent: a sender that says when that was needed some time for it.
func setTime(set *timestamppb.Timestamp, sent time.Time) (time.Time, error) {
	if err := set.CheckValid(); err != nil {
		return time.Time{}, fault.Invalid("set_time has %d s and %d ns, which is no time", set.Seconds, set.Nanos)
	}
	target := set.AsTime()
	if target.Before(earliest) || !target.Before(latest) {
		return time.Time{}, fault.Invalid("set_time is %s, and not in the years %d to %d",
			target.Format(time.RFC3339), earliest.Year(), latest.Year()-1)
	}
	if late := sent.Sub(target); !sent.IsZero() && late > 0 && late < transitBelow {
		target = sent
	}
	return target, nil
}

// correct brings the clock to where a source says, and measures what became of it.
func (r *Room) correct(
	ctx context.Context, in *pb.SyncTimeRequest, source string, offset func(context.Context) (time.Duration, error),
) (corrected, error) {
	before, err := offset(ctx)
	if err != nil {
		return corrected{}, err
	}
	done := corrected{source: source, before: before, after: before}
	switch {
	case in.Measure || before.Abs() < exactBelow:
		return done, nil
	case before.Abs() < slewBelow && !in.Force && r.system.slew != nil:
		done.method = pb.ClockMethod_CLOCK_METHOD_SLEW
		left, err := r.system.slew(before)
		if err == nil && (left-before).Abs() > before.Abs()/2 {
			err = fault.Wrapf(fault.ErrInternal, "the kernel slews the clock by %v, not by %v", left, before)
		}
		if err != nil {
			return done, fault.On("clock", err)
		}
		return done, nil
	}
	done.method = pb.ClockMethod_CLOCK_METHOD_STEP
	if err := r.system.step(before); err != nil {
		return done, fault.On("clock", err)
	}
	if done.after, err = offset(ctx); err != nil {
		return done, err
	}
	return done, done.shrank()
}

// shrank returns an error unless the offset is at most half of what it was, or as small as it gets: what is measured twice is
// never quite the same.
func (c corrected) shrank() error {
	if c.after.Abs() <= c.before.Abs()/2 || c.after.Abs() < exactBelow {
		return nil
	}
	return fault.Wrapf(fault.ErrOutput, "the clock was off by %v and still is by %v, as %s has it", c.before, c.after, c.source)
}

// reply returns the state of the clock after a correction, by a step or by slewing, and writes the corrected time to the hardware clock.
// With CLOCK_METHOD_NONE nothing was corrected, and the hardware clock is left alone.
func (r *Room) reply(done corrected) *pb.SyncTimeResponse {
	reply := &pb.SyncTimeResponse{
		Success: true, TimeSource: done.source, Method: done.method,
		OffsetSeconds: done.before.Seconds(), RemainingSeconds: done.after.Seconds(), AgeSeconds: done.age.Seconds(),
	}
	if done.method != pb.ClockMethod_CLOCK_METHOD_NONE {
		there, err := r.system.setRTC(r.system.now().Add(done.after))
		reply.RtcWritten = there && err == nil
		if err != nil {
			reply.RtcError = err.Error()
		}
	}
	reply.CurrentTime = timestamppb.New(r.system.now())
	return reply
}
