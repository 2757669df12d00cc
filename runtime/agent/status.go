package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// life is what an agent knows of its own channels.
type life struct {
	changed func() // told of every change; not nil

	mu       sync.Mutex
	looked   bool // for channels, once at least
	stopping bool
	ports    map[string]*channel
	heard    time.Time // by sessions that are over
}

// channel is one port.
type channel struct {
	sessions map[*wire.Conn]time.Time // since when
	total    uint64
}

func newLife(changed func()) *life {
	if changed == nil {
		changed = func() {}
	}
	return &life{changed: changed, ports: map[string]*channel{}}
}

// update changes the state and tells of it.
func (l *life) update(change func()) {
	l.mu.Lock()
	change()
	l.mu.Unlock()
	l.changed()
}

func (l *life) look()             { l.update(func() { l.looked = true }) }
func (l *life) stop()             { l.update(func() { l.stopping = true }) }
func (l *life) close(name string) { l.update(func() { delete(l.ports, name) }) }
func (l *life) open(name string) {
	l.update(func() { l.ports[name] = &channel{sessions: map[*wire.Conn]time.Time{}} })
}

// enter notes a session. leave notes its end.
func (l *life) enter(name string, conn *wire.Conn) (leave func()) {
	l.mu.Lock()
	at := l.ports[name]
	l.mu.Unlock()
	if at == nil { // sessions of nobody's port
		return func() {}
	}
	l.update(func() { at.sessions[conn] = time.Now(); at.total++ })
	return func() {
		l.update(func() {
			delete(at.sessions, conn)
			if heard := conn.Heard(); heard.After(l.heard) {
				l.heard = heard
			}
		})
	}
}

// Looked tells whether the agent has looked for its channels: from then on it serves, or waits for one to appear.
func (a *Agent) Looked() bool {
	a.life.mu.Lock()
	defer a.life.mu.Unlock()
	return a.life.looked
}

// Status tells how the agent is.
func (a *Agent) Status() *pb.GetStatusResponse {
	s := &pb.GetStatusResponse{
		Version: a.config.Version, Commit: a.config.Commit, Built: a.config.Built,
		Started: timestamppb.New(a.start), UptimeSeconds: uint64(time.Since(a.start).Seconds()), Session: a.session,
		InFlight: uint32(a.calls.Len()), Now: timestamppb.Now(),
	}
	if a.config.Status != nil {
		a.config.Status(s)
	}
	a.life.describe(s)
	switch {
	case a.life.isStopping():
		s.State, s.Reason = pb.AgentState_AGENT_STATE_STOPPING, ErrStopping.Error()
	case a.config.Refusing != nil:
		s.State, s.Reason = pb.AgentState_AGENT_STATE_REFUSING, a.config.Refusing.Error()
	case s.State != pb.AgentState_AGENT_STATE_UNSPECIFIED:
	case len(s.Ports) == 0:
		s.State, s.Reason = pb.AgentState_AGENT_STATE_WAITING, "no channel to a host is there yet"
	default:
		s.State = pb.AgentState_AGENT_STATE_SERVING
	}
	return s
}

func (l *life) isStopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping
}

