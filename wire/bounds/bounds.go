// Package bounds checks the bytes of a protobuf message against bounds before it is decoded: empty values take a hundred times
// the memory of their bytes.
//
//	bytes ─► Check ─► proto.Unmarshal
//
// Not here: the bounds themselves, and that of the size, which are the channel's.
package bounds

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// ErrMalformed is returned for bytes that are no message.
var ErrMalformed = errors.New("the bytes are no protobuf message")

// Limits are the bounds of a message.
type Limits struct {
	// What is the message in errors, as in "request".
	What string
	// Elements is the most fields and list elements, at all depths. Depth is the most messages in messages.
	Elements, Depth int
}

// Check returns nil if a message with these fields is within the limits. The error is ErrMalformed, or of cause
// fault.ErrTooLarge.
func (l Limits) Check(b []byte, fields protoreflect.FieldDescriptors) error {
	count := 0
	return l.check(b, fields, &count, 0)
}

func (l Limits) check(b []byte, fields protoreflect.FieldDescriptors, count *int, depth int) error {
	if depth > l.Depth {
		return fault.Wrapf(fault.ErrTooLarge, "%s is nested deeper than %d", l.What, l.Depth)
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ErrMalformed
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return ErrMalformed
		}
		*count++
		if field := fields.ByNumber(number); field != nil && kind == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(b)
			switch {
			case field.Message() != nil:
				if err := l.check(content, field.Message().Fields(), count, depth+1); err != nil {
					return err
				}
			case field.IsList() && field.Kind() != protoreflect.StringKind && field.Kind() != protoreflect.BytesKind:
				*count += countPacked(content, field.Kind())
			}
		}
		if *count > l.Elements {
			return fault.Wrapf(fault.ErrTooLarge, "%s has more than %d elements", l.What, l.Elements)
		}
		b = b[n:]
	}
	return nil
}

// countPacked counts the elements of a packed list. Those of varints are counted by their last bytes, which are below 128.
func countPacked(b []byte, kind protoreflect.Kind) (n int) {
	switch kind {
	case protoreflect.DoubleKind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return len(b) / 8
	case protoreflect.FloatKind, protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
		return len(b) / 4
	}
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}
