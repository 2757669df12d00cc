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

// dispatch checks a message and starts the call that it asks for. s is what was made for it already; nil: nothing was.
func (c *Conn) dispatch(
	ctx, session context.Context, frame Frame, message *pb.AgentMessage, content *largeField, s *servedCall, old bool,
) {
	id := message.MessageId
	if frame.Aligned && message.Session == c.config.Session {
		c.lastEcho = time.Now()
	}
	request := Payload(message)
	if request == nil {
		if message.ErrorDetail == nil {
			c.reply(id, nil, fault.Unsupported("unknown request"))
		}
		return
	}
	if ReplyType(request) == nil {
		return // an event or a reply, which no host sends
	}
	if reply, urgent := c.config.Urgent(c, request); urgent {
		c.replyUrgent(c.mayBeAnothers(frame), id, reply)
		return
	}
	if c.config.Mutates(request) {
		if err := c.checkTrust(frame, message, old); err != nil {
			c.refuse(id, request, err)
			return
		}
	}
	if s == nil {
		s = &servedCall{}
	}
	s.conn, s.session, s.id, s.request = c, session, id, request
	if !c.keepFrame(ctx, frame, message, content, s) {
		c.refuse(id, request, errMemory)
		return
	}
	c.start(ctx, message, len(frame.Payload), s)
}

// servedCall is a request with all that it takes until its reply has left.
type servedCall struct {
	conn    *Conn
	session context.Context
	id      string
	request proto.Message
	kept    keptFrame
	running running         // ctx is that of the call
	stop    func()          // ends the timer of the call; nil: it has none
	mutates bool            // it outlives its host
	again   bool            // the context may serve another call
	large   bool            // the reply may be
	exempt  bool            // it is served whatever else is in flight
	urgent  bool            // its reply is
	order   orderPlace      // among those of its order
	call    context.Context // running.ctx with what belongs to the request
	sharing *Exchange       // nil: nobody asks
	reply   envelope
	room    [smallReply]byte // for a small reply
}

// smallReply is the size of most replies without content, in bytes.
const smallReply = 320

// keptFrame is what a request keeps of its frame.
type keptFrame struct {
	mu     sync.Mutex
	memory *Memory
	n      int    // bytes of the memory
	buf    []byte // the buffer of its own; nil: there is none
	pool   *Conn  // whose buffer that is when it is given up; nil: nobody's
	owned  bool   // the buffer was made for this frame alone
}

// release gives all back.
func (k *keptFrame) release() { k.shrink(0) }

// shrink gives back all but that many bytes of the memory, and the buffer, which nothing may refer to any more.
func (k *keptFrame) shrink(to int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.buf != nil && k.pool != nil {
		k.pool.reuse(k.buf)
	}
	collected := isCollected(k.buf)
	k.buf = nil
	rest := k.n - min(to, k.n)
	k.n -= rest
	if k.owned {
		k.memory.reclaim(rest, collected)
	} else {
		k.memory.give(rest)
	}
}

// keepFrame has a request keep what it needs of its frame until that is released: the buffer, where it has one of its own or
// its content may lie in it, or copies. It returns false where there is no memory for it.
func (c *Conn) keepFrame(ctx context.Context, f Frame, m *pb.AgentMessage, content *largeField, s *servedCall) bool {
	transient := c.isTransient(s.request)
	kept := &s.kept
	kept.memory = c.config.Memory
	if c.ownsBuffer() {
		if content != nil {
			content.set(m, content.content)
		}
		kept.n, kept.owned = c.reserved, true
		kept.buf = c.detachBuffer()
		if transient {
			kept.pool = c
		}
		return true
	}
	if n := len(f.Payload); n > freeRequest {
		if !c.takeMemory(ctx, n) {
			return false
		}
		kept.n = n
	}
	switch {
	case content == nil:
	case !transient || c.salvaging:
		content.set(m, bytes.Clone(content.content))
	default:
		content.set(m, content.content)
		kept.buf, kept.pool = c.decoder.Detach(c.smallPool.Get(minReadSize)), c
	}
	return true
}

// isTransient reports whether nothing refers to the bytes of a request after its call.
func (c *Conn) isTransient(request proto.Message) bool {
	return c.config.Transient != nil && c.config.Transient(request)
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
	c.reply(id, c.config.Refuse(request, err), err)
}

// start serves a request on a goroutine of its own, now or when those before it leave room. A request that was sent twice is
// served once: the reply is for both. size is that of its frame.
func (c *Conn) start(ctx context.Context, m *pb.AgentMessage, size int, s *servedCall) {
	request := s.request
	s.urgent = c.config.Vital != nil && c.config.Vital(request)
	s.exempt = s.urgent || c.config.Light != nil && c.config.Light(request)
	s.large = c.config.Large != nil && c.config.Large(request)
	s.mutates = c.config.Mutates(request)
	transient := c.isTransient(request)
	size += waitingSize
	place := c.admit(s.id, s.exempt, size)
	if place == placeNone || place == placeDuplicate {
		s.kept.release()
		if place == placeNone {
			c.refuse(s.id, request, errTooMany)
		}
		return
	}
	parent := s.session
	if s.mutates {
		parent = ctx
	}
	s.running.owner, s.running.id = c.config.Port, s.id
	s.again = transient && place == placeServed // something else is called when the context of one that waits ends
	c.takeContext(parent, s)
	if err := c.config.Calls.begin(&s.running); err != nil {
		s.running.cancel(err)
		s.kept.release()
		if place == placeWaiting {
			c.leaveWaiting(s.id, size)
		} else {
			s.leave()
		}
		c.refuse(s.id, request, err)
		return
	}
	call := s.running.ctx
	if !transient { // of those there are many, and none asks for it
		s.sharing = newExchange(m)
		s.sharing.kept, s.sharing.memory = &s.kept, c.config.Memory
		call = context.WithValue(call, exchangeKey{}, s.sharing)
	}
	if m.TimeoutMs > 0 {
		call, s.stop = context.WithTimeoutCause(call, time.Duration(min(m.TimeoutMs, 1<<40))*time.Millisecond, errHostTime)
	}
	s.call = call
	c.enterOrder(s)
	c.replies.Add(1)
	if place == placeServed {
		c.spawn(s)
		return
	}
	w := &waitingRequest{size: size, request: s}
	c.wait(w)
	context.AfterFunc(call, func() { c.serveCancelled(w) })
}

