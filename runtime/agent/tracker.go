package agent

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// tracker knows which ports are served and who is there. It outlives what it tracks.
type tracker struct {
	changed func() // called after every change; not nil

	mu        sync.Mutex
	hasLooked bool // for ports, once at least
	stopping  bool
	ports     map[string]*portState
	heard     time.Time // when a session that is over last heard its host
}

// portState is what is known of one port. The tracker's lock guards it.
type portState struct {
	sessions map[*Session]time.Time // since when
	total    uint64
}

func newTracker(changed func()) *tracker {
	return &tracker{changed: changed, ports: map[string]*portState{}}
}

// update changes the state and calls changed.
func (t *tracker) update(change func()) {
	t.mu.Lock()
	change()
	t.mu.Unlock()
	t.changed()
}

func (t *tracker) looked()           { t.update(func() { t.hasLooked = true }) }
func (t *tracker) stop()             { t.update(func() { t.stopping = true }) }
func (t *tracker) close(name string) { t.update(func() { delete(t.ports, name) }) }

// open adds a port.
func (t *tracker) open(name string) *portState {
	p := &portState{sessions: map[*Session]time.Time{}}
	t.update(func() { t.ports[name] = p })
	return p
}

// begin adds a session to its port.
func (t *tracker) begin(s *Session) {
	t.update(func() { s.port.state.sessions[s] = time.Now(); s.port.state.total++ })
}

// end removes a session from its port. Once more does nothing.
func (t *tracker) end(s *Session) {
	t.mu.Lock()
	_, there := s.port.state.sessions[s]
	t.mu.Unlock()
	if !there {
		return
	}
	t.update(func() {
		delete(s.port.state.sessions, s)
		if heard := s.vitals.heard(); heard.After(t.heard) {
			t.heard = heard
		}
	})
}

// observe sets what tells how a session is.
func (t *tracker) observe(s *Session, v Vitals) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.vitals = v
}

// flags returns whether the agent has looked for its ports, and whether it stops.
func (t *tracker) flags() (looked, stopping bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hasLooked, t.stopping
}

// serves reports whether a port whose name begins so is served.
func (t *tracker) serves(prefix string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.ports {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// stuck returns the port of a session whose reader has been dealing with what it read for longer than limit, and for how
// long; 0 where there is none.
func (t *tracker) stuck(limit time.Duration) (port string, busy time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, p := range t.ports {
		for s := range p.sessions {
			if busy := s.vitals.busy(); busy > limit {
				return name, busy
			}
		}
	}
	return "", 0
}

// describe fills in the ports.
func (t *tracker) describe(s *pb.GetStatusResponse) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.heard
	for _, name := range slices.Sorted(maps.Keys(t.ports)) {
		p := &pb.PortStatus{Name: name, TotalSessions: t.ports[name].total}
		for session, since := range t.ports[name].sessions {
			status := &pb.SessionStatus{Since: timestamppb.New(since), Framing: session.vitals.framing()}
			if heard := session.vitals.heard(); !heard.IsZero() {
				status.LastHeard = timestamppb.New(heard)
				if heard.After(last) {
					last = heard
				}
			}
			p.Sessions = append(p.Sessions, status)
		}
		slices.SortFunc(p.Sessions, func(a, b *pb.SessionStatus) int { return a.Since.AsTime().Compare(b.Since.AsTime()) })
		s.Ports = append(s.Ports, p)
	}
	if !last.IsZero() {
		s.LastHeard = timestamppb.New(last)
	}
}
