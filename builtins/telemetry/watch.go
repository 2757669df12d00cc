package telemetry

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	settle     = 100 * time.Millisecond // changes come in bursts: a link that comes up gets its addresses, too
	minimumGap = time.Second            // between two changes that are reported
	eventRoom  = 32                     // events that wait for a watcher; what more there are is summed up
)

// watcher notifies its subscribers. Its sources run while there are any.
type watcher struct {
	root string // of the guest

	kills killCounter

	mu    sync.Mutex
	subs  map[*subscription]bool
	end   context.CancelFunc // ends the sources
	ended chan struct{}      // closed when they have ended
}

// subscription is one who watches.
type subscription struct {
	changed chan struct{}
	events  chan *pb.ErrorEvent
	missed  uint64 // kills that there was no room to report
}

// catchUp reports what was missed once there is room. It returns whether nothing is missed any more.
func (s *subscription) catchUp() bool {
	if s.missed == 0 {
		return true
	}
	select {
	case s.events <- killsEvent(s.missed):
		s.missed = 0
	default:
	}
	return s.missed == 0
}

// tell sends an event, or notes that it was missed.
func (s *subscription) tell(event *pb.ErrorEvent) {
	if s.catchUp() {
		select {
		case s.events <- event:
			return
		default:
		}
	}
	n, err := strconv.ParseUint(event.Details["count"], 10, 64)
	if err != nil {
		n = 1
	}
	s.missed += n
}

func (w *watcher) init(root string, container bool, cgroup string) {
	w.root = root
	w.kills.init(container, cgroup)
}

func (w *watcher) close() error { return w.kills.close() }

func (w *watcher) subscribe(ctx context.Context) (<-chan struct{}, <-chan *pb.ErrorEvent) {
	sub := &subscription{changed: make(chan struct{}, 1), events: make(chan *pb.ErrorEvent, eventRoom)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		w.subs = map[*subscription]bool{}
	}
	w.subs[sub] = true
	if len(w.subs) == 1 {
		w.start()
	}
	context.AfterFunc(ctx, func() { w.leave(sub) })
	return sub.changed, sub.events
}

// leave ends a subscription, and with the last one the sources.
func (w *watcher) leave(sub *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.subs, sub)
	if len(w.subs) == 0 {
		w.end()
	}
}

// start starts the sources, once those of an earlier start have ended. The sources listen before the state is noted that a
// change is held against.
func (w *watcher) start() {
	before := w.ended
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	w.end, w.ended = end, ended
	touched := make(chan struct{}, 1)
	var sources sync.WaitGroup
	listen(ctx, &sources, touched)
	was := fingerprint(ctx, w.root)
	sources.Go(func() { w.compare(ctx, touched, was) })
	sources.Go(func() {
		if before != nil {
			<-before // it may still be reading the kernel's log
		}
		w.kills.follow(ctx, w.tell)
	})
	go func() { sources.Wait(); close(ended) }()
}

// compare compares what a report would say with the last one when a source says that it may have changed.
func (w *watcher) compare(ctx context.Context, touched <-chan struct{}, was uint64) {
	var told time.Time
	for {
		select {
		case <-touched:
		case <-ctx.Done():
			return
		}
		wait := time.NewTimer(max(settle, minimumGap-time.Since(told)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		select {
		case <-touched: // it is in what is looked at now
		default:
		}
		told = time.Now() // looking costs as well
		if is := fingerprint(ctx, w.root); is != was {
			was = is
			w.tellChange()
		}
	}
}

func (w *watcher) tellChange() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for sub := range w.subs {
		select {
		case sub.changed <- struct{}{}:
		default:
		}
	}
}

// tell sends the event of a kill to all subscribers, later to one that has no room for it; false: there are none.
func (w *watcher) tell(event *pb.ErrorEvent) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for sub := range w.subs {
		sub.tell(event)
	}
	return len(w.subs) > 0
}

// countKills reports kills that the kernel counted and that were not reported.
func (w *watcher) countKills() {
	w.kills.count(w.tell)
	w.mu.Lock()
	defer w.mu.Unlock()
	for sub := range w.subs {
		sub.catchUp()
	}
}

// killsEvent is of kills of which no more is known than their number.
func killsEvent(n uint64) *pb.ErrorEvent {
	message := "the kernel killed a process, since memory was short"
	if n > 1 {
		message = fmt.Sprintf("the kernel killed %d processes, since memory was short", n)
	}
	return killEvent(message, map[string]string{"count": strconv.FormatUint(n, 10)})
}

func killEvent(message string, details map[string]string) *pb.ErrorEvent {
	return &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_ERROR, Code: "oom_kill", Message: message, Details: details}
}

// fingerprint sums up what is reported at once when it changes: not what is measured.
func fingerprint(ctx context.Context, root string) uint64 {
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%q", facts.Hostname(root))
	if links, err := linksOf(root); err == nil {
		for _, l := range links {
			if !l.Loopback && !l.Plumbing {
				fmt.Fprintf(sum, "\n%q %q %d %s %t %d %v", l.Name, l.MAC, l.MTU, l.Kind, l.Up, l.Master, l.Prefixes)
			}
		}
	}
	if mounts, err := facts.Mounts(ctx); err == nil {
		for _, m := range mounts {
			fmt.Fprintf(sum, "\n%q %q %q", m.Mount, m.Device, m.Type)
		}
	}
	for _, d := range facts.BlockDevices() {
		fmt.Fprintf(sum, "\n%q %d %t", d.Name, d.Size, d.ReadOnly)
	}
	return sum.Sum64()
}