// leave takes the request out of those in flight.
func (s *servedCall) leave() { s.conn.leave(s.id, s.exempt) }

// serve handles the request, and has its reply queued.
func (s *servedCall) serve() {
	c := s.conn
	defer c.replies.Done()
	var memory replyMemory
	if s.large {
		defer c.enterLarge(s.call)()
		memory.made = noop
	}
	reply, err := s.handleInOrder(&memory)
	if s.stop != nil {
		s.stop()
	}
	c.config.Calls.end(&s.running) // the call is over; the reply may have to wait for a host that reads
	c.giveContext(s)
	s.request = nil // else it would be held as long
	s.kept.release()
	if s.sharing == nil {
		c.replyTo(s, reply, err, memory)
		return
	}
	memory.held = s.sharing.replyHeld
	s.sharing.end(c.queue, func() { c.replyTo(s, reply, err, memory) })
}

// errHostTime is why a request ended that took longer than its host waits.
var errHostTime = fault.Wrapf(context.DeadlineExceeded, "it was not done in the time that the host waits for it")

// errTooMany is why a request is refused that would have to wait with too many others.
var errTooMany = fault.Wrapf(fault.ErrBusy, "busy: %d requests are in flight on this connection, and as many as may be wait", MaxInFlight)

// spawn serves a request on a goroutine of its own, an idle one if there is any: its stack has already grown to what requests
// need.
func (c *Conn) spawn(s *servedCall) {
	select {
	case c.workers <- s:
	default:
		go c.work(s, s.session)
	}
}

// work serves a request, and then others.
func (c *Conn) work(s *servedCall, session context.Context) {
	for {
		s.serve()
		s = nil
		if c.idleWorkers.Add(1) > maxIdleWorkers {
			c.idleWorkers.Add(-1)
			return
		}
		select {
		case s = <-c.workers:
			c.idleWorkers.Add(-1)
		case <-session.Done():
			return
		}
	}
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

// handleInOrder handles the request after those before it of the same order. One whose context has ended by then, or for whose
// reply there is no memory, is not handled.
func (s *servedCall) handleInOrder(memory *replyMemory) (proto.Message, error) {
	c, ctx, request := s.conn, s.call, s.request
	if before := s.order.before; before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			go func() { <-before; c.leaveOrder(s) }() // the next request must still wait for the previous one
			err := context.Cause(ctx)
			return c.config.Refuse(request, err), err
		}
	}
	defer c.leaveOrder(s)
	if err := context.Cause(ctx); err != nil {
		return c.config.Refuse(request, err), err
	}
	if s.large {
		var err error
		if memory.made, err = c.config.Memory.enterMaking(ctx); err != nil {
			return c.config.Refuse(request, err), err
		}
	}
	return c.config.Handle(ctx, c, s.id, request)
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
	size    int
	request *servedCall
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
	c.inFlight[id] = scratch{}
	return p
}

// leave removes a request that was served from those in flight. The next one that waits is served.
func (c *Conn) leave(id string, light bool) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if s := c.inFlight[id]; s.buf != nil {
		c.recycle(s.buf)
	}
	delete(c.inFlight, id)
	if light {
		c.light--
		return
	}
	c.serving--
	if len(c.waiting) > 0 && c.serving < MaxInFlight {
		c.serveWaiting(0)
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
func (c *Conn) wait(w *waitingRequest) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	c.waiting = append(c.waiting, w)
	if c.serving < MaxInFlight {
		c.serveWaiting(0)
	}
}

// serveCancelled serves a request at once whose context has ended, if it still waits: it gets its reply.
func (c *Conn) serveCancelled(w *waitingRequest) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if i := slices.Index(c.waiting, w); i >= 0 {
		c.serveWaiting(i)
	}
}

// serveWaiting serves a request that waits. The caller holds inFlightMu.
func (c *Conn) serveWaiting(i int) {
	w := c.waiting[i]
	c.waiting = slices.Delete(c.waiting, i, i+1)
	c.waitingBytes -= w.size
	c.serving++
	c.spawn(w.request)
}

// Scratch returns a buffer for n bytes of the reply to a request that is being served. The buffer is reused once that reply is
// written. A chunk of a file that begins it is sent without being copied.
func (c *Conn) Scratch(id string, n int) []byte {
	if n > SocketChunk {
		return make([]byte, n)
	}
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	if s, ok := c.inFlight[id]; !ok || s.buf != nil {
		return make([]byte, n) // not being served any more, or asked for twice
	}
	s := scratch{c.buffer(MaxHead + n), n}
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
