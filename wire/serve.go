package wire

import (
	"bytes"
	"context"
	"slices"
	"sync"
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
		c.replyTo(c.mayBeAnothers(frame), id, reply, nil, true, noop, replyMemory{})
		return
	}
	if c.config.Mutates(request) {
		if err := c.checkTrust(frame, message, old); err != nil {
			c.refuse(id, request, err)
			return
		}
	}
	size := len(frame.Payload)
	kept := c.keepFrame(ctx, frame, message, request, content)
	if kept == nil {
		c.refuse(id, request, errMemory)
		return
	}
	c.start(ctx, session, message, request, size, kept)
}

// keptFrame is what a request keeps of its frame.
type keptFrame struct {
	mu     sync.Mutex
	memory *Memory
	n      int    // bytes of the memory
	drop   func() // gives the buffer up; nil: there is none of its own
	owned  bool   // the buffer was made for this frame alone
}

// release gives all back.
func (k *keptFrame) release() { k.shrink(0) }

// shrink gives back all but that many bytes of the memory, and the buffer, which nothing may refer to any more.
func (k *keptFrame) shrink(to int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.drop != nil {
		k.drop()
		k.drop = nil
	}
	rest := k.n - min(to, k.n)
	k.n -= rest
	if k.owned {
		k.memory.reclaim(rest)
	} else {
		k.memory.give(rest)
	}
}

// keepFrame has a request keep what it needs of its frame until that is released: the buffer, where it has one of its own or its
// content may lie in it, or copies. It returns nil where there is no memory for it.
func (c *Conn) keepFrame(ctx context.Context, f Frame, m *pb.AgentMessage, request proto.Message, content *largeField) *keptFrame {
	transient := c.config.Transient != nil && c.config.Transient(request)
	if c.ownsBuffer() {
		if content != nil {
			content.set(m, content.content)
		}
		n := c.reserved
		buf := c.detachBuffer()
		return &keptFrame{memory: c.config.Memory, n: n, owned: true, drop: func() {
			if transient {
				c.reuse(buf)
			}
			buf = nil
		}}
	}
	n := len(f.Payload)
	if n <= freeRequest {
		n = 0
	} else if !c.takeMemory(ctx, n) {
		return nil
	}
	kept := &keptFrame{memory: c.config.Memory, n: n}
	switch {
	case content == nil:
	case !transient || c.salvaging:
		content.set(m, bytes.Clone(content.content))
	default:
		content.set(m, content.content)
		buf := c.decoder.Detach(reusable(&c.smallPool, minReadSize))
		kept.drop = func() { c.reuse(buf) }
	}
	return kept
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

// start serves a request on a goroutine of its own, now or when those before it leave room. A request that was sent twice is served
// once: the reply is for both. size is that of its frame; kept is released when that is not used any more.
func (c *Conn) start(ctx, session context.Context, m *pb.AgentMessage, request proto.Message, size int, kept *keptFrame) {
	id, parent, vital := m.MessageId, session, c.config.Vital != nil && c.config.Vital(request)
	light := vital || c.config.Light != nil && c.config.Light(request)
	if c.config.Mutates(request) {
		parent = ctx
	}
	size += waitingSize
	place := c.admit(id, light, size)
	if place == placeNone || place == placeDuplicate {
		kept.release()
		if place == placeNone {
			c.refuse(id, request, errTooMany)
		}
		return
	}
	leave := func() { c.leave(session, id, light) }
	call, done, err := c.config.Calls.Start(parent, c.config.Port, id)
	if err != nil {
		kept.release()
		if place == placeWaiting {
			leave = func() { c.leaveWaiting(id, size) }
		}
		leave()
		c.refuse(id, request, err)
		return
	}
	var exchange *Exchange
	if c.config.Transient == nil || !c.config.Transient(request) { // of those there are many, and none asks for it
		exchange = newExchange(m)
		exchange.kept, exchange.memory = kept, c.config.Memory
		call = context.WithValue(call, exchangeKey{}, exchange)
	}
	stop := func() {}
	if m.TimeoutMs > 0 {
		call, stop = context.WithTimeout(call, time.Duration(min(m.TimeoutMs, 1<<40))*time.Millisecond)
	}
	before, orderDone := c.acquireOrder(request)
	c.replies.Add(1)
	serve := func() {
		defer c.replies.Done()
		var made func()
		enter := func() error { return nil }
		if c.config.Large != nil && c.config.Large(request) {
			defer c.enterLarge(call)()
			made = noop
			enter = func() (err error) { made, err = c.config.Memory.enterMaking(call); return err }
		}
		reply, err := c.handleInOrder(call, id, request, before, orderDone, enter)
		stop()
		done()        // the call is over; the reply may have to wait for a host that reads
		request = nil // else it would be held as long
		kept.release()
		if exchange == nil {
			c.replyTo(nil, id, reply, err, vital, leave, replyMemory{made: made})
		} else {
			memory := replyMemory{made: made, held: exchange.replyHeld}
			exchange.end(c.queue, func() { c.replyTo(nil, id, reply, err, vital, leave, memory) })
		}
	}
	if place == placeServed {
		c.spawn(session, serve)
		return
	}
	w := &waitingRequest{size: size, serve: serve}
	c.wait(session, w)
	context.AfterFunc(call, func() { c.serveCancelled(session, w) })
}

// errTooMany is why a request is refused that would have to wait with too many others.
var errTooMany = fault.Wrapf(fault.ErrBusy, "busy: %d requests are in flight on this connection, and as many as may be wait", MaxInFlight)

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

// enterLarge waits until no other request of this host holds a reply that may be large, or nobody wants this one any more.
func (c *Conn) enterLarge(call context.Context) (leave func()) {
	select {
	case c.large <- struct{}{}:
		return func() { <-c.large }
	case <-call.Done():
		return noop
	}
}

// handleInOrder waits for before, calls enter, handles the request, and calls done for the next request of the same order. A request
// whose context has ended by then, or that could not enter, is not handled.
func (c *Conn) handleInOrder(
	ctx context.Context, id string, request proto.Message, before <-chan struct{}, done func(), enter func() error,
) (proto.Message, error) {
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
	if err := context.Cause(ctx); err != nil {
		return c.config.Refuse(request, err), err
	}
	if err := enter(); err != nil {
		return c.config.Refuse(request, err), err
	}
	return c.config.Handle(ctx, c, id, request)
}

// place is what a connection has for a request.
type place int

const (
	placeServed    place = iota
	placeWaiting         // until one that is being served has ended
	placeDuplicate       // a request of the same id is in flight
	placeNone            // too many are
)

// waitingRequest is a request that waits until one before it has ended.
type waitingRequest struct {
	size  int
	serve func()
}

// admit adds a request of a size to those in flight, where there is a place for it. leave, or leaveWaiting, removes it.
func (c *Conn) admit(id string, light bool, size int) place {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if _, ok := c.inFlight[id]; ok {
		return placeDuplicate
	}
	p := placeServed
	switch {
	case light && c.light < 3*MaxInFlight:
		c.light++
	case light:
		return placeNone
	case c.serving < MaxInFlight && c.waitingBytes == 0: // what waits goes first
		c.serving++
	case c.waitingBytes+size > maxWaiting:
		return placeNone
	default:
		c.waitingBytes += size
		p = placeWaiting
	}
	c.inFlight[id] = nil
	return p
}

// leave removes a request that was served from those in flight. The next one that waits is served.
func (c *Conn) leave(session context.Context, id string, light bool) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if s := c.inFlight[id]; s != nil {
		c.recycle(s.buf)
	}
	delete(c.inFlight, id)
	if light {
		c.light--
		return
	}
	c.serving--
	if len(c.waiting) > 0 && c.serving < MaxInFlight {
		c.serveWaiting(session, 0)
	}
}

