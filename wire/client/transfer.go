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

// Sizes of a transfer. So much is in flight that the channel is never idle, and so little that a ping is never far behind.
// Each reply to a push and each write of requests costs the guest about as much as tens of kilobytes: so pushed chunks are
// large, and chunks to be pulled are asked for several at a time.
const (
	pushChunk  = 256 << 10
	pushWindow = 4     // chunks in flight
	pullChunk  = 31000 // what the agent gives in one frame of 32,000 bytes
	pullWindow = 6
	pullAtOnce = 3 // asked for in one write
)

var crc = crc32c.Standard()

// Progress is told how far a transfer is, in bytes; total is -1 where it is not known.
type Progress func(done, total int64)

// PushOptions say what the file will be. All are optional.
type PushOptions struct {
	Mode         uint32 // permission bits; 0: as it was, or 0644
	Owner, Group string
	Parents      bool // make missing directories
	SHA256       bool // have the agent compare the digest before the file takes its place
	Size         int64
	Progress     Progress
}

// Push writes a file in the guest: nothing is seen at path before all of it has arrived, and a failure leaves what was
// there. Each chunk carries its CRC-32C.
func (c *Client) Push(ctx context.Context, path string, from io.Reader, o PushOptions) (sent int64, err error) {
	_, sent, err = c.push(ctx, path, from, o, portion{})
	return sent, err
}

// portion is which part of an upload a connection brings: its chunks from one on.
type portion struct {
	upload string // its name; empty: it ends with the connection
	first  uint32
	digest hash.Hash // of what is before; needed where the digest is wanted and first is not 0
}

// push is Push, or the rest of one. taken is how many chunks in a row the guest has acknowledged, sent the offset behind the
// last byte that was sent.
func (c *Client) push(ctx context.Context, path string, from io.Reader, o PushOptions, part portion) (taken uint32, sent int64, err error) {
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
	finished := make(chan acknowledged, 1)
	go func() { finished <- first(flight, cancel) }()
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

// acknowledged is how many chunks in a row were, and what became of the one behind them.
type acknowledged struct {
	chunks  uint32
	failure error
}

// first waits for all chunks in order, up to the first failure; that stops the others.
func first(flight <-chan chan error, stop func()) (got acknowledged) {
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
	from  io.Reader
	ahead []byte
	begun bool
	end   bool
}

func (r *chunkReader) next() (data []byte, last bool, err error) {
	if !r.begun {
		r.begun = true
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
	SHA256     bool   // compare with the digest that the guest has of the file afterwards; needs scripts there
	Progress   Progress

	resume string // the state that the file must be in at the beginning
}

// Pulled says what was read.
type Pulled struct {
	Size       int64 // bytes given to the writer
	Mode       uint32
	Generation string // of its state when the first chunk was read

	last string // the state when the last chunk was read
}

// Pull reads a file of the guest to its end, which may be further than its size said in the beginning. A file that
// becomes another one meanwhile is fault.ErrChanged; a file that just grows is not.
func (c *Client) Pull(ctx context.Context, path string, to io.Writer, o PullOptions) (Pulled, error) {
	return NewLink(c, nil).pull(ctx, path, to, nil, o)
}

// pull is Pull without a digest.
func (c *Client) pull(ctx context.Context, path string, to io.Writer, o PullOptions) (Pulled, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := puller{c: c, path: path, to: to, options: o, offset: o.Offset}
	if o.resume != "" {
		p.options.Generation = o.resume
	}
	reply, err := p.ask(ctx, o.Offset)
	if err != nil {
		return Pulled{}, err
	}
	p.options.Generation = o.Generation
	p.got.Mode, p.got.Generation = reply.Mode, reply.Generation
	p.total = int64(reply.TotalSize)
	for {
		if err := p.take(reply); err != nil || reply.Eof {
			return p.got, err
		}
		if p.offset+pullChunk < p.total {
			if reply, err = p.ahead(ctx); err != nil || reply == nil {
				if err != nil {
					return p.got, err
				}
			} else {
				continue
			}
		}
		if reply, err = p.ask(ctx, p.offset); err != nil {
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
	got     Pulled
}

func (p *puller) ask(ctx context.Context, offset int64) (*pb.FileReadResponse, error) {
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

// take writes a chunk that begins at p.offset.
func (p *puller) take(reply *pb.FileReadResponse) error {
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

// ahead reads whole chunks up to the known size with several requests in flight. It ends early at a chunk that is
// shorter than asked, and returns a last reply where there was one, or nil when the rest must be asked for.
func (p *puller) ahead(ctx context.Context) (*pb.FileReadResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	var flight []*pending
	defer func() {
		cancel()
		for _, sent := range flight {
			sent.answer(ctx) // which cancels it
		}
	}()
	for next := p.offset; ; {
		if len(flight) <= pullWindow-pullAtOnce {
			var more []proto.Message
			for ; len(more) < pullAtOnce && next+pullChunk <= p.total; next += pullChunk {
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
		if err := p.take(reply); err != nil {
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
