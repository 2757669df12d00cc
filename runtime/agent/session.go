package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// Protocol is what hosts speak on a port. It serves one session: the bytes of one host, which come and go over conn.
//
// It returns when the host has left and the last request of the session has ended; an error is logged. Where the second
// comes later than the first it calls Session.HostLeft in between. conn is closed when it has returned, and may be closed
// earlier.
//
// ctx ends, with the cause ErrStopping, when the agent stops and has waited for all calls. The protocol then writes the
// replies that it owes and returns. 500 ms later conn is closed, which unblocks Read and Write.
type Protocol func(ctx context.Context, conn io.ReadWriteCloser, s *Session) error

// Session is one host's connection: what a protocol asks of the agent and reports to it.
type Session struct {
	agent  *Agent
	port   *openPort
	id     string
	vitals Vitals // the tracker's lock guards it
}

// Vitals report the state of a session, for get_status and the watchdog. The funcs must not block. Each may be nil.
type Vitals struct {
	// Heard returns when the host's last message came; the zero time: none has.
	Heard func() time.Time
	// Framing returns how messages to the host are framed, in one word.
	Framing func() string
	// Busy returns how long the reader has been dealing with what it read last; 0 while it reads. A reader that is busy for
	// 10 s is stuck, and the watchdog is no longer fed.
	Busy func() time.Duration
}

func (v Vitals) heard() time.Time {
	if v.Heard == nil {
		return time.Time{}
	}
	return v.Heard()
}

func (v Vitals) framing() string {
	if v.Framing == nil {
		return ""
	}
	return v.Framing()
}

func (v Vitals) busy() time.Duration {
	if v.Busy == nil {
		return 0
	}
	return v.Busy()
}

// serveSession serves a host that has come on a port, until it has left and its last request has ended.
func (a *Agent) serveSession(ctx context.Context, p *openPort, conn io.ReadWriteCloser) {
	s := &Session{agent: a, port: p, id: newID()}
	serve := a.config.Ports.Protocol(p.Name())
	if serve == nil {
		serve = serveNative
	}
	p.log.Debug("session opened", zap.String("session", s.id))
	a.tracker.begin(s)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(flushTimeout):
			conn.Close()
		case <-ended:
		}
	})
	err := serve(ctx, conn, s)
	stop()
	close(ended)
	conn.Close()
	s.HostLeft()
	p.log.Debug("session closed", zap.String("session", s.id), zap.Error(err))
}

// ID returns what no other session of this agent is called.
func (s *Session) ID() string { return s.id }

// Port returns the name of the port.
func (s *Session) Port() string { return s.port.Name() }

// Observe sets the funcs that report the state of the session.
func (s *Session) Observe(v Vitals) { s.agent.tracker.observe(s, v) }

// Warn logs what went wrong with the channel. What comes too often is counted only. err may be nil.
func (s *Session) Warn(text string, err error) { s.port.limiter.warn(text, err) }

// Call serves one native request of the host, under the rights of the port, and returns its reply; an error comes together
// with the reply that says so. id names the call, for a cancel request among others. event sends the host what operations
// report meanwhile and reports whether it went out; nil: the host hears none. A stopping agent cancels ctx of the operation
// with ErrStopping and waits for it; after that no call starts.
func (s *Session) Call(ctx context.Context, id string, request proto.Message, event func(proto.Message) bool) (proto.Message, error) {
	ctx, done, err := s.agent.calls.Start(ctx, s.Port(), id)
	if err != nil {
		return s.agent.refusal(request, err), err
	}
	defer done()
	if event == nil {
		event = func(proto.Message) bool { return false }
	}
	return s.agent.dispatch(ctx, &builtins.Call{ID: id, Port: s.Port(), Session: s.id, Event: event}, request)
}

// HostLeft says that the host is gone while requests of the session still run: what only this host could finish is dropped. It
// may be called again. The agent does so when the protocol has returned.
func (s *Session) HostLeft() {
	s.agent.tracker.end(s)
	s.agent.trim.Reset(trimAfter)
	s.agent.config.Hooks.SessionClosed(s.Port(), s.id)
}

// newID returns an id for an event or a session.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return "event-" + hex.EncodeToString(b[:])
}
