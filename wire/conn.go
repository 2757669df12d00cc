// Package wire is the guest's end of the channel: frames, and one connection to one host. PROTOCOL.md is its specification.
//
//	bytes ─► Decoder ─► Inspect ─► envelope ─► urgent? ─► Config.Urgent ─┐
//	                                     └───► Config.Handle (goroutine) ─┤
//	bytes ◄─ writer ◄─ two lanes: urgent (pongs, refusals), then bulk ◄───┘
//
// A connection never blocks its reader on a handler, answers every request exactly once while its host is there, and
// bounds everything: sizes, elements, requests in flight, queued bytes, and, with all others, memory.
//
// Not here: what an operation means, how the channel is opened (wire/port), the host's side (wire/client).
package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Times and bounds of a connection.
const (
	// PayloadTimeout is the silence after which an incomplete frame is dropped.
	PayloadTimeout = 2 * time.Second
	// maxPayloadWait bounds the sum of the waits within one frame, for a host that keeps sending after a false header.
	maxPayloadWait = 8 * time.Second
	// StaleAfter is how far the timestamp of a request that waited in the channel may be from the clock.
	StaleAfter = 30 * time.Second
	// echoWindow is how long after a request that echoed the session a request without it is answered as uncertain. It is
	// longer than the time between two requests of a transfer, and short enough that a host which never echoes and never pauses
	// is served in the end.
	echoWindow = 10 * time.Second
	// MaxInFlight bounds the requests that one connection serves at a time. More of them wait.
	MaxInFlight = 64
	// maxWaiting bounds the requests of a connection that wait, in bytes, with waitingSize more for each.
	maxWaiting  = 1 << 20
	waitingSize = 4 << 10
	// unsolicitedBudget is what may be written before the host has sent a frame: a host that knows only QTX1
	// gives up a channel after 65,536 bytes without a magic.
	unsolicitedBudget = 48 << 10
	// maxIdleWorkers bounds the goroutines that wait for another request.
	maxIdleWorkers = 8
	// maxReusedBuffer is the largest buffer of a frame that goes back to the pool, in bytes.
	maxReusedBuffer = 1 << 20
	// SocketChunk is the most bytes of a file in one frame to a host that is connected by a socket, which loses none of it.
	SocketChunk = 256 << 10
	// minReadSize is the smallest buffer for a read, in bytes.
	minReadSize = 64 << 10
)

// ErrHostGone is the cause of what ends because the host left.
var ErrHostGone = errors.New("the host has left")

// Config is what a connection needs of its agent. All funcs are called from several goroutines.
type Config struct {
	// Framing pins a framing; the zero value detects it.
	Framing Framing
	// Session is the nonce of this agent process, sent in every message. Required.
	Session string
	// Calls holds the calls that are being served. Required.
	Calls *Calls
	// Port is the name of the port, which owns the calls of this connection. Optional.
	Port string
	// Memory is shared by all connections of an agent. Nil: what hosts send is not bounded.
	Memory *Memory
	// Urgent answers a request that must not wait for others; false: it is not of that kind. It runs on the reader and must not
	// block. Required.
	Urgent func(c *Conn, request proto.Message) (reply proto.Message, urgent bool)
	// Handle serves a request; it runs on a goroutine of its own. The reply may come together with an error, which then
	// travels as its detail. Required.
	Handle func(ctx context.Context, c *Conn, id string, request proto.Message) (reply proto.Message, err error)
	// Refuse returns the reply to a request that was not served. Required.
	Refuse func(request proto.Message, err error) proto.Message
	// Mutates reports whether a request changes the guest: it is refused where it may be stale or uncertain, and is not
	// cancelled when the host leaves. Required.
	Mutates func(request proto.Message) bool
	// Vital reports whether a request is served whatever else is in flight: MaxInFlight does not hold for it, and its reply
	// goes into the urgent lane. Nil: none is.
	Vital func(request proto.Message) bool
	// Light reports whether a request is served whatever else is in flight, as a vital one is, while its reply keeps its place
	// among others. Nil: none is.
	Light func(request proto.Message) bool
	// Order returns a key: requests of the same key are served one after the other, as they came. Empty, or a nil Order: no
	// order.
	Order func(request proto.Message) string
	// Transient reports whether nothing refers to the bytes of a request after Handle returned, nor waits for the end of its
	// context: the content of a file then is not copied out of its frame, and the context may be that of a later request. Nil:
	// none is.
	Transient func(request proto.Message) bool
	// Large reports whether a reply may be large: such requests of one host are served one after the other, each when the reply
	// to the one before has gone into the queue. Nil: none is.
	Large func(request proto.Message) bool
	// Greet sends the events that a host gets first. It is called at the beginning, and again when the host's framing is
	// known. It runs on a goroutine of its own. Nil: nothing.
	Greet func(ctx context.Context, c *Conn)
	// Warn is called with what went wrong on the channel. Nil: it is dropped.
	Warn func(text string, err error)
}

