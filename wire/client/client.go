// Package client is the host's end of the channel: a connection to a guest agent with many requests in flight.
//
//	c, err := client.Dial(ctx, "/run/vm/agent.sock", client.Options{})
//	reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "uname", Args: []string{"-r"}})
//
// Errors of the agent satisfy errors.Is with the standard library's errors and with those of wire/fault.
//
// Not here: flags, printing, and what the agent does.
package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Options are all optional.
type Options struct {
	// Framing is how requests are framed; the zero value is plain.
	Framing wire.Framing
	// Event is called with each event, one at a time, on the goroutine that reads: it must not block.
	Event func(id string, event proto.Message)
	// Recovering is called with the agent's error when it refuses a request since it still takes back what an interruption
	// left. The request, of which nothing was done, is then sent again until it is served or its context ends. It may be called
	// from several goroutines. Nil: the error is the caller's.
	Recovering func(err error)
}

// Client is a connection to one agent. Its methods may be called from several goroutines.
type Client struct {
	options Options
	channel io.ReadWriteCloser
	writer  *writer

	host     uint64            // the number of this connection, in every request
	buffers  wire.BufferPool   // with a capacity of largeBuffer
	answered sync.Pool         // of *pending
	replies  wire.ReplyDecoder // the reader's

	mu       sync.Mutex
	pending  map[string]*pending
	streams  map[string]*Stream
	session  string // the agent's nonce, of its last message
	ready    *pb.AgentReadyEvent
	readySet chan struct{} // closed when ready is set
	received bool          // a message came
	check    *time.Timer   // runs while requests are awaited: asks the agent about those that are long
	checking bool          // check is set
	err      error
	done     chan struct{} // closed when the reader has ended
}

// readSize is the room for one read from the channel, in bytes.
const readSize = 64 << 10

// ErrNoAnswer is the cause of an error where nothing was received from the guest in time.
var ErrNoAnswer = errors.New("no answer")

// ErrLost is the error of a request that the agent does not know, and whose reply never came: whether it was carried out is
// not known. The client finds it out after lostInterval to twice as long, and Client.Watch sooner.
var ErrLost = errors.New("the request or its reply was lost on the way")

// New returns a client over a channel, which it owns.
func New(channel io.ReadWriteCloser, options Options) *Client {
	if options.Framing == wire.Auto {
		options.Framing = wire.Plain
	}
	c := &Client{
		options: options, channel: channel, writer: newWriter(channel),
		pending: map[string]*pending{}, host: newHost(),
		readySet: make(chan struct{}), done: make(chan struct{}),
	}
	c.check = time.AfterFunc(time.Hour, c.askForLost)
	c.check.Stop()
	go c.read()
	return c
}

// Close ends the connection; calls in flight fail.
func (c *Client) Close() error {
	err := c.channel.Close()
	<-c.done
	c.writer.close()
	return err
}

// Ready waits for agent_ready and returns it. An agent sends it as soon as a host connects: if nothing comes within two
// seconds, another client holds the socket, or no agent runs in the guest, and the error is ErrNoAnswer.
func (c *Client) Ready(ctx context.Context) (*pb.AgentReadyEvent, error) {
	limited, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	select {
	case <-c.readySet:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.ready, nil
	case <-c.done:
		return nil, c.cause()
	case <-limited.Done():
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("no agent_ready from the guest: another client holds the socket, or no agent runs there: %w", ErrNoAnswer)
	}
}

// Call sends a request and waits for its reply, which has the type Out unless the agent breaks the contract. When ctx
// ends first, the agent is asked to cancel the request. The error of a request that failed in the guest is the agent's;
// the reply, which may hold more, comes with it.
func Call[Out proto.Message](ctx context.Context, c *Client, request proto.Message) (Out, error) {
	return CallID[Out](ctx, c, NewID(), request)
}

