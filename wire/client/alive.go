package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What a first sign of life may take. The second wait is for an agent that still waits for the rest of a frame of an
// earlier host, which it gives up after wire.PayloadTimeout of silence.
const (
	firstSign  = wire.PayloadTimeout + 200*time.Millisecond
	secondSign = time.Second
)

// quietPing is a sequence that asks for nothing but a pong; 1 would ask for telemetry as well.
const quietPing = 2

// Alive waits for the first sign of life: what the agent says by itself, or the pong to a ping. The ping is there because
// an agent that did not notice the change of hosts does not greet the new one. Nothing at all is ErrNoAnswer, after about
// three seconds.
func (c *Client) Alive(ctx context.Context) error {
	err := c.signOfLife(ctx, firstSign)
	if errors.Is(err, ErrNoAnswer) {
		err = c.signOfLife(ctx, secondSign)
	}
	return err
}

func (c *Client) signOfLife(ctx context.Context, within time.Duration) error {
	id, wait := NewID(), make(chan *pb.AgentMessage, 1)
	if err := c.enter(id, wait); err != nil {
		return err
	}
	defer c.leave(id)
	if err := c.send(ctx, id, &pb.PingRequest{Sequence: quietPing}); err != nil {
		return err
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-wait:
		return nil
	case <-c.greeted:
		return nil
	case <-c.done:
		return c.cause()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("the guest says nothing: another client holds the socket, or no agent runs there: %w", ErrNoAnswer)
	}
}

// Gone says that an error is about the connection and not about the request: no agent answers, or the channel ended.
// Whether the request was carried out is then not known.
func Gone(err error) bool {
	var remote *fault.Remote
	var network *net.OpError
	return !errors.As(err, &remote) && (errors.Is(err, ErrNoAnswer) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.As(err, &network))
}

// Ping asks for a pong and tells how long it took.
func (c *Client) Ping(ctx context.Context) (time.Duration, *pb.PongResponse, error) {
	start := time.Now()
	pong, err := Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: quietPing})
	return time.Since(start), pong, err
}

// AskTelemetry asks for a fresh report, which comes as an event before AskTelemetry returns. Agents other than this
// project's answer without one.
func (c *Client) AskTelemetry(ctx context.Context) error {
	_, err := Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 1})
	return err
}

// Watch gives a context that ends, with ErrNoAnswer as its cause, when a ping is not answered within patience; the
// connection is then closed too, so that nothing waits to be written. Pings go out once every interval. The agent answers
// them whatever else it does, so only a guest that is stuck, paused or gone is given up. stop ends the watch and waits.
func (c *Client) Watch(ctx context.Context, interval, patience time.Duration) (watched context.Context, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-watched.Done():
				return
			case <-ticker.C:
			}
			if !c.stillThere(watched, patience, cancel) {
				return
			}
		}
	}()
	return watched, func() { cancel(nil); <-ended }
}

// stillThere pings. It does not wait in line to write: a channel that takes nothing is as bad as one that says nothing.
// Where nothing comes it gives up, tells why, and closes the connection, which unblocks whoever writes. A ping that waits in
// line when ctx ends goes with the connection.
func (c *Client) stillThere(ctx context.Context, patience time.Duration, giveUp context.CancelCauseFunc) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	id, wait := NewID(), make(chan *pb.AgentMessage, 1)
	if c.enter(id, wait) != nil {
		return false // the calls know
	}
	defer c.leave(id)
	sent := make(chan error, 1)
	go func() { sent <- c.send(ctx, id, &pb.PingRequest{Sequence: quietPing}) }()
	select {
	case <-wait:
	case <-c.done:
	case <-ctx.Done():
	case <-timer.C:
		giveUp(fmt.Errorf("the guest has not answered a ping for %v: %w", patience, ErrNoAnswer))
		c.channel.Close()
		<-sent
		return false
	}
	return true
}
