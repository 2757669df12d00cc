// Package agent is the daemon between the channel and the operations.
//
//	port.Port ─Accept─► wire.Conn ─► Agent.handle ─► builtins.Table.Invoke ─► rooms
//	                       ▲            ping, cancel, get_capabilities, get_status are answered here
//	                       └── agent_ready, telemetry, error: on a host's coming and then on time
//
// Not here: flags, configuration files, and anything that touches the guest.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// Config is what an agent is made of.
type Config struct {
	// Open gives the channels but those that the agent serves. It is called again when Announced says so, when one is gone,
	// and after an error. What it gives with an error counts. Required.
	Open func(serves func(name string) bool) ([]port.Port, error)
	// Announced gives a value when a channel may have come; nil: nothing tells that, and it is looked for from time to time
	// as long as there is none.
	Announced <-chan struct{}
	// Table is what the agent can do. Required.
	Table *builtins.Table
	// Log is where the agent speaks. Required.
	Log *zap.Logger
	// Version is told in pong, agent_ready and get_capabilities; Commit and Built in the latter.
	Version, Commit, Built string
	// OS and Architecture as the host spells them: linux, x86_64.
	OS, Architecture string
	// Framing pins a framing; the zero value detects it.
	Framing wire.Framing
	// Ready tells of the guest; capabilities and version are filled in here. Required.
	Ready func(ctx context.Context) *pb.AgentReadyEvent
	// Telemetry measures the guest. Required.
	Telemetry func(ctx context.Context) *pb.TelemetryReport
	// TelemetryEvery is the period of telemetry; 0: 5 s.
	TelemetryEvery time.Duration
	// Features are the details of get_capabilities. Nil: none.
	Features func() map[string]string
	// Gate refuses everything but ping, get_capabilities, get_status and cancel while it gives an error; it may wait a little. Nil: open.
	Gate func(ctx context.Context) error
	// Refusing, when not nil, closes the gate for good and is told to every host in an error event.
	Refusing error
	// Notices are told to every host after agent_ready. Nil: none.
	Notices func() []*pb.ErrorEvent
	// Cancel stops what a key or a transaction id names. Nil: nothing has such names.
	Cancel func(request *pb.CancelRequest) bool
	// Left is told when a connection has ended, and again when the last request of it has: what only it could finish is
	// dropped. Nil: nobody asks.
	Left func(port, session string)
	// Sends says that a connection will get more events under the id of a request that was answered. Nil: none ever does.
	Sends func(port, session, id string) bool
	// Stopping is called when the agent begins to stop, beside the cancelling of calls: what may outlive the agent lets go
	// of its calls then. Run waits for its return. Nil: nothing may.
	Stopping func() error
	// StopTimeout bounds the wait for calls that end when the agent stops, such as a script that is rolled back; 0: 60 s.
	StopTimeout time.Duration
	// Local is a port of the guest itself, which answers get_status and get_capabilities alone; it is closed when Run ends.
	// Nil: none.
	Local port.Port
	// Status adds to get_status what the agent does not know of itself; it may set the state to recovering. It must not wait
	// for anything. Nil: nothing.
	Status func(*pb.GetStatusResponse)
	// Changed is called whenever Status or Looked may give something new, from several goroutines; it must not block. Nil:
	// nobody asks.
	Changed func()
}

// Agent serves hosts. Make it with New, run it once.
type Agent struct {
	config  Config
	session string
	start   time.Time
	calls   wire.Calls
	life    *life

	mu    sync.Mutex
	conns map[*wire.Conn]string // and the name of the channel of each
	every time.Duration         // of telemetry

	everyChanged chan struct{} // closed then
	trim         *time.Timer   // gives memory back a while after the last host left
}

// ErrStopping is the cause of what ends because the agent stops.
var ErrStopping = builtins.ErrStopping

// Intervals of what the agent does by itself.
const (
	readyEvery       = 5 * time.Minute        // agent_ready is repeated: a host may lose it
	pingTelemetry    = 500 * time.Millisecond // what a report may hold up the pong that asked for it
	flushAtTheEnd    = 500 * time.Millisecond
	longestReopen    = 5 * time.Second
	longestAnnounced = time.Minute
	firstReopen      = 100 * time.Millisecond
	warnings         = 10 // log lines about a channel per warningsPer
	warningsPer      = time.Minute
	defaultStop      = 60 * time.Second
	defaultReports   = 5 * time.Second
	trimAfter        = time.Second // what a large request left behind is given back to the system
)

