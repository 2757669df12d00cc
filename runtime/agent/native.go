package agent

import (
	"context"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// nativeSession is a session of the native protocol.
type nativeSession struct {
	*Session
	conn *wire.Conn
}

// serveNative is the native protocol: the frames of wire.
func serveNative(ctx context.Context, channel io.ReadWriteCloser, s *Session) error {
	n := &nativeSession{Session: s}
	n.conn = wire.NewConn(channel, n.config())
	s.Observe(Vitals{Heard: n.conn.Heard, Busy: n.conn.Busy, Framing: func() string { return n.conn.Framing().String() }})
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	unhook := context.AfterFunc(ctx, func() { // no call runs any more, but replies may wait to be written
		limited, cancel := context.WithTimeout(serving, flushTimeout)
		defer cancel()
		n.conn.Flush(limited)
		stop(context.Cause(ctx))
	})
	defer unhook()
	reports, end := context.WithCancel(serving)
	var reporter sync.WaitGroup
	news, events := n.agent.config.Guest.Watch(reports) // before the first report: what changes from then on is not missed
	reporter.Go(func() { n.report(reports, news, events) })
	err := n.conn.Serve(serving)
	end()
	reporter.Wait()
	s.HostLeft()
	n.conn.Wait(ctx)
	return err
}

func (n *nativeSession) config() wire.Config {
	a := n.agent
	return wire.Config{
		Framing: a.config.Ports.Framing, Session: a.nonce, Calls: &a.calls, Memory: a.memory,
		Urgent: n.urgent, Port: n.Port(),
		Handle: n.handle,
		Refuse: a.refusal,
		Mutates: func(request proto.Message) bool {
			op := a.native(request)
			return op != nil && op.Mutates
		},
		Order: func(request proto.Message) string {
			if op := a.native(request); op != nil && op.Order != nil {
				return op.Order(request)
			}
			return ""
		},
		Transient: func(request proto.Message) bool {
			op := a.native(request)
			return op != nil && op.Transient
		},
		Vital: func(request proto.Message) bool {
			switch request := request.(type) {
			case *pb.PingRequest:
				return len(request.Awaiting) == 0
			case *pb.GetCapabilitiesRequest, *pb.GetStatusRequest, *pb.ShutdownRequest, *pb.ConfirmRequest, *pb.ThawFilesystemsRequest:
				return true
			case *pb.ExecInputRequest: // input may wait for output to be consumed, which this says
				return len(request.Data) == 0
			}
			return false
		},
		Light: func(request proto.Message) bool {
			_, ping := request.(*pb.PingRequest) // whose sender takes the guest for dead without an answer
			return ping
		},
		Large: func(request proto.Message) bool {
			switch request := request.(type) {
			case *pb.StatFilesRequest: // digests take long, and are short
				return !request.Sha256 || request.Xattrs
			case *pb.ListDirectoryRequest, *pb.ListProcessesRequest, *pb.ListServicesRequest, *pb.ListInstalledSoftwareRequest,
				*pb.ListJobsRequest, *pb.ListScriptsRequest, *pb.NetworkRequest, *pb.TransactionsRequest:
				return true
			}
			return false
		},
		Greet: func(ctx context.Context, _ *wire.Conn) { n.greet(ctx) },
		Warn:  n.Warn,
	}
}

// urgent answers a ping that waits for nothing.
func (a *Agent) urgent(_ *wire.Conn, request proto.Message) (proto.Message, bool) {
	ping, ok := request.(*pb.PingRequest)
	if !ok || ping.Sequence == 1 || len(ping.Awaiting) > 0 {
		return nil, false // asks for telemetry first, or for an answer that overtakes no reply
	}
	return a.pong(ping), true
}

// urgent answers what must not wait for anything.
func (n *nativeSession) urgent(c *wire.Conn, request proto.Message) (proto.Message, bool) {
	if request, ok := request.(*pb.CancelRequest); ok {
		reply, _ := n.agent.cancel(&builtins.Call{Port: n.Port(), Session: n.ID()}, request)
		return reply, true
	}
	return n.agent.urgent(c, request)
}

// handle serves one request.
func (n *nativeSession) handle(ctx context.Context, _ *wire.Conn, id string, request proto.Message) (proto.Message, error) {
	switch request := request.(type) {
	case *pb.PingRequest:
		if request.Sequence == 1 {
			n.reportFirst(ctx)
		}
		pong := n.agent.pong(request)
		pong.Unknown = n.unknown(request.Awaiting)
		return pong, nil
	case *pb.GetCapabilitiesRequest:
		n.readyAgain(ctx) // a change of hosts is not always seen, so a host that asks who is there is greeted
	}
	call := &builtins.Call{
		ID: id, Port: n.Port(), Session: n.ID(), Event: n.send,
		MaxChunk: n.conn.MaxChunk(),
		Scratch:  func(size int) []byte { return n.conn.Scratch(id, size) },
	}
	if exchange := wire.ExchangeOf(ctx); exchange != nil {
		call.AfterReply, call.Sent, call.Received = exchange.AfterReply, exchange.Sent, exchange.Received
		call.ReleaseRequest, call.HoldReply = exchange.ReleaseRequest, exchange.HoldReply
	}
	return n.agent.dispatch(ctx, call, request)
}

// unknown returns those of the ids for which nothing more will be sent to this host.
func (n *nativeSession) unknown(ids []string) []string {
	return slices.DeleteFunc(n.conn.Unknown(ids), func(id string) bool {
		return n.agent.config.Hooks.HasStream(n.Port(), n.ID(), id)
	})
}

// send sends an event, and reports whether it was queued.
func (n *nativeSession) send(event proto.Message) bool { return n.conn.Send(newID(), event) }

// greet sends what a host hears first.
func (n *nativeSession) greet(ctx context.Context) {
	n.ready(ctx)
	if err := n.agent.config.Refusing; err != nil {
		n.send(&pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: "configuration", Message: err.Error()})
	}
	for _, event := range n.agent.config.Hooks.Notices() {
		n.send(event)
	}
	n.sendTelemetry(ctx)
}

