package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/crc32c"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Sizes of a transfer. Enough is in flight for the channel never to be idle, and little enough not to delay a ping for long. Each
// reply to a push and each write of requests costs the guest about as much as tens of kilobytes: so pushed chunks are
// large, and chunks to be pulled are asked for several at a time.
const (
	pushChunk  = 256 << 10
	pushWindow = 4     // chunks in flight
	pullChunk  = 31000 // what the agent sends in one frame of 32,000 bytes
	pullWindow = 6
	pullBatch  = 3 // asked for in one write
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

// push is Push, or the rest of one. acked is how many chunks in a row the guest has acknowledged, sent the offset behind the last
// byte that was sent.
func (c *Client) push(ctx context.Context, path string, from io.Reader, o PushOptions, part uploadPart) (acked uint32, sent int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
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
	flight := make(chan chan error, pushWindow)
	finished := make(chan ackResult, 1)
	go func() { finished <- awaitAcks(flight, cancel) }()
	for number := part.first; ctx.Err() == nil; number++ {
		data, last, readErr := chunks.next()
		if readErr != nil {
			err = readErr
			break
		}
		request := &pb.FileWriteRequest{
			Path: path, Data: data, Offset: uint64(sent), Eof: last, ChunkNumber: number, CreateParents: o.Parents,
			Mode: o.Mode, Owner: o.Owner, Group: o.Group, Crc32C: new(crc(data)), Upload: part.upload,
		}
		if digest != nil {
			digest.Write(data)
			if last {
				request.Sha256 = hex.EncodeToString(digest.Sum(nil))
			}
		}
		one := make(chan error, 1)
		select {
		case flight <- one:
		case <-ctx.Done():
			continue
		}
		sending, startErr := c.start(ctx, NewID(), request) // here, so that chunks leave in order
		if startErr != nil {
			one <- startErr
			break
		}
		go func() {
			answer, err := sending.answer(ctx)
			if err == nil {
				_, err = read[*pb.FileWriteResponse](answer)
			}
			one <- err
		}()
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

// ackResult is how many chunks in a row were acknowledged, and the error of the one behind them.
type ackResult struct {
	chunks  uint32
	failure error
}

// awaitAcks waits for the replies to all chunks in order. The first failure calls stop.
func awaitAcks(flight <-chan chan error, stop func()) (got ackResult) {
	for one := range flight {
		switch err := <-one; {
		case got.failure != nil:
		case err != nil:
			got.failure = err
			stop()
		default:
			got.chunks++
		}
	}
	return got
}

// chunkReader reads one chunk ahead, to know which is the last.
type chunkReader struct {
	from    io.Reader
	ahead   []byte
	started bool
	end     bool
}

func (r *chunkReader) next() (data []byte, last bool, err error) {
	if !r.started {
		r.started = true
		if r.ahead, err = r.read(); err != nil {
			return nil, false, err
		}
	}
	data = r.ahead
	if r.end {
		return data, true, nil
	}
	if r.ahead, err = r.read(); err != nil {
		return nil, false, err
	}
	return data, r.end && len(r.ahead) == 0, nil
}

func (r *chunkReader) read() ([]byte, error) {
	buf := make([]byte, pushChunk)
	n, err := io.ReadFull(r.from, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.end, err = true, nil
	}
	return buf[:n], err
}

// PullOptions are all optional.
type PullOptions struct {
	Offset     int64  // where to begin
	Generation string // refuse any other state of the file
	SHA256     bool   // compare with the digest of the file in the guest afterwards; needs scripts there
	Progress   Progress

	resume string // the state that the file must be in at the beginning
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
	p := puller{c: c, path: path, to: to, options: o, offset: o.Offset}
	if o.resume != "" {
		p.options.Generation = o.resume
	}
	reply, err := p.readChunk(ctx, o.Offset)
	if err != nil {
		return PullResult{}, err
	}
	p.options.Generation = o.Generation
	p.got.Mode, p.got.Generation = reply.Mode, reply.Generation
	p.total = int64(reply.TotalSize)
	for {
		if err := p.consume(reply); err != nil || reply.Eof {
			return p.got, err
		}
		if p.offset+pullChunk < p.total {
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
	return &pb.FileReadRequest{Path: p.path, Offset: uint64(offset), ChunkSize: pullChunk, Generation: p.options.Generation}
}

func (p *puller) answer(ctx context.Context, sent *pending) (*pb.FileReadResponse, error) {
	answer, err := sent.answer(ctx)
	if err != nil {
		return nil, err
	}
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
	var flight []*pending
	defer func() {
		cancel()
		for _, sent := range flight {
			sent.answer(ctx) // which cancels it
		}
	}()
	for next := p.offset; ; {
		if len(flight) <= pullWindow-pullBatch {
			var more []proto.Message
			for ; len(more) < pullBatch && next+pullChunk <= p.total; next += pullChunk {
				more = append(more, p.request(next))
			}
			sent, err := p.c.startAll(ctx, more)
			if err != nil {
				return nil, err
			}
			flight = append(flight, sent...)
		}
		if len(flight) == 0 {
			return nil, nil
		}
		reply, err := p.answer(ctx, flight[0])
		flight = flight[1:]
		if err != nil || reply.Eof {
			return reply, err
		}
		if err := p.consume(reply); err != nil {
			return nil, err
		}
		if len(reply.Data) < pullChunk {
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
