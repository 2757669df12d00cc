package wire

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

var payloadOneof = sync.OnceValue(func() protoreflect.OneofDescriptor {
	return (&pb.AgentMessage{}).ProtoReflect().Descriptor().Oneofs().ByName("payload")
})

// Payload returns the message inside an envelope, or nil where there is none.
func Payload(m *pb.AgentMessage) proto.Message {
	field := m.ProtoReflect().WhichOneof(payloadOneof())
	if field == nil {
		return nil
	}
	return m.ProtoReflect().Get(field).Message().Interface()
}

// Wrap returns an envelope with the current time and a payload. A nil payload leaves it empty. A message that the envelope has
// no field for is a programmer's mistake and panics.
func Wrap(id string, payload proto.Message) *pb.AgentMessage {
	m := &pb.AgentMessage{MessageId: id, Timestamp: timestamppb.Now()}
	if payload == nil {
		return m
	}
	inner := payload.ProtoReflect()
	field := payloadFields()[inner.Descriptor().FullName()]
	if field == nil {
		panic(fmt.Sprintf("the envelope has no field for %s", inner.Descriptor().FullName()))
	}
	m.ProtoReflect().Set(field, protoreflect.ValueOfMessage(inner))
	return m
}

// envelope is an envelope and what is in it beside the payload, in one piece of memory.
type envelope struct {
	message   pb.AgentMessage
	timestamp timestamppb.Timestamp
	read      pb.AgentMessage_FileReadResponse
	write     pb.AgentMessage_FileWriteResponse
}

// wrap is Wrap.
func (e *envelope) wrap(id string, payload proto.Message) *pb.AgentMessage {
	switch payload := payload.(type) {
	case *pb.FileReadResponse:
		e.read.FileReadResponse = payload
		e.message.Payload = &e.read
	case *pb.FileWriteResponse:
		e.write.FileWriteResponse = payload
		e.message.Payload = &e.write
	default:
		return Wrap(id, payload)
	}
	now := time.Now()
	e.timestamp.Seconds, e.timestamp.Nanos = now.Unix(), int32(now.Nanosecond())
	e.message.MessageId, e.message.Timestamp = id, &e.timestamp
	return &e.message
}

// payloadFields returns the fields of the envelope's payload, by the full names of their messages.
var payloadFields = sync.OnceValue(func() map[protoreflect.FullName]protoreflect.FieldDescriptor {
	fields := map[protoreflect.FullName]protoreflect.FieldDescriptor{}
	for i := range payloadOneof().Fields().Len() {
		field := payloadOneof().Fields().Get(i)
		fields[field.Message().FullName()] = field
	}
	return fields
})

// ReplyType returns the type of the reply to a request: the contract's number plus 40, or plus 20 for the numbers from
// 200. It returns nil for what is no request.
func ReplyType(request proto.Message) protoreflect.MessageType {
	field := payloadFields()[request.ProtoReflect().Descriptor().FullName()]
	if field == nil {
		return nil
	}
	number := field.Number()
	switch {
	case number >= 10 && number < 50:
		number += 40
	case number >= 200 && number < 220:
		number += 20
	default:
		return nil
	}
	reply := payloadOneof().Fields().ByNumber(number)
	if reply == nil {
		return nil
	}
	of, err := protoregistry.GlobalTypes.FindMessageByName(reply.Message().FullName())
	if err != nil {
		return nil
	}
	return of
}

// marshal encodes an envelope after headerSpace free bytes, into a buffer from alloc. A text that is not
// UTF-8 would make that impossible, and the reply would be lost: such bytes are written as \xNN.
func marshal(m *pb.AgentMessage, alloc func(n int) []byte) ([]byte, error) {
	encoded, err := appendMessage(m, alloc)
	if err == nil {
		return encoded, nil
	}
	escapeStrings(m.ProtoReflect())
	return appendMessage(m, alloc)
}

func appendMessage(m *pb.AgentMessage, alloc func(n int) []byte) ([]byte, error) {
	n := headerSpace + proto.Size(m)
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(alloc(n)[:headerSpace], m)
}

func escapeStrings(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			escapeMap(value.Map(), field)
		case field.IsList():
			list := value.List()
			for i := range list.Len() {
				list.Set(i, escapeValue(field, list.Get(i)))
			}
		default:
			m.Set(field, escapeValue(field, value))
		}
		return true
	})
}

func escapeMap(m protoreflect.Map, field protoreflect.FieldDescriptor) {
	type entry struct {
		key   protoreflect.MapKey
		value protoreflect.Value
	}
	var entries []entry
	m.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		entries = append(entries, entry{key, value})
		return true
	})
	for _, e := range entries {
		m.Clear(e.key)
		key := e.key
		if field.MapKey().Kind() == protoreflect.StringKind {
			key = protoreflect.ValueOfString(text.ToValidUTF8(key.String())).MapKey()
		}
		m.Set(key, escapeValue(field.MapValue(), e.value))
	}
}

func escapeValue(field protoreflect.FieldDescriptor, value protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text.ToValidUTF8(value.String()))
	case protoreflect.MessageKind:
		escapeStrings(value.Message())
	}
	return value
}
