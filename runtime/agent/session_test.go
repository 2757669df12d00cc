package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// diary is what happened, in its order.
type diary struct {
	mu   sync.Mutex
	list []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, fmt.Sprintf(format, args...))
}

func (d *diary) entries() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list)
}

// closing is a port that notes its end.
type closing struct {
	*pipes
	diary *diary
}

func (c closing) Close() error { c.diary.note("%s closed", c.name); return nil }

// dialLines returns a host's end, for lines.
func (p *pipes) dialLines(t *testing.T) (net.Conn, func() string) {
	guest, host := net.Pipe()
	p.next <- guest
	t.Cleanup(func() { host.Close() })
	lines := bufio.NewScanner(host)
	return host, func() string {
		t.Helper()
		if !lines.Scan() {
			t.Error("the line ended:", lines.Err())
		}
		return lines.Text()
	}
}

// echoLines is a protocol that returns each line, with the name of the port. "work" is a request that runs until the agent
// stops.
func echoLines(ctx context.Context, conn io.ReadWriteCloser, s *Session) error {
	s.Observe(Vitals{Framing: func() string { return "lines" }})
	var answering sync.Mutex
	stop := context.AfterFunc(ctx, func() {
		answering.Lock() // the reply that is owed is written
		defer answering.Unlock()
		fmt.Fprintln(conn, "bye")
		conn.Close()
	})
	defer stop()
	answer := func(line string) error {
		answering.Lock()
		defer answering.Unlock()
		if line == "work" {
			_, err := s.Call(ctx, "work", &pb.ExecuteRequest{}, nil)
			line = fault.Code(err)
		}
		_, err := fmt.Fprintln(conn, s.Port(), line)
		return err
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if err := answer(lines.Text()); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Two protocols are served beside each other, each on a port of its own; both take part in an orderly stop.
func TestSecondProtocol(t *testing.T) {
	first, second, happened := newPipes("org.quantix.agent.0"), newPipes("lines.0"), &diary{}
	waiting := make(chan bool, 2)
	config := Config{
		Ports: serving(closing{first, happened}, closing{second, happened}),
		Hooks: Hooks{
			Gate: func(ctx context.Context) error {
				waiting <- true
				<-ctx.Done()
				happened.note("call ended: %v", errors.Is(context.Cause(ctx), ErrStopping))
				return context.Cause(ctx)
			},
			SessionClosed: func(port, session string) { happened.note("%s left", port) },
		},
	}
	config.Ports.Protocol = func(name string) Protocol {
		if name == "lines.0" {
			return echoLines
		}
		return nil
	}
	a := New(config)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx); happened.note("run returned") })
	c := first.dial(t)
	host, line := second.dialLines(t)
	for _, text := range []string{"one", "two"} {
		fmt.Fprintln(host, text)
		if got := line(); got != "lines.0 "+text {
			t.Error(got)
		}
		if _, err := client.Call[*pb.PongResponse](t.Context(), c, &pb.PingRequest{Sequence: 2}); err != nil {
			t.Error(err)
		}
	}
	s := a.Status()
	if len(s.Ports) != 2 || len(s.Ports[0].Sessions) != 1 || len(s.Ports[1].Sessions) != 1 || s.Ports[0].Name != "lines.0" ||
		s.Ports[0].Sessions[0].Framing != "lines" || s.Ports[1].Sessions[0].Framing != "plain" {
		t.Error(s.Ports)
	}
	fmt.Fprintln(host, "work")
	replied := make(chan error, 1)
	go func() {
		_, err := client.Call[*pb.ExecuteResponse](t.Context(), c, &pb.ExecuteRequest{Command: "true"})
		replied <- err
	}()
	<-waiting
	<-waiting
	stop()
	if got := line(); got != "lines.0 cancelled" {
		t.Error(got)
	}
	if err := <-replied; fault.Code(err) != "cancelled" {
		t.Error("the native call was answered with", err)
	}
	if got := line(); got != "bye" {
		t.Error(got)
	}
	running.Wait()
	got := happened.entries()
	if len(got) != 8 || got[0] != "call ended: true" || got[1] != "call ended: true" || got[7] != "run returned" {
		t.Fatalf("%q", got)
	}
	for name, times := range map[string]int{first.name: 2, second.name: 1} { // frames tell when the host left and when the last call ended
		left := slices.Index(got, name+" left")
		for range times - 1 {
			left += 1 + slices.Index(got[left+1:], name+" left")
		}
		if closed := slices.Index(got, name+" closed"); left < 2 || closed < left {
			t.Errorf("%s closed before its session: %q", name, got)
		}
	}
}

// A protocol that does not hear of the stop holds it up for a moment only.
func TestStopClosesSessions(t *testing.T) {
	p := newPipes("deaf")
	config := Config{Ports: serving(p)}
	began := make(chan bool)
	config.Ports.Protocol = func(string) Protocol {
		return func(_ context.Context, conn io.ReadWriteCloser, _ *Session) error {
			close(began)
			_, err := io.Copy(io.Discard, conn)
			return err
		}
	}
	a := New(config)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx) })
	p.dialLines(t)
	<-began
	stop()
	start := time.Now()
	running.Wait()
	if took := time.Since(start); took > 20*flushTimeout {
		t.Error("the stop took", took)
	}
}

// After the agent has begun to stop no protocol starts a call.
func TestNoCallAfterStop(t *testing.T) {
	a := New(Config{})
	a.drain()
	reply, err := (&Session{agent: a, port: &openPort{Port: newPipes("lines.0")}}).Call(t.Context(), "late", &pb.ExecuteRequest{}, nil)
	if fault.Code(err) != "busy" || reply == nil {
		t.Error(reply, err)
	}
}
