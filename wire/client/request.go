package client

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// chunkRequests sends the requests of one transfer, thousands that differ in little, from memory that is used again for the
// next one. Its methods may not be called at once.
type chunkRequests struct {
	c     *Client
	ctx   context.Context
	guard *guard

	message pb.AgentMessage
	sent    timestamppb.Timestamp
	readIn  pb.AgentMessage_FileRead
	writeIn pb.AgentMessage_FileWrite
	read    pb.FileReadRequest
	write   pb.FileWriteRequest
	crc     uint32
	frames  []byte
	room    [wire.MaxHead]byte
	ids     string // for the next requests
}

// newChunkRequests begins to send requests, until ctx ends. end must be called.
func (c *Client) newChunkRequests(ctx context.Context) *chunkRequests {
	r := &chunkRequests{c: c, ctx: ctx, guard: c.writer.guard(ctx), frames: make([]byte, 0, 1<<10)}
	r.readIn.FileRead, r.writeIn.FileWrite = &r.read, &r.write
	r.message.Timestamp = &r.sent
	return r
}

func (r *chunkRequests) end() { r.guard.end() }

// idsAtOnce is for how many requests ids are made at once.
const idsAtOnce = 32

// newID is NewID.
func (r *chunkRequests) newID() string {
	if len(r.ids) == 0 {
		ids := make([]byte, 0, idsAtOnce*idSize)
		for range idsAtOnce {
			ids = appendID(ids)
		}
		r.ids = string(ids)
	}
	id := r.ids[:idSize]
	r.ids = r.ids[idSize:]
	return id
}

// envelope fills in the envelope.
func (r *chunkRequests) envelope(id string) *pb.AgentMessage {
	now := time.Now()
	r.sent.Seconds, r.sent.Nanos = now.Unix(), int32(now.Nanosecond())
	r.message.MessageId = id
	r.c.address(r.ctx, &r.message)
	return &r.message
}

// readAll asks for chunks in one write, which costs the guest less than as many; next changes r.read for one after the other,
// and returns false after the last one. answer must be called for each.
func (r *chunkRequests) readAll(all []*pending, next func() bool) ([]*pending, error) {
	first := len(all)
	r.message.Payload = &r.readIn
	r.frames = r.frames[:0]
	var err error
	for err == nil && next() {
		var p *pending
		if p, err = r.c.register(r.newID()); err != nil {
			break
		}
		all = append(all, p)
		r.frames, err = wire.AppendMessage(r.frames, r.c.options.Framing, r.envelope(p.id))
	}
	if err == nil && len(r.frames) > 0 {
		err = r.guard.write(r.frames)
	}
	if err != nil {
		r.frames = nil // which may still be written
		for _, p := range all[first:] {
			r.c.notSent(r.ctx, p.id)
		}
		return all[:first], err
	}
	for _, p := range all[first:] {
		p.markSent()
	}
	return all, nil
}

// writeChunk sends r.write with the end of a buffer as its content, after the room for the head of its frame. The buffer may
// be used again when there is no error. answer must be called.
func (r *chunkRequests) writeChunk(buf []byte) (*pending, error) {
	p, err := r.c.register(r.newID())
	if err != nil {
		return nil, err
	}
	r.message.Payload = &r.writeIn
	head, err := wire.AppendHead(r.room[:0], r.c.options.Framing, r.envelope(p.id), len(buf)-wire.MaxHead)
	switch {
	case err != nil:
	case len(head) > wire.MaxHead:
		err = r.guard.write(append(head, buf[wire.MaxHead:]...))
	default:
		at := wire.MaxHead - len(head)
		copy(buf[at:], head)
		err = r.guard.write(buf[at:])
	}
	if err != nil {
		r.c.notSent(r.ctx, p.id)
		return nil, err
	}
	p.markSent()
	return p, nil
}

// notSent forgets a request that could not be sent, of which a part may be on its way where ctx has ended.
func (c *Client) notSent(ctx context.Context, id string) {
	c.unregister(id)
	if ctx.Err() != nil {
		c.cancelLater(id)
	}
}