// serves says whether a channel whose name begins so is served.
func (l *life) serves(prefix string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.ports {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// describe fills in the channels.
func (l *life) describe(s *pb.GetStatusResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.heard
	for _, name := range slices.Sorted(maps.Keys(l.ports)) {
		p := &pb.PortStatus{Name: name, TotalSessions: l.ports[name].total}
		for conn, since := range l.ports[name].sessions {
			session := &pb.SessionStatus{Since: timestamppb.New(since), Framing: conn.Framing().String()}
			if heard := conn.Heard(); !heard.IsZero() {
				session.LastHeard = timestamppb.New(heard)
				if heard.After(last) {
					last = heard
				}
			}
			p.Sessions = append(p.Sessions, session)
		}
		slices.SortFunc(p.Sessions, func(a, b *pb.SessionStatus) int { return a.Since.AsTime().Compare(b.Since.AsTime()) })
		s.Ports = append(s.Ports, p)
	}
	if !last.IsZero() {
		s.LastHeard = timestamppb.New(last)
	}
}

// stuckAfter is how long a reader may deal with what it has read: every step of it is memory work.
const stuckAfter = 10 * time.Second

// Alive tells whether the agent still answers: it sends a ping and a request for the dispatcher through a connection of
// its own, made of the same parts as a host's, and looks whether a reader of a host's connection is stuck. ctx bounds it.
// It is what feeds a watchdog.
func (a *Agent) Alive(ctx context.Context) error {
	a.mu.Lock()
	conns := slices.Collect(maps.Keys(a.conns))
	a.mu.Unlock()
	for _, conn := range conns {
		if busy := conn.Busy(); busy > stuckAfter {
			return fmt.Errorf("the reader of a connection is stuck since %v", busy.Round(time.Second))
		}
	}
	guest, host := net.Pipe()
	stop := context.AfterFunc(ctx, func() { host.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer host.Close()
	serving.Go(func() { wire.NewConn(guest, a.selfConfig()).Serve(ctx) })
	if err := exchange(host); err != nil {
		return fmt.Errorf("the agent does not answer itself: %w", errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// exchange sends a ping to the reader and one to the dispatcher, and waits for both replies.
func exchange(host net.Conn) error {
	for id, sequence := range map[string]uint64{"reader": 2, "dispatcher": 1} {
		if err := wire.WriteMessage(host, wire.Plain, wire.Wrap(id, &pb.PingRequest{Sequence: sequence})); err != nil {
			return err
		}
	}
	decoder := wire.Decoder{Accept: wire.Plain}
	buf := make([]byte, 4096)
	for missing := 2; missing > 0; {
		n, err := host.Read(buf)
		if err != nil {
			return err
		}
		decoder.Feed(buf[:n])
		for _, ok := decoder.Next(); ok; _, ok = decoder.Next() {
			missing--
		}
	}
	return nil
}

// selfConfig is of the connection by which the agent asks itself. It shares with those of hosts what could be stuck.
func (a *Agent) selfConfig() wire.Config {
	return wire.Config{
		Framing: wire.Plain, Session: a.session, Calls: &a.calls,
		Urgent: a.urgent,
		Handle: func(_ context.Context, _ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
			return a.pong(request.(*pb.PingRequest)), nil
		},
		Refuse:  a.refuse,
		Mutates: func(proto.Message) bool { return false },
	}
}

// serveLocal serves a port of the guest itself, which tells how the agent is and does nothing else. It has calls of its
// own, so that it answers while the agent stops.
func (a *Agent) serveLocal(ctx context.Context, p port.Port) {
	var calls wire.Calls
	var sessions sync.WaitGroup
	defer sessions.Wait()
	for {
		end, err := p.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.config.Log.Warn("the local socket failed", zap.Error(err))
			}
			return
		}
		sessions.Go(func() { wire.NewConn(end, a.localConfig(&calls)).Serve(ctx) })
	}
}

func (a *Agent) localConfig(calls *wire.Calls) wire.Config {
	c := a.selfConfig()
	c.Calls = calls
	c.Framing = wire.Auto
	c.Urgent = func(_ *wire.Conn, request proto.Message) (proto.Message, bool) {
		ping, ok := request.(*pb.PingRequest)
		if !ok {
			return nil, false
		}
		return a.pong(ping), true
	}
	c.Handle = func(_ context.Context, conn *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		switch request.(type) {
		case *pb.GetStatusRequest:
			return a.Status(), nil
		case *pb.GetCapabilitiesRequest:
			return a.describe(conn), nil
		}
		err := fault.Wrapf(fault.ErrRefused, "refused: the local socket tells the agent's status and nothing else")
		return builtins.ErrorReply(wire.ReplyType(request), err), err
	}
	return c
}

// SetTelemetryEvery changes the period of telemetry, for hosts that are there as well.
func (a *Agent) SetTelemetryEvery(every time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.every = every
	close(a.everyChanged)
	a.everyChanged = make(chan struct{})
}

// telemetryEvery is the period, and what is closed when it changes.
func (a *Agent) telemetryEvery() (time.Duration, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.every, a.everyChanged
}
