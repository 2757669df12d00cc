// Package link carries messages between the agent and a script runner: 4 bytes big-endian length, then one
// RunnerMessage.
//
//	Encode ──► [length][RunnerMessage] ──► Reader.Read: length checked, elements counted, then decoded
//
// Either end may be lied to, so nothing is allocated for a length that did not arrive, and a message that is large
// only when decoded (a value can be two bytes on the wire) is refused before it is.
//
// Not here: what a message means.
package link

import (
	"bufio"
	"bytes"
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
	// MaxBytes bounds one message: room for the content of a file of a few MiB, an eighth of a runner's memory.
	MaxBytes = 8 << 20
	// FromRunner and ToRunner bound the messages and list elements within one message. An element costs about 120 bytes
	// decoded: some 8 MiB of the agent's memory, and 16 MiB of a runner's, which holds the tables made of them as well.
	FromRunner, ToRunner = 65_536, 131_072
	// MaxTables is how deep tables may be nested in one another.
	MaxTables = 32

	// maxDepth is how deep messages nest at MaxTables: value, table, field each, and the call around them.
	maxDepth = 3*MaxTables + 8
)

var (
	// ErrTooLarge is a message over MaxBytes, or with too many elements. One that comes in is malformed as well.
	ErrTooLarge = errors.New("message too large")
	// ErrMalformed is what no honest sender sends.
	ErrMalformed = errors.New("malformed message")
)

// Encode gives the bytes of a message with its length before it. What it gives, a Reader with the same bound reads.
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
	return frame, check(frame[4:], m.ProtoReflect().Descriptor(), maxDepth, &elements)
}

// Reader takes messages from a stream. It is for one goroutine.
type Reader struct {
	in       *bufio.Reader
	elements int
}

// NewReader reads from in, ahead of what it was asked for, messages of so many elements at most.
func NewReader(in io.Reader, elements int) *Reader {
	return &Reader{bufio.NewReaderSize(in, 4096), elements}
}

// Read gives the next message. The error is io.EOF where the stream ended between messages.
func (r *Reader) Read() (*pb.RunnerMessage, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[:]))
	if size > MaxBytes {
		return nil, malformed("%w: %d bytes announced, the limit is %d", ErrTooLarge, size, MaxBytes)
	}
	payload, err := r.payload(size)
	if err != nil {
		return nil, err
	}
	left := r.elements
	if err := check(payload, (*pb.RunnerMessage)(nil).ProtoReflect().Descriptor(), maxDepth, &left); err != nil {
		return nil, err
	}
	m := &pb.RunnerMessage{}
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth + 2}).Unmarshal(payload, m); err != nil {
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

// payload grows with what arrives, not with what was announced.
func (r *Reader) payload(size int64) ([]byte, error) {
	if size <= 64<<10 {
		b := make([]byte, size)
		_, err := io.ReadFull(r.in, b)
		return b, noEOF(err)
	}
	var b bytes.Buffer
	_, err := io.CopyN(&b, r.in, size)
	return b.Bytes(), noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// check holds encoded bytes against a message type without decoding them: known fields of the right type, each singular
// field and each choice at most once, a bounded number of elements, a bounded depth.
func check(b []byte, d protoreflect.MessageDescriptor, depth int, left *int) error {
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
		if !field.IsList() && !field.IsMap() && (again(&seen, field.Index()) ||
			field.ContainingOneof() != nil && again(&chosen, field.ContainingOneof().Index())) {
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
			if err := check(inner, field.Message(), depth-1, left); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

// again says whether a bit is set, and sets it.
func again(set *uint64, bit int) bool {
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
	default: // bool, uint32, uint64: the messages of runner.proto have no others
		return protowire.VarintType
	}
}
