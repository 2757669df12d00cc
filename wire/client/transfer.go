package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/crc32c"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Sizes of a transfer. Enough is in flight for the channel never to be idle, and little enough not to delay a ping for long.
// Each reply to a push and each write of requests costs the guest about as much as tens of kilobytes: so pushed chunks are
// large, and chunks to be pulled are asked for several at a time.
const (
	pushChunk  = 256 << 10
	pushWindow = 4                // chunks in flight
	pullChunk  = wire.SocketChunk // asked for; the agent sends less where the channel takes less at a time
	portChunk  = 31_000           // what an agent sends over a port at least, if the file has as much
	pullWindow = 6                // chunks in flight
	pullBatch  = 3                // asked for in one write
	fewLarge   = 4                // chunks in flight where they have more than 64 KiB, each asked for by itself
)

var crc = crc32c.Standard()

// Progress is called with how far a transfer is, in bytes; total is -1 where it is not known.
type Progress func(done, total int64)

// PushOptions are the properties of the file. All are optional.
type PushOptions struct {
	Mode         uint32 // permission bits; 0: as it was, or 0644
	Owner, Group string
	Parents      bool // make missing directories
	SHA256       bool // have the agent compare the digest before the file takes its place
	Size         int64
	Progress     Progress

	separate bool // give the content to this name alone of a file with several
}

// Push writes a file in the guest: nothing is seen at path before all of it has arrived, and a failure leaves what was
// there. Each chunk carries its CRC-32C. The path is taken as messages carry it: see text.EscapePath.
func (c *Client) Push(ctx context.Context, path string, from io.Reader, o PushOptions) (sent int64, err error) {
	_, sent, err = c.push(ctx, path, from, o, uploadPart{})
	return sent, err
}

// uploadPart is the part of an upload that one connection sends: its chunks from first on.
type uploadPart struct {
	upload string // its name; empty: the agent drops it with the connection
	first  uint32
	digest hash.Hash // of what is before; needed where the digest is wanted and first is not 0
}

