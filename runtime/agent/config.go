package agent

import (
	"context"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// Config is what an agent is made of. The zero value is an agent without ports and operations. All funcs may be called from
// several goroutines at once.
type Config struct {
	// Calls runs what hosts ask for. Optional; default: nothing, every request is unsupported.
	Calls *call.Executor
	// Log is where the agent logs. Optional; default: nowhere.
	Log *zap.Logger
	// Refusing is why the agent refuses everything but ping, get_capabilities, get_status and cancel, for good; every host
	// gets it in an error event. Optional; default: it refuses nothing.
	Refusing error
	// Trim returns memory to the system that the agent does not use any more. It is called a while after a session ended, and
	// from time to time. Optional; default: debug.FreeOSMemory.
	Trim func()
	// TrimIdle returns memory to the system that a telemetry report took. It is called after each report while the agent is idle.
	// Optional; default: nothing.
	TrimIdle func()
	// StopTimeout bounds the wait for calls that end when the agent stops, such as a script that is rolled back. Optional;
	// default: 60 s.
	StopTimeout time.Duration

	Identity Identity
	Ports    PortsConfig
	Guest    GuestConfig
	Control  ControlConfig
	Hooks    Hooks
}

// Identity is what the agent says of itself. Every field is optional; default: empty.
type Identity struct {
	// Version is sent in pong, agent_ready, get_capabilities and get_status.
	Version string
	// Commit and Built are sent in get_capabilities and get_status.
	Commit, Built string
	// OS and Architecture are sent in get_capabilities, spelt as the host does: linux, x86_64.
	OS, Architecture string
}

// PortsConfig says where hosts come from and what they speak there.
type PortsConfig struct {
	// Open returns the ports that are there, but for those that serves knows by their names. It is called at the start, when
	// Announced has a value, when a port is gone, and after an error. Ports that it returns with an error are served.
	// Optional; default: there are no ports.
	Open func(serves func(name string) bool) ([]port.Port, error)
	// Announced has a value when a port may have come. Optional; default: nothing announces ports. After an error Open is then
	// called again within 5 s, instead of within a minute.
	Announced <-chan struct{}
	// Protocol returns what is spoken on a port of that name; nil is the native protocol. Optional; default: nil for each.
	Protocol func(name string) Protocol
	// Framing pins a framing of the native protocol. Optional; default: it is detected.
	Framing wire.Framing
}

// GuestConfig is what is sent to hosts about the guest.
type GuestConfig struct {
	// Ready returns the agent_ready event; the agent fills in version and capabilities. Optional; default: these alone.
	Ready func(ctx context.Context) *pb.AgentReadyEvent
	// Telemetry measures the guest; nil: there is no report this time. Optional; default: no reports.
	Telemetry func(ctx context.Context) *pb.TelemetryReport
	// TelemetryEvery is the period of telemetry, which the caller may change. Optional; default: 5 s.
	TelemetryEvery *Interval
	// Watch returns channels that receive, until ctx ends, when Telemetry would return something that a host must get at once,
	// and events in the guest. It is called for each session of the native protocol. Optional; default: nothing is sent before
	// the period ends.
	Watch func(ctx context.Context) (changed <-chan struct{}, events <-chan *pb.ErrorEvent)
	// Events returns further events, for sessions of the native protocol to which the capability is announced; they are sent
	// until ctx ends. It is called for each session. Nil, or a nil channel: there are none.
	Events func(ctx context.Context) (capability string, events <-chan proto.Message)
	// Features returns the details of get_capabilities. Optional; default: none.
	Features func() map[string]string
}

// ControlConfig is for those in the guest who watch the agent.
type ControlConfig struct {
	// Port is one of the guest itself. It answers ping, get_status and get_capabilities, and is closed when Run returns.
	// Optional; default: none.
	Port port.Port
	// Status adds to get_status what the agent does not know of itself; it may set the state to recovering. It must not block.
	// Optional; default: nothing.
	Status func(*pb.GetStatusResponse)
	// Changed is called whenever Status or Started of the agent may return something new. It must not block. Optional;
	// default: nothing.
	Changed func()
}

// Hooks connect the agent with what it does not know: recovery, scripts and rooms.
type Hooks struct {
	// Gate refuses, with its error, everything that Refusing would. It may wait a little. Optional; default: open.
	Gate func(ctx context.Context) error
	// Notices returns events that every host is sent after agent_ready. Optional; default: none.
	Notices func() []*pb.ErrorEvent
	// Cancel stops what a key or a transaction id names, as far as sees reports true for the port that began it, and reports
	// whether there was something. Optional; default: there never is.
	Cancel func(request *pb.CancelRequest, sees func(port string) bool) bool
	// SessionClosed is called when the host of a session has left, and once more when the last request of the session has
	// ended, where its protocol distinguishes the two: what only that host could finish is dropped. Optional; default: nothing.
	SessionClosed func(port, session string)
	// HasStream reports whether a session will be sent more events under the id of a request that was answered. Optional;
	// default: never.
	HasStream func(port, session, id string) bool
	// Release is called when the agent begins to stop, beside the cancelling of calls: commands that may outlive the agent
	// are detached from it. Run waits for its return. Optional; default: nothing.
	Release func() error
}

// Periods and bounds of what the agent does by itself.
const (
	readyFor       = time.Second            // a get_capabilities has an agent_ready whose facts are no older
	readyEvery     = 5 * time.Minute        // agent_ready is repeated: a host may lose it
	pingTelemetry  = 500 * time.Millisecond // what a report may hold up the pong that asked for it
	defaultReports = 5 * time.Second
	defaultStop    = 60 * time.Second
	flushTimeout   = 500 * time.Millisecond // within which a session writes its last replies when the agent stops
	trimAfter      = time.Second            // what a large request left behind is returned to the system
	trimQuiet      = 20 * time.Second       // the same after many small ones, once none has come for that long
	requestMemory  = 20 << 20               // bytes, of all requests: one of the largest, and some others beside it
)

// withDefaults returns the configuration with every optional field filled in.
func (c Config) withDefaults() Config {
	if c.Calls == nil {
		c.Calls = call.New(call.Config{Table: builtins.NewTable()})
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Trim == nil {
		c.Trim = debug.FreeOSMemory
	}
	if c.TrimIdle == nil {
		c.TrimIdle = func() {}
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = defaultStop
	}
	c.Ports = c.Ports.withDefaults()
	c.Guest = c.Guest.withDefaults()
	c.Hooks = c.Hooks.withDefaults()
	if c.Control.Status == nil {
		c.Control.Status = func(*pb.GetStatusResponse) {}
	}
	if c.Control.Changed == nil {
		c.Control.Changed = func() {}
	}
	return c
}

func (c PortsConfig) withDefaults() PortsConfig {
	if c.Open == nil {
		c.Open = func(func(string) bool) ([]port.Port, error) { return nil, nil }
	}
	if c.Protocol == nil {
		c.Protocol = func(string) Protocol { return nil }
	}
	return c
}

func (c GuestConfig) withDefaults() GuestConfig {
	if c.Ready == nil {
		c.Ready = func(context.Context) *pb.AgentReadyEvent { return nil }
	}
	if c.Telemetry == nil {
		c.Telemetry = func(context.Context) *pb.TelemetryReport { return nil }
	}
	if c.TelemetryEvery == nil {
		c.TelemetryEvery = NewInterval(defaultReports)
	}
	if c.Events == nil {
		c.Events = func(context.Context) (string, <-chan proto.Message) { return "", nil }
	}
	if c.Watch == nil {
		c.Watch = func(context.Context) (<-chan struct{}, <-chan *pb.ErrorEvent) { return nil, nil }
	}
	if c.Features == nil {
		c.Features = func() map[string]string { return nil }
	}
	return c
}

func (h Hooks) withDefaults() Hooks {
	if h.Gate == nil {
		h.Gate = func(context.Context) error { return nil }
	}
	if h.Notices == nil {
		h.Notices = func() []*pb.ErrorEvent { return nil }
	}
	if h.Cancel == nil {
		h.Cancel = func(*pb.CancelRequest, func(string) bool) bool { return false }
	}
	if h.SessionClosed == nil {
		h.SessionClosed = func(string, string) {}
	}
	if h.HasStream == nil {
		h.HasStream = func(string, string, string) bool { return false }
	}
	if h.Release == nil {
		h.Release = func() error { return nil }
	}
	return h
}
