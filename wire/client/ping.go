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

// The timeouts of the pings of Alive, one after the other. The second is for an agent that still waits for the rest of a frame
// of an earlier host, which it drops after wire.PayloadTimeout of silence. The last is used only where something was received:
// then there was no silence.
const (
	firstPingTimeout  = wire.PayloadTimeout + 200*time.Millisecond
	secondPingTimeout = time.Second
	lastPingTimeout   = 20 * time.Second
)

// pingSequence is a sequence number that asks for nothing but a pong; 1 would ask for telemetry as well.
const pingSequence = 2

// Alive sends a ping and waits for its pong, which shows that the agent runs and serves this connection. Any other message may
// be left over from the previous host. Where nothing comes the error is ErrNoAnswer, after about three seconds.
func (c *Client) Alive(ctx context.Context) (err error) {
	for _, within := range []time.Duration{firstPingTimeout, secondPingTimeout, lastPingTimeout} {
		if within == lastPingTimeout && !c.hasReceived() {
			break
		}
		if err = c.awaitPong(ctx, within); !errors.Is(err, ErrNoAnswer) {
			break
		}
	}
	return err
}

// hasReceived reports whether any message has come.
func (c *Client) hasReceived() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.received
}

func (c *Client) awaitPong(ctx context.Context, within time.Duration) error {
	limited, stop := context.WithTimeoutCause(ctx, within, errNoPong)
	defer stop()
	p, err := c.register(NewID())
	if err != nil {
		return err
	}
	defer c.unregister(p.id)
	if err := p.send(limited, &pb.PingRequest{Sequence: pingSequence}); err != nil {
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

// errNoPong is the ErrNoAnswer of a connection on which nothing answers a ping.
var errNoPong = fmt.Errorf("no pong from the guest: another client holds the socket, or no agent runs there: %w", ErrNoAnswer)

// Gone reports whether an error is one of the connection: no agent answers, the channel ended, or the request was lost. Whether
// the request was carried out is then not known.
func Gone(err error) bool {
	var remote *fault.Remote
	var network *net.OpError
	return !errors.As(err, &remote) && (errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrLost) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.As(err, &network) || pipeGone(err))
}

// Ping sends a ping and returns the round-trip time and the pong.
func (c *Client) Ping(ctx context.Context) (time.Duration, *pb.PongResponse, error) {
	start := time.Now()
	pong, err := Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: pingSequence})
	return time.Since(start), pong, err
}

// AskTelemetry asks for a fresh report, which comes as an event before AskTelemetry returns. Agents other than this
// project's answer without one.
func (c *Client) AskTelemetry(ctx context.Context) error {
	_, err := Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 1})
	return err
}

// Watch pings the agent once every interval, and returns a context that ends, with ErrNoAnswer as its cause, when a ping is not
// answered within timeout; the connection is then closed too, so that no write blocks. The agent answers pings whatever else it
// does, so that only a guest that hangs, is paused or is gone fails. The pings also carry the ids of the requests in flight:
// those that the agent does not know end with ErrLost. stop ends the watch and waits for it.
func (c *Client) Watch(ctx context.Context, interval, timeout time.Duration) (watched context.Context, stop func()) {
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
			if !c.pingOrClose(watched, timeout, cancel) {
				return
			}
		}
	}()
	return watched, func() { cancel(nil); <-ended }
}

// pingOrClose sends a ping and returns false where the watch is over. The timeout includes the wait to write: a channel that
// takes nothing is as dead as one that returns nothing. When it has passed, giveUp is called and the connection is closed,
// which unblocks all writers. A ping that still waits to be written when ctx ends is left to the connection.
func (c *Client) pingOrClose(ctx context.Context, timeout time.Duration, giveUp context.CancelCauseFunc) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	awaiting := c.awaiting()
	p, err := c.register(NewID())
	if err != nil {
		return false // the calls know
	}
	defer c.unregister(p.id)
	sent := make(chan error, 1)
	go func() { sent <- p.send(ctx, &pb.PingRequest{Sequence: pingSequence, Awaiting: awaiting}) }()
	select {
	case pong := <-p.wait:
		if pong, ok := wire.Payload(pong).(*pb.PongResponse); ok {
			c.failUnknown(pong.Unknown)
		}
	case <-c.done:
	case <-ctx.Done():
	case <-timer.C:
		giveUp(fmt.Errorf("the guest has not answered a ping for %v: %w", timeout, ErrNoAnswer))
		c.channel.Close()
		<-sent
		return false
	}
	return true
}

// awaiting returns the ids of the requests that were sent, and of the commands that run.
func (c *Client) awaiting() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.pending {
		if p.sent && !p.asks {
			ids = append(ids, id)
		}
	}
	for id, s := range c.streams {
		if c.pending[id] == nil && s.running() {
			ids = append(ids, id)
		}
	}
	return ids
}

// lostInterval is how often the agent is asked about requests that are awaited for at least as long.
const lostInterval = 5 * time.Second

// scheduleCheck has askForLost run after a while, unless it will. The caller holds the lock.
func (c *Client) scheduleCheck() {
	if !c.checking {
		c.checking = true
		c.check.Reset(lostInterval)
	}
}

// askForLost asks the agent about the requests that were awaited already when it ran last, if there are any, with a ping as
// Watch sends it. The reply of a request may have been lost, and its caller would wait for as long as its context lets it. The
// ping also wakes up an agent that missed the request.
func (c *Client) askForLost() {
	ids := c.awaiting()
	c.mu.Lock()
	c.checking = false
	long, asking := false, false
	for id, p := range c.pending {
		switch {
		case p.asks && p.sent:
			delete(c.pending, id) // another one follows
		case p.asks:
			asking = true // the channel takes nothing
		default:
			long = long || p.long
			p.long = true
		}
	}
	if c.err != nil || len(c.pending) == 0 && len(ids) == 0 {
		c.mu.Unlock()
		return
	}
	c.scheduleCheck()
	for _, id := range ids {
		long = long || c.pending[id] == nil // a command that runs
	}
	if !long || asking || len(ids) == 0 {
		c.mu.Unlock()
		return
	}
	ping := &pending{c: c, id: NewID(), asks: true, wait: make(chan *pb.AgentMessage, 1)}
	c.pending[ping.id] = ping
	c.mu.Unlock()
	sent := c.writer.spawn(func() { // as long as the channel takes nothing
		if ping.send(context.Background(), &pb.PingRequest{Sequence: pingSequence, Awaiting: ids}) != nil {
			c.unregister(ping.id)
		}
	})
	if !sent {
		c.unregister(ping.id)
	}
}

// failUnknown fails the requests and streams that the agent does not know. Everything that it sent before its pong has been
// received, so nothing more can come for them.
func (c *Client) failUnknown(ids []string) {
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
