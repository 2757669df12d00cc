package wire

import (
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A transfer has thousands of messages of four kinds that differ in little. These are decoded here, each into one piece of
// memory, with what else is needed for a request until it is answered:
//
//	payload ─► the decoder of chunks
//	               └─► anything else, or anything unusual ─► Inspect, decode

// The numbers of fields of the envelope (agent.proto).
const (
	idField             = 1
	timestampField      = 2
	fileWriteField      = 12
	fileReadField       = 13
	fileWriteReplyField = 52
	fileReadReplyField  = 53
	sessionField        = 250
	timeoutField        = 252
	hostField           = 253
)

// maxChunkID is how many bytes of a message id have room: a UUID has 36.
const maxChunkID = 40

// chunkEnvelope is the envelope of a chunk, and what is in it.
type chunkEnvelope struct {
	message pb.AgentMessage
	sent    timestamppb.Timestamp
	id      [maxChunkID]byte
}

// chunk is a request for a chunk of a file, or one that brings it.
type chunk struct {
	served   servedCall
	envelope chunkEnvelope
	content  largeField
	read     pb.FileReadRequest
	readIn   pb.AgentMessage_FileRead
	write    pb.FileWriteRequest
	writeIn  pb.AgentMessage_FileWrite
	crc      uint32
}

// chunkReply is a reply to one.
type chunkReply struct {
	envelope chunkEnvelope
	modified timestamppb.Timestamp
	read     pb.FileReadResponse
	readIn   pb.AgentMessage_FileReadResponse
	write    pb.FileWriteResponse
	writeIn  pb.AgentMessage_FileWriteResponse
	crc      uint32
}

// chunkTexts are the texts that are the same in one chunk after the other.
type chunkTexts struct{ session, path, upload, generation string }

// share returns b as a text: the one before it where they are equal. ok is false where it is not UTF-8.
func share(last *string, b []byte, ok *bool) string {
	if string(b) == *last {
		return *last
	}
	if !utf8.Valid(b) {
		*ok = false
		return ""
	}
	*last = string(b)
	return *last
}

// decodeChunk decodes a request for a chunk or with a large one, which stays in the payload. nil: it is none, or has something
// that is left to other decoders, such as a field twice.
func (t *chunkTexts) decodeChunk(payload []byte) *chunk {
	number, inner := chunkPayload(payload)
	if number != fileReadField && number != fileWriteField {
		return nil
	}
	c := &chunk{}
	if !t.decodeEnvelope(&c.envelope, payload) {
		return nil
	}
	ok := true
	f := fields{rest: inner}
	if number == fileReadField {
		c.readIn.FileRead, c.envelope.message.Payload = &c.read, &c.readIn
		for f.next() {
			switch m := &c.read; {
			case f.is(1, protowire.BytesType):
				m.Path = share(&t.path, f.bytes, &ok)
			case f.is(2, protowire.VarintType):
				m.Offset = f.value
			case f.is(3, protowire.VarintType):
				m.Length = f.value
			case f.is(4, protowire.VarintType):
				m.ChunkSize = uint32(f.value)
			case f.is(200, protowire.BytesType):
				m.Generation = share(&t.generation, f.bytes, &ok)
			default:
				return nil
			}
		}
	} else {
		c.writeIn.FileWrite, c.envelope.message.Payload = &c.write, &c.writeIn
		for f.next() {
			switch m := &c.write; {
			case f.is(1, protowire.BytesType):
				m.Path = share(&t.path, f.bytes, &ok)
			case f.is(2, protowire.BytesType):
				c.content.content = f.bytes
			case f.is(3, protowire.VarintType):
				m.Offset = f.value
			case f.is(7, protowire.VarintType):
				m.CreateParents = f.value != 0
			case f.is(6, protowire.VarintType):
				m.Mode = uint32(f.value)
			case f.is(8, protowire.VarintType):
				m.ChunkNumber = uint32(f.value)
			case f.is(9, protowire.VarintType):
				m.TotalChunks = uint32(f.value)
			case f.is(200, protowire.VarintType):
				c.crc = uint32(f.value)
				m.Crc32C = &c.crc
			case f.is(204, protowire.BytesType):
				m.Upload = share(&t.upload, f.bytes, &ok)
			case f.is(205, protowire.VarintType):
				m.Separate = f.value != 0
			default: // the last chunk of a file has more
				return nil
			}
		}
		if len(c.content.content) < largeFieldMin {
			return nil
		}
	}
	if f.failed || !ok {
		return nil
	}
	return c
}

// large returns the content of the chunk; nil: it has none.
func (c *chunk) large() *largeField {
	if c.content.content == nil {
		return nil
	}
	return &c.content
}

// decodeReply decodes the reply to a chunk, without its content, which stays in the payload; nil as for decodeChunk.
func (t *chunkTexts) decodeReply(payload []byte) (*pb.AgentMessage, []byte) {
	number, inner := chunkPayload(payload)
	if number != fileReadReplyField && number != fileWriteReplyField {
		return nil, nil
	}
	c := &chunkReply{}
	if !t.decodeEnvelope(&c.envelope, payload) {
		return nil, nil
	}
	ok := true
	f := fields{rest: inner}
	if number == fileWriteReplyField {
		c.writeIn.FileWriteResponse, c.envelope.message.Payload = &c.write, &c.writeIn
		for f.next() {
			switch m := &c.write; {
			case f.is(1, protowire.VarintType):
				m.Success = f.value != 0
			case f.is(2, protowire.VarintType):
				m.BytesWritten = f.value
			case f.is(4, protowire.VarintType):
				m.ChunkNumber = uint32(f.value)
			default:
				return nil, nil
			}
		}
	} else {
		c.readIn.FileReadResponse, c.envelope.message.Payload = &c.read, &c.readIn
		for f.next() {
			switch m := &c.read; {
			case f.is(1, protowire.VarintType):
				m.Success = f.value != 0
			case f.is(2, protowire.BytesType):
				m.Data = f.bytes
			case f.is(3, protowire.VarintType):
				m.Eof = f.value != 0
			case f.is(4, protowire.VarintType):
				m.TotalSize = f.value
			case f.is(5, protowire.VarintType):
				m.Offset = f.value
			case f.is(6, protowire.VarintType):
				m.ChunkNumber = uint32(f.value)
			case f.is(8, protowire.VarintType):
				m.Mode = uint32(f.value)
			case f.is(9, protowire.BytesType):
				if !decodeTime(&c.modified, f.bytes) {
					return nil, nil
				}
				m.ModifiedAt = &c.modified
			case f.is(200, protowire.BytesType):
				m.Generation = share(&t.generation, f.bytes, &ok)
			case f.is(201, protowire.VarintType):
				c.crc = uint32(f.value)
				m.Crc32C = &c.crc
			default:
				return nil, nil
			}
		}
		if len(c.read.Data) < largeFieldMin {
			return nil, nil
		}
	}
	if f.failed || !ok {
		return nil, nil
	}
	return &c.envelope.message, c.read.Data
}

// ReplyDecoder decodes what an agent sends. The zero value is ready.
type ReplyDecoder struct{ texts chunkTexts }

// Decode is DecodeSplit, which takes little memory for the chunks of a transfer.
func (d *ReplyDecoder) Decode(payload []byte) (m *pb.AgentMessage, content []byte, err error) {
	if m, content = d.texts.decodeReply(payload); m != nil {
		return m, content, nil
	}
	return DecodeSplit(payload)
}

// chunkPayload returns the number and content of the payload of an envelope, if there is one alone.
func chunkPayload(payload []byte) (number protowire.Number, inner []byte) {
	f := fields{rest: payload}
	for f.next() {
		if f.number < 10 || f.number >= sessionField {
			continue
		}
		if number != 0 || f.kind != protowire.BytesType {
			return 0, nil
		}
		number, inner = f.number, f.bytes
	}
	if f.failed {
		return 0, nil
	}
	return number, inner
}

// decodeEnvelope decodes an envelope but for its payload. It returns false where there is anything unusual.
func (t *chunkTexts) decodeEnvelope(e *chunkEnvelope, payload []byte) bool {
	ok, m := true, &e.message
	f := fields{rest: payload}
	for f.next() {
		switch {
		case f.is(idField, protowire.BytesType):
			if len(f.bytes) == 0 || len(f.bytes) > maxChunkID || !utf8.Valid(f.bytes) {
				return false
			}
			n := copy(e.id[:], f.bytes)
			m.MessageId = unsafe.String(&e.id[0], n) // which nobody writes to any more
		case f.is(timestampField, protowire.BytesType):
			if !decodeTime(&e.sent, f.bytes) {
				return false
			}
			m.Timestamp = &e.sent
		case f.is(sessionField, protowire.BytesType):
			m.Session = share(&t.session, f.bytes, &ok)
		case f.is(timeoutField, protowire.VarintType):
			m.TimeoutMs = f.value
		case f.is(hostField, protowire.Fixed64Type):
			m.Host = f.value
		case f.number >= 10 && f.number < sessionField: // the payload
		default:
			return false
		}
	}
	return ok && !f.failed && m.MessageId != ""
}

func decodeTime(to *timestamppb.Timestamp, b []byte) bool {
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.is(1, protowire.VarintType):
			to.Seconds = int64(f.value)
		case f.is(2, protowire.VarintType):
			to.Nanos = int32(f.value)
		default:
			return false
		}
	}
	return !f.failed
}

// fields goes through the fields of a message.
type fields struct {
	rest   []byte
	number protowire.Number
	kind   protowire.Type
	value  uint64 // of a number
	bytes  []byte // of anything else
	failed bool   // there is one of another kind, or one stands there twice, or the bytes are no message
	seen   [4]uint64
}

// next goes to the next field; false: there is none, or it has failed.
func (f *fields) next() bool {
	if len(f.rest) == 0 {
		return false
	}
	number, kind, n := protowire.ConsumeTag(f.rest)
	if n < 0 || int(number) >= 64*len(f.seen) || f.seen[number/64]&(1<<(number%64)) != 0 {
		f.failed = true
		return false
	}
	f.seen[number/64] |= 1 << (number % 64)
	f.number, f.kind, f.rest = number, kind, f.rest[n:]
	switch kind {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(f.rest)
	case protowire.Fixed64Type:
		f.value, n = protowire.ConsumeFixed64(f.rest)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.rest)
	default:
		n = -1
	}
	if n < 0 {
		f.failed = true
		return false
	}
	f.rest = f.rest[n:]
	return true
}

// is reports whether the field has a number and a kind.
func (f *fields) is(number protowire.Number, kind protowire.Type) bool {
	return f.number == number && f.kind == kind
}
