package wire

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// dispatch checks a message and starts the call that it asks for.
func (c *Conn) dispatch(ctx, session context.Context, frame Frame, message *pb.AgentMessage, content *largeField, old bool) {
	id := message.MessageId
	if frame.Aligned && message.Session == c.config.Session {
		c.lastEcho = time.Now()
	}
	request := Payload(message)
	if request == nil {
		if message.ErrorDetail == nil {
			c.reply(id, nil, fault.Unsupported("unknown request"), true, noop)
		}
		return
	}
	if ReplyType(request) == nil {
		return // an event or a reply, which no host sends
	}
	if reply, urgent := c.config.Urgent(c, request); urgent {
		c.reply(id, reply, nil, true, noop)
		return
	}
	if c.config.Mutates(request) {
		if err := c.checkTrust(frame, message, old); err != nil {
			c.refuse(id, request, err)
			return
		}
	}
	c.start(ctx, session, message, request, c.attachLargeField(message, request, content))
}

// attachLargeField sets the large field of a request: as it lies in its frame, whose buffer release returns to the pool, or to a copy
// of it.
func (c *Conn) attachLargeField(m *pb.AgentMessage, request proto.Message, content *largeField) (release func()) {
	switch {
	case content == nil:
	case c.config.Transient == nil || !c.config.Transient(request):
		content.set(m, bytes.Clone(content.content))
	default:
		content.set(m, content.content)
		var spare []byte
		if kept, ok := c.largePool.Get().(*[]byte); ok {
			spare = *kept
		}
		buf := c.decoder.Detach(spare)
		return func() {
			if cap(buf) <= maxReusedBuffer {
				c.largePool.Put(&buf)
			}
		}
	}
	return func() {}
}

// checkTrust returns why a request that changes the guest must not be served, or nil.
func (c *Conn) checkTrust(frame Frame, m *pb.AgentMessage, old bool) error {
	switch {
	case !frame.Aligned:
		return fault.Wrapf(fault.ErrUncertain, "uncertain, send again: the request was found after bytes that belong to no frame")
	case m.Session == "" && time.Since(c.lastEcho) < echoWindow: // a request inside a file of that host cannot know the session
		return fault.Wrapf(fault.ErrUncertain, "uncertain, send again: the host before it echoed the session, less than %v ago and without a silence since", echoWindow)
	case m.Session != "" && m.Session != c.config.Session:
		return fault.Wrapf(fault.ErrStale, "stale request: it was made for another run of the agent")
	case old && !isFresh(m):
		return fault.Wrapf(fault.ErrStale, "stale request: it waited in the channel, and its timestamp is not within %v of the clock", StaleAfter)
	}
	return nil
}

func isFresh(m *pb.AgentMessage) bool {
	return m.Timestamp != nil && m.Timestamp.IsValid() && time.Since(m.Timestamp.AsTime()).Abs() <= StaleAfter
}

func (c *Conn) refuse(id string, request proto.Message, err error) {
	c.reply(id, c.config.Refuse(request, err), err, true, noop)
}

// start serves a request on a goroutine of its own. A request that was sent twice is served once: the reply is for both.
// release is called when the request is not used any more.
func (c *Conn) start(ctx, session context.Context, m *pb.AgentMessage, request proto.Message, release func()) {
	parent, vital := session, c.config.Vital != nil && c.config.Vital(request)
	if c.config.Mutates(request) {
		parent = ctx
	}
	leave, duplicate := c.admit(m.MessageId, vital)
	if leave == nil {
		release()
		if !duplicate {
			c.refuse(m.MessageId, request, fault.Wrapf(fault.ErrBusy, "busy: %d requests are in flight on this connection", MaxInFlight))
		}
		return
	}
	call, done, err := c.config.Calls.Start(parent, c.config.Port, m.MessageId)
	if err != nil {
		leave()
		c.refuse(m.MessageId, request, err)
		release()
		return
	}
	stop := func() {}
	if m.TimeoutMs > 0 {
		call, stop = context.WithTimeout(call, time.Duration(min(m.TimeoutMs, 1<<40))*time.Millisecond)
	}
	before, orderDone := c.acquireOrder(request)
	c.replies.Add(1)
	c.spawn(session, func() {
		defer c.replies.Done()
		reply, err := c.handleInOrder(call, m.MessageId, request, before, orderDone)
		stop()
		done() // the call is over; the reply may have to wait for a host that reads
		c.reply(m.MessageId, reply, err, vital, leave)
		release()
	})
}

// spawn runs f on a goroutine of its own, an idle one if there is any: its stack has already grown to what requests need.
func (c *Conn) spawn(session context.Context, f func()) {
	select {
	case c.workers <- f:
		return
	default:
	}
	go func() {
		for {
			f()
			if c.idleWorkers.Add(1) > maxIdleWorkers {
				c.idleWorkers.Add(-1)
				return
			}
			select {
			case f = <-c.workers:
				c.idleWorkers.Add(-1)
			case <-session.Done():
				return
			}
		}
	}()
}

// handleInOrder waits for before, handles the request, and calls done for the next request of the same order.
func (c *Conn) handleInOrder(ctx context.Context, id string, request proto.Message, before <-chan struct{}, done func()) (proto.Message, error) {
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			go func() { <-before; done() }() // the next request must still wait for the previous one
			err := context.Cause(ctx)
			return c.config.Refuse(request, err), err
		}
	}
	defer done()
	return c.config.Handle(ctx, c, id, request)
}

// admit adds a request to those in flight; leave removes it. A nil leave means the request was not admitted: a request of the same
// id is being served (duplicate), or too many are.
func (c *Conn) admit(id string, vital bool) (leave func(), duplicate bool) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if _, ok := c.inFlight[id]; ok {
		return nil, true
	}
	if n := len(c.inFlight); n >= MaxInFlight && (!vital || n >= 4*MaxInFlight) {
		return nil, false
	}
	c.inFlight[id] = nil
	return func() {
		c.inFlightMu.Lock()
		defer c.inFlightMu.Unlock()
		if scratch := c.inFlight[id]; scratch != nil {
			c.piecePool.Put(scratch)
		}
		delete(c.inFlight, id)
	}, false
}

// Scratch returns a buffer for n bytes of the reply to a request that is being served. The buffer is reused once that reply is
// encoded.
func (c *Conn) Scratch(id string, n int) []byte {
	if n > pieceSize {
		return make([]byte, n)
	}
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if scratch, ok := c.inFlight[id]; !ok || scratch != nil {
		return make([]byte, n) // not being served any more, or asked for twice
	}
	buf := c.buffer(pieceSize)
	c.inFlight[id] = &buf
	return buf[:n]
}

// acquireOrder returns what a request has to wait for, nil for nothing, and the function that lets the next one of its order run.
func (c *Conn) acquireOrder(request proto.Message) (before <-chan struct{}, done func()) {
	name := ""
	if c.config.Order != nil {
		name = c.config.Order(request)
	}
	if name == "" {
		return nil, func() {}
	}
	c.orderMu.Lock()
	defer c.orderMu.Unlock()
	mine := make(chan struct{})
	last := c.order[name]
	c.order[name] = mine
	return last, func() {
		c.orderMu.Lock()
		defer c.orderMu.Unlock()
		close(mine)
		if c.order[name] == mine {
			delete(c.order, name)
		}
	}
}