// New makes an agent.
func New(config Config) *Agent {
	if config.TelemetryEvery == 0 {
		config.TelemetryEvery = defaultReports
	}
	if config.StopTimeout == 0 {
		config.StopTimeout = defaultStop
	}
	var nonce [12]byte
	rand.Read(nonce[:])
	trim := time.AfterFunc(trimAfter, debug.FreeOSMemory)
	return &Agent{
		trim: trim, config: config, session: hex.EncodeToString(nonce[:]), start: time.Now(), conns: map[*wire.Conn]string{},
		life: newLife(config.Changed), every: config.TelemetryEvery, everyChanged: make(chan struct{}),
	}
}

// Run serves until ctx ends. Then it lets no call start, cancels those that run with ErrStopping, waits for them, writes
// their replies, and returns nil.
func (a *Agent) Run(ctx context.Context) error {
	serve, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	var work sync.WaitGroup
	defer work.Wait()
	if local := a.config.Local; local != nil {
		defer local.Close()
		work.Go(func() { a.serveLocal(serve, local) })
	}
	work.Go(func() { a.servePorts(serve) })
	<-ctx.Done()
	a.life.stop()
	a.trim.Stop()
	a.shutdown()
	stop(ErrStopping)
	work.Wait()
	return nil
}

func (a *Agent) shutdown() {
	limited, cancel := context.WithTimeout(context.Background(), a.config.StopTimeout)
	defer cancel()
	var stopping sync.WaitGroup
	defer stopping.Wait()
	if a.config.Stopping != nil {
		stopping.Go(func() {
			if err := a.config.Stopping(); err != nil {
				a.config.Log.Warn("something did not let go", zap.Error(err))
			}
		})
	}
	if err := a.calls.Shutdown(limited, ErrStopping); err != nil {
		a.config.Log.Warn("some calls did not end", zap.Int("calls", a.calls.Len()))
	}
	flush, cancel := context.WithTimeout(context.Background(), flushAtTheEnd)
	defer cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		c.Flush(flush)
	}
}

// servePorts serves the channels that are there, and those that come. After an error it looks again and again, ever less
// often: where channels are announced that is only for links and rights that come a little later than the device.
func (a *Agent) servePorts(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	served, ended := map[string]bool{}, make(chan string)
	announced, said, pause, longest := a.config.Announced, "", firstReopen, longestReopen
	if announced != nil {
		longest = longestAnnounced
	}
	for {
		ports, err := a.config.Open(func(name string) bool { return served[name] })
		a.life.look()
		for _, p := range ports {
			served[p.Name()] = true
			work.Go(func() {
				a.config.Log.Info("serving", zap.String("port", p.Name()))
				a.servePort(ctx, p)
				p.Close()
				select {
				case ended <- p.Name():
				case <-ctx.Done():
				}
			})
		}
		text := ""
		var again <-chan time.Time
		if err != nil {
			if text = err.Error(); text != said {
				a.config.Log.Warn("a channel cannot be opened yet", zap.Error(err))
				pause = firstReopen
			}
			again, pause = time.After(pause), min(2*pause, longest)
		}
		said = text
		select {
		case <-ctx.Done():
			return
		case name := <-ended:
			delete(served, name)
			a.config.Log.Info("a port is gone", zap.String("port", name))
		case _, ok := <-announced:
			pause = firstReopen
			if !ok {
				announced, longest = nil, longestReopen
			}
		case <-again:
		}
	}
}

