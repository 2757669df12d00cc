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
		told = fault.Because(fault.ErrCorrupt, "%v", err)
	}
	if id != "" {
		c.reply(id, nil, told, true)
	}
	if undecoded {
		return errNotDecoded
	}
	return nil
}

// accept judges a message and starts what it asks for.
func (c *Conn) accept(ctx, session context.Context, frame Frame, message *pb.AgentMessage, content *apart, old bool) {
	id := message.MessageId
	if frame.Aligned && message.Session == c.config.Session {
		c.echoed = time.Now()
	}
	request := Payload(message)
	if request == nil {
		if message.ErrorDetail == nil {
			c.reply(id, nil, fault.Unsupported("unknown request"), true)
		}
		return
	}
	if ReplyType(request) == nil {
		return // an event or a reply: nothing of ours
	}
	if reply, urgent := c.config.Urgent(c, request); urgent {
		c.reply(id, reply, nil, true)
		return
	}
	if c.config.Mutates(request) {
		if err := c.trust(frame, message, old); err != nil {
			c.refuse(id, request, err)
			return
		}
	}
	c.start(ctx, session, message, request, c.attach(message, request, content))
}

// attach gives a request its large content: as it lies in its frame, whose buffer is free again with release, or a copy.
func (c *Conn) attach(m *pb.AgentMessage, request proto.Message, content *apart) (release func()) {
	switch {
	case content == nil:
	case c.config.Transient == nil || !c.config.Transient(request):
		content.put(m, bytes.Clone(content.content))
	default:
		content.put(m, content.content)
		var spare []byte
		if kept, ok := c.large.Get().(*[]byte); ok {
			spare = *kept
		}
		buf := c.decoder.Detach(spare)
		return func() {
			if cap(buf) <= maxSpare {
				c.large.Put(&buf)
			}
		}
	}
	return func() {}
}

// trust says why a request that changes the guest must not be served.
func (c *Conn) trust(frame Frame, m *pb.AgentMessage, old bool) error {
	switch {
	case !frame.Aligned:
		return fault.Because(fault.ErrUncertain, "uncertain, send again: the request was found after bytes that belong to no frame")
	case m.Session == "" && time.Since(c.echoed) < echoMemory: // what was hidden in a file of that host cannot know the session
		return fault.Because(fault.ErrUncertain, "uncertain, send again: the host before it echoed the session, less than %v ago and without a silence since", echoMemory)
	case m.Session != "" && m.Session != c.config.Session:
		return fault.Because(fault.ErrStale, "stale request: it was made for another run of the agent")
	case old && !fresh(m):
		return fault.Because(fault.ErrStale, "stale request: it waited in the channel, and its timestamp is not within %v of the clock", StaleAfter)
	}
	return nil
}

func fresh(m *pb.AgentMessage) bool {
	return m.Timestamp != nil && m.Timestamp.IsValid() && time.Since(m.Timestamp.AsTime()).Abs() <= StaleAfter
}

func (c *Conn) refuse(id string, request proto.Message, err error) {
	c.reply(id, c.config.Refuse(request, err), err, true)
}

// start serves a request on a goroutine of its own. A request that was sent twice is served once: the reply is for both.
// release is called when nobody looks at the request any more.
func (c *Conn) start(ctx, session context.Context, m *pb.AgentMessage, request proto.Message, release func()) {
	parent, vital := session, c.config.Vital != nil && c.config.Vital(request)
	if c.config.Mutates(request) {
		parent = ctx
	}
	leave, second := c.enter(m.MessageId, vital)
	if leave == nil {
		release()
		if !second {
			c.refuse(m.MessageId, request, fault.Because(fault.ErrBusy, "busy: %d requests are in flight on this connection", MaxInFlight))
		}
		return
	}
	call, done, err := c.config.Calls.Start(parent, m.MessageId)
	if err != nil {
		leave()
		c.refuse(m.MessageId, request, err)
		release()
		return
	}
	stop := func() {}
	if m.TimeoutMs > 0 {
		call, stop = context.WithTimeout(call, time.Duration(min(m.TimeoutMs, 1<<40))*time.Millisecond)
	}
	before, turn := c.turn(request)
	c.replies.Add(1)
	c.work(session, func() {
		defer c.replies.Done()
		reply, err := c.serve(call, m.MessageId, request, before, turn)
		stop()
		done() // the call is over; the reply may have to wait for a host that reads
		c.reply(m.MessageId, reply, err, vital)
		leave()
		release()
	})
}

