package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// worthApart is the size from which the content of a file is not copied out of its frame, in bytes.
const worthApart = 16 << 10

// apart is a large bytes field of an envelope's payload that was left in the frame, because copying and collecting it costs
// as much as all else that is done for a chunk of a file.
type apart struct {
	field   protoreflect.FieldDescriptor
	content []byte
}

// decodeApart is decode of a payload that Inspect has passed, but for a large bytes field, which it leaves where it is;
// nil: there is none.
func decodeApart(payload []byte) (*pb.AgentMessage, *apart, error) {
	rest, large := takeApart(payload)
	message, err := decode(rest)
	return message, large, err
}

// put sets the field in the payload of the envelope.
func (a *apart) put(m *pb.AgentMessage, content []byte) {
	Payload(m).ProtoReflect().Set(a.field, protoreflect.ValueOfBytes(content))
}

// takeApart finds the field, and gives the envelope without it. An envelope in which a field stands twice is left whole:
// what holds then is for the decoder to know.
func takeApart(payload []byte) (rest []byte, large *apart) {
	outer, ok := onlyLarge(payload, envelopeFields)
	if !ok || outer.field.Message() == nil || outer.field.ContainingOneof() == nil {
		return payload, nil
	}
	content := payload[outer.from:outer.to]
	inner, ok := onlyLarge(content, outer.field.Message().Fields())
	if !ok || inner.field.Kind() != protoreflect.BytesKind || inner.field.IsList() {
		return payload, nil
	}
	left := len(content) - (inner.to - inner.tag)
	rest = append(make([]byte, 0, len(payload)-len(content)+left), payload[:outer.tag]...)
	rest = protowire.AppendTag(rest, outer.field.Number(), protowire.BytesType)
	rest = protowire.AppendVarint(rest, uint64(left))
	rest = append(append(rest, content[:inner.tag]...), content[inner.to:]...)
	return append(rest, payload[outer.to:]...), &apart{inner.field, content[inner.from:inner.to]}
}

// part is where a field stands: its tag, and its content.
type part struct {
	field         protoreflect.FieldDescriptor
	tag, from, to int
}

// onlyLarge finds the one large field of a message, whose other fields may be nothing but small; and none of them, nor the
// large one, may be of the same oneof or number.
func onlyLarge(b []byte, fields protoreflect.FieldDescriptors) (large part, ok bool) {
	messages := 0
	for at := 0; at < len(b); {
		number, kind, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			return part{}, false
		}
		size := protowire.ConsumeFieldValue(number, kind, b[at+n:])
		if size < 0 {
			return part{}, false
		}
		field := fields.ByNumber(number)
		if field != nil && field.ContainingOneof() != nil && !field.HasOptionalKeyword() {
			messages++
		}
		if large.field != nil && number == large.field.Number() {
			return part{}, false
		}
		if kind == protowire.BytesType && size >= worthApart {
			if field == nil || large.field != nil {
				return part{}, false
			}
			content, _ := protowire.ConsumeBytes(b[at+n:])
			large = part{field, at, at + n + size - len(content), at + n + size}
		} else if field != nil && kind == protowire.BytesType && field.Kind() == protoreflect.BytesKind {
			return part{}, false // perhaps the same one, smaller
		}
		at += n + size
	}
	return large, large.field != nil && messages <= 1
}
