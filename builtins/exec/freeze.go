package exec

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Some hosts freeze file systems by a command instead of the quiesce request. If the thaw is lost the guest hangs. So
// the agent looks before and after each command that could freeze something: a file system that is frozen afterwards
// and was not before is thawed when its time is up, whatever the command was.
//
// The kernel does not show whether a file system is frozen, except by a change that waits for the thaw. The probe is a
// process of this program that makes such a change, the removal of a directory that does not exist: it changes nothing,
// and waits where nothing can end it, which must not be a thread of the agent. It also reports when the wait is over, and
// so of the thaw. Who froze a file system is not known: one that somebody else freezes while a command runs is taken
// for the command's.

// defaultFreeze is how long such a freeze may last: the default of the quiesce request.
const defaultFreeze = 60 * time.Second

const (
	lookTime  = 300 * time.Millisecond // what a file system takes for the change at most, else it counts as frozen
	startTime = 10 * time.Second       // what the start of a probe takes at most: it is started where the quick one does not answer
	lookEvery = 15 * time.Second       // while a command runs
	calmFor   = 5 * time.Millisecond   // how long a check that found nothing holds for commands that begin then
)

// freezes are the file systems that are known to be frozen.
type freezes struct {
	state   *freeze.State
	looking sync.Mutex   // held by the one that looks
	calm    time.Time    // when the last look ended; zero: it found something frozen. Guarded by looking
	begun   atomic.Int64 // looks that have begun
	quick   *quickProbe  // asked first; nil: none. Guarded by looking
	probe   *probe       // waits for the next look; nil: none. Guarded by looking

	mu      sync.Mutex
	running int                // commands that may freeze something
	known   map[string]*frozen // by mount point
	closed  bool               // all is thawed, and the agent stops
}

// frozen is one frozen file system. Without a timer somebody else froze it, who also thaws it.
type frozen struct {
	timer  *time.Timer
	target *freeze.Target
}

// watchFreezes looks for file systems that a command leaves frozen, from now on until after is called at its end.
func (r *Room) watchFreezes(call *builtins.Call) (after func()) {
	if !r.guest.Live || r.guest.Answer != nil || !r.config.Commands.Reexec || !mayFreeze() {
		return func() {}
	}
	r.lookBefore(call)
	r.freezes.mu.Lock()
	r.freezes.running++
	r.freezes.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.look(call)
			case <-ended:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(ended)
		r.look(call)
		r.freezes.mu.Lock()
		r.freezes.running--
		r.freezes.mu.Unlock()
	})
}

// lookBefore is look for a command that begins now. Where commands come one right after the other, the look at the end of the
// one before is enough: what is frozen within calmFor before a command is taken for the command's, as what is frozen while it
// runs.
func (r *Room) lookBefore(call *builtins.Call) {
	f := &r.freezes
	f.looking.Lock()
	calm := time.Since(f.calm) < calmFor
	f.looking.Unlock()
	if !calm {
		r.look(call)
	}
}

// look finds out which file systems are frozen that were not. Those are thawed in time if a command runs. A look of another
// command that begins after this was called does for both: of many commands that end together two look.
func (r *Room) look(call *builtins.Call) {
	f := &r.freezes
	before := f.begun.Load()
	f.looking.Lock()
	defer f.looking.Unlock()
	if f.begun.Load() > before {
		return
	}
	f.begun.Add(1)
	f.calm = time.Time{}
	points := f.unknown(r.remotes.table.canFreeze(f.state.Holds))
	if len(points) == 0 || f.nothingFrozen(r, points) {
		f.calm = time.Now()
		return
	}
	if f.probe == nil || !f.probe.reserve() {
		p, err := r.startProbe()
		if err != nil {
			return // as for want of memory; the next command looks again
		}
		f.probe = p
	}
	waiting := f.probe.ask(context.Background(), probeRequest{Paths: points}, lookTime, startTime)
	if len(waiting) == 0 {
		f.probe.rest()
		return
	}
	for i, opened := range waiting {
		r.found(call, points[i], opened)
	}
	go f.probe.follow(points, waiting, func(point string) { r.forget(point) })
	f.probe = nil
}

func (f *freezes) stopped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// unknown returns the mount points that are not known to be frozen; none when the agent stops.
func (f *freezes) unknown(points []string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, point := range points {
		if f.known[point] == nil && !f.closed {
			list = append(list, point)
		}
	}
	return list
}

// found notes a file system that is frozen, or hangs. opened: its root could be opened, so it can be thawed.
func (r *Room) found(call *builtins.Call, point string, opened bool) {
	f := &r.freezes
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.HoldsPoint(point) {
		return // a request froze it since
	}
	found := &frozen{}
	if opened && f.running > 0 {
		if target, err := freeze.Open(point); err == nil {
			found.target = target
			found.timer = time.AfterFunc(r.config.FreezeLimit, func() { r.thaw(call, point, found) })
		}
	}
	f.known[point] = found
	f.tell()
}

// thaw thaws a file system whose time is up, and reports that to the log and to the host that sent the command.
func (r *Room) thaw(call *builtins.Call, point string, found *frozen) {
	f := &r.freezes
	f.mu.Lock()
	if f.known[point] != found {
		f.mu.Unlock()
		return
	}
	f.known[point] = &frozen{} // until the probe sees the thaw
	f.mu.Unlock()
	thawed, err := found.target.Thaw()
	found.target.Close()
	if !thawed && err == nil {
		return
	}
	message := fmt.Sprintf("%s was frozen by a command and not thawed within %v; it is thawed now", point, r.config.FreezeLimit)
	if err != nil {
		message = fmt.Sprintf("%s was frozen by a command and cannot be thawed: %v", point, err)
	}
	if r.config.Thawed != nil {
		r.config.Thawed(message)
	}
	if call.Event != nil {
		call.Event(&pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "thawed", Message: message})
	}
}

// forget drops a file system that is no longer frozen.
func (r *Room) forget(point string) {
	f := &r.freezes
	f.mu.Lock()
	defer f.mu.Unlock()
	gone := f.known[point]
	if gone == nil {
		return
	}
	if gone.timer != nil {
		gone.timer.Stop()
		gone.target.Close()
	}
	delete(f.known, point)
	f.tell()
}

// tell reports what is frozen. The caller holds mu.
func (f *freezes) tell() {
	var points []string
	for point, known := range f.known {
		if known.timer != nil {
			points = append(points, point)
		}
	}
	f.state.SetWatched(points, len(f.known) > 0)
}

// thawAll thaws what commands froze, since no timer fires after the end of the agent.
func (r *Room) thawAll() {
	f := &r.freezes
	f.looking.Lock() // a look that is under way may find something
	defer f.looking.Unlock()
	if f.probe != nil {
		f.probe.end()
		f.probe = nil
	}
	f.endQuick()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for point, known := range f.known {
		if known.timer != nil {
			known.timer.Stop()
			_, _ = known.target.Thaw() // the later thaw of the command's sender fails, which is harmless
			known.target.Close()
			delete(f.known, point)
		}
	}
	f.tell()
}