// work runs f on a goroutine of its own. One that is free is taken: its stack has grown to what requests need.
func (c *Conn) work(session context.Context, f func()) {
	select {
	case c.workers <- f:
		return
	default:
	}
	go func() {
		for {
			f()
			if c.free.Add(1) > maxFree {
				c.free.Add(-1)
				return
			}
			select {
			case f = <-c.workers:
				c.free.Add(-1)
			case <-session.Done():
				return
			}
		}
	}()
}

// serve waits for the request's turn and handles it.
func (c *Conn) serve(ctx context.Context, id string, request proto.Message, before <-chan struct{}, turn func()) (proto.Message, error) {
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			go func() { <-before; turn() }() // what comes after must still wait for what came before
			err := context.Cause(ctx)
			return c.config.Refuse(request, err), err
		}
	}
	defer turn()
	return c.config.Handle(ctx, c, id, request)
}

// enter counts a request in. Without a function to count it out it is not served: it is one too many, or, where second is
// true, being served already.
func (c *Conn) enter(id string, vital bool) (leave func(), second bool) {
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	if _, ok := c.flight[id]; ok {
		return nil, true
	}
	if room := MaxInFlight; len(c.flight) >= room && (!vital || len(c.flight) >= 4*room) {
		return nil, false
	}
	c.flight[id] = nil
	return func() {
		c.flightMu.Lock()
		defer c.flightMu.Unlock()
		if scratch := c.flight[id]; scratch != nil {
			c.frames.Put(scratch)
		}
		delete(c.flight, id)
	}, false
}

// Scratch gives room for n bytes of the reply to a request that is being served. It is used again for others once that
// reply is encoded.
func (c *Conn) Scratch(id string, n int) []byte {
	if n > pieceSize {
		return make([]byte, n)
	}
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	if scratch, ok := c.flight[id]; !ok || scratch != nil {
		return make([]byte, n) // not being served any more, or asked for twice
	}
	buf := c.room(pieceSize)
	c.flight[id] = &buf
	return buf[:n]
}

// turn gives what a request has to wait for, and what ends its own turn.
func (c *Conn) turn(request proto.Message) (before <-chan struct{}, end func()) {
	name := ""
	if c.config.Order != nil {
		name = c.config.Order(request)
	}
	if name == "" {
		return nil, func() {}
	}
	c.orderMu.Lock()
	defer c.orderMu.Unlock()
	mine := make(chan struct{})
	last := c.order[name]
	c.order[name] = mine
	return last, func() {
		c.orderMu.Lock()
		defer c.orderMu.Unlock()
		close(mine)
		if c.order[name] == mine {
			delete(c.order, name)
		}
	}
}

// reply sends the one reply to a request. It waits for room in its lane.
func (c *Conn) reply(id string, payload proto.Message, err error, urgent bool) {
	m := Wrap(id, payload)
	m.ErrorDetail = fault.Detail(err)
	o, tooLarge := c.encode(m)
	if tooLarge != nil {
		empty := Wrap(id, nil)
		if payload != nil {
			empty = Wrap(id, payload.ProtoReflect().Type().New().Interface())
		}
		empty.ErrorDetail = fault.Detail(tooLarge)
		o, _ = c.encode(empty)
	}
	if err := c.put(o, urgent); err != nil {
		c.warn("a reply came too late", err)
	}
}

// Send queues an event; false: it was dropped, because the host reads too slowly or has left. A telemetry report takes
// the place of one that still waits.
func (c *Conn) Send(id string, event proto.Message) bool {
	return c.send(id, event, false)
}

