package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Times of a connection.
const (
	answerWithin = 30 * time.Second // what a small request may take
	unlimited    = 0
	connectIn    = 5 * time.Second
	pingEvery    = 10 * time.Second // while a request takes long
	pingPatience = 60 * time.Second // then the guest counts as gone
	// lastWords is how long exec and run wait for the end of what they cancelled.
	lastWords = 60 * time.Second
	// hangUp is how long other requests may take to notice an interrupt.
	hangUp = 2 * time.Second
)

// session is a connection to an agent that has given a sign of life.
type session struct {
	*client.Client
	path     string
	ctx      context.Context // ends with the interrupt, the timeout, and when the guest is gone
	patience time.Duration   // how long a connection lives after that
	events   events
	stops    []func()
}

func (s *session) event(_ string, event proto.Message) { s.events.put(event) }

// endAfter closes another connection of the session when that is over.
func (s *session) endAfter(c *client.Client) {
	context.AfterFunc(s.ctx, func() { time.AfterFunc(s.patience, func() { c.Close() }) })
}

// connect finds the socket and connects. limit is the time that the command has, where the user says nothing; patience is
// how long the connection lives after ctx has ended.
func (a *app) connect(ctx context.Context, limit, patience time.Duration) (*session, error) {
	framing, err := wire.ParseFraming(a.framing)
	if err != nil || a.timeout < 0 {
		return nil, usage("--framing is plain or qtx1, and --timeout is not negative")
	}
	path, err := a.findSocket("/")
	if err != nil {
		return nil, err
	}
	s := &session{path: path, patience: patience}
	s.events.more = make(chan struct{}, 1)
	dialing, stop := context.WithTimeout(ctx, connectIn)
	defer stop()
	s.Client, err = client.Dial(dialing, path, client.Options{Framing: framing, Event: s.event})
	if err != nil {
		return nil, &failure{exitGone, err}
	}
	s.stops = append(s.stops, func() { s.Client.Close() })
	if err := s.Alive(ctx); err != nil {
		s.close()
		return nil, err
	}
	s.limit(ctx, limit)
	return s, nil
}

// limit makes the context of the session.
func (s *session) limit(ctx context.Context, limit time.Duration) {
	if limit != unlimited {
		limited, stop := context.WithTimeoutCause(ctx, limit, fault.Wrapf(context.DeadlineExceeded, "it was not done within %v", limit))
		s.stops = append(s.stops, stop)
		ctx = limited
	}
	watched, stop := s.Watch(ctx, pingEvery, pingPatience)
	s.ctx = watched
	s.stops = append(s.stops, stop)
	ended, joined := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(joined)
		select {
		case <-ended:
			return
		case <-watched.Done():
		}
		select { // what hangs in a write notices nothing else
		case <-ended:
		case <-time.After(s.patience):
			s.Client.Close()
		}
	}()
	s.stops = append(s.stops, func() { close(ended); <-joined })
}

// close ends the session.
func (s *session) close() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// why gives the better reason: what fails because the session ended tells only how.
func (s *session) why(err error) error {
	if cause := context.Cause(s.ctx); err != nil && cause != nil && (client.Gone(err) || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// with connects, does something, and ends the connection.
func (a *app) with(ctx context.Context, limit time.Duration, do func(*session) error) error {
	if a.timeout > 0 {
		limit = a.timeout
	}
	s, err := a.connect(ctx, limit, hangUp)
	if err != nil {
		return err
	}
	defer s.close()
	return s.why(do(s))
}

// withPatience is with, for commands that tell the guest their timeout and want its last words.
func (a *app) withPatience(ctx context.Context, do func(*session) error) error {
	limit := a.timeout
	if limit > 0 {
		limit += lastWords / 4 // the guest's own timeout comes first
	}
	s, err := a.connect(ctx, limit, lastWords+hangUp)
	if err != nil {
		return err
	}
	defer s.close()
	return s.why(do(s))
}

func (a *app) findSocket(root string) (string, error) {
	switch {
	case a.vm != "" && a.socket != "":
		return "", usage("give --socket or --vm, not both")
	case a.vm != "":
		path, err := client.FindSocket(root, a.vm)
		if errors.Is(err, client.ErrAmbiguous) || errors.Is(err, fs.ErrInvalid) {
			return "", &failure{exitUsage, err}
		}
		if err != nil {
			return "", &failure{exitGone, err}
		}
		return path, nil
	case a.socket != "":
		return a.socket, nil
	}
	if path := os.Getenv("QUANTIX_SOCKET"); path != "" {
		return path, nil
	}
	return "", usage("which virtual machine? Give --socket or --vm, or set QUANTIX_SOCKET")
}

// events keeps what the agent says by itself until somebody takes it; putting never waits.
type events struct {
	mu   sync.Mutex
	list []proto.Message
	more chan struct{} // has a token when the list may not be empty
}

func (e *events) put(event proto.Message) {
	e.mu.Lock()
	e.list = append(e.list, event)
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

func (e *events) take() []proto.Message {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}
