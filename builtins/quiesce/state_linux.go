package quiesce

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Times of a freeze. Those of hosts that say nothing are from the 30 s that they wait.
const (
	replyTime  = 25 * time.Second       // a request has, hooks and all, whose sender does not say how long it waits
	replySpare = 500 * time.Millisecond // before the sender's time is over
	freezeTime = 10 * time.Second       // one file system has to freeze
	changeTime = 10 * time.Second       // changes under way have to end
	thawTime   = 700 * time.Millisecond // a thaw waits for all file systems, and for hooks, before it answers
	thawEach   = 200 * time.Millisecond // and for one, before it goes on with the next
	stopTime   = 5 * time.Second        // the hooks have at the end of the agent
	maxEnded   = 64                     // thaws that came early, or late, are remembered
)

// defaultTimeout is how long something stays frozen where a request says nothing else, and maxTimeout the most that it may say:
// a snapshot takes seconds, and the longest is one of a storage that is busy.
const (
	defaultTimeout = 60 * time.Second
	maxTimeout     = 10 * time.Minute
)

// target is a file system that is open: freeze.Target, but in tests.
type target interface {
	Sync() error
	Freeze() error
	Thaw() (bool, error)
	Trim(minimum uint64) (uint64, error)
	Mount() (uint64, error)
	Close()
}

// state is what changes. Its lock is never held over a system call on a file system.
type state struct {
	openTarget func(path string) (target, error)
	trusted    string        // a directory whose owner and mode are not looked at, nor those above it: for tests
	freezeTime time.Duration // as the constant, but in tests

	work sync.WaitGroup // of hooks, and of what is left of a freeze

	mu     sync.Mutex
	closed bool
	sets   map[string]*set // by token, from the first hook to the last
	ended  []*early        // those that were thawed early, the oldest first
	late   []*set          // those whose thaw took longer than its request, and whose owner has not asked since, the oldest first
}

// set is what one request freezes.
type set struct {
	token  string
	port   string
	caller *builtins.Call
	cancel context.CancelCauseFunc // ends the freezing
	timer  *time.Timer
	gone   chan struct{} // closed when nothing is frozen any more
	done   chan struct{} // closed when its hooks have run as well

	// Guarded by the room's lock.
	systems []*system // in the order in which they are frozen; those that thawed stay
	since   time.Time // when the first was frozen; zero: none was
	until   time.Time // when it thaws by itself
	thawed  time.Time // when the last was thawed
	ready   bool      // all are frozen, and the reply says so
	failed  bool      // the freeze failed, so nobody has the token
	early   *early    // it was thawed early
	owed    bool      // a thaw was answered before its end
	ran     []hook    // that ran for the freeze
	after   bool      // hooks for the thaw alone are to run, too
	told    []*pb.HookOutcome
}

// phase is where a file system of a set is.
type phase int

const (
	idle phase = iota
	freezing
	frozen
	thawing
	thawed // or it was never frozen, and is not going to be
)

// system is a file system of a set.
type system struct {
	freeze.System
	kind, source string
	mounts       []freeze.Mount // by which it may be opened, the shortest first
	target       target

	// Guarded by the room's lock.
	phase     phase
	abandoned bool   // nobody waits for the freeze any more
	why       string // it was not frozen
	owed      bool   // a request to thaw it was answered before the end of that
	result    result // of its thaw
}

// early is a set that was thawed before its time.
type early struct {
	token, port, why string
	points           []string
	at               time.Time
	duration         time.Duration
	asked            bool // its owner got a reply
}

func (r *Room) init() {
	r.openTarget = func(path string) (target, error) {
		t, err := freeze.Open(path)
		if err != nil {
			return nil, err // not a nil *Target in an interface
		}
		return t, nil
	}
	r.freezeTime = freezeTime
	r.sets = map[string]*set{}
	for _, h := range r.config.Left.Holds {
		if len(h.Systems) == 0 {
			continue
		}
		e := &early{token: h.Token, why: "the agent was killed", at: time.Now()}
		for _, s := range h.Systems {
			e.points = append(e.points, s.Point)
		}
		r.ended = append(r.ended, e)
	}
	r.config.Frozen.OnThawAll(func() { r.endAll("the guest is being shut down") })
}

// start runs the hooks of what a killed agent left.
func (r *Room) start() {
	for _, h := range r.config.Left.Holds {
		if len(h.Hooks) > 0 {
			r.work.Go(func() { r.thawLeftHooks(h) })
		}
	}
}