// SendUrgent is Send, ahead of all that waits.
func (c *Conn) SendUrgent(id string, event proto.Message) bool {
	return c.send(id, event, true)
}

func (c *Conn) send(id string, event proto.Message, urgent bool) bool {
	o, err := c.encode(Wrap(id, event))
	if err != nil {
		c.warn("an event was dropped", err)
		return false
	}
	if !c.heard.Load() && c.opening.Add(int64(len(o.buf))) > unsolicitedBudget {
		return false
	}
	if urgent {
		return c.put(o, true) == nil
	}
	_, o.replaceable = event.(*pb.TelemetryReport)
	return c.queue.offer(o)
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

func (c *Conn) encode(m *pb.AgentMessage) (outgoing, error) {
	m.Session = c.config.Session
	buf, err := marshal(m, c.room)
	if n := len(buf) - headerSpace; err == nil && n > MaxFrame {
		err = fault.Because(fault.ErrTooLarge, "reply of %d bytes is larger than %d", n, MaxFrame)
	}
	return outgoing{buf: buf}, err
}

// room gives a buffer for n bytes. Those for small messages are not worth keeping.
func (c *Conn) room(n int) []byte {
	if n < worthKeeping || n > pieceSize {
		return newRoom(n)
	}
	if kept, ok := c.frames.Get().(*[]byte); ok {
		return *kept
	}
	return make([]byte, pieceSize)
}

func newRoom(n int) []byte { return make([]byte, n) }

// written takes a buffer back whose frame is written.
func (c *Conn) written(buf []byte) {
	if cap(buf) == pieceSize {
		buf = buf[:pieceSize]
		c.frames.Put(&buf)
	}
}

// put sends a message: at once where nobody else writes and the channel takes it, and else by way of its lane.
func (c *Conn) put(o outgoing, urgent bool) error {
	channel, can := c.channel.(tryWriter)
	if !can || len(o.buf) > pieceSize || !c.queue.claim() {
		return c.queue.put(o, urgent)
	}
	frame := headed(Framing(c.writes.Load()), o.buf)
	n, err := channel.TryWrite(frame)
	if err != nil {
		c.queue.close(ErrHostGone)
		c.channel.Close()
	}
	c.queue.release(frame[n:])
	if n == len(frame) {
		c.written(o.buf)
	}
	return err
}

// write is the writer. A frame that has begun is finished unless the host leaves, which the channel tells as an error.
func (c *Conn) write() {
	for {
		o, ok := c.queue.next()
		if !ok {
			return
		}
		frame := o.buf
		if !o.begun {
			frame = headed(Framing(c.writes.Load()), o.buf)
		}
		if _, err := c.channel.Write(frame); err != nil {
			c.queue.close(ErrHostGone)
			c.channel.Close()
			return
		}
		if !o.begun {
			c.written(o.buf)
		}
	}
}

// headed puts the header before a payload that has headerSpace bytes of room there.
func headed(f Framing, buf []byte) []byte {
	var header [headerSpace]byte
	h := appendHeader(header[:0], f, len(buf)-headerSpace)
	frame := buf[headerSpace-len(h):]
	copy(frame, h)
	return frame
}

// WriteMessage writes one envelope as a frame, in one call. It is the host's side of writing; calls of it must not overlap.
func WriteMessage(to io.Writer, f Framing, m *pb.AgentMessage) error {
	frame, err := AppendMessage(nil, f, m)
	if err == nil {
		_, err = to.Write(frame)
	}
	return err
}

// AppendMessage adds one envelope to a buffer, as a frame: several of them can then be written in one call.
func AppendMessage(to []byte, f Framing, m *pb.AgentMessage) ([]byte, error) {
	buf, err := marshal(m, newRoom)
	if err != nil {
		return to, err
	}
	if n := len(buf) - headerSpace; n > MaxFrame {
		return to, fault.Because(fault.ErrTooLarge, "message of %d bytes is larger than %d", n, MaxFrame)
	}
	if to == nil {
		return headed(f, buf), nil
	}
	return append(to, headed(f, buf)...), nil
}