// push is Push, or the rest of one. acked is how many chunks in a row the guest has acknowledged, sent the offset after the
// last byte that was sent.
func (c *Client) push(ctx context.Context, path string, from io.Reader, o PushOptions, part uploadPart) (acked uint32, sent int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	total := int64(-1)
	if o.Size > 0 {
		total = o.Size
	}
	digest := part.digest
	if o.SHA256 && digest == nil {
		digest = sha256.New()
	}
	sent = int64(part.first) * pushChunk
	chunks := &chunkReader{from: from}
	requests := c.newChunkRequests(ctx)
	defer requests.end()
	flight := make(chan *pending, pushWindow-1) // and one that waits for a place
	finished := make(chan ackResult, 1)
	go func() { finished <- awaitAcks(ctx, flight, cancel) }()
	for number := part.first; ctx.Err() == nil; number++ {
		buf, last, readErr := chunks.next()
		if readErr != nil {
			err = readErr
			break
		}
		data := buf[wire.MaxHead:]
		request := &requests.write
		*request = pb.FileWriteRequest{
			Path: path, Offset: uint64(sent), Eof: last, ChunkNumber: number, CreateParents: o.Parents,
			Mode: o.Mode, Owner: o.Owner, Group: o.Group, Crc32C: &requests.crc, Upload: part.upload,
			Separate: o.separate,
		}
		requests.crc = crc(data)
		if digest != nil {
			digest.Write(data)
			if last {
				request.Sha256 = hex.EncodeToString(digest.Sum(nil))
			}
		}
		sending, startErr := requests.writeChunk(buf)
		if startErr != nil {
			err = startErr
			break
		}
		flight <- sending
		if sent += int64(len(data)); o.Progress != nil {
			o.Progress(sent, total)
		}
		if last {
			break
		}
	}
	close(flight)
	got := <-finished
	if err == nil {
		err = got.failure
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return part.first + got.chunks, sent, err
}

// ackResult is how many chunks in a row were acknowledged, and the error of the one after them.
type ackResult struct {
	chunks  uint32
	failure error
}

// awaitAcks waits for the replies to all chunks in order. It calls stop with the first failure, which is the error then of what
// is being sent as well.
func awaitAcks(ctx context.Context, flight <-chan *pending, stop context.CancelCauseFunc) (got ackResult) {
	for one := range flight {
		answer, err := one.answer(ctx)
		if err == nil {
			_, err = read[*pb.FileWriteResponse](answer)
			one.done()
		}
		switch {
		case got.failure != nil:
		case err != nil:
			got.failure = err
			stop(err)
		default:
			got.chunks++
		}
	}
	return got
}

// chunkReader reads one chunk ahead, to know which is the last.
type chunkReader struct {
	from    io.Reader
	buffers [2][]byte
	ahead   []byte // with room for the head of a frame in front
	reads   int
	end     bool
}

// next returns a chunk after the room for the head of its frame. It is valid until the next call.
func (r *chunkReader) next() (buf []byte, last bool, err error) {
	if r.reads == 0 {
		if r.ahead, err = r.read(); err != nil {
			return nil, false, err
		}
	}
	buf = r.ahead
	if r.end {
		return buf, true, nil
	}
	if r.ahead, err = r.read(); err != nil {
		return nil, false, err
	}
	return buf, r.end && len(r.ahead) == wire.MaxHead, nil
}

func (r *chunkReader) read() ([]byte, error) {
	buf := &r.buffers[r.reads%2]
	if *buf == nil {
		*buf = make([]byte, wire.MaxHead+pushChunk)
	}
	r.reads++
	n, err := io.ReadFull(r.from, (*buf)[wire.MaxHead:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.end, err = true, nil
	}
	return (*buf)[:wire.MaxHead+n], err
}

// PullOptions are all optional.
type PullOptions struct {
	Offset     int64  // where to begin
	Generation string // refuse any other state of the file
	SHA256     bool   // compare with the digest of the file in the guest afterwards; needs scripts there
	Progress   Progress

	resume string // the state that the file must be in at the beginning
	chunk  int64  // bytes to ask for at a time; 0: pullChunk
}

// PullResult describes what was read.
type PullResult struct {
	Size       int64 // bytes written
	Mode       uint32
	Generation string // of its state when the first chunk was read

	last string // the state when the last chunk was read
}

// Pull reads a file of the guest to its end, which may be further than its size said in the beginning. A file that
// becomes another one meanwhile is fault.ErrChanged; a file that just grows is not. The path is taken as messages carry it: see
// text.EscapePath.
func (c *Client) Pull(ctx context.Context, path string, to io.Writer, o PullOptions) (PullResult, error) {
	return NewLink(c, nil).pullRetrying(ctx, path, to, nil, o)
}

// pull is Pull without a digest.
func (c *Client) pull(ctx context.Context, path string, to io.Writer, o PullOptions) (PullResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := puller{c: c, path: path, to: to, options: o, offset: o.Offset, chunk: cmp.Or(o.chunk, pullChunk)}
	if o.resume != "" {
		p.options.Generation = o.resume
	}
	reply, err := p.readChunk(ctx, o.Offset)
	if err != nil {
		return PullResult{}, err
	}
	p.options.Generation = o.Generation
	p.got.Mode, p.got.Generation = reply.Mode&0o7777, reply.Generation
	p.total = int64(reply.TotalSize)
	p.chunk = max(int64(len(reply.Data)), portChunk)
	for {
		if err := p.consume(reply); err != nil || reply.Eof {
			return p.got, err
		}
		if p.offset+p.chunk < p.total {
			if reply, err = p.pullPipelined(ctx); err != nil || reply == nil {
				if err != nil {
					return p.got, err
				}
			} else {
				continue
			}
		}
		if reply, err = p.readChunk(ctx, p.offset); err != nil {
			return p.got, err
		}
	}
}

type puller struct {
	c       *Client
	path    string
	to      io.Writer
	options PullOptions
	offset  int64
	total   int64
	chunk   int64  // bytes to ask for: as many as the agent sends at a time
	buf     []byte // in which the last reply lies; nil: it was none of the client's
	got     PullResult
}

func (p *puller) readChunk(ctx context.Context, offset int64) (*pb.FileReadResponse, error) {
	sent, err := p.c.start(ctx, NewID(), p.request(offset))
	if err != nil {
		return nil, err
	}
	return p.answer(ctx, sent)
}

func (p *puller) request(offset int64) *pb.FileReadRequest {
	request := &pb.FileReadRequest{}
	p.fill(request, offset)
	return request
}

// fill has a request ask for the chunk at an offset.
func (p *puller) fill(request *pb.FileReadRequest, offset int64) {
	request.Path, request.Offset = p.path, uint64(offset)
	request.ChunkSize, request.Generation = uint32(p.chunk), p.options.Generation
}

func (p *puller) answer(ctx context.Context, sent *pending) (*pb.FileReadResponse, error) {
	answer, err := sent.answer(ctx)
	if err != nil {
		return nil, err
	}
	p.buf = sent.buf
	sent.done()
	reply, err := read[*pb.FileReadResponse](answer)
	if err != nil {
		return nil, err
	}
	if reply.Crc32C != nil && *reply.Crc32C != crc(reply.Data) {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%s: a chunk arrived with a wrong checksum", p.path)
	}
	if len(reply.Data) == 0 && !reply.Eof {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%s: a chunk without data that is not the last", p.path)
	}
	return reply, nil
}

// consume writes a chunk that begins at p.offset.
func (p *puller) consume(reply *pb.FileReadResponse) error {
	if p.got.Generation != "" && reply.Generation != "" && !sameFile(p.got.Generation, reply.Generation) {
		return fault.Wrapf(fault.ErrChanged, "%s: another file took its place", p.path)
	}
	p.got.last = reply.Generation
	n, err := p.to.Write(reply.Data)
	p.c.reuse(p.buf)
	p.buf = nil
	p.offset += int64(n)
	p.got.Size += int64(n)
	if err == nil && p.options.Progress != nil {
		p.options.Progress(p.offset, max(p.total, p.offset))
	}
	return err
}

// pullPipelined reads whole chunks up to the known size with several requests in flight. It ends early at a chunk that is
// shorter than asked, and returns a last reply where there was one, or nil when the rest must be asked for.
func (p *puller) pullPipelined(ctx context.Context) (*pb.FileReadResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	requests := p.c.newChunkRequests(ctx)
	var flight []*pending
	defer func() {
		requests.end()
		cancel()
		for _, sent := range flight {
			sent.answer(ctx) // which cancels it
		}
	}()
	window, batch := pullWindow, pullBatch
	if p.chunk > 64<<10 {
		window, batch = fewLarge, 1
	}
	for next := p.offset; ; {
		for len(flight) <= window-batch && next+p.chunk <= p.total {
			asked := 0
			more, err := requests.readAll(flight, func() bool {
				if asked == batch || next+p.chunk > p.total {
					return false
				}
				p.fill(&requests.read, next)
				asked, next = asked+1, next+p.chunk
				return true
			})
			if err != nil {
				return nil, err
			}
			flight = more
		}
		if len(flight) == 0 {
			return nil, nil
		}
		reply, err := p.answer(ctx, flight[0])
		flight = append(flight[:0], flight[1:]...)
		if err != nil || reply.Eof {
			return reply, err
		}
		n := len(reply.Data)
		if err := p.consume(reply); err != nil {
			return nil, err
		}
		if short := int64(n) < p.chunk; short {
			return nil, nil
		}
	}
}

// sameFile compares the device and inode of two generations, their first two fields.
func sameFile(a, b string) bool {
	return fields(a, 2) == fields(b, 2)
}

func fields(s string, n int) string {
	for i := range len(s) {
		if s[i] == '-' {
			if n--; n == 0 {
				return s[:i]
			}
		}
	}
	return s
}
