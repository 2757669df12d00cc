package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
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

// Started reports whether the agent has looked for its ports: from then on it serves, or waits for one to appear.
func (a *Agent) Started() bool {
	looked, _ := a.tracker.flags()
	return looked
}

// Status returns how the agent is.
func (a *Agent) Status() *pb.GetStatusResponse {
	who := a.config.Identity
	s := &pb.GetStatusResponse{
		Version: who.Version, Commit: who.Commit, Built: who.Built,
		Started: timestamppb.New(a.start), UptimeSeconds: uint64(time.Since(a.start).Seconds()), Session: a.nonce,
		InFlight: uint32(a.calls.Len()), Now: timestamppb.Now(),
	}
	a.config.Control.Status(s)
	a.tracker.describe(s)
	_, stopping := a.tracker.flags()
	switch {
	case stopping:
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

// stuckAfter is how long a reader may deal with what it has read: every step of it is memory work.
const stuckAfter = 10 * time.Second

// Alive returns an error where the agent does not answer any more. It sends a ping for the reader and one for the dispatcher
// through a connection of its own, made of the same parts as a host's, and looks whether a reader of a host's connection is
// stuck. ctx bounds it. It is what feeds a watchdog.
func (a *Agent) Alive(ctx context.Context) error {
	if name, busy := a.tracker.stuck(stuckAfter); busy > 0 {
		return fmt.Errorf("reader of a session on %s stuck for %v", name, busy.Round(time.Second))
	}
	guest, host := net.Pipe()
	stop := context.AfterFunc(ctx, func() { host.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer host.Close()
	serving.Go(func() { wire.NewConn(guest, a.selfConfig()).Serve(ctx) })
	if err := exchange(host); err != nil {
		return fmt.Errorf("ping to the agent itself: %w", errors.Join(err, context.Cause(ctx)))
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

// selfConfig returns the configuration of the connection by which the agent pings itself. It shares with those of hosts what
// could be stuck.
func (a *Agent) selfConfig() wire.Config {
	return wire.Config{
		Framing: wire.Plain, Session: a.nonce, Calls: &a.calls, Memory: a.memory,
		Urgent: a.urgent,
		Handle: func(_ context.Context, _ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
			return a.pong(request.(*pb.PingRequest)), nil
		},
		Refuse:  a.refusal,
		Mutates: func(proto.Message) bool { return false },
	}
}

// serveControl serves the control port, which serves the status of the agent and nothing else. It has calls of its own, so that
// it answers while the agent stops.
func (a *Agent) serveControl(ctx context.Context, p port.Port) {
	var calls wire.Calls
	var sessions sync.WaitGroup
	defer sessions.Wait()
	for {
		conn, err := p.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.config.Log.Warn("accept on control socket failed", zap.Error(err))
			}
			return
		}
		sessions.Go(func() { wire.NewConn(conn, a.controlConfig(&calls)).Serve(ctx) })
	}
}

func (a *Agent) controlConfig(calls *wire.Calls) wire.Config {
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
	c.Handle = func(_ context.Context, _ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		switch request.(type) {
		case *pb.GetStatusRequest:
			return a.Status(), nil
		case *pb.GetCapabilitiesRequest:
			return a.describe(""), nil
		}
		err := fault.Wrapf(fault.ErrRefused, "refused: the local socket tells the agent's status and nothing else")
		return builtins.ErrorReply(wire.ReplyType(request), err), err
	}
	return c
}
