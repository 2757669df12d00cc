package wire

import (
	"context"
	"net"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// exchange returns a func that sends one request to a connection and reads its reply, for measuring. The bytes of the host's
// side are made once.
func exchange(t testing.TB, request proto.Message, reply proto.Message) (once func()) {
	t.Helper()
	guest, host := net.Pipe()
	conn := NewConn(guest, Config{
		Session: "the-session", Calls: &Calls{},
		Urgent: func(_ *Conn, request proto.Message) (proto.Message, bool) {
			_, ping := request.(*pb.PingRequest)
			return reply, ping
		},
		Handle:    func(context.Context, *Conn, string, proto.Message) (proto.Message, error) { return reply, nil },
		Refuse:    func(proto.Message, error) proto.Message { return nil },
		Mutates:   func(proto.Message) bool { return false },
		Transient: func(request proto.Message) bool { _, ping := request.(*pb.PingRequest); return !ping },
	})
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	t.Cleanup(func() {
		host.Close()
		<-served
	})
	frame := frameOf(Plain, envelopeOf(t, "the-request", request))
	buf := make([]byte, 1<<16)
	return func() {
		if _, err := host.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Read(buf); err != nil { // a reply of this size is one write
			t.Fatal(err)
		}
	}
}

var (
	pingExchange  = []proto.Message{&pb.PingRequest{Sequence: 2}, &pb.PongResponse{Sequence: 2, Version: "0.2.0"}}
	chunkExchange = []proto.Message{&pb.FileReadRequest{Path: "/x", ChunkSize: 31000}, &pb.FileReadResponse{Success: true, Data: make([]byte, 31000)}}
	writeExchange = []proto.Message{&pb.FileWriteRequest{Path: "/x", Data: make([]byte, 31000)}, &pb.FileWriteResponse{Success: true}}
)

func benchmarkExchange(b *testing.B, messages []proto.Message) {
	once := exchange(b, messages[0], messages[1])
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}

func BenchmarkPing(b *testing.B)       { benchmarkExchange(b, pingExchange) }
func BenchmarkReadChunk(b *testing.B)  { benchmarkExchange(b, chunkExchange) }
func BenchmarkWriteChunk(b *testing.B) { benchmarkExchange(b, writeExchange) }

// What one request allocates is bounded. The bounds are what was measured, and a half more for other versions of Go.
func TestAllocations(t *testing.T) {
	for _, c := range []struct {
		name     string
		messages []proto.Message
		most     float64
	}{{"ping", pingExchange, 15}, {"chunk to the host", chunkExchange, 1.5}, {"chunk from the host", writeExchange, 1.5}} {
		once := exchange(t, c.messages[0], c.messages[1])
		if got := testing.AllocsPerRun(200, once); got > c.most {
			t.Errorf("%s: %v allocations, at most %v belong there", c.name, got, c.most)
		}
	}
}
