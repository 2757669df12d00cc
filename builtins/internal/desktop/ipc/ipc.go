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

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/bounds"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// MaxContent is the most bytes of the content of a clipboard: what a frame of the channel to the host takes, 16 MiB, less what
	// stands around it.
	MaxContent = 15 << 20
	// MaxFrame is the most bytes of a frame.
	MaxFrame = MaxContent + 64<<10
	// MaxElements is the most fields and list elements of a frame, at all depths: empty ones take a hundred times the memory of
	// their bytes.
	MaxElements = 20000
	maxDepth    = 16 // of messages in messages
)

// Write writes a frame with one call of Write. The error of one that is too large is of cause fault.ErrTooLarge, and nothing
// was written.
func Write(w io.Writer, frame *pb.SessionFrame) error {
	size := proto.Size(frame)
	if size > MaxFrame {
		return fault.Wrapf(fault.ErrTooLarge, "a message of %d bytes is larger than %d", size, MaxFrame)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size), uint32(size))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, frame)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
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

// Decode decodes a message, once its elements have been counted. Errors are of cause fs.ErrInvalid or fault.ErrTooLarge.
func Decode(b []byte, message proto.Message) error {
	limits := bounds.Limits{What: "a message", Elements: MaxElements, Depth: maxDepth}
	if err := limits.Check(b, message.ProtoReflect().Descriptor().Fields()); err != nil {
		if errors.Is(err, bounds.ErrMalformed) {
			err = fault.Invalid("%s cannot be decoded", Name(message))
		}
		return err
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, message); err != nil {
		return fault.Invalid("%s cannot be decoded", Name(message))
	}
	return nil
}
