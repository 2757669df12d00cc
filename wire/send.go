package wire

import (
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// reply sends the one reply to a request. It waits for room in its lane. leave is called before anybody can have read the
// reply, and not before what comes after can only be behind it.
func (c *Conn) reply(id string, payload proto.Message, err error, urgent bool, leave func()) {
	m := Wrap(id, payload)
	m.ErrorDetail = fault.Detail(err)
	o, tooLarge := c.encode(m)
	if tooLarge != nil {
		empty := Wrap(id, nil)
		if payload != nil {
			empty = Wrap(id, payload.ProtoReflect().Type().New().Interface())
		}
		empty.ErrorDetail = fault.Detail(tooLarge)
		o, _ = c.encode(empty)
	}
	if err := c.put(o, urgent, leave); err != nil {
		c.warn("a reply came too late", err)
	}
}

// Send queues an event; false: it was dropped, because the host reads too slowly or has left. A telemetry report takes
// the place of one that still waits.
func (c *Conn) Send(id string, event proto.Message) bool {
	return c.send(id, event, false)
}

// SendUrgent is Send, ahead of all that waits.
func (c *Conn) SendUrgent(id string, event proto.Message) bool {
	return c.send(id, event, true)
}

func (c *Conn) send(id string, event proto.Message, urgent bool) bool {
	o, err := c.encode(Wrap(id, event))
	if err != nil {
		c.warn("an event was dropped", err)
		return false
	}
	if !c.heard.Load() && c.opening.Add(int64(len(o.buf))) > unsolicitedBudget {
		return false
	}
	if urgent {
		return c.put(o, true, nobody) == nil
	}
	_, o.replaceable = event.(*pb.TelemetryReport)
	return c.queue.offer(o)
}

func (c *Conn) encode(m *pb.AgentMessage) (outgoing, error) {
	m.Session = c.config.Session
	buf, err := marshal(m, c.room)
	if n := len(buf) - headerSpace; err == nil && n > MaxFrame {
		err = fault.Wrapf(fault.ErrTooLarge, "reply of %d bytes is larger than %d", n, MaxFrame)
	}
	return outgoing{buf: buf}, err
}

// room gives a buffer for n bytes. Those for small messages are not worth keeping.
func (c *Conn) room(n int) []byte {
	if n < worthKeeping || n > pieceSize {
		return newRoom(n)
	}
	if kept, ok := c.frames.Get().(*[]byte); ok {
		return *kept
	}
	return make([]byte, pieceSize)
}

func newRoom(n int) []byte { return make([]byte, n) }

// written takes a buffer back whose frame is written.
func (c *Conn) written(buf []byte) {
	if cap(buf) == pieceSize {
		buf = buf[:pieceSize]
		c.frames.Put(&buf)
	}
}

// nobody leaves with what is no reply to a request that is in flight.
func nobody() {}

// put sends a message: at once where nobody else writes and the channel takes it, and else by way of its lane.
func (c *Conn) put(o outgoing, urgent bool, leave func()) error {
	channel, can := c.channel.(tryWriter)
	if !can || len(o.buf) > pieceSize || !c.queue.claim() {
		return c.queue.put(o, urgent, leave)
	}
	leave()
	frame := headed(Framing(c.writes.Load()), o.buf)
	n, err := channel.TryWrite(frame)
	if err != nil {
		c.queue.close(ErrHostGone)
		c.channel.Close()
	}
	c.queue.release(frame[n:])
	if n == len(frame) {
		c.written(o.buf)
	}
	return err
}

// write is the writer. A frame that has begun is finished unless the host leaves, which the channel tells as an error.
func (c *Conn) write() {
	for {
		o, ok := c.queue.next()
		if !ok {
			return
		}
		frame := o.buf
		if !o.begun {
			frame = headed(Framing(c.writes.Load()), o.buf)
		}
		if _, err := c.channel.Write(frame); err != nil {
			c.queue.close(ErrHostGone)
			c.channel.Close()
			return
		}
		if !o.begun {
			c.written(o.buf)
		}
	}
}

// headed puts the header before a payload that has headerSpace bytes of room there.
func headed(f Framing, buf []byte) []byte {
	var header [headerSpace]byte
	h := appendHeader(header[:0], f, len(buf)-headerSpace)
	frame := buf[headerSpace-len(h):]
	copy(frame, h)
	return frame
}

// WriteMessage writes one envelope as a frame, in one call. It is the host's side of writing; calls of it must not overlap.
func WriteMessage(to io.Writer, f Framing, m *pb.AgentMessage) error {
	frame, err := AppendMessage(nil, f, m)
	if err == nil {
		_, err = to.Write(frame)
	}
	return err
}

// AppendMessage adds one envelope to a buffer, as a frame: several of them can then be written in one call.
func AppendMessage(to []byte, f Framing, m *pb.AgentMessage) ([]byte, error) {
	buf, err := marshal(m, newRoom)
	if err != nil {
		return to, err
	}
	if n := len(buf) - headerSpace; n > MaxFrame {
		return to, fault.Wrapf(fault.ErrTooLarge, "message of %d bytes is larger than %d", n, MaxFrame)
	}
	if to == nil {
		return headed(f, buf), nil
	}
	return append(to, headed(f, buf)...), nil
}
