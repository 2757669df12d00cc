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

// What the first pong may take. The second wait is for an agent that still waits for the rest of a frame of an earlier
// host, which it gives up after wire.PayloadTimeout of silence; the last is where something came, which is no silence.
const (
	firstSign  = wire.PayloadTimeout + 200*time.Millisecond
	secondSign = time.Second
	lastSign   = 20 * time.Second
)

// quietPing is a sequence that asks for nothing but a pong; 1 would ask for telemetry as well.
const quietPing = 2

// Alive waits for the pong to a ping: that is from the agent which runs now, and knows this host. What else comes may still
// be meant for the host before. Nothing at all is ErrNoAnswer, after about three seconds.
func (c *Client) Alive(ctx context.Context) (err error) {
	for _, within := range []time.Duration{firstSign, secondSign, lastSign} {
		if within == lastSign && !c.heard() {
			break
		}
		if err = c.pong(ctx, within); !errors.Is(err, ErrNoAnswer) {
			break
		}
	}
	return err
}

// heard says that something has come.
func (c *Client) heard() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spoken
}

func (c *Client) pong(ctx context.Context, within time.Duration) error {
	limited, stop := context.WithTimeoutCause(ctx, within, errSilent)
	defer stop()
	p, err := c.enter(NewID())
	if err != nil {
		return err
	}
	defer c.leave(p.id)
	if err := p.send(limited, &pb.PingRequest{Sequence: quietPing}); err != nil {
		return err
	}
	select {
	case <-p.wait:
		return nil
	case <-c.done:
		return c.cause()
	case <-limited.Done():
		return context.Cause(limited)
	}
}

// errSilent is the ErrNoAnswer of a connection on which nobody is.
var errSilent = fmt.Errorf("the guest says nothing: another client holds the socket, or no agent runs there: %w", ErrNoAnswer)

// Gone says that an error is about the connection and not about the request: no agent answers, or the channel ended, or lost it.
// Whether the request was carried out is then not known.
func Gone(err error) bool {
	var remote *fault.Remote
	var network *net.OpError
	return !errors.As(err, &remote) && (errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrLost) || errors.Is(err, io.ErrUnexpectedEOF) ||
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
// them whatever else it does, so only a guest that is stuck, paused or gone is given up. The pings ask also for the requests
// that are under way: those that the agent knows nothing of end with ErrLost. stop ends the watch and waits.
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
	awaiting := c.awaiting()
	p, err := c.enter(NewID())
	if err != nil {
		return false // the calls know
	}
	defer c.leave(p.id)
	sent := make(chan error, 1)
	go func() { sent <- p.send(ctx, &pb.PingRequest{Sequence: quietPing, Awaiting: awaiting}) }()
	select {
	case pong := <-p.wait:
		if pong, ok := wire.Payload(pong).(*pb.PongResponse); ok {
			c.lost(pong.Unknown)
		}
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

// awaiting gives the ids of the requests that were sent, and of the commands whose output comes.
func (c *Client) awaiting() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.pending {
		if p.sent {
			ids = append(ids, id)
		}
	}
	for id, s := range c.streams {
		if c.pending[id] == nil && s.lives() {
			ids = append(ids, id)
		}
	}
	return ids
}

// lost ends what waits for something that will not come any more: all that was sent before the agent said so is here.
func (c *Client) lost(ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if p := c.pending[id]; p != nil {
			delete(c.pending, id)
			p.wait <- nil
		}
		if s := c.streams[id]; s != nil {
			s.fail(fmt.Errorf("%w: the agent does not know the command any more", ErrLost))
		}
	}
}