// Conn is one host's session.
type Conn struct {
	config      Config
	channel     io.ReadWriteCloser
	queue       *queue
	decoder     Decoder    // the reader's
	reserved    int        // the reader's: bytes of Config.Memory for the decoder's buffer; 0: it is the small one
	spare       []byte     // the reader's: the small buffer, while the decoder has a larger one
	texts       chunkTexts // the reader's
	memoryUntil time.Time  // the reader's: when the frames of this read stop waiting for memory; zero: none has waited
	salvaging   bool       // the reader's: frames lie within the buffer of one that is given up
	peer        peer       // the reader's
	piecePool   BufferPool // with a capacity of pieceSize, for frames that are written and what goes into them
	chunkPool   BufferPool // with a capacity of chunkSize, likewise
	smallPool   BufferPool // of up to freeBuffer, in which frames came
	largePool   BufferPool // of up to maxReusedBuffer, in which frames came that did not fit into those
	workers     chan *servedCall
	lasting     chan callContext // contexts of calls that outlive their host, for others
	leaving     chan callContext // contexts of all other calls, likewise
	over        atomic.Bool      // Serve ends
	large       chan struct{}    // held by the request whose reply may be large
	idleWorkers atomic.Int32     // goroutines that wait for one of them

	received     atomic.Bool  // a frame has come
	lastFrame    atomic.Int64 // when the last one came, in ns since 1970; 0: none has
	began        time.Time    // of the connection, for busySince: a step of the clock must not look like a reader that is stuck
	busySince    atomic.Int64 // since when the reader deals with what it read, in ns since began; 0: it reads
	lastEcho     time.Time    // the reader's: when a frame last carried the session; zero: not since the last silence
	writeFraming atomic.Int32 // the Framing to write
	unsolicited  atomic.Int64 // bytes queued before received is set

	replies sync.WaitGroup // requests whose reply is not queued yet

	inFlightMu   sync.Mutex
	inFlight     map[string]scratch // ids of the requests being served or waiting, and the Scratch of each
	serving      int                // requests that are being served, without those
	light        int                // vital and light requests that are being served
	waiting      []*waitingRequest  // oldest first
	waitingBytes int

	orderMu sync.Mutex
	order   map[string]*orderPlace // of the last request of each
}

// backlogReporter is a channel that knows whether what was just read may have waited from before the session began.
type backlogReporter interface{ Backlog() bool }

// deadlineReader is a channel whose Read can be given a time to end, with os.ErrDeadlineExceeded, as that of a net.Conn.
type deadlineReader interface {
	SetReadDeadline(t time.Time) error
}

// tryWriter is a channel that can take bytes without waiting: n is how many it took, 0 where it would have to wait.
type tryWriter interface {
	TryWrite(p []byte) (n int, err error)
}

// NewConn makes a connection over a channel, which it owns: Serve closes it.
func NewConn(channel io.ReadWriteCloser, config Config) *Conn {
	c := &Conn{
		config: config, channel: channel, queue: newQueue(), decoder: Decoder{Accept: config.Framing}, workers: make(chan *servedCall), large: make(chan struct{}, 1),
		lasting: make(chan callContext, maxIdleContexts), leaving: make(chan callContext, maxIdleContexts),
		inFlight: map[string]scratch{}, order: map[string]*orderPlace{}, began: time.Now(),
	}
	c.writeFraming.Store(int32(Plain))
	if config.Framing == QTX1 {
		c.writeFraming.Store(int32(QTX1))
	}
	return c
}

// Serve reads and answers until the host leaves (nil), the channel fails, or ctx ends. Requests that only the host
// could want are then cancelled; those that change the guest go on, and Calls knows them. ctx is theirs.
func (c *Conn) Serve(ctx context.Context) error {
	session, leave := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { c.channel.Close() })
	defer stop()
	var work sync.WaitGroup
	work.Go(c.write)
	c.greet(session, &work)
	err := c.read(ctx, session, &work)
	c.dropBuffer()
	c.over.Store(true)
	c.dropContexts()
	leave(ErrHostGone)
	c.queue.close(ErrHostGone)
	if errors.Is(err, errPeerChanged) {
		work.Wait() // the writer finishes the frame that has begun
	}
	another := errors.Is(err, io.EOF) && c.owesAnother()
	c.channel.Close()
	work.Wait()
	if another {
		c.unreadUnanswered()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errPeerChanged) {
		return nil
	}
	return err
}

func (c *Conn) greet(ctx context.Context, work *sync.WaitGroup) {
	if c.config.Greet != nil {
		work.Go(func() { c.config.Greet(ctx, c) })
	}
}

func (c *Conn) warn(text string, err error) {
	if c.config.Warn != nil {
		c.config.Warn(text, err)
	}
}

