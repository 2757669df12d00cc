// Package helper is the process of the agent in a desktop session. It runs as the user of the session, with the session's
// environment, and is the only one that speaks to the X server, the compositor and the session's bus.
//
//	agent ── socketpair, descriptor 3 ──► Main ─► the function that Handle has for the type of the request ─► reply
//	  ◄────────────────────────────────── Emit: an event
//
// It ends when the agent closes the channel, and with the agent.
//
// Not here: what a request does (the room that it is of says that in its own package), and which session is in front.
package helper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// Timeout bounds a request that does not say how long it may take: a compositor that is silent for longer hangs.
	Timeout = 2 * time.Second
	// maxCalls are the requests that are served at the same time.
	maxCalls = 16
)

// Registry holds what a helper can do. Rooms fill it in; it is not changed any more when requests come.
type Registry struct {
	handlers map[string]handler
	closers  []func() error
	emit     func(proto.Message) error
}

type handler struct {
	in   proto.Message
	call func(context.Context, proto.Message) (proto.Message, error)
}

// Handle registers the function for requests of type In. A second one for a type is a programmer's mistake. The function must
// return soon after ctx has ended; it is called on a goroutine of its own, also while another call of it runs.
func Handle[In, Out proto.Message](r *Registry, f func(ctx context.Context, in In) (Out, error)) {
	var in In
	prototype := in.ProtoReflect().Type().Zero().Interface()
	name := ipc.Name(prototype)
	if _, twice := r.handlers[name]; twice {
		panic("two handlers for " + name)
	}
	r.handlers[name] = handler{prototype, func(ctx context.Context, message proto.Message) (proto.Message, error) {
		out, err := f(ctx, message.(In))
		if err != nil {
			return nil, err
		}
		return out, nil
	}}
}

// Emit sends the agent an event. It may be called once requests come, from any goroutine. It waits while the agent reads
// slowly; an error says that the event was not sent.
func (r *Registry) Emit(event proto.Message) error { return r.emit(event) }

// OnClose has a function called when the helper ends. The last one comes first.
func (r *Registry) OnClose(f func() error) { r.closers = append(r.closers, f) }

// Serve serves the requests that come over a channel until that ends. register fills in what can be done.
func Serve(channel io.ReadWriter, register func(*Registry)) error {
	s := &server{channel: channel, slots: make(chan struct{}, maxCalls)}
	r := &Registry{handlers: map[string]handler{}, emit: func(event proto.Message) error {
		frame, err := ipc.Pack(0, event)
		if err != nil {
			return err
		}
		return s.write(frame)
	}}
	register(r)
	ctx, stop := context.WithCancel(context.Background())
	err := s.serve(ctx, r)
	stop()
	s.calls.Wait()
	for i := len(r.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, r.closers[i]())
	}
	return err
}

type server struct {
	channel io.ReadWriter
	writing sync.Mutex
	slots   chan struct{}
	calls   sync.WaitGroup
}

func (s *server) write(frame *pb.SessionFrame) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return ipc.Write(s.channel, frame)
}

func (s *server) serve(ctx context.Context, r *Registry) error {
	for {
		frame, err := ipc.Read(s.channel)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.reply(frame.Id, nil, fault.Wrapf(fault.ErrBusy, "%d requests are being served by the session helper", maxCalls))
			continue
		}
		s.calls.Go(func() {
			defer func() { <-s.slots }()
			s.answer(ctx, r, frame)
		})
	}
}

// answer serves one request. A function that does not return in time is answered for.
func (s *server) answer(ctx context.Context, r *Registry, frame *pb.SessionFrame) {
	h, ok := r.handlers[frame.Type]
	if !ok {
		s.reply(frame.Id, nil, fault.Unsupported("the session helper does not know %s", frame.Type))
		return
	}
	in := h.in.ProtoReflect().New().Interface()
	if err := ipc.Decode(frame.Body, in); err != nil {
		s.reply(frame.Id, nil, err)
		return
	}
	limit := Timeout
	if frame.TimeoutMs > 0 {
		limit = time.Duration(frame.TimeoutMs) * time.Millisecond
	}
	late := fault.Wrapf(context.DeadlineExceeded, "the desktop does not answer (waited for %v)", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	var once sync.Once
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err := guarded(ctx, h, in)
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = context.Cause(ctx)
		}
		once.Do(func() { s.reply(frame.Id, out, err) })
	}()
	select {
	case <-done:
	case <-ctx.Done():
		once.Do(func() { s.reply(frame.Id, nil, context.Cause(ctx)) })
		<-done // the slot is taken until then, so that hanging calls are bounded
	}
}

// guarded calls a handler; a panic in it costs its request alone.
func guarded(ctx context.Context, h handler, in proto.Message) (out proto.Message, err error) {
	defer func() {
		if value := recover(); value != nil {
			out, err = nil, fault.Wrapf(fault.ErrInternal, "panic in the session helper: %v", value)
		}
	}()
	return h.call(ctx, in)
}

// reply sends a reply. Where that fails the channel is broken, which the reader sees.
func (s *server) reply(id uint64, out proto.Message, err error) {
	frame := &pb.SessionFrame{Id: id}
	if err == nil {
		frame, err = ipc.Pack(id, out)
	}
	if err == nil && len(frame.Body) > ipc.MaxFrame-1024 {
		err = fault.Wrapf(fault.ErrTooLarge, "a reply of %d bytes is larger than %d", len(frame.Body), ipc.MaxFrame-1024)
	}
	if err != nil {
		frame = &pb.SessionFrame{Id: id, Error: fault.Detail(err)}
	}
	s.write(frame) //nolint:errcheck // as said above
}

// Main is the helper's main program: it gives up what it does not need and serves descriptor 3. It returns the exit code.
func Main(register func(*Registry)) int {
	channel, err := openChannel()
	if err == nil {
		defer channel.Close()
		err = Serve(channel, register)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "session helper:", err)
		return 1
	}
	return 0
}