// served returns why a request cannot be served here.
func (r *Room) served() error {
	switch {
	case !r.guest.Live:
		return fault.Unsupported("not supported: a tree that is not booted cannot be frozen")
	case !r.config.Machine:
		return fault.Unsupported("not supported: this agent is not the one that the machine is installed with")
	case os.Geteuid() != 0:
		return fault.Unsupported("not supported: the agent is not root")
	}
	return nil
}

// release thaws everything, since no timer fires after the end of the agent.
func (r *Room) release() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.endAll("the agent stopped")
	ended := make(chan struct{})
	go func() { r.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(stopTime):
	}
	return nil
}

// endAll ends every set before its time, and waits for that, for a while.
func (r *Room) endAll(why string) {
	r.mu.Lock()
	var all []*set
	for _, f := range r.sets {
		all = append(all, f)
	}
	r.mu.Unlock()
	for _, f := range all {
		r.end(f, why)
	}
	late := time.NewTimer(thawTime)
	defer late.Stop()
	for _, f := range all {
		select {
		case <-f.gone:
		case <-late.C:
			return
		}
	}
}

// end thaws a set before its time, and reports that.
func (r *Room) end(f *set, why string) {
	r.mu.Lock()
	switch {
	case !f.ready: // it is still being frozen: the request fails
		f.cancel(fault.Wrapf(context.Canceled, "%s", why))
		fallthrough
	case f.early != nil || !slices.ContainsFunc(f.systems, func(s *system) bool { return s.phase == frozen }): // a thaw has begun
		r.mu.Unlock()
		return
	}
	r.endEarly(f, why)
	r.mu.Unlock()
	r.thawSystems(f.frozen(r), thawTime)
	r.tellEarly(f)
}

// endEarly takes note that a set was not frozen all the time. The caller holds mu.
func (r *Room) endEarly(f *set, why string) {
	f.early = &early{token: f.token, port: f.port, why: why, at: time.Now(), duration: time.Since(f.since)}
	for _, s := range f.systems {
		if s.phase == frozen {
			f.early.points = append(f.early.points, s.Point)
		}
	}
	r.ended = append(r.ended, f.early)
	r.ended = r.ended[max(0, len(r.ended)-maxEnded):]
}

// tellEarly logs it, and sends an event to the host that asked for the freeze.
func (r *Room) tellEarly(f *set) {
	e := f.early.event()
	if r.config.Thawed != nil {
		r.config.Thawed(e.Message)
	}
	if f.caller.Event != nil {
		f.caller.Event(e)
	}
}

// event describes it.
func (e *early) event() *pb.ErrorEvent {
	return &pb.ErrorEvent{
		Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "thawed_early", Message: e.text(),
		Details: map[string]string{"quiesce_token": e.token, "mount_points": strings.Join(e.points, "\n"), "reason": e.why},
	}
}

func (e *early) text() string {
	words := "thawed early: " + strings.Join(e.points, ", ")
	if e.duration > 0 {
		words += fmt.Sprintf(" after %v", e.duration.Round(time.Millisecond))
	}
	return words + ": " + e.why
}

// Notices are events about what was thawed early and whose owner has not asked for it since, for a host that connects.
func (r *Room) Notices() (list []*pb.ErrorEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.ended {
		if !e.asked {
			list = append(list, e.event())
		}
	}
	return list
}

// Status returns what is frozen.
func (r *Room) Status() (list []*pb.FrozenStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.sets {
		var points []string
		for _, s := range f.systems {
			if s.phase == frozen {
				points = append(points, s.Point)
			}
		}
		if len(points) > 0 {
			list = append(list, &pb.FrozenStatus{
				MountPoints: points, Since: timestamppb.New(onClock(f.since)), Until: timestamppb.New(onClock(f.until)), Port: f.port,
			})
		}
	}
	slices.SortFunc(list, func(a, b *pb.FrozenStatus) int { return cmp.Compare(a.MountPoints[0], b.MountPoints[0]) })
	return list
}

// onClock returns a time by the clock as it is now, whatever it was when that was taken: the monotonic one counts.
func onClock(at time.Time) time.Time { return time.Now().Add(time.Until(at)).Round(0) }