// read is the reader: it is the only one that touches the decoder.
func (c *Conn) read(ctx, session context.Context, work *sync.WaitGroup) error {
	decoder := &c.decoder
	backlog, _ := c.channel.(backlogReporter)
	var waited time.Duration // within the frame that is not complete
	for {
		pending, start := decoder.Pending(), time.Now()
		space := decoder.Space(minReadSize)
		c.busySince.Store(0)
		n, err := c.readWithin(space)
		c.memoryUntil = time.Time{}
		c.busySince.Store(max(1, int64(time.Since(c.began))))
		took := time.Since(start)
		if waited += took; !pending {
			waited = 0
		}
		old := backlog != nil && backlog.Backlog()
		skipped := decoder.Skipped()
		take := func(next func() (Frame, bool)) error {
			for {
				frame, ok := next()
				if !ok {
					return nil
				}
				waited = 0
				err := c.frame(ctx, session, work, frame, old)
				switch err {
				case nil:
				case errNotDecoded:
					decoder.Resync()
				default:
					return err
				}
				if !c.salvaging {
					c.dropBuffer()
				}
			}
		}
		if took >= PayloadTimeout || waited >= maxPayloadWait {
			came := bytes.Clone(space[:n]) // behind what is salvaged now
			c.salvaging = true
			take(decoder.Salvage) // where no frame is at a boundary
			c.salvaging, waited = false, 0
			if took >= PayloadTimeout {
				decoder.Silence()
				c.lastEcho = time.Time{}
			}
			c.dropBuffer()
			decoder.Feed(came)
		} else {
			decoder.Add(n)
		}
		for again := true; again; again = c.reserveBuffer(ctx, session, work) {
			if err := take(decoder.Next); err != nil {
				return err
			}
		}
		if now := decoder.Skipped(); now != skipped {
			c.warn("skipped bytes that belong to no frame", nil)
		}
		if errors.Is(err, io.EOF) && c.peerReturned() {
			c.greet(session, work)
			continue
		}
		if err != nil {
			return err
		}
	}
}

// readWithin reads from the channel. A frame that has memory of all connections must not hold it while its host sends nothing:
// where the channel has read deadlines it returns without anything after PayloadTimeout.
func (c *Conn) readWithin(space []byte) (n int, err error) {
	channel, can := c.channel.(deadlineReader)
	if !can || c.reserved == 0 || channel.SetReadDeadline(time.Now().Add(PayloadTimeout)) != nil {
		return c.channel.Read(space)
	}
	n, err = c.channel.Read(space)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	if failed := channel.SetReadDeadline(time.Time{}); err == nil && n == 0 && failed != nil {
		err = failed
	}
	return n, err
}

// frame takes one frame. errNotDecoded: it was no envelope at all, so that the next one cannot be trusted to begin where this
// one ended. errPeerChanged: it was put back into the channel.
func (c *Conn) frame(ctx, session context.Context, work *sync.WaitGroup, frame Frame, old bool) error {
	var message *pb.AgentMessage
	var content *largeField
	var s *servedCall
	var id string
	var err error
	if chunk := c.texts.decodeChunk(frame.Payload); chunk != nil {
		message, content, s = &chunk.envelope.message, chunk.large(), &chunk.served
		id = message.MessageId
	} else if id, err = Inspect(frame.Payload); err == nil {
		message, content, err = decodeSplit(frame.Payload)
	}
	if err == nil && frame.Aligned && c.peerChanged(message) {
		c.unreadFrame(frame)
		return errPeerChanged
	}
	c.noteFrame(session, work, frame)
	if err == nil {
		c.dispatch(ctx, session, frame, message, content, s, old)
		return nil
	}
	c.warn("frame refused", err)
	reason, undecoded := err, errors.Is(err, errNotDecoded)
	if undecoded {
		reason = fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	if id != "" {
		c.reply(id, nil, reason)
	}
	if undecoded {
		return errNotDecoded
	}
	return nil
}

// noteFrame records that a frame has come.
func (c *Conn) noteFrame(session context.Context, work *sync.WaitGroup, frame Frame) {
	c.lastFrame.Store(time.Now().UnixNano())
	first := !c.received.Swap(true)
	if c.config.Framing == Auto && (frame.Aligned || first) { // a frame found by scanning may not be the host's
		c.writeFraming.Store(int32(frame.Framing))
	}
	if first {
		c.greet(session, work)
	}
}

// Flush waits until the replies to all requests are queued, and all that is queued has been written. No call may start any
// more: Calls.Shutdown comes first.
func (c *Conn) Flush(ctx context.Context) error {
	queued := make(chan struct{})
	go func() { c.replies.Wait(); close(queued) }() // ends at the latest with the session
	select {
	case <-queued:
		return c.queue.flush(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Wait waits, after Serve has returned, for the requests that outlive the session, or for the end of ctx.
func (c *Conn) Wait(ctx context.Context) {
	ended := make(chan struct{})
	go func() { c.replies.Wait(); close(ended) }() // ends with the last request
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// Close ends the session at once; Serve returns.
func (c *Conn) Close() error { return c.channel.Close() }
