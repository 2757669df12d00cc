package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Timeouts of a connection.
const (
	requestTimeout = 30 * time.Second // of a small request
	noTimeout      = 0
	connectTimeout = 5 * time.Second
	pingInterval   = 10 * time.Second // during a request
	pingTimeout    = 60 * time.Second // after which the guest counts as gone
	// cancelWait is how long exec and run wait for the reply of what they cancelled.
	cancelWait = 60 * time.Second
	// timeoutGrace is how much later than the guest's own timeout they give up; the reply of what they then cancel they await
	// for client.TimeoutWait.
	timeoutGrace = 5 * time.Second
	// interruptGrace is how long other requests may take to notice an interrupt.
	interruptGrace = 2 * time.Second
)

// session is a connection on which the agent has answered a ping.
type session struct {
	*client.Client
	path   string
	ctx    context.Context // ends with the interrupt, the timeout, and when the guest is gone
	grace  time.Duration   // how long the connection stays open after that
	events events
	stops  []func()
}

func (s *session) event(_ string, event proto.Message) { s.events.put(event) }

// closeAfter closes another connection of the session when that is over.
func (s *session) closeAfter(c *client.Client) {
	context.AfterFunc(s.ctx, func() { time.AfterFunc(s.grace, func() { c.Close() }) })
}

// connect finds the socket and connects. limit is the timeout of the command; grace is how long the connection stays open after
// ctx has ended.
func (a *app) connect(ctx context.Context, limit, grace time.Duration) (*session, error) {
	began := time.Now()
	for {
		s, err := a.connectOnce(ctx, limit, grace, time.Since(began))
		var f *failure
		noAnswer := client.Gone(err) || errors.As(err, &f) && f.code == exitNoAnswer
		if err == nil || !noAnswer || time.Since(began)+connectPause > a.timeout {
			return s, err
		}
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// connectPause is the pause between attempts to connect, as long as --timeout allows.
const connectPause = 200 * time.Millisecond

// connectOnce is one attempt. passed is what went by of the limit before.
func (a *app) connectOnce(ctx context.Context, limit, grace, passed time.Duration) (*session, error) {
	framing, err := wire.ParseFraming(a.framing)
	if err != nil {
		return nil, usage("--framing %s: it is plain or qtx1", a.framing)
	}
	if a.timeout < 0 {
		return nil, usage("--timeout %v: it is negative", a.timeout)
	}
	path, err := a.findSocket("/")
	if err != nil {
		return nil, err
	}
	s := &session{path: path, grace: grace}
	s.events.more = make(chan struct{}, 1)
	dialing, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	s.Client, err = client.Dial(dialing, path, client.Options{Framing: framing, Event: s.event, Recovering: a.noteRecovery})
	if err != nil {
		return nil, &failure{exitNoAnswer, err}
	}
	s.stops = append(s.stops, func() { s.Client.Close() })
	if err := s.Alive(ctx); err != nil {
		s.close()
		var network *net.OpError
		if errors.As(err, &network) { // the words of the library name neither end
			err = fault.Wrapf(err, "the connection to %s ended: %v", path, fault.Cause(network.Err))
		}
		return nil, err
	}
	if a.verbose {
		a.note("connected to %s", path)
	}
	s.limit(ctx, limit, passed)
	return s, nil
}

// noteRecovery says once why nothing happens for a while.
func (a *app) noteRecovery(error) {
	a.recovery.Do(func() { a.note("the agent takes back what an interruption left; waiting for that") })
}

// limit sets the context of the session, which ends when all of the limit has passed.
func (s *session) limit(ctx context.Context, limit, passed time.Duration) {
	if limit != noTimeout {
		limited, stop := context.WithTimeoutCause(ctx, limit-passed, fault.Wrapf(context.DeadlineExceeded, "it was not done within %v", limit))
		s.stops = append(s.stops, stop)
		ctx = limited
	}
	watched, stop := s.Watch(ctx, pingInterval, pingTimeout)
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
		select { // a blocked write ends only with the connection
		case <-ended:
		case <-time.After(s.grace):
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

// causeOf returns the reason why the session ended where err is only a consequence of that, and err otherwise.
func (s *session) causeOf(err error) error {
	if cause := context.Cause(s.ctx); err != nil && cause != nil && (client.Gone(err) || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// with calls do with a session, and closes that. limit is the timeout where the user sets none.
func (a *app) with(ctx context.Context, limit time.Duration, do func(*session) error) error {
	if a.timeout > 0 {
		limit = a.timeout
	}
	s, err := a.connect(ctx, limit, interruptGrace)
	if err != nil {
		return err
	}
	defer s.close()
	return s.causeOf(do(s))
}

// withCancelWait is with for commands whose timeout the guest enforces, and which wait for the reply of a cancelled request.
func (a *app) withCancelWait(ctx context.Context, do func(*session) error) error {
	limit := a.timeout
	if limit > 0 {
		limit += timeoutGrace // the guest's own timeout comes first
	}
	s, err := a.connect(ctx, limit, cancelWait+interruptGrace)
	if err != nil {
		return err
	}
	defer s.close()
	return s.causeOf(do(s))
}

func (a *app) findSocket(root string) (string, error) {
	for _, from := range []struct{ socket, vm, names string }{
		{a.socket, a.vm, "--socket or --vm"},
		{os.Getenv("QUANTIX_SOCKET"), os.Getenv("QUANTIX_VM"), "QUANTIX_SOCKET or QUANTIX_VM"},
		{a.settings.socket, a.settings.vm, "the setting socket or the setting vm"},
	} {
		switch {
		case from.vm != "" && from.socket != "":
			return "", usage("give %s, not both", from.names)
		case from.vm != "":
			return socketOf(root, from.vm)
		case from.socket != "":
			return from.socket, nil
		}
	}
	return "", usage("which virtual machine? Give --socket or --vm, or set QUANTIX_SOCKET or QUANTIX_VM; vms lists those of this host")
}

func socketOf(root, vm string) (string, error) {
	path, err := client.FindSocket(root, vm)
	if errors.Is(err, client.ErrAmbiguous) || errors.Is(err, fs.ErrInvalid) {
		return "", &failure{exitUsage, err}
	}
	if err != nil {
		return "", &failure{exitNoAnswer, err}
	}
	return path, nil
}

// events queues the events of the agent until they are taken; put never blocks.
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