// leaveWaiting removes a request that was admitted to wait, and will not.
func (c *Conn) leaveWaiting(id string, size int) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	delete(c.inFlight, id)
	c.waitingBytes -= size
}

// wait has a request wait, or be served where there is room by now.
func (c *Conn) wait(session context.Context, w *waitingRequest) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	c.waiting = append(c.waiting, w)
	if c.serving < MaxInFlight {
		c.serveWaiting(session, 0)
	}
}

// serveCancelled serves a request at once whose context has ended, if it still waits: it gets its reply.
func (c *Conn) serveCancelled(session context.Context, w *waitingRequest) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if i := slices.Index(c.waiting, w); i >= 0 {
		c.serveWaiting(session, i)
	}
}

// serveWaiting serves a request that waits. The caller holds inFlightMu.
func (c *Conn) serveWaiting(session context.Context, i int) {
	w := c.waiting[i]
	c.waiting = slices.Delete(c.waiting, i, i+1)
	c.waitingBytes -= w.size
	c.serving++
	c.spawn(session, w.serve)
}

// Scratch returns a buffer for n bytes of the reply to a request that is being served. The buffer is reused once that reply is
// written. A chunk of a file that begins it is sent without being copied.
func (c *Conn) Scratch(id string, n int) []byte {
	if n > SocketChunk {
		return make([]byte, n)
	}
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if s, ok := c.inFlight[id]; !ok || s != nil {
		return make([]byte, n) // not being served any more, or asked for twice
	}
	s := &scratch{c.buffer(MaxHead + n), n}
	c.inFlight[id] = s
	return s.buf[MaxHead : MaxHead+n]
}

// MaxChunk returns the most bytes of a file that one reply to this host should have; 0: as many as fit into one write of a
// virtio-serial port.
func (c *Conn) MaxChunk() int {
	if _, shared := c.channel.(persistentChannel); shared {
		return 0
	}
	return SocketChunk
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