// over reports whether nothing of the set is frozen, or going to be. The caller holds the room's lock.
func (f *set) over() bool {
	return !slices.ContainsFunc(f.systems, func(s *system) bool { return s.phase != thawed })
}

// frozen returns the file systems that are frozen.
func (f *set) frozen(r *Room) (list []*system) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range f.systems {
		if s.phase == frozen {
			list = append(list, s)
		}
	}
	return list
}

// held is what is noted of a set. The caller holds the room's lock.
func (f *set) held() freeze.Hold {
	h := freeze.Hold{Token: f.token}
	for _, s := range f.systems {
		if s.phase != thawed {
			h.Systems = append(h.Systems, s.System)
		}
	}
	for _, each := range f.ran {
		h.Hooks = append(h.Hooks, each.name)
	}
	return h
}

// settle takes note that something of a set has thawed. Once all has, the hooks run.
func (r *Room) settle(f *set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-f.gone:
		return
	default:
	}
	if over := f.over(); !over || f.after || len(f.ran) > 0 {
		_, _ = r.config.Frozen.Hold(f.held()) // of what is in it already
		if !over {
			return
		}
	} // else the release that follows at once says so
	f.thawed = time.Now()
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.owed {
		r.keepLate(f)
	}
	close(f.gone)
	r.work.Go(func() {
		r.thawHooks(f)
		r.config.Frozen.Release(f.token)
		r.mu.Lock()
		delete(r.sets, f.token)
		r.mu.Unlock()
		close(f.done)
	})
}

// result is what became of the thaw of one file system.
type result struct {
	system *system
	was    bool // it was frozen
	ended  bool // the thaw has ended
	err    error
}

// thawSystems thaws file systems, the last frozen first. One that takes long does not keep the next from it. It waits for a
// while at most: what hangs is thawed all the same, when it can be.
func (r *Room) thawSystems(list []*system, limit time.Duration) (results []result) {
	late := time.NewTimer(limit)
	defer late.Stop()
	type waiting struct {
		system *system
		done   <-chan result
	}
	var pending []waiting
	for _, s := range slices.Backward(list) {
		done := r.thawOne(s)
		if done == nil {
			continue
		}
		next := time.NewTimer(min(thawEach, limit))
		select {
		case outcome := <-done:
			results = append(results, outcome)
		case <-next.C:
			pending = append(pending, waiting{s, done})
		}
		next.Stop()
	}
	for _, w := range pending {
		select {
		case outcome := <-w.done:
			results = append(results, outcome)
			continue
		default:
		}
		select {
		case outcome := <-w.done:
			results = append(results, outcome)
		case <-late.C:
			results = append(results, result{system: w.system})
			late.Reset(0) // the others are looked at all the same
		}
	}
	return results
}

// thawOne thaws a file system, by a goroutine that nothing ends but the thaw. It returns nil if it is not frozen.
func (r *Room) thawOne(s *system) <-chan result {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.phase != frozen {
		return nil
	}
	s.phase, s.result = thawing, result{system: s}
	f := r.setOf(s)
	done := make(chan result, 1)
	go func() {
		was, err := s.target.Thaw()
		s.target.Close()
		r.mu.Lock()
		s.phase, s.result = thawed, result{s, was, true, err}
		outcome := s.result
		r.mu.Unlock()
		if f != nil {
			r.settle(f)
		}
		done <- outcome
	}()
	return done
}

// setOf returns the set of a file system. The caller holds mu.
func (r *Room) setOf(s *system) *set {
	for _, f := range r.sets {
		if slices.Contains(f.systems, s) {
			return f
		}
	}
	return nil
}

// described is a file system as a reply to quiesce has it. The caller holds the room's lock.
func (s *system) described() *pb.FrozenFilesystem {
	return &pb.FrozenFilesystem{
		MountPoint: s.Point, Device: s.source, Filesystem: s.kind, OtherMountPoints: s.Others, Frozen: s.phase == frozen, Error: s.why,
	}
}

func (l left) described() *pb.FrozenFilesystem {
	return &pb.FrozenFilesystem{MountPoint: l.mount.Point, Device: l.mount.Source, Filesystem: l.mount.Type, Error: l.why.Error()}
}

// copyOf returns outcomes that nobody changes any more.
func copyOf(list []*pb.HookOutcome) (copies []*pb.HookOutcome) {
	for _, outcome := range list {
		copies = append(copies, proto.Clone(outcome).(*pb.HookOutcome))
	}
	return copies
}
