package wire

import (
	"errors"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/bounds"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The bounds of a request. They are checked on the bytes, before anything is decoded: 16 MiB of empty values would
// become 600 MiB of heap.
const (
	MaxRequest  = 1 << 20 // bytes, for requests that carry no file
	MaxElements = 10000   // fields and list elements, at all depths
	maxDepth    = 64      // of messages in messages
)

// envelopeFields returns the fields of the envelope. They are looked up when they are used first, as are those below: that
// takes 0.2 ms and 300 KiB, and the agent's program is started anew for each script.
var envelopeFields = sync.OnceValue(func() protoreflect.FieldDescriptors {
	return (&pb.AgentMessage{}).ProtoReflect().Descriptor().Fields()
})

// carriesData are the payloads that may be as large as a frame: file data, clipboard, update, script attachments.
var carriesData = map[protowire.Number]bool{12: true, 25: true, 33: true, 52: true, 53: true, 66: true, 103: true, 200: true}

// Inspect checks the payload of a frame against the bounds before it is decoded. id is the message id where it could be read,
// also together with an error.
func Inspect(payload []byte) (id string, err error) {
	data := false
	for b := payload; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return id, errNotDecoded
		}
		b = b[n:]
		n = protowire.ConsumeFieldValue(number, kind, b)
		if n < 0 {
			return id, errNotDecoded
		}
		if number == 1 && kind == protowire.BytesType { // the last one counts, as in a decoder
			text, _ := protowire.ConsumeBytes(b)
			id = string(text)
		}
		data = data || carriesData[number]
		b = b[n:]
	}
	if len(payload) > MaxRequest && !data {
		return id, fault.Wrapf(fault.ErrTooLarge, "request of %d bytes is larger than %d", len(payload), MaxRequest)
	}
	err = requestLimits.Check(payload, envelopeFields())
	if errors.Is(err, bounds.ErrMalformed) {
		err = errNotDecoded
	}
	return id, err
}

var requestLimits = bounds.Limits{What: "request", Elements: MaxElements, Depth: maxDepth}

// decode reads an envelope that Inspect has passed.
func decode(payload []byte) (*pb.AgentMessage, error) {
	message := &pb.AgentMessage{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: maxDepth + 10}).Unmarshal(payload, message); err != nil {
		return nil, fault.Invalid("the request cannot be decoded: %v", err) // its bytes are an envelope: Inspect has seen that
	}
	return message, nil
}

// beginningID returns the message id at the beginning of a payload, of which maxHead bytes or all have come; empty where there
// is none.
func beginningID(payload []byte) string {
	if beginsEnvelope(payload, len(payload)) != possible {
		return ""
	}
	return string(payload[2 : 2+int(payload[1])])
}

// maxHead is the size of a message id with its tag and length, at most, in bytes.
const maxHead = 2 + 127
