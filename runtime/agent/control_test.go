package agent

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// pipes is a port whose hosts are pipes.
type pipes struct {
	name string
	next chan io.ReadWriteCloser
}

func newPipes(name string) *pipes { return &pipes{name, make(chan io.ReadWriteCloser)} }

func (p *pipes) Name() string { return p.name }
func (p *pipes) Close() error { return nil }
func (p *pipes) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case end := <-p.next:
		return end, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// dial returns a host's end.
func (p *pipes) dial(t *testing.T) *client.Client {
	guest, host := net.Pipe()
	p.next <- guest
	c := client.New(host, client.Options{})
	t.Cleanup(func() { c.Close() })
	return c
}

func start(t *testing.T, config Config) *Agent {
	t.Helper()
	config.Guest.Telemetry = func(context.Context) *pb.TelemetryReport { return &pb.TelemetryReport{} }
	a := New(config)
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { a.Run(ctx) })
	t.Cleanup(func() { stop(); run.Wait() })
	return a
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s:", what)
		}
	}
}

// Who is there, since when, and when something was heard of them; also when they have left.
func TestStatusTellsOfHosts(t *testing.T) {
	p, open := newPipes("org.quantix.agent.0"), make(chan bool)
	told := make(chan bool, 1000)
	a := start(t, Config{
		Ports: PortsConfig{Open: func(serves func(string) bool) ([]port.Port, error) { <-open; return once(p, serves), nil }},
		Control: ControlConfig{
			Changed: func() { told <- true },
			Status:  func(s *pb.GetStatusResponse) { s.Pid = 7 },
		},
	})
	if s := a.Status(); s.State != pb.AgentState_AGENT_STATE_WAITING || a.Started() || s.Pid != 7 {
		t.Error(s)
	}
	close(open)
	soon(t, "the port", func() bool { return a.Status().State == pb.AgentState_AGENT_STATE_SERVING && a.Started() })
	if s := a.Status(); s.LastHeard != nil || len(s.Ports) != 1 || len(s.Ports[0].Sessions) != 0 {
		t.Error(s)
	}
	c := p.dial(t)
	reply, err := client.Call[*pb.GetStatusResponse](t.Context(), c, &pb.GetStatusRequest{})
	if err != nil || len(reply.Ports[0].Sessions) != 1 || reply.Ports[0].Sessions[0].LastHeard == nil || reply.Ports[0].Sessions[0].Framing != "plain" ||
		reply.InFlight != 1 || reply.LastHeard == nil {
		t.Error(reply, err)
	}
	c.Close()
	soon(t, "the host's leaving", func() bool { return len(a.Status().Ports[0].Sessions) == 0 })
	if s := a.Status(); s.LastHeard == nil || s.Ports[0].TotalSessions != 1 {
		t.Error(s)
	}
	if len(told) < 4 { // looked, opened, came, left
		t.Errorf("%d changes were told", len(told))
	}
}

// A host asks what has become of what it waits for: a request that is served is known, and a command whose output comes. That
// pong waits after the replies.
func TestPongTellsWhatIsUnknown(t *testing.T) {
	p := newPipes("org.quantix.agent.0")
	start(t, Config{
		Ports: serving(p),
		Hooks: Hooks{HasStream: func(name, session, id string) bool {
			return name == "org.quantix.agent.0" && session != "" && id == "command"
		}},
	})
	c := p.dial(t)
	const own = "the ping itself"
	pong, err := client.CallID[*pb.PongResponse](t.Context(), c, own, &pb.PingRequest{Sequence: 3, Awaiting: []string{"one", own, "command", "two"}})
	if err != nil || pong.Sequence != 3 || !slices.Equal(pong.Unknown, []string{"one", "two"}) {
		t.Error(pong, err)
	}
}

// A pong has the time since the agent began, which a restart ends, and not that of the guest.
func TestPongTellsSinceWhenTheAgentRuns(t *testing.T) {
	begun := time.Now()
	p := newPipes("org.quantix.agent.0")
	start(t, Config{Ports: serving(p)})
	pong, err := client.Call[*pb.PongResponse](t.Context(), p.dial(t), &pb.PingRequest{})
	if most := uint64(time.Since(begun).Seconds()); err != nil || pong.UptimeSeconds > most {
		t.Error(pong, err, most)
	}
}

