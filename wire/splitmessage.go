package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The content of a chunk of a file is the last thing in its frame, so that it is read into its place, and sent from there,
// without being copied:
//
//	a buffer   │ room, MaxHead │ content │
//	a frame         │ head         │ content │

// MaxHead is the room for the head of a frame before its content, in bytes. A message with a larger one is encoded whole.
const MaxHead = 1 << 10

// AppendHead adds the head of a frame to a buffer: all of it but the content of the field "data" of the payload, which has so
// many bytes, is not set in m, and follows as it is. A text that is not UTF-8 is an error.
func AppendHead(to []byte, f Framing, m *pb.AgentMessage, size int) ([]byte, error) {
	at := len(to)
	var space [headerSpace]byte
	to, err := appendSplit(append(to, space[:]...), m, size)
	if err != nil {
		return to[:at], err
	}
	n := len(to) - at - headerSpace + size
	if n > MaxFrame {
		return to[:at], fault.Wrapf(fault.ErrTooLarge, "message of %d bytes is larger than %d", n, MaxFrame)
	}
	h := appendHeader(to[at:at], f, n)
	if gap := headerSpace - len(h); gap > 0 {
		to = append(to[:at+len(h)], to[at+headerSpace:]...)
	}
	return to, nil
}

// appendSplit adds an envelope to a buffer up to the content of the field "data" of its payload.
func appendSplit(to []byte, m *pb.AgentMessage, size int) ([]byte, error) {
	payload := Payload(m)
	fields := payload.ProtoReflect().Descriptor()
	outer, data := payloadFields()[fields.FullName()], fields.Fields().ByName("data")
	kept := m.Payload
	m.Payload = nil
	to, err := proto.MarshalOptions{}.MarshalAppend(to, m)
	m.Payload = kept
	if err != nil {
		return to, err
	}
	inner := proto.Size(payload) + protowire.SizeTag(data.Number()) + protowire.SizeBytes(size)
	to = protowire.AppendTag(to, outer.Number(), protowire.BytesType)
	to = protowire.AppendVarint(to, uint64(inner))
	if to, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(to, payload); err != nil {
		return to, err
	}
	to = protowire.AppendTag(to, data.Number(), protowire.BytesType)
	return protowire.AppendVarint(to, uint64(size)), nil
}

// DecodeSplit decodes an envelope without the large bytes field of its payload. content is that field, which stays in the
// payload; nil: there is none, and the message is whole. SetContent sets it.
func DecodeSplit(payload []byte) (m *pb.AgentMessage, content []byte, err error) {
	m = &pb.AgentMessage{}
	rest, large := splitLargeField(payload)
	if err := proto.Unmarshal(rest, m); err != nil || large == nil {
		return m, nil, err
	}
	large.set(m, large.content)
	return m, large.content, nil
}

// scratch is a buffer for the reply to one request: room for the head of its frame, and content.
type scratch struct {
	buf []byte
	n   int // of the content
}

// encodeInPlace encodes a reply whose content lies in the scratch buffer of its request, without copying that. ok is false
// where it does not lie there, or cannot be encoded so. The buffer is the message's then.
func (c *Conn) encodeInPlace(call *servedCall, m *pb.AgentMessage) (o outgoing, ok bool) {
	reply, is := m.Payload.(*pb.AgentMessage_FileReadResponse)
	if !is || len(reply.FileReadResponse.Data) == 0 {
		return o, false
	}
	data := reply.FileReadResponse.Data
	s := c.scratchWith(call.id, data)
	if s.buf == nil {
		return o, false
	}
	m.Session = c.config.Session
	reply.FileReadResponse.Data = nil
	head, err := appendSplit(call.room[:0], m, len(data))
	reply.FileReadResponse.Data = data
	if err != nil || len(head) > MaxHead-headerSpace {
		return o, false
	}
	c.takeScratch(call.id)
	at := MaxHead - len(head)
	copy(s.buf[at:], head)
	return outgoing{buf: s.buf[at-headerSpace : MaxHead+len(data)], whole: s.buf}, true
}

// scratchWith returns the scratch buffer of a request if data is its content, from the beginning on.
func (c *Conn) scratchWith(id string, data []byte) scratch {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	s := c.inFlight[id]
	if s.buf == nil || len(data) > s.n || &s.buf[MaxHead] != &data[0] {
		return scratch{}
	}
	return s
}

// takeScratch takes the scratch buffer from a request.
func (c *Conn) takeScratch(id string) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	c.inFlight[id] = scratch{}
}