// servePort serves one host after the other, or beside each other where the port has room.
func (a *Agent) servePort(ctx context.Context, p port.Port) {
	a.life.open(p.Name())
	defer a.life.close(p.Name())
	var sessions sync.WaitGroup
	defer sessions.Wait()
	log := a.config.Log.With(zap.String("port", p.Name()))
	limited := limiter{log: log} // for all sessions together: a host that comes again and again must not fill the log either
	for pause := firstReopen; ; {
		channel, err := p.Accept(ctx)
		if ctx.Err() != nil || errors.Is(err, port.ErrGone) {
			return
		}
		if err != nil {
			log.Warn("the channel failed", zap.Error(err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
				pause = min(2*pause, longestReopen)
			}
			continue
		}
		pause = firstReopen
		sessions.Go(func() {
			session := newID()
			conn := wire.NewConn(channel, a.wireConfig(p.Name(), session, &limited))
			leave := a.life.enter(p.Name(), conn)
			a.serve(ctx, p.Name(), conn, log)
			leave()
			if a.config.Left != nil {
				a.config.Left(p.Name(), session)
				conn.Wait(ctx)
				a.config.Left(p.Name(), session) // what a request began that was still on its way to its room
			}
		})
	}
}

func (a *Agent) serve(ctx context.Context, port string, conn *wire.Conn, log *zap.Logger) {
	log.Debug("a host is there")
	a.mu.Lock()
	a.conns[conn] = port
	a.mu.Unlock()
	reports, end := context.WithCancel(ctx)
	var reporter sync.WaitGroup
	reporter.Go(func() { a.report(reports, conn) })
	err := conn.Serve(ctx)
	end()
	reporter.Wait()
	a.mu.Lock()
	delete(a.conns, conn)
	a.trim.Reset(trimAfter)
	a.mu.Unlock()
	log.Debug("the host has left", zap.Error(err))
}

func (a *Agent) wireConfig(portName, session string, limited *limiter) wire.Config {
	return wire.Config{
		Framing: a.config.Framing, Session: a.session, Calls: &a.calls,
		Urgent: a.urgent,
		Handle: func(ctx context.Context, c *wire.Conn, id string, request proto.Message) (proto.Message, error) {
			call := &builtins.Call{
				ID: id, Port: portName, Session: session,
				Event:   func(event proto.Message) bool { return c.Send(newID(), event) },
				Scratch: func(n int) []byte { return c.Scratch(id, n) },
			}
			return a.handle(ctx, c, call, request)
		},
		Refuse: a.refuse,
		Mutates: func(request proto.Message) bool {
			op := a.config.Table.Native(request)
			return op != nil && op.Mutates
		},
		Order: func(request proto.Message) string {
			if op := a.config.Table.Native(request); op != nil && op.Order != nil {
				return op.Order(request)
			}
			return ""
		},
		Transient: func(request proto.Message) bool {
			op := a.config.Table.Native(request)
			return op != nil && op.Transient
		},
		Vital: func(request proto.Message) bool {
			switch request := request.(type) {
			case *pb.PingRequest:
				return len(request.Awaiting) == 0
			case *pb.GetCapabilitiesRequest, *pb.GetStatusRequest:
				return true
			}
			return false
		},
		Greet: a.greet,
		Warn:  limited.warn,
	}
}

// greet says what a host hears first.
func (a *Agent) greet(ctx context.Context, c *wire.Conn) {
	a.ready(ctx, c)
	if err := a.config.Refusing; err != nil {
		c.Send(newID(), &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: "configuration", Message: err.Error()})
	}
	if a.config.Notices != nil {
		for _, event := range a.config.Notices() {
			c.Send(newID(), event)
		}
	}
	if report := a.measure(ctx); report != nil {
		c.Send(newID(), report)
	}
}

// measure takes a report; nil where there is none.
func (a *Agent) measure(ctx context.Context) *pb.TelemetryReport {
	return guarded(a, func() *pb.TelemetryReport { return a.config.Telemetry(ctx) })
}

// guarded gives what f does, or nil where it panics: what a host is told by the way must not cost the agent its life.
func guarded[T any](a *Agent, f func() *T) (result *T) {
	defer func() {
		if value := recover(); value != nil {
			a.config.Log.Error("panic while looking at the guest", zap.Any("panic", value), zap.ByteString("stack", debug.Stack()))
			result = nil
		}
	}()
	return f()
}

func (a *Agent) ready(ctx context.Context, c *wire.Conn) {
	event := guarded(a, func() *pb.AgentReadyEvent { return a.config.Ready(ctx) })
	if event == nil {
		event = &pb.AgentReadyEvent{}
	}
	event.Version, event.Capabilities = a.config.Version, a.capabilities(c)
	c.Send(newID(), event)
}

// capabilities are what the table announces to a host, and vsock while that is served; an agent that refuses everything has
// none.
func (a *Agent) capabilities(c *wire.Conn) []string {
	if a.config.Refusing != nil {
		return nil
	}
	a.mu.Lock()
	port := a.conns[c]
	a.mu.Unlock()
	list := append([]string{"status", "telemetry"}, a.config.Table.Capabilities(port)...)
	if a.life.serves("vsock:") {
		list = append(list, "vsock")
	}
	return list
}

// report sends telemetry and agent_ready on time, for as long as the host is there. A tick that is late is not made up.
func (a *Agent) report(ctx context.Context, c *wire.Conn) {
	every, changed := a.telemetryEvery()
	telemetry, ready := time.NewTicker(every), time.NewTicker(readyEvery)
	defer telemetry.Stop()
	defer ready.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			every, changed = a.telemetryEvery()
			telemetry.Reset(every)
		case <-telemetry.C:
			if report := a.measure(ctx); report != nil {
				c.Send(newID(), report)
			}
		case <-ready.C:
			a.ready(ctx, c)
		}
	}
}

// urgent answers what must not wait for anything.
func (a *Agent) urgent(_ *wire.Conn, request proto.Message) (proto.Message, bool) {
	switch request := request.(type) {
	case *pb.PingRequest:
		if request.Sequence == 1 || len(request.Awaiting) > 0 {
			return nil, false // asks for telemetry first, or for an answer that overtakes no reply
		}
		return a.pong(request), true
	case *pb.CancelRequest:
		return a.cancel(request), true
	}
	return nil, false
}

