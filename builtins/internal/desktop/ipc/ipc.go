// Package ipc frames what an agent and its helper in a desktop session say to each other.
//
//	4 bytes, big-endian: the length ─► a pb.SessionFrame of that length
//
// The agent must not trust the helper, which runs as the user: every length is checked before memory is made for it, and the
// elements of a message before it is decoded.
//
// Not here: what the messages mean, and who starts whom.
package ipc

import (
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/bounds"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// MaxContent is the most bytes of the content of a clipboard: what a frame of the channel to the host takes, 16 MiB, less
	// what stands around it.
	MaxContent = 15 << 20
	// MaxFrame is the most bytes of a frame.
	MaxFrame = MaxContent + 64<<10
	// MaxElements is the most fields and list elements of a frame, at all depths: empty ones take a hundred times the memory of
	// their bytes.
	MaxElements = 20000
	maxDepth    = 16 // of messages in messages
)

// bodyField is the number of body in a SessionFrame.
const bodyField = 3

// large is how many bytes are not copied: to be written together with what stands before them, or to be decoded.
const large = 64 << 10

// Write writes a frame. Only one may be written at a time. The error of one that is too large is of cause fault.ErrTooLarge,
// and nothing was written.
func Write(w io.Writer, frame *pb.SessionFrame) error {
	head := &pb.SessionFrame{Id: frame.Id, Type: frame.Type, Error: frame.Error, TimeoutMs: frame.TimeoutMs}
	size := proto.Size(frame)
	if size > MaxFrame {
		return fault.Wrapf(fault.ErrTooLarge, "a message of %d bytes is larger than %d", size, MaxFrame)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size-len(frame.Body)), uint32(size))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, head)
	if err != nil {
		return err
	}
	body := frame.Body
	if len(body) > 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, bodyField, protowire.BytesType), uint64(len(body)))
	}
	if len(body) < large {
		b, body = append(b, body...), nil
	}
	if _, err = w.Write(b); err == nil && len(body) > 0 {
		_, err = w.Write(body)
	}
	return err
}

// Read reads a frame. It returns io.EOF where the other side has closed the channel between two frames.
func Read(r io.Reader) (*pb.SessionFrame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxFrame {
		return nil, fault.Wrapf(fault.ErrTooLarge, "a message of %d bytes is larger than %d", size, MaxFrame)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	frame := &pb.SessionFrame{}
	if err := Decode(b, frame); err != nil {
		return nil, err
	}
	return frame, nil
}

// Pack makes the frame of a message.
func Pack(id uint64, message proto.Message) (*pb.SessionFrame, error) {
	body, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	return &pb.SessionFrame{Id: id, Type: Name(message), Body: body}, nil
}

// Name is the name of a message's type in a frame.
func Name(message proto.Message) string {
	return string(message.ProtoReflect().Descriptor().FullName())
}

// Decode decodes a message, once its elements have been counted. What is large in it are bytes of b. Errors are of cause
// fs.ErrInvalid or fault.ErrTooLarge.
func Decode(b []byte, message proto.Message) error {
	limits := bounds.Limits{What: "a message", Elements: MaxElements, Depth: maxDepth}
	err := limits.Check(b, message.ProtoReflect().Descriptor().Fields())
	if err == nil {
		err = merge(b, message.ProtoReflect())
	}
	if err != nil && !errors.Is(err, fault.ErrTooLarge) {
		err = fault.Invalid("%s cannot be decoded", Name(message))
	}
	return err
}

// merge decodes b, which has passed the limits, into a message, as proto.Unmarshal does but for large bytes, which are not
// copied.
func merge(b []byte, message protoreflect.Message) error {
	fields := message.Descriptor().Fields()
	begin := 0 // of what is not decoded yet
	upTo := func(end int) error {
		part := b[begin:end]
		return proto.UnmarshalOptions{DiscardUnknown: true, Merge: true}.Unmarshal(part, message.Interface())
	}
	for at := 0; at < len(b); {
		number, kind, n := protowire.ConsumeTag(b[at:])
		size := protowire.ConsumeFieldValue(number, kind, b[at+max(n, 0):])
		if n < 0 || size < 0 {
			return bounds.ErrMalformed
		}
		tag, end := at, at+n+size
		at = end
		field := fields.ByNumber(number)
		if size < large || field == nil || kind != protowire.BytesType || field.IsMap() {
			continue
		}
		content, _ := protowire.ConsumeBytes(b[tag+n:])
		inner, isBytes := field.Message() != nil, field.Kind() == protoreflect.BytesKind && !field.IsList()
		if !inner && !isBytes {
			continue
		}
		if err := upTo(tag); err != nil {
			return err
		}
		begin = end
		switch {
		case isBytes:
			message.Set(field, protoreflect.ValueOfBytes(content))
		case field.IsList():
			if err := merge(content, message.Mutable(field).List().AppendMutable().Message()); err != nil {
				return err
			}
		default:
			if err := merge(content, message.Mutable(field).Message()); err != nil {
				return err
			}
		}
	}
	return upTo(len(b))
}