// CallID is Call with a message id of the caller's.
func CallID[Out proto.Message](ctx context.Context, c *Client, id string, request proto.Message) (Out, error) {
	var none Out
	for {
		answer, err := c.exchange(ctx, id, request)
		if err != nil {
			return none, err
		}
		out, err := read[Out](answer)
		why := recovering(out, err)
		if why == nil || c.options.Recovering == nil {
			return out, err
		}
		c.options.Recovering(why)
		select {
		case <-time.After(recoveringPause):
		case <-ctx.Done():
			return out, err
		case <-c.done:
			return out, err
		}
	}
}

// recoveringPause is the pause before a request is sent again to an agent that recovers.
const recoveringPause = 250 * time.Millisecond

// recovering returns why an agent that still takes back what an interruption left refused a request; nil: it did not. What
// waits for a mount waits for people, and is an error like any other.
func recovering(reply proto.Message, err error) error {
	if run, ok := reply.(*pb.RunScriptResponse); ok && err == nil && run != nil &&
		run.Status == pb.ScriptStatus_SCRIPT_STATUS_REFUSED && run.Error.GetKind() == "busy" {
		err = &ScriptFailure{run.Error}
	}
	if !errors.Is(err, fault.ErrBusy) || strings.Contains(err.Error(), "waiting for ") {
		return nil
	}
	for _, words := range []string{"busy: recovering", "busy: an interrupted transaction is not rolled back yet"} {
		if strings.Contains(err.Error(), words) {
			return err
		}
	}
	return nil
}

// read returns the reply in an envelope, and the error that it reports.
func read[Out proto.Message](answer *pb.AgentMessage) (Out, error) {
	var none Out
	failure := fault.FromDetail(answer.ErrorDetail)
	out, ok := wire.Payload(answer).(Out)
	if !ok {
		if failure == nil {
			failure = fmt.Errorf("the agent gave an answer to another question: %s", payloadName(answer))
		}
		return none, failure
	}
	if failure == nil {
		failure = failureWithoutDetail(out)
	}
	return out, failure
}

// payloadName is the kind of an answer.
func payloadName(answer *pb.AgentMessage) string {
	payload := wire.Payload(answer)
	if payload == nil {
		return "none"
	}
	return string(payload.ProtoReflect().Descriptor().Name())
}

// failureWithoutDetail returns the error of a reply without error_detail, as agents other than this project's send it: an error
// text together with a success field that is false.
func failureWithoutDetail(reply proto.Message) error {
	m := reply.ProtoReflect()
	text, success := m.Descriptor().Fields().ByName("error"), m.Descriptor().Fields().ByName("success")
	if success == nil {
		success = m.Descriptor().Fields().ByName("accepted")
	}
	if text == nil || success == nil || text.Kind() != protoreflect.StringKind || m.Get(success).Bool() {
		return nil
	}
	if words := m.Get(text).String(); words != "" {
		return errors.New(words)
	}
	return errors.New("the agent reports no success")
}

// NewID returns a fresh message id: a random UUID (version 4).
func NewID() string { return string(appendID(make([]byte, 0, idSize))) }

// idSize is how long a UUID is as a text.
const idSize = 36

func appendID(to []byte) []byte {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	for i, part := range [][]byte{b[:4], b[4:6], b[6:8], b[8:10], b[10:]} {
		if i > 0 {
			to = append(to, '-')
		}
		to = hex.AppendEncode(to, part)
	}
	return to
}

