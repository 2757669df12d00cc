package wire

import (
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// reply sends the one reply to a request that is not served.
func (c *Conn) reply(id string, payload proto.Message, err error) {
	m := Wrap(id, payload)
	m.ErrorDetail = fault.Detail(err)
	o, tooLarge := c.encode(m)
	if tooLarge != nil {
		o = c.tooLarge(id, payload, tooLarge)
	}
	c.queueReply(o, true, nil)
}

// replyUrgent sends the reply to a request that waits for nothing. frame is that of the request; nil: it is certain whose it
// is.
func (c *Conn) replyUrgent(frame []byte, id string, payload proto.Message) {
	o, err := c.encode(Wrap(id, payload))
	if err != nil {
		o = c.tooLarge(id, payload, err)
	}
	o.request = frame
	c.queueReply(o, true, nil)
}

// replyMemory is what a reply that may be large has of the memory of all hosts.
type replyMemory struct {
	made func() // called when it is encoded, and the memory for it found; nil: that is not counted
	held func() // gives back, when it is written, the memory that was found before it was made; nil: none was
}

// replyTo sends the one reply to a request that was served, and waits until its lane has room. The request is taken out of
// those in flight before the host can have read the reply, and after everything that is sent later is certain to follow it.
func (c *Conn) replyTo(s *servedCall, payload proto.Message, err error, memory replyMemory) {
	m := s.reply.wrap(s.id, payload)
	m.ErrorDetail = fault.Detail(err)
	o, inPlace := c.encodeInPlace(s, m)
	var tooLarge error
	if !inPlace {
		o, tooLarge = c.encodeInto(m, func(n int) []byte {
			if n <= len(s.room) {
				return s.room[:n:n]
			}
			return c.buffer(n)
		})
	}
	if memory.made != nil && tooLarge == nil {
		o.done, tooLarge = c.config.Memory.holdReply(len(o.buf), isCollected(o.buf))
	}
	if tooLarge != nil {
		o = c.tooLarge(s.id, payload, tooLarge)
	}
	if memory.made != nil {
		memory.made()
	}
	if memory.held != nil {
		o.done = memory.held
	}
	c.queueReply(o, s.urgent, s)
}

// tooLarge is the reply in place of one that is not sent.
func (c *Conn) tooLarge(id string, payload proto.Message, why error) outgoing {
	empty := Wrap(id, nil)
	if payload != nil {
		empty = Wrap(id, payload.ProtoReflect().Type().New().Interface())
	}
	empty.ErrorDetail = fault.Detail(why)
	o, _ := c.encode(empty)
	return o
}

func (c *Conn) queueReply(o outgoing, urgent bool, s *servedCall) {
	if err := c.enqueue(o, urgent, s); err != nil {
		c.warn("reply dropped", err)
	}
}

// Send queues an event; false: it was dropped, because the host reads too slowly or has left. A telemetry report replaces one
// that is still queued.
func (c *Conn) Send(id string, event proto.Message) bool {
	return c.send(id, event, false)
}

// SendUrgent is Send in the urgent lane.
func (c *Conn) SendUrgent(id string, event proto.Message) bool {
	return c.send(id, event, true)
}

func (c *Conn) send(id string, event proto.Message, urgent bool) bool {
	o, err := c.encode(Wrap(id, event))
	if err != nil {
		c.warn("event dropped", err)
		return false
	}
	if !c.received.Load() {
		var ok bool
		if o, ok = c.unsolicitedMessage(o); !ok {
			return false
		}
	}
	if urgent {
		return c.enqueue(o, true, nil) == nil
	}
	_, o.replaceable = event.(*pb.TelemetryReport)
	return c.queue.tryPut(o)
}

func (c *Conn) encode(m *pb.AgentMessage) (outgoing, error) { return c.encodeInto(m, c.buffer) }

func (c *Conn) encodeInto(m *pb.AgentMessage, alloc func(n int) []byte) (outgoing, error) {
	m.Session = c.config.Session
	buf, err := marshal(m, alloc)
	if n := len(buf) - headerSpace; err == nil && n > MaxFrame {
		err = fault.Wrapf(fault.ErrTooLarge, "reply of %d bytes is larger than %d", n, MaxFrame)
	}
	return outgoing{buf: buf}, err
}

// buffer returns a buffer for n bytes, a pooled one where that is worth it.
func (c *Conn) buffer(n int) []byte {
	pool, size := &c.piecePool, pieceSize
	switch {
	case n < minPooledBuffer || n > chunkSize:
		return newBuffer(n)
	case n > pieceSize:
		pool, size = &c.chunkPool, chunkSize
	}
	if kept := pool.Get(size); kept != nil {
		return kept
	}
	return make([]byte, size)
}

func newBuffer(n int) []byte { return make([]byte, n) }

// recycle puts a buffer that nothing refers to any more back into its pool.
func (c *Conn) recycle(buf []byte) {
	switch cap(buf) {
	case pieceSize:
		c.piecePool.Put(buf[:pieceSize])
	case chunkSize:
		c.chunkPool.Put(buf[:chunkSize])
	}
}

// recycleFrame is recycle for a message that was written.
func (c *Conn) recycleFrame(o outgoing) {
	if o.whole != nil {
		c.recycle(o.whole)
		return
	}
	c.recycle(o.buf)
}

// noop does nothing.
func noop() {}

// enqueue sends a message: at once where nothing else is being written and the channel takes it, otherwise through its lane. s
// is the request in flight that it answers; nil: it answers none.
func (c *Conn) enqueue(o outgoing, urgent bool, s *servedCall) error {
	channel, can := c.channel.(tryWriter)
	if !can || len(o.buf) > c.directSize() || !c.queue.claim() {
		return c.queue.put(o, urgent, s)
	}
	if s != nil {
		s.leave()
	}
	frame := prependHeader(c.framingOf(o), o.buf)
	n, err := channel.TryWrite(frame)
	if err != nil {
		c.queue.close(ErrHostGone)
		c.channel.Close()
	}
	rest := outgoing{buf: frame[n:], whole: o.whole, partial: true, done: o.done}
	if n == 0 {
		rest.request = o.request
	}
	c.queue.release(rest)
	if n == len(frame) {
		o.end()
		c.recycleFrame(o)
	}
	return err
}

// directSize returns the size up to which a frame is written without the writer, in bytes: a port takes that whole or not at
// all, and of what a socket does not take at once the writer writes the rest.
func (c *Conn) directSize() int {
	if _, shared := c.channel.(persistentChannel); shared {
		return pieceSize
	}
	return chunkSize
}

// write is the writer. A frame that has begun is finished unless the host leaves, which is an error of the channel.
func (c *Conn) write() {
	for {
		o, ok := c.queue.next()
		if !ok {
			return
		}
		frame := o.buf
		if !o.partial {
			frame = prependHeader(c.framingOf(o), o.buf)
		}
		n, err := c.channel.Write(frame)
		o.end()
		if err != nil {
			if n == 0 {
				c.queue.notWritten(o)
			}
			c.queue.close(ErrHostGone)
			c.channel.Close()
			return
		}
		if !o.partial || o.whole != nil {
			c.recycleFrame(o)
		}
	}
}

// framingOf returns the framing in which a message is written.
func (c *Conn) framingOf(o outgoing) Framing {
	if o.framing != Auto {
		return o.framing
	}
	return Framing(c.writeFraming.Load())
}

// prependHeader writes the header before a payload, into the headerSpace bytes that are free there, and returns the frame.
func prependHeader(f Framing, buf []byte) []byte {
	var header [headerSpace]byte
	h := appendHeader(header[:0], f, len(buf)-headerSpace)
	frame := buf[headerSpace-len(h):]
	copy(frame, h)
	return frame
}

// WriteMessage writes one envelope as a frame, in one call. It is for a host; calls must not overlap.
func WriteMessage(to io.Writer, f Framing, m *pb.AgentMessage) error {
	frame, err := AppendMessage(nil, f, m)
	if err == nil {
		_, err = to.Write(frame)
	}
	return err
}

// AppendMessage adds one envelope to a buffer, as a frame: several of them can then be written in one call.
func AppendMessage(to []byte, f Framing, m *pb.AgentMessage) ([]byte, error) {
	at := len(to)
	buf, err := marshal(m, func(n int) []byte { return slices.Grow(to, n)[at : at+n] })
	if err != nil {
		return to, err
	}
	if n := len(buf) - headerSpace; n > MaxFrame {
		return to, fault.Wrapf(fault.ErrTooLarge, "message of %d bytes is larger than %d", n, MaxFrame)
	}
	frame := prependHeader(f, buf)
	if to == nil {
		return frame, nil
	}
	return append(to, frame...), nil // which may move it by some bytes
}
