package wire

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// served serves one end of a pipe with a handler, and returns the other one.
func served(t *testing.T, handle func(ctx context.Context, request proto.Message) proto.Message) net.Conn {
	t.Helper()
	guest, host := net.Pipe()
	conn := NewConn(guest, Config{
		Session: "the-session", Calls: &Calls{},
		Urgent: func(*Conn, proto.Message) (proto.Message, bool) { return nil, false },
		Handle: func(ctx context.Context, _ *Conn, _ string, request proto.Message) (proto.Message, error) {
			return handle(ctx, request), nil
		},
		Refuse: func(proto.Message, error) proto.Message { return nil }, Mutates: func(proto.Message) bool { return true },
		Transient: func(request proto.Message) bool { _, is := request.(*pb.FileWriteRequest); return is },
	})
	ended := make(chan error, 1)
	go func() { ended <- conn.Serve(context.Background()) }()
	t.Cleanup(func() { host.Close(); <-ended })
	return host
}

// A handler can have something done once its reply has left, and not before.
func TestAfterReply(t *testing.T) {
	called := make(chan string, 3)
	exchanges := make(chan *Exchange, 1)
	began := time.Now()
	host := served(t, func(ctx context.Context, _ proto.Message) proto.Message {
		e := ExchangeOf(ctx)
		e.AfterReply(func() { called <- "first" })
		exchanges <- e
		return &pb.ShutdownResponse{Accepted: true}
	})
	if _, err := host.Write(frameOf(Plain, envelopeOf(t, "the-request", &pb.ShutdownRequest{}))); err != nil {
		t.Fatal(err)
	}
	e := <-exchanges
	if e.Received.Before(began) || time.Since(e.Received) < 0 {
		t.Error("it was received at", e.Received)
	}
	select {
	case <-called:
		t.Fatal("it is called before the host has read the reply")
	case <-time.After(200 * time.Millisecond):
	}
	if _, err := host.Read(make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	if got := <-called; got != "first" {
		t.Error(got)
	}
	e.AfterReply(func() { called <- "late" })
	if got := <-called; got != "late" {
		t.Error(got)
	}
}

// It is called, too, where the host leaves without having read the reply.
func TestAfterReplyWithoutAHost(t *testing.T) {
	called, reading := make(chan bool, 1), make(chan bool)
	host := served(t, func(ctx context.Context, _ proto.Message) proto.Message {
		ExchangeOf(ctx).AfterReply(func() { called <- true })
		close(reading)
		return &pb.ShutdownResponse{Accepted: true}
	})
	if _, err := host.Write(frameOf(Plain, envelopeOf(t, "the-request", &pb.ShutdownRequest{}))); err != nil {
		t.Fatal(err)
	}
	<-reading
	host.Close()
	<-called
}

// A host that neither reads nor leaves holds it up for a bounded time.
func TestAfterReplyIsBounded(t *testing.T) {
	began := time.Now()
	called := make(chan bool, 1)
	host := served(t, func(ctx context.Context, _ proto.Message) proto.Message {
		ExchangeOf(ctx).AfterReply(func() { called <- true })
		return &pb.ShutdownResponse{Accepted: true}
	})
	if _, err := host.Write(frameOf(Plain, envelopeOf(t, "the-request", &pb.ShutdownRequest{}))); err != nil {
		t.Fatal(err)
	}
	<-called
	if took := time.Since(began); took < replyTimeout {
		t.Errorf("it was called after %v, while the reply could still leave", took)
	}
}

// What a request says of its sending is known; of what is asked for very often nothing is kept.
func TestExchangeOfARequest(t *testing.T) {
	sent := make(chan time.Time, 1)
	host := served(t, func(ctx context.Context, request proto.Message) proto.Message {
		if e := ExchangeOf(ctx); e != nil {
			sent <- e.Sent
		} else if _, is := request.(*pb.FileWriteRequest); is {
			sent <- time.Time{}
		}
		return &pb.FileWriteResponse{Success: true}
	})
	go io.Copy(io.Discard, host)
	m := Wrap("a", &pb.SyncTimeRequest{})
	frame, err := AppendMessage(nil, Plain, m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write(frame); err != nil {
		t.Fatal(err)
	}
	if got := <-sent; !got.Equal(m.Timestamp.AsTime()) {
		t.Errorf("it was sent at %v, and not at %v", got, m.Timestamp.AsTime())
	}
	if _, err := host.Write(frameOf(Plain, envelopeOf(t, "b", &pb.FileWriteRequest{Path: "/x"}))); err != nil {
		t.Fatal(err)
	}
	if got := <-sent; !got.IsZero() {
		t.Error(got)
	}
	if ExchangeOf(context.Background()) != nil {
		t.Error("a context without a request has one")
	}
}