// newHost returns a random number for a connection, which is not 0.
func newHost() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// exchange sends a request and waits for its reply. A request that the agent found uncertain is sent once more after a silence.
func (c *Client) exchange(ctx context.Context, id string, request proto.Message) (*pb.AgentMessage, error) {
	answer, err := c.attempt(ctx, id, request)
	if err != nil || answer.ErrorDetail.GetCode() != "uncertain" {
		return answer, err
	}
	select {
	case <-time.After(wire.PayloadTimeout + 100*time.Millisecond):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return c.attempt(ctx, id, request)
}

func (c *Client) attempt(ctx context.Context, id string, request proto.Message) (*pb.AgentMessage, error) {
	p, err := c.start(ctx, id, request)
	if err != nil {
		return nil, err
	}
	return p.answer(ctx)
}

// pending is a request that awaits its reply.
type pending struct {
	c    *Client
	id   string
	sent bool // all of it; guarded by the client's lock
	asks bool // it is a ping of askForLost; guarded likewise
	long bool // it was awaited when that ran last; guarded likewise
	wait chan *pb.AgentMessage
	buf  []byte // in which a part of the reply lies, once that has come
}

// start sends a request: requests leave in the order in which start was called. answer must be called.
func (c *Client) start(ctx context.Context, id string, request proto.Message) (*pending, error) {
	p, err := c.register(id)
	if err != nil {
		return nil, err
	}
	if err := p.send(ctx, request); err != nil {
		c.notSent(ctx, id)
		return nil, err
	}
	return p, nil
}

// answer waits for the reply. When ctx ends first, the agent is asked to cancel the request.
func (p *pending) answer(ctx context.Context) (*pb.AgentMessage, error) {
	defer p.c.unregister(p.id)
	select {
	case answer := <-p.wait:
		return p.read(answer)
	case <-p.c.done:
		select { // the answer may have come last
		case answer := <-p.wait:
			return p.read(answer)
		default:
			return nil, p.c.cause()
		}
	case <-ctx.Done():
		p.c.cancelLater(p.id)
		return nil, context.Cause(ctx)
	}
}

// read returns the answer, or ErrLost for nil, which stands for one that was lost.
func (p *pending) read(answer *pb.AgentMessage) (*pb.AgentMessage, error) {
	if answer == nil {
		return nil, fmt.Errorf("%w; whether it was carried out is not known", ErrLost)
	}
	return answer, nil
}

// send writes the request. It returns when ctx ends, also while the channel takes nothing.
func (p *pending) send(ctx context.Context, request proto.Message) error {
	frame, err := wire.AppendMessage(nil, p.c.options.Framing, p.c.envelope(ctx, p.id, request))
	if err == nil {
		err = p.c.writer.write(ctx, frame)
	}
	if err == nil {
		p.markSent()
	}
	return err
}

// markSent records that all of the request is on its way.
func (p *pending) markSent() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.sent = true
}

// register adds a request to those whose reply is awaited. unregister must be called, or answer.
func (c *Client) register(id string) (*pending, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if c.pending[id] != nil {
		return nil, fmt.Errorf("request %s is already in flight", id)
	}
	p, _ := c.answered.Get().(*pending)
	if p == nil {
		p = &pending{c: c, wait: make(chan *pb.AgentMessage, 1)}
	}
	p.id = id
	c.pending[id] = p
	c.scheduleCheck()
	return p, nil
}

// done gives a request back that was answered, to be used for another one.
func (p *pending) done() {
	*p = pending{c: p.c, wait: p.wait}
	p.c.answered.Put(p)
}

func (c *Client) unregister(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// cancelLater asks the agent to cancel a request, when the channel takes that message.
func (c *Client) cancelLater(id string) { c.sendLater(&pb.CancelRequest{MessageId: id}) }

// sendLater sends a request whose reply is not awaited, when the channel takes it.
func (c *Client) sendLater(request proto.Message) {
	m := c.envelope(context.Background(), NewID(), request)
	if frame, err := wire.AppendMessage(nil, c.options.Framing, m); err == nil && c.cause() == nil {
		c.writer.writeLater(frame)
	}
}

// envelope returns the envelope of a request.
func (c *Client) envelope(ctx context.Context, id string, request proto.Message) *pb.AgentMessage {
	m := wire.Wrap(id, request)
	c.address(ctx, m)
	return m
}

// address says in an envelope who asks whom, and until when.
func (c *Client) address(ctx context.Context, m *pb.AgentMessage) {
	m.Host = c.host
	if deadline, ok := ctx.Deadline(); ok {
		m.TimeoutMs = uint64(max(1, time.Until(deadline).Milliseconds()))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Session = c.session
}
