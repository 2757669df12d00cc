package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// line is a channel on which one host disconnects and another connects: a piece of input of no bytes is an end of file.
type line struct {
	net.Conn
	here   atomic.Bool
	unread bytes.Buffer
	ended  atomic.Bool // Unread was called, and unread may be read when the session is over
}

func (l *line) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if err == nil && n == len(absence) && bytes.Equal(p[:n], absence) {
		return 0, io.EOF
	}
	return n, err
}

func (l *line) AwaitHost() bool { return l.here.Load() }
func (l *line) Unread(p []byte) { l.unread.Write(p); l.ended.Store(true) }

// absence stands for an end of file, as one write.
var absence = []byte("nobody is here")

// lineTo serves a line with the agent of guest. over receives what Serve returned.
func lineTo(t *testing.T, change func(*Config)) (h *host, l *line, over <-chan error) {
	t.Helper()
	ended := make(chan error, 1)
	guestEnd, hostEnd := net.Pipe()
	l = &line{Conn: guestEnd}
	h, _ = guestOn(t, l, hostEnd, change, ended)
	return h, l, ended
}

func named(t *testing.T, id string, host uint64, request proto.Message) []byte {
	t.Helper()
	m := Wrap(id, request)
	m.Host = host
	frame, err := AppendMessage(nil, Plain, m)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func ended(t *testing.T, over <-chan error) {
	t.Helper()
	select {
	case err := <-over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the session goes on")
	}
}

// A numbered host that seems to disconnect for a moment keeps its session and its requests: the guest learned late that the
// previous host had disconnected. It is greeted again, since it may be another host after all.
func TestDisconnectOfThePreviousHostComesLate(t *testing.T) {
	release := make(chan struct{})
	greeted := make(chan struct{}, 9)
	h, l, over := lineTo(t, func(c *Config) {
		c.Greet = func(context.Context, *Conn) { greeted <- struct{}{} }
		c.Handle = func(ctx context.Context, _ *Conn, _ string, _ proto.Message) (proto.Message, error) {
			select {
			case <-release:
				return &pb.FileStatResponse{}, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	})
	l.here.Store(true)
	h.write(named(t, "stat", 7, &pb.FileStatRequest{}))
	greeting := func() {
		t.Helper()
		select {
		case <-greeted:
		case <-time.After(20 * time.Second):
			t.Fatal("the host is not greeted")
		}
	}
	greeting()
	greeting() // behind the first frame
	h.write(absence)
	greeting()
	close(release)
	if m := h.answer("stat"); m.ErrorDetail != nil {
		t.Error(m.ErrorDetail)
	}
	h.write(named(t, "ping", 7, &pb.PingRequest{}))
	h.answer("ping")
	l.here.Store(false)
	h.write(absence)
	ended(t, over)
}

// A disconnect ends at once the session of a host without a number, and one in the middle of a frame.
func TestHostsWhoseSessionsEndAtOnce(t *testing.T) {
	for name, first := range map[string]struct{ bytes, then []byte }{
		"no name": {bytes: named(t, "ping", 0, &pb.PingRequest{})},
		"half":    {bytes: named(t, "ping", 7, &pb.PingRequest{}), then: named(t, "half", 7, &pb.PingRequest{})[:9]},
	} {
		t.Run(name, func(t *testing.T) {
			h, l, over := lineTo(t, nil)
			l.here.Store(true)
			h.write(first.bytes)
			h.answer("ping")
			if first.then != nil {
				h.write(first.then)
			}
			h.write(absence)
			ended(t, over)
		})
	}
}

// A ping that came with the disconnect of the previous host may be the next host's: where its pong could not be written it is
// put back for the next session, if a host is there. One that was answered is not, nor is a request whose answer is nobody's
// sign of life.
func TestPingThatComesWithADisconnectIsPutBack(t *testing.T) {
	first, second := named(t, "first", 0, &pb.PingRequest{Sequence: 3}), named(t, "second", 0, &pb.PingRequest{Sequence: 4})
	for name, c := range map[string]struct {
		here bool
		read string // what is read of the agent first
		want []byte
	}{
		"a host is there": {true, "", concat(first, second)}, "none is": {false, "", nil}, "the first was answered": {true, "first", second},
	} {
		t.Run(name, func(t *testing.T) {
			h, l, over := lineTo(t, nil)
			l.here.Store(c.here)
			h.write(first)
			if c.read != "" {
				h.answer(c.read)
			}
			h.write(second)
			h.write(named(t, "stat", 0, &pb.FileStatRequest{}))
			h.write(absence)
			ended(t, over)
			if got := l.unread.Bytes(); !bytes.Equal(got, c.want) {
				t.Errorf("%q is left for the next host, want %q", got, c.want)
			}
		})
	}
}

// Another host's first request ends the session, cancels the requests of the previous host that change nothing, and is put back
// for the next session with all bytes after it.
func TestRequestOfAnotherHostEndsTheSession(t *testing.T) {
	for name, hosts := range map[string][2]uint64{"two names": {7, 8}, "a name then none": {7, 0}, "none then a name": {0, 8}} {
		t.Run(name, func(t *testing.T) {
			begun, cancelled := make(chan bool, 1), make(chan error, 1)
			h, l, over := lineTo(t, func(c *Config) {
				c.Handle = func(ctx context.Context, _ *Conn, _ string, _ proto.Message) (proto.Message, error) {
					begun <- true
					<-ctx.Done()
					cancelled <- context.Cause(ctx)
					return nil, nil
				}
			})
			h.write(named(t, "ping", hosts[0], &pb.PingRequest{}))
			h.answer("ping")
			h.write(named(t, "read", hosts[0], &pb.FileReadRequest{}))
			<-begun // one that is cancelled before that is not handled at all
			next := append(named(t, "hello", hosts[1], &pb.PingRequest{}), named(t, "more", hosts[1], &pb.PingRequest{})[:11]...)
			h.write(next)
			ended(t, over)
			if err := <-cancelled; !errors.Is(err, ErrHostGone) {
				t.Error(err)
			}
			if !bytes.Equal(l.unread.Bytes(), next) {
				t.Errorf("%q is left for the next host, want %q", l.unread.Bytes(), next)
			}
		})
	}
}

// A request hidden in bytes that belong to no frame ends no session, whatever its host number.
func TestNameInGarbage(t *testing.T) {
	h, _, _ := lineTo(t, nil)
	h.write(named(t, "ping", 7, &pb.PingRequest{}))
	h.answer("ping")
	h.write(append([]byte("\xffgarbage"), named(t, "hidden", 8, &pb.PingRequest{})...))
	h.answer("hidden")
	h.write(named(t, "again", 7, &pb.PingRequest{}))
	h.answer("again")
}

// The frame that a host was reading when another one sent a request is finished: its rest is what the next host reads first.
// What was queued after it is not sent.
func TestFrameUnderWayIsFinishedForTheNextHost(t *testing.T) {
	h, l, over := lineTo(t, nil)
	size := 300_000
	h.write(named(t, "long", 7, &pb.ExecuteRequest{Command: string(bytes.Repeat([]byte("x"), size))}))
	begin := make([]byte, 100)
	h.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(h.conn, begin); err != nil {
		t.Fatal(err)
	}
	h.write(named(t, "second", 7, &pb.ExecuteRequest{Command: "y"}))
	next := named(t, "hello", 8, &pb.PingRequest{})
	h.write(next)
	for !l.ended.Load() { // else what is queued could begin before the request is seen
		time.Sleep(10 * time.Millisecond)
	}
	h.dec.Feed(begin)
	if m := h.answer("long"); len(m.GetExecuteResponse().GetStdout()) != size {
		t.Errorf("%d bytes", len(m.GetExecuteResponse().GetStdout()))
	}
	ended(t, over)
	if !bytes.Equal(l.unread.Bytes(), next) {
		t.Errorf("%q is left for the next host", l.unread.Bytes())
	}
	h.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := h.conn.Read(begin); n != 0 || err != io.EOF {
		t.Errorf("%d more bytes were sent: %v", n, err)
	}
}

// Ids that name a request which is served are known, others are not.
func TestUnknown(t *testing.T) {
	conn := make(chan *Conn, 1)
	h, _ := guest(t, func(c *Config) {
		c.Handle = func(ctx context.Context, c *Conn, _ string, _ proto.Message) (proto.Message, error) {
			conn <- c
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
	})
	h.send(Plain, "served", &pb.FileReadRequest{})
	if got := (<-conn).Unknown([]string{"served", "other"}); len(got) != 1 || got[0] != "other" {
		t.Error(got)
	}
}
