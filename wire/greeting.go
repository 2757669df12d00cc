package wire

import (
	"bytes"
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// Until a host has sent a frame, its framing is not known. What it is sent then is written so that it is read in either one:
//
//	plain │ length │ envelope │ greetingField, length │ magic, length │ the envelope again
//	qtx1  │         skipped: no magic is in it        │ frame                             │
//
// A plain host skips the field, which it does not know; a qtx1 host skips what comes before the magic. Both are at a boundary
// behind it.

// greetingField is the field of the envelope that holds the same envelope as a qtx1 frame. No message has it otherwise.
const greetingField = 254

// appendGreeting returns the payload of the plain frame that a host of either framing reads, after headerSpace free bytes, of
// an envelope after as many. ok is false where the envelope holds a magic, in which a qtx1 host would take it for a frame.
func appendGreeting(to, envelope []byte) (greeting []byte, ok bool) {
	envelope = envelope[headerSpace:]
	if bytes.Contains(envelope, []byte(magic)) {
		return nil, false
	}
	to = append(to[:0], make([]byte, headerSpace)...)
	to = append(to, envelope...)
	to = protowire.AppendTag(to, greetingField, protowire.BytesType)
	to = protowire.AppendVarint(to, uint64(headerSpace+len(envelope)))
	to = append(to, magic...)
	to = binary.BigEndian.AppendUint32(to, uint32(len(envelope)))
	return append(to, envelope...), true
}

// greetingSize is the size of what appendGreeting makes of an envelope, at most, both with their free bytes.
func greetingSize(envelope int) int { return 2*envelope + 2*headerSpace }

// unsolicitedMessage makes an event fit for a host whose framing is not known, where it still may be sent. One that is too
// large for that is left as it is for hosts of the plain framing alone, to be skipped by others.
func (c *Conn) unsolicitedMessage(o outgoing) (outgoing, bool) {
	if c.config.Framing != Auto {
		return o, c.takeUnsolicited(len(o.buf))
	}
	greeting, ok := appendGreeting(make([]byte, 0, greetingSize(len(o.buf))), o.buf)
	switch {
	case !ok:
		c.warn("event dropped: it holds the magic of a frame, and the host's framing is not known", nil)
		return o, false
	case c.takeUnsolicited(len(greeting)):
		c.recycle(o.buf)
		return outgoing{buf: greeting, framing: Plain}, true
	}
	return o, c.takeUnsolicited(len(o.buf))
}

// takeUnsolicited reports whether so many bytes more may be written before the host's first frame, and counts them if so.
func (c *Conn) takeUnsolicited(n int) bool {
	if c.unsolicited.Add(int64(n)) <= unsolicitedBudget {
		return true
	}
	c.unsolicited.Add(int64(-n))
	return false
}
