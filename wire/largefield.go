package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// largeFieldMin is the size from which the content of a file is left in its frame, in bytes.
const largeFieldMin = 16 << 10

// largeField is a large bytes field of an envelope's payload that was left in the frame: copying and garbage-collecting it
// costs as much as everything else that is done for a chunk of a file.
type largeField struct {
	field   protoreflect.FieldDescriptor
	content []byte
}

// decodeSplit is decode of a payload that Inspect has passed, without its large bytes field, which stays in the payload. The
// field is nil where there is none.
func decodeSplit(payload []byte) (*pb.AgentMessage, *largeField, error) {
	rest, large := splitLargeField(payload)
	message, err := decode(rest)
	return message, large, err
}

// set sets the field in the payload of the envelope.
func (a *largeField) set(m *pb.AgentMessage, content []byte) {
	if write, ok := m.Payload.(*pb.AgentMessage_FileWrite); ok {
		write.FileWrite.Data = content
		return
	}
	Payload(m).ProtoReflect().Set(a.field, protoreflect.ValueOfBytes(content))
}

// splitLargeField returns the envelope without the field, and the field. An envelope in which a field stands twice is not
// split: which of the two holds is decided by the decoder.
func splitLargeField(payload []byte) (rest []byte, large *largeField) {
	outer, ok := findLargeField(payload, envelopeFields())
	if !ok || outer.field.Message() == nil || outer.field.ContainingOneof() == nil {
		return payload, nil
	}
	content := payload[outer.start:outer.end]
	inner, ok := findLargeField(content, outer.field.Message().Fields())
	if !ok || inner.field.Kind() != protoreflect.BytesKind || inner.field.IsList() {
		return payload, nil
	}
	left := len(content) - (inner.end - inner.tagStart)
	rest = append(make([]byte, 0, len(payload)-len(content)+left), payload[:outer.tagStart]...)
	rest = protowire.AppendTag(rest, outer.field.Number(), protowire.BytesType)
	rest = protowire.AppendVarint(rest, uint64(left))
	rest = append(append(rest, content[:inner.tagStart]...), content[inner.end:]...)
	return append(rest, payload[outer.end:]...), &largeField{inner.field, content[inner.start:inner.end]}
}

// fieldSpan is the position of a field in a message: of its tag, and of its content.
type fieldSpan struct {
	field                protoreflect.FieldDescriptor
	tagStart, start, end int
}

// findLargeField returns the only large field of a message. ok is false where there is none, or where what a decoder makes of
// the message depends on the order of its fields: with a second large field, two fields of one oneof, or the same field twice.
func findLargeField(b []byte, fields protoreflect.FieldDescriptors) (large fieldSpan, ok bool) {
	oneofs := 0
	for at := 0; at < len(b); {
		number, kind, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			return fieldSpan{}, false
		}
		size := protowire.ConsumeFieldValue(number, kind, b[at+n:])
		if size < 0 {
			return fieldSpan{}, false
		}
		field := fields.ByNumber(number)
		if field != nil && field.ContainingOneof() != nil && !field.HasOptionalKeyword() {
			oneofs++
		}
		if large.field != nil && number == large.field.Number() {
			return fieldSpan{}, false
		}
		if kind == protowire.BytesType && size >= largeFieldMin {
			if field == nil || large.field != nil {
				return fieldSpan{}, false
			}
			content, _ := protowire.ConsumeBytes(b[at+n:])
			large = fieldSpan{field, at, at + n + size - len(content), at + n + size}
		} else if field != nil && kind == protowire.BytesType && field.Kind() == protoreflect.BytesKind {
			return fieldSpan{}, false // perhaps the same one, smaller
		}
		at += n + size
	}
	return large, large.field != nil && oneofs <= 1
}
