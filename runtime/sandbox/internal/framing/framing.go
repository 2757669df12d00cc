// Package framing carries messages between the agent and a script runner: 4 bytes big-endian length, then one
// RunnerMessage.
//
//	Encode ──► [length][RunnerMessage] ──► Reader.Read: length checked, elements counted, then decoded
//
// Neither end trusts the other: memory is allocated for what arrived and not for the announced length, and a message that
// is large only when decoded (a value can be two bytes on the wire) is refused before it is decoded.
//
// Not here: what a message means.
package framing

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// MaxBytes bounds one message: enough for the content of a file of a few MiB, an eighth of a runner's memory.
	MaxBytes = 8 << 20
	// MaxFromRunner and MaxToRunner bound the number of messages and list elements within one message, by its
	// direction. An element takes about 120 bytes decoded: some 8 MiB of the agent's memory, and 16 MiB of a runner's,
	// which also holds the tables made of them.
	MaxFromRunner, MaxToRunner = 65_536, 131_072
	// MaxNesting is how deep tables may be nested.
	MaxNesting = 32

	// maxMessageDepth is how deep messages are nested at MaxNesting: value, table and field for each level, and the
	// call around them.
	maxMessageDepth = 3*MaxNesting + 8
)

var (
	// ErrTooLarge is a message over MaxBytes, or with too many elements. A received one is ErrMalformed as well.
	ErrTooLarge = errors.New("message too large")
	// ErrMalformed is a message that no honest sender sends.
	ErrMalformed = errors.New("malformed message")
)

// Encode returns a message with its length before it. A Reader with the same bound accepts what Encode returns without
// an error.
func Encode(m *pb.RunnerMessage, elements int) ([]byte, error) {
	size := proto.Size(m)
	if size > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, size, MaxBytes)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size), uint32(size))
	frame, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(frame, m)
	if err != nil {
		return nil, err
	}
	return frame, checkEncoding(frame[4:], m.ProtoReflect().Descriptor(), maxMessageDepth, &elements)
}

// Reader reads messages from a stream. It is for one goroutine.
type Reader struct {
	// Announced is called with the size of each message before its bytes are read; an error is Read's. Optional.
	Announced func(size int64) error

	r           *bufio.Reader
	maxElements int
}

// NewReader returns a Reader of messages with at most maxElements elements each. It reads ahead.
func NewReader(in io.Reader, elements int) *Reader {
	return &Reader{r: bufio.NewReaderSize(in, 4096), maxElements: elements}
}

// Read returns the next message. The error is io.EOF where the stream ended between messages.
func (r *Reader) Read() (*pb.RunnerMessage, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[:]))
	if size > MaxBytes {
		return nil, malformed("%w: %d bytes announced, the limit is %d", ErrTooLarge, size, MaxBytes)
	}
	if r.Announced != nil {
		if err := r.Announced(size); err != nil {
			return nil, err
		}
	}
	payload, err := r.payload(size)
	if err != nil {
		return nil, err
	}
	left := r.maxElements
	if err := checkEncoding(payload, (*pb.RunnerMessage)(nil).ProtoReflect().Descriptor(), maxMessageDepth, &left); err != nil {
		return nil, err
	}
	m := &pb.RunnerMessage{}
	if err := (proto.UnmarshalOptions{RecursionLimit: maxMessageDepth + 2}).Unmarshal(payload, m); err != nil {
		return nil, malformed("%v", err)
	}
	if m.Kind == nil {
		return nil, malformed("nothing in it")
	}
	return m, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// payload reads a payload. Memory of the announced size is taken when an eighth of it has arrived.
func (r *Reader) payload(size int64) ([]byte, error) {
	if size <= 64<<10 {
		b := make([]byte, size)
		_, err := io.ReadFull(r.r, b)
		return b, unexpectedEOF(err)
	}
	begun := make([]byte, size/8)
	if _, err := io.ReadFull(r.r, begun); err != nil {
		return nil, unexpectedEOF(err)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(r.r, b[copy(b, begun):])
	return b, unexpectedEOF(err)
}

func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkEncoding checks encoded bytes against a message type without decoding them: known fields of the right type, each
// singular field and each oneof at most once, a bounded number of elements, a bounded depth.
func checkEncoding(b []byte, d protoreflect.MessageDescriptor, depth int, left *int) error {
	if depth == 0 {
		return malformed("nested too deeply")
	}
	seen, chosen := uint64(0), uint64(0)
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed("%v", protowire.ParseError(n))
		}
		b = b[n:]
		field := d.Fields().ByNumber(number)
		if field == nil || wire != wireType(field.Kind()) {
			return malformed("field %d of %s is unknown or of the wrong type", number, d.Name())
		}
		if !field.IsList() && !field.IsMap() && (testAndSet(&seen, field.Index()) ||
			field.ContainingOneof() != nil && testAndSet(&chosen, field.ContainingOneof().Index())) {
			return malformed("field %d of %s comes twice", number, d.Name())
		}
		if field.Kind() == protoreflect.MessageKind || field.IsList() {
			if *left--; *left < 0 {
				return malformed("%w: too many elements", ErrTooLarge)
			}
		}
		n = protowire.ConsumeFieldValue(number, wire, b)
		if n < 0 {
			return malformed("%v", protowire.ParseError(n))
		}
		if field.Kind() == protoreflect.MessageKind {
			inner, _ := protowire.ConsumeBytes(b)
			if err := checkEncoding(inner, field.Message(), depth-1, left); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

// testAndSet sets a bit and returns whether it was set before.
func testAndSet(set *uint64, bit int) bool {
	was := *set&(1<<bit) != 0
	*set |= 1 << bit
	return was
}

func wireType(kind protoreflect.Kind) protowire.Type {
	switch kind {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.DoubleKind:
		return protowire.Fixed64Type
	default: // bool, uint32, uint64, enums: the messages of runner.proto have no others
		return protowire.VarintType
	}
}
