// Package wire is the guest's end of the channel: frames, and one connection to one host.
//
//	bytes ─► Decoder ─► Inspect ─► envelope ─► urgent? ─► Config.Urgent ─┐
//	                                     └───► Config.Handle (goroutine) ─┤
//	bytes ◄─ writer ◄─ two lanes: pongs and the like first, then bulk ◄───┘
//
// A connection never blocks its reader on a handler, answers every request exactly once while its host is there, and
// bounds everything: sizes, elements, requests in flight, bytes that wait.
//
// Not here: what an operation means, how the channel is opened (wire/port), the host's side (wire/client).
package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
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
	// payloadPatience bounds the waits within one frame together, for a host that goes on talking behind a false header.
	payloadPatience = 8 * time.Second
	// StaleAfter is how far the timestamp of a request that waited in the channel may be from the clock.
	StaleAfter = 30 * time.Second
	// echoMemory is how long after a request that echoed the session one without it is doubted. It is long beside what passes
	// between two requests of a transfer, and short enough that a host which never echoes and is never silent gets in.
	echoMemory = 10 * time.Second
	// MaxInFlight bounds the requests that one connection serves at a time.
	MaxInFlight = 64
	// unsolicitedBudget is what may be written before the host has sent a frame: a host that knows only the magic gives
	// up a channel after 65,536 bytes without one.
	unsolicitedBudget = 48 << 10
	// maxFree is how many goroutines wait for another request.
	maxFree = 8
	// maxSpare is the size up to which the buffer of a large frame is used again, in bytes.
	maxSpare = 1 << 20
	// minRead is the room that a read gets at least.
	minRead = 64 << 10
)

// ErrHostGone is the cause of what ends because the host left.
var ErrHostGone = errors.New("the host has left")

// Config is what a connection needs of its agent. All funcs are called from several goroutines.
type Config struct {
	// Framing pins a framing; the zero value detects it.
	Framing Framing
	// Session is the nonce of this agent process, sent in every message. Required.
	Session string
	// Calls keeps the requests that run. Required.
	Calls *Calls
	// Urgent answers what must not wait; false: it is not urgent. It runs on the reader and must not block. Required.
	Urgent func(c *Conn, request proto.Message) (reply proto.Message, urgent bool)
	// Handle serves a request; it runs on a goroutine of its own. The reply may come together with an error, which then
	// travels as its detail. Required.
	Handle func(ctx context.Context, c *Conn, id string, request proto.Message) (reply proto.Message, err error)
	// Refuse makes the reply to a request that was not served. Required.
	Refuse func(request proto.Message, err error) proto.Message
	// Mutates says that a request changes the guest: it is refused where it may be stale or uncertain, and goes on when
	// the host leaves. Required.
	Mutates func(request proto.Message) bool
	// Vital says that a request is served and answered whatever else is under way: it is not counted, and its reply is urgent.
	// Nil: none is.
	Vital func(request proto.Message) bool
	// Order names what a request must be served in order with; empty: nothing. Nil: nothing ever.
	Order func(request proto.Message) string
	// Transient says of a request that none of its bytes is kept by anyone after Handle returned: the content of a file then
	// is not copied out of its frame. Nil: none is.
	Transient func(request proto.Message) bool
	// Greet sends what a host should hear first. It is called at the beginning, and again when the host's framing is
	// known. It runs on a goroutine of its own. Nil: nothing.
	Greet func(ctx context.Context, c *Conn)
	// Warn is told what went wrong with the channel. Nil: nobody asks.
	Warn func(text string, err error)
}

// Conn is one host's session.
type Conn struct {
	config  Config
	channel io.ReadWriteCloser
	queue   *queue
	decoder Decoder   // the reader's
	speaker speaker   // the reader's
	frames  sync.Pool // of *[]byte with a capacity of pieceSize, for frames that are written and what goes into them
	large   sync.Pool // of *[]byte of any capacity, in which large frames came
	workers chan func()
	free    atomic.Int32 // goroutines that wait for one of them

	heard   atomic.Bool  // a frame has come
	last    atomic.Int64 // when the last one came, in ns since 1970; 0: none has
	busy    atomic.Int64 // since when the reader deals with what it read, likewise; 0: it reads
	echoed  time.Time    // the reader's: when a frame last carried the session; zero: not since the last silence
	writes  atomic.Int32 // the Framing to write
	opening atomic.Int64 // bytes queued before heard

	replies sync.WaitGroup // requests whose reply is not queued yet

	flightMu sync.Mutex
	flight   map[string]*[]byte // ids of the requests being served, and the Scratch of each

	orderMu sync.Mutex
	order   map[string]chan struct{} // closed when the last request of that name is served
}

