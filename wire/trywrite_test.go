package wire

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// grudging is a channel that takes as much as it likes without waiting, and all of what may wait. It fails the test where
// two write at once.
type grudging struct {
	t  *testing.T
	in *io.PipeReader

	writing sync.Mutex
	mu      sync.Mutex
	random  *rand.Rand
	came    bytes.Buffer
	changed chan struct{}
}

func (g *grudging) Read(p []byte) (int, error) { return g.in.Read(p) }
func (g *grudging) Close() error               { return g.in.Close() }

func (g *grudging) Write(p []byte) (int, error) { return g.take(p, len(p)) }

func (g *grudging) TryWrite(p []byte) (int, error) { return g.take(p, -1) }

func (g *grudging) take(p []byte, n int) (int, error) {
	if !g.writing.TryLock() {
		g.t.Error("two write at once")
		g.writing.Lock()
	}
	defer g.writing.Unlock()
	g.mu.Lock()
	if n < 0 {
		n = []int{0, g.random.IntN(len(p) + 1), len(p)}[g.random.IntN(3)]
	}
	g.came.Write(p[:n])
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default:
	}
	return n, nil
}

// However much of a frame is taken at once, all of it goes out, once and whole, and a connection's bulk in its order.
func TestRepliesWrittenAtOnceArriveWhole(t *testing.T) {
	const senders, each = 4, 200
	in, toAgent := io.Pipe()
	g := &grudging{t: t, in: in, random: rand.New(rand.NewPCG(3, 4)), changed: make(chan struct{}, 1)}
	conn := NewConn(g, Config{Session: "s", Calls: &Calls{}})
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	var work sync.WaitGroup
	for s := range senders {
		work.Go(func() {
			for i := range each {
				call := &servedCall{conn: conn, id: fmt.Sprint(s, "-", i), urgent: s == 0, exempt: true}
				conn.replyTo(call, &pb.FileReadResponse{Data: bytes.Repeat([]byte{byte(i)}, 37*i)}, nil, replyMemory{})
			}
		})
	}
	work.Wait()
	flushed, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := conn.Flush(flushed); err != nil {
		t.Fatal(err)
	}
	toAgent.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	var d Decoder
	d.Feed(g.came.Bytes())
	next := [senders]int{}
	for range senders * each {
		frame, ok := d.Next()
		m := &pb.AgentMessage{}
		if !ok || proto.Unmarshal(frame.Payload, m) != nil {
			t.Fatalf("after %v the stream is broken", next)
		}
		var s, i int
		if _, err := fmt.Sscanf(m.MessageId, "%d-%d", &s, &i); err != nil || next[s] != i || len(m.GetFileReadResponse().Data) != 37*i {
			t.Fatalf("%s came where %d was due", m.MessageId, next[s])
		}
		next[s]++
	}
	if d.Pending() || d.Skipped() != 0 {
		t.Error("there is more than what was sent")
	}
}

// The content of a request that lies in its frame stays what it is while later frames come, until the reply is made.
func TestContentInItsFrameIsNotOverwritten(t *testing.T) {
	in, toAgent := io.Pipe()
	g := &grudging{t: t, in: in, random: rand.New(rand.NewPCG(5, 6)), changed: make(chan struct{}, 1)}
	const requests = 40
	wrong := make(chan string, requests)
	conn := NewConn(g, Config{
		Session: "s", Calls: &Calls{},
		Urgent:    func(*Conn, proto.Message) (proto.Message, bool) { return nil, false },
		Mutates:   func(proto.Message) bool { return false },
		Refuse:    func(proto.Message, error) proto.Message { return &pb.FileWriteResponse{} },
		Transient: func(proto.Message) bool { return true },
		Handle: func(_ context.Context, c *Conn, id string, request proto.Message) (proto.Message, error) {
			r := request.(*pb.FileWriteRequest)
			scratch := c.Scratch(id, 1000)
			for range 50 {
				for _, b := range r.Data {
					if b != byte(r.ChunkNumber) {
						wrong <- id
						return &pb.FileWriteResponse{}, nil
					}
				}
				copy(scratch, r.Data)
			}
			return &pb.FileWriteResponse{Success: bytes.Count(scratch, []byte{byte(r.ChunkNumber)}) == 1000}, nil
		},
	})
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	for i := range requests {
		m := Wrap(fmt.Sprint(i), &pb.FileWriteRequest{Path: "/x", ChunkNumber: uint32(i), Data: bytes.Repeat([]byte{byte(i)}, largeFieldMin+1000*i)})
		if err := WriteMessage(toAgent, Plain, m); err != nil {
			t.Fatal(err)
		}
	}
	flushed, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// The last request may not have been started yet when its bytes were taken: its reply tells.
	var d Decoder
	for seen, fed := 0, 0; seen < requests; {
		select {
		case <-g.changed:
		case <-flushed.Done():
			t.Fatalf("%d replies", seen)
		}
		g.mu.Lock()
		d.Feed(g.came.Bytes()[fed:])
		fed = g.came.Len()
		g.mu.Unlock()
		for {
			frame, ok := d.Next()
			if !ok {
				break
			}
			m := &pb.AgentMessage{}
			if err := proto.Unmarshal(frame.Payload, m); err != nil || !m.GetFileWriteResponse().GetSuccess() {
				t.Error(m, err)
			}
			seen++
		}
	}
	toAgent.Close()
	<-served
	select {
	case id := <-wrong:
		t.Error("the content of request", id, "was overwritten")
	default:
	}
}