// ready sends agent_ready.
func (n *nativeSession) ready(ctx context.Context) {
	n.sendReady(n.agent.ready.now(n.agent.readyEvent(ctx)))
}

// readyAgain is ready for a host that has most likely heard it: the guest is not asked again within readyFor.
func (n *nativeSession) readyAgain(ctx context.Context) {
	event := n.agent.ready.latest()
	if event == nil {
		n.ready(ctx)
		return
	}
	n.sendReady(event)
}

// sendReady sends agent_ready of what the guest says of itself, which it completes.
func (n *nativeSession) sendReady(event *pb.AgentReadyEvent) {
	event.Version, event.Capabilities = n.agent.config.Identity.Version, n.agent.capabilities(n.Port())
	n.send(event)
}

// readyEvent asks the guest for what agent_ready says of it.
func (a *Agent) readyEvent(ctx context.Context) *pb.AgentReadyEvent {
	event := guarded(a.config.Log, "agent_ready", func() *pb.AgentReadyEvent { return a.config.Guest.Ready(ctx) })
	if event == nil {
		event = &pb.AgentReadyEvent{}
	}
	return event
}

// lastReady is what the guest said of itself last.
type lastReady struct {
	mu    sync.Mutex
	event *pb.AgentReadyEvent
	at    time.Time
}

// now keeps an event, and returns one that is the caller's.
func (l *lastReady) now(event *pb.AgentReadyEvent) *pb.AgentReadyEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.event, l.at = event, time.Now()
	return proto.CloneOf(event)
}

// latest returns the event that was kept last, as the caller's; nil: it is too old.
func (l *lastReady) latest() *pb.AgentReadyEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.event == nil || time.Since(l.at) > readyFor {
		return nil
	}
	return proto.CloneOf(l.event)
}

// report sends telemetry and agent_ready on time, telemetry also when there is news, and events, for as long as the host is
// there. A tick that is late is not made up.
func (n *nativeSession) report(ctx context.Context, news <-chan struct{}, events <-chan *pb.ErrorEvent) {
	every, changed := n.agent.config.Guest.TelemetryEvery.get()
	telemetry, ready := time.NewTicker(every), time.NewTicker(readyEvery)
	defer telemetry.Stop()
	defer ready.Stop()
	capability, more := n.agent.config.Guest.Events(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			every, changed = n.agent.config.Guest.TelemetryEvery.get()
			telemetry.Reset(every)
		case <-telemetry.C:
			n.sendTelemetry(ctx)
		case <-news:
			n.sendTelemetry(ctx)
			telemetry.Reset(every)
		case event := <-events:
			n.send(event)
		case event := <-more:
			if slices.Contains(n.agent.capabilities(n.Port()), capability) {
				n.send(event)
			}
		case <-ready.C:
			n.ready(ctx)
			n.agent.trim.Reset(trimAfter)
		}
	}
}

func (n *nativeSession) sendTelemetry(ctx context.Context) {
	if report := n.agent.measure(ctx); report != nil {
		n.send(report)
	}
	if n.agent.idle.Load() {
		n.agent.config.TrimIdle()
	}
}

// reportFirst sends telemetry, or gives up when measuring takes long: the pong must not.
func (n *nativeSession) reportFirst(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, pingTelemetry)
	defer cancel()
	measured := make(chan *pb.TelemetryReport, 1)
	go func() { measured <- n.agent.measure(limited) }()
	select {
	case report := <-measured:
		if report != nil {
			n.conn.SendUrgent(newID(), report)
		}
	case <-limited.Done():
	}
}

// measure returns a report; nil where there is none.
func (a *Agent) measure(ctx context.Context) *pb.TelemetryReport {
	return guarded(a.config.Log, "telemetry", func() *pb.TelemetryReport { return a.config.Guest.Telemetry(ctx) })
}

// guarded returns what f does, or nil where it panics: a report that no host asked for must not end the agent.
func guarded[T any](log *zap.Logger, name string, f func() *T) (result *T) {
	defer func() {
		if value := recover(); value != nil {
			log.Error("panic in "+name, zap.Any("panic", value), zap.ByteString("stack", debug.Stack()))
			result = nil
		}
	}()
	return f()
}
