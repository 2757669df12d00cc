package wire

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// accept judges a message and starts what it asks for.
func (c *Conn) accept(ctx, session context.Context, frame Frame, message *pb.AgentMessage, content *apart, old bool) {
	id := message.MessageId
	if frame.Aligned && message.Session == c.config.Session {
		c.echoed = time.Now()
	}
	request := Payload(message)
	if request == nil {
		if message.ErrorDetail == nil {
			c.reply(id, nil, fault.Unsupported("unknown request"), true, nobody)
		}
		return
	}
	if ReplyType(request) == nil {
		return // an event or a reply: nothing of ours
	}
	if reply, urgent := c.config.Urgent(c, request); urgent {
		c.reply(id, reply, nil, true, nobody)
		return
	}
	if c.config.Mutates(request) {
		if err := c.trust(frame, message, old); err != nil {
			c.refuse(id, request, err)
			return
		}
	}
	c.start(ctx, session, message, request, c.attach(message, request, content))
}

// attach gives a request its large content: as it lies in its frame, whose buffer is free again with release, or a copy.
func (c *Conn) attach(m *pb.AgentMessage, request proto.Message, content *apart) (release func()) {
	switch {
	case content == nil:
	case c.config.Transient == nil || !c.config.Transient(request):
		content.put(m, bytes.Clone(content.content))
	default:
		content.put(m, content.content)
		var spare []byte
		if kept, ok := c.large.Get().(*[]byte); ok {
			spare = *kept
		}
		buf := c.decoder.Detach(spare)
		return func() {
			if cap(buf) <= maxSpare {
				c.large.Put(&buf)
			}
		}
	}
	return func() {}
}

// trust says why a request that changes the guest must not be served.
func (c *Conn) trust(frame Frame, m *pb.AgentMessage, old bool) error {
	switch {
	case !frame.Aligned:
		return fault.Wrapf(fault.ErrUncertain, "uncertain, send again: the request was found after bytes that belong to no frame")
	case m.Session == "" && time.Since(c.echoed) < echoMemory: // what was hidden in a file of that host cannot know the session
		return fault.Wrapf(fault.ErrUncertain, "uncertain, send again: the host before it echoed the session, less than %v ago and without a silence since", echoMemory)
	case m.Session != "" && m.Session != c.config.Session:
		return fault.Wrapf(fault.ErrStale, "stale request: it was made for another run of the agent")
	case old && !fresh(m):
		return fault.Wrapf(fault.ErrStale, "stale request: it waited in the channel, and its timestamp is not within %v of the clock", StaleAfter)
	}
	return nil
}

func fresh(m *pb.AgentMessage) bool {
	return m.Timestamp != nil && m.Timestamp.IsValid() && time.Since(m.Timestamp.AsTime()).Abs() <= StaleAfter
}

func (c *Conn) refuse(id string, request proto.Message, err error) {
	c.reply(id, c.config.Refuse(request, err), err, true, nobody)
}

// start serves a request on a goroutine of its own. A request that was sent twice is served once: the reply is for both.
// release is called when nobody looks at the request any more.
func (c *Conn) start(ctx, session context.Context, m *pb.AgentMessage, request proto.Message, release func()) {
	parent, vital := session, c.config.Vital != nil && c.config.Vital(request)
	if c.config.Mutates(request) {
		parent = ctx
	}
	leave, second := c.enter(m.MessageId, vital)
	if leave == nil {
		release()
		if !second {
			c.refuse(m.MessageId, request, fault.Wrapf(fault.ErrBusy, "busy: %d requests are in flight on this connection", MaxInFlight))
		}
		return
	}
	call, done, err := c.config.Calls.Start(parent, m.MessageId)
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
	before, turn := c.turn(request)
	c.replies.Add(1)
	c.work(session, func() {
		defer c.replies.Done()
		reply, err := c.serve(call, m.MessageId, request, before, turn)
		stop()
		done() // the call is over; the reply may have to wait for a host that reads
		c.reply(m.MessageId, reply, err, vital, leave)
		release()
	})
}

// work runs f on a goroutine of its own. One that is free is taken: its stack has grown to what requests need.
func (c *Conn) work(session context.Context, f func()) {
	select {
	case c.workers <- f:
		return
	default:
	}
	go func() {
		for {
			f()
			if c.free.Add(1) > maxFree {
				c.free.Add(-1)
				return
			}
			select {
			case f = <-c.workers:
				c.free.Add(-1)
			case <-session.Done():
				return
			}
		}
	}()
}

// serve waits for the request's turn and handles it.
func (c *Conn) serve(ctx context.Context, id string, request proto.Message, before <-chan struct{}, turn func()) (proto.Message, error) {
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			go func() { <-before; turn() }() // what comes after must still wait for what came before
			err := context.Cause(ctx)
			return c.config.Refuse(request, err), err
		}
	}
	defer turn()
	return c.config.Handle(ctx, c, id, request)
}

// enter counts a request in. Without a function to count it out it is not served: it is one too many, or, where second is
// true, being served already.
func (c *Conn) enter(id string, vital bool) (leave func(), second bool) {
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	if _, ok := c.flight[id]; ok {
		return nil, true
	}
	if room := MaxInFlight; len(c.flight) >= room && (!vital || len(c.flight) >= 4*room) {
		return nil, false
	}
	c.flight[id] = nil
	return func() {
		c.flightMu.Lock()
		defer c.flightMu.Unlock()
		if scratch := c.flight[id]; scratch != nil {
			c.frames.Put(scratch)
		}
		delete(c.flight, id)
	}, false
}

// Scratch gives room for n bytes of the reply to a request that is being served. It is used again for others once that
// reply is encoded.
func (c *Conn) Scratch(id string, n int) []byte {
	if n > pieceSize {
		return make([]byte, n)
	}
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	if scratch, ok := c.flight[id]; !ok || scratch != nil {
		return make([]byte, n) // not being served any more, or asked for twice
	}
	buf := c.room(pieceSize)
	c.flight[id] = &buf
	return buf[:n]
}

// turn gives what a request has to wait for, and what ends its own turn.
func (c *Conn) turn(request proto.Message) (before <-chan struct{}, end func()) {
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