// vsock is announced where a host may come that way, and nowhere else.
func TestVsockIsAnnouncedWhereItIsServed(t *testing.T) {
	for name, want := range map[string]bool{"vsock:9443": true, "org.quantix.agent.0": false} {
		p := newPipes(name)
		start(t, Config{Ports: serving(p)})
		reply, err := client.Call[*pb.GetCapabilitiesResponse](t.Context(), p.dial(t), &pb.GetCapabilitiesRequest{})
		if err != nil || slices.Contains(reply.Capabilities, "vsock") != want {
			t.Errorf("%s: %v %v", name, reply.GetCapabilities(), err)
		}
	}
}

// The guest's own socket tells the status and refuses everything else; it answers while the agent refuses and waits.
func TestControlPortTellsTheStatusAlone(t *testing.T) {
	local := newPipes("local")
	start(t, Config{Ports: PortsConfig{Open: noPort}, Control: ControlConfig{Port: local}, Refusing: io.ErrUnexpectedEOF})
	c := local.dial(t)
	reply, err := client.Call[*pb.GetStatusResponse](t.Context(), c, &pb.GetStatusRequest{})
	if err != nil || reply.State != pb.AgentState_AGENT_STATE_REFUSING || reply.Reason == "" {
		t.Error(reply, err)
	}
	if _, err := client.Call[*pb.PongResponse](t.Context(), c, &pb.PingRequest{Sequence: 9}); err != nil {
		t.Error(err)
	}
	_, err = client.Call[*pb.ExecuteResponse](t.Context(), c, &pb.ExecuteRequest{Command: "true"})
	if fault.Code(err) != "refused" {
		t.Error(err)
	}
}

// An agent that answers is alive; one whose calls can no longer be counted is not.
func TestAliveSeesAStuckDispatcher(t *testing.T) {
	a := start(t, Config{Ports: PortsConfig{Open: noPort}})
	for range 3 {
		if err := a.Alive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stuck, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	b := New(Config{})
	self := b.selfConfig()
	release := make(chan bool)
	self.Handle = func(context.Context, *wire.Conn, string, proto.Message) (proto.Message, error) {
		<-release
		return nil, nil
	}
	guest, host := net.Pipe()
	context.AfterFunc(stuck, func() { host.Close() })
	var serving sync.WaitGroup
	serving.Go(func() { wire.NewConn(guest, self).Serve(stuck) })
	if err := exchange(host); err == nil {
		t.Error("a dispatcher that is stuck counts as alive")
	}
	close(release)
	serving.Wait()
}

// The period of telemetry changes for a host that is there.
func TestTelemetryPeriodChanges(t *testing.T) {
	p := newPipes("p")
	every := NewInterval(time.Hour)
	start(t, Config{Ports: serving(p), Guest: GuestConfig{TelemetryEvery: every}})
	guest, host := net.Pipe()
	p.next <- guest
	defer host.Close()
	reports := make(chan bool, 1000)
	go func() {
		defer close(reports)
		decoder, buf := wire.Decoder{}, make([]byte, 64<<10)
		for {
			n, err := host.Read(buf)
			if err != nil {
				return
			}
			decoder.Feed(buf[:n])
			for _, ok := decoder.Next(); ok; _, ok = decoder.Next() {
				reports <- true
			}
		}
	}()
	<-reports // agent_ready
	<-reports // the first report
	every.Set(time.Millisecond)
	for range 20 {
		<-reports
	}
}

// once returns a port as long as nobody serves it.
func once(p port.Port, serves func(string) bool) []port.Port {
	if serves(p.Name()) {
		return nil
	}
	return []port.Port{p}
}

// serving is of an agent that has these ports.
func serving(list ...port.Port) PortsConfig {
	return PortsConfig{Open: func(serves func(string) bool) (free []port.Port, err error) {
		for _, p := range list {
			free = append(free, once(p, serves)...)
		}
		return free, nil
	}}
}

func noPort(func(string) bool) ([]port.Port, error) { return nil, io.ErrUnexpectedEOF }