func (a *Agent) pong(request *pb.PingRequest) *pb.PongResponse {
	return &pb.PongResponse{Sequence: request.Sequence, Version: a.config.Version, UptimeSeconds: uint64(time.Since(a.start).Seconds())}
}

func (a *Agent) describe(c *wire.Conn) proto.Message {
	reply := &pb.GetCapabilitiesResponse{
		Version: a.config.Version, Os: a.config.OS, Architecture: a.config.Architecture, Capabilities: a.capabilities(c),
		BuildTime: a.config.Built, BuildCommit: a.config.Commit,
	}
	if a.config.Features != nil {
		reply.Features = a.config.Features()
	}
	return reply
}

func (a *Agent) cancel(request *pb.CancelRequest) proto.Message {
	named := 0
	for _, name := range []string{request.MessageId, request.Key, request.TransactionId} {
		if name != "" {
			named++
		}
	}
	if named != 1 {
		return &pb.CancelResponse{Error: &pb.ScriptError{Kind: "params", Message: "name one of message_id, key, transaction_id"}}
	}
	if request.MessageId != "" {
		return &pb.CancelResponse{Cancelled: a.calls.Cancel(request.MessageId)}
	}
	return &pb.CancelResponse{Cancelled: a.config.Cancel != nil && a.config.Cancel(request)}
}

// handle serves one request.
func (a *Agent) handle(ctx context.Context, c *wire.Conn, call *builtins.Call, request proto.Message) (proto.Message, error) {
	switch request := request.(type) {
	case *pb.PingRequest:
		if request.Sequence == 1 {
			a.reportFirst(ctx, c)
		}
		pong := a.pong(request)
		pong.Unknown = a.unknown(c, call, request.Awaiting)
		return pong, nil
	case *pb.GetCapabilitiesRequest:
		a.ready(ctx, c) // a change of hosts is not always seen, so a host that asks who is there is greeted
		return a.describe(c), nil
	case *pb.GetStatusRequest:
		return a.Status(), nil
	}
	if err := a.gate(ctx); err != nil {
		return a.refuse(request, err), err
	}
	op := a.config.Table.Native(request)
	if op == nil {
		err := fault.Unsupported("%s is not supported by this agent", request.ProtoReflect().Descriptor().Name())
		return a.refuse(request, err), err
	}
	reply, err := a.config.Table.Invoke(ctx, call, op, request)
	if err != nil {
		return op.ErrorReply(err), err
	}
	return reply, nil
}

// unknown gives those of the ids for which nothing more will be sent on a connection.
func (a *Agent) unknown(c *wire.Conn, call *builtins.Call, ids []string) []string {
	return slices.DeleteFunc(c.Unknown(ids), func(id string) bool {
		return a.config.Sends != nil && a.config.Sends(call.Port, call.Session, id)
	})
}

// reportFirst sends telemetry, or gives up when measuring takes long: the pong must not.
func (a *Agent) reportFirst(ctx context.Context, c *wire.Conn) {
	limited, cancel := context.WithTimeout(ctx, pingTelemetry)
	defer cancel()
	measured := make(chan *pb.TelemetryReport, 1)
	go func() { measured <- a.measure(limited) }()
	select {
	case report := <-measured:
		if report != nil {
			c.SendUrgent(newID(), report)
		}
	case <-limited.Done():
	}
}

func (a *Agent) gate(ctx context.Context) error {
	if err := a.config.Refusing; err != nil {
		return fault.Wrapf(fault.ErrRefused, "refused: the configuration has faults: %v", err)
	}
	if a.config.Gate != nil {
		return a.config.Gate(ctx)
	}
	return nil
}

// refuse makes the reply to a request that is not served, in the request's own reply type.
func (a *Agent) refuse(request proto.Message, err error) proto.Message {
	if op := a.config.Table.Native(request); op != nil {
		return op.ErrorReply(err)
	}
	return builtins.ErrorReply(wire.ReplyType(request), err)
}

func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return "event-" + hex.EncodeToString(b[:])
}

// limiter keeps a noisy channel from filling the log.
type limiter struct {
	log     *zap.Logger
	mu      sync.Mutex
	since   time.Time
	said    int
	unheard int
}

func (l *limiter) warn(text string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.since) > warningsPer {
		if l.unheard > 0 {
			l.log.Warn("more was wrong with the channel than was said", zap.Int("times", l.unheard))
		}
		l.since, l.said, l.unheard = time.Now(), 0, 0
	}
	if l.said++; l.said > warnings {
		l.unheard++
		return
	}
	if errors.Is(err, wire.ErrHostGone) {
		l.log.Debug(text, zap.Error(err))
		return
	}
	l.log.Warn(text, zap.Error(err))
}