// backlogged is a channel that knows whether what was just read may have waited from before the session began.
type backlogged interface{ Backlog() bool }

// tryWriter is a channel that can take bytes without waiting: n is how many it took, 0 where it would have to wait.
type tryWriter interface {
	TryWrite(p []byte) (n int, err error)
}

// NewConn makes a connection over a channel, which it owns: Serve closes it.
func NewConn(channel io.ReadWriteCloser, config Config) *Conn {
	c := &Conn{
		config: config, channel: channel, queue: newQueue(), decoder: Decoder{Accept: config.Framing}, workers: make(chan func()),
		flight: map[string]*[]byte{}, order: map[string]chan struct{}{},
	}
	c.writes.Store(int32(Plain))
	if config.Framing == QTX1 {
		c.writes.Store(int32(QTX1))
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
	leave(ErrHostGone)
	c.queue.close(ErrHostGone)
	if errors.Is(err, errAnotherHost) {
		work.Wait() // it reads the end of the frame that has begun
	}
	c.channel.Close()
	work.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errAnotherHost) {
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
	backlog, _ := c.channel.(backlogged)
	var waited time.Duration // within the frame that is not complete
	for {
		pending, start := decoder.Pending(), time.Now()
		space := decoder.Space(minRead)
		c.busy.Store(0)
		n, err := c.channel.Read(space)
		c.busy.Store(time.Now().UnixNano())
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
				switch err := c.frame(ctx, session, work, frame, old); err {
				case nil:
				case errNotDecoded:
					decoder.Lost()
				default:
					return err
				}
			}
		}
		if took >= PayloadTimeout || waited >= payloadPatience {
			came := bytes.Clone(space[:n]) // behind what is salvaged now
			take(decoder.Salvage)          // where no frame is at a boundary
			waited = 0
			if took >= PayloadTimeout {
				decoder.Silence()
				c.echoed = time.Time{}
			}
			decoder.Feed(came)
		} else {
			decoder.Add(n)
		}
		if err := take(decoder.Next); err != nil {
			return err
		}
		if now := decoder.Skipped(); now != skipped {
			c.warn("bytes on the channel belong to no frame", nil)
		}
		if errors.Is(err, io.EOF) && c.back() {
			c.greet(session, work)
			continue
		}
		if err != nil {
			return err
		}
	}
}

// frame takes one frame. errNotDecoded: it was no envelope at all, so that the next one cannot be trusted to begin where this
// one ended. errAnotherHost: it is given back.
func (c *Conn) frame(ctx, session context.Context, work *sync.WaitGroup, frame Frame, old bool) error {
	id, err := Inspect(frame.Payload)
	var message *pb.AgentMessage
	var content *apart
	if err == nil {
		message, content, err = decodeApart(frame.Payload)
	}
	if err == nil && frame.Aligned && c.another(message) {
		c.unread(frame)
		return errAnotherHost
	}
	c.last.Store(time.Now().UnixNano())
	first := !c.heard.Swap(true)
	if c.config.Framing == Auto && (frame.Aligned || first) { // what was found in garbage says nothing of the host
		c.writes.Store(int32(frame.Framing))
	}
	if first {
		c.greet(session, work)
	}
	if err == nil {
		c.accept(ctx, session, frame, message, content, old)
		return nil
	}
	c.warn("a frame was refused", err)
	told, undecoded := err, errors.Is(err, errNotDecoded)
	if undecoded {
		told = fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	if id != "" {
		c.reply(id, nil, told, true, nobody)
	}
	if undecoded {
		return errNotDecoded
	}
	return nil
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
