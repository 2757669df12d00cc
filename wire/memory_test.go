package wire

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func write(t *testing.T, id string, n int) []byte {
	t.Helper()
	return frameOf(QTX1, envelopeOf(t, id, &pb.FileWriteRequest{Path: "/f", Data: make([]byte, n)}))
}

// idle fails the test unless all memory is given back soon.
func idle(t *testing.T, m *Memory, n int) {
	t.Helper()
	for range 2000 {
		m.mu.Lock()
		left := m.left
		m.mu.Unlock()
		if left == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d bytes of %d are left when all is answered", m.left, n)
}

// Connections share the memory for requests. A frame that finds none is refused by its id before its end has come, and skipped;
// pings behind it and on other connections are answered. What its host does not go on with is given back.
func TestConnectionsShareMemory(t *testing.T) {
	const all = 10 << 20
	memory := NewMemory(all)
	one, _ := guest(t, func(c *Config) { c.Memory = memory })
	other, _ := guest(t, func(c *Config) { c.Memory = memory })
	one.write(write(t, "first", 7<<20)[:1<<20])
	for i := range 2 {
		id := fmt.Sprint("second-", i)
		frame := write(t, id, 4<<20)
		other.write(frame[:1<<20])
		if m := other.answer(id); m.ErrorDetail.GetCode() != "busy" || !m.ErrorDetail.Retryable {
			t.Fatal(m)
		}
		other.write(frame[1<<20:])
		other.send(QTX1, "ping", &pb.PingRequest{Sequence: 7})
		if m := other.answer("ping"); m.GetPong().GetSequence() != 7 {
			t.Fatal(m)
		}
	}
	other.write(write(t, "small", 2<<20)) // there is room for it
	if m := other.answer("small"); m.ErrorDetail.GetCode() != "unsupported" {
		t.Error(m)
	}
	one.conn.Close()
	idle(t, memory, all)
	other.write(write(t, "second", 8<<20))
	if m := other.answer("second"); m.ErrorDetail.GetCode() != "unsupported" {
		t.Error(m)
	}
	idle(t, memory, all)
}

// A frame waits a little for memory that others are about to give back.
func TestFramesWaitForMemory(t *testing.T) {
	const all = 10 << 20
	memory := NewMemory(all)
	one, _ := guest(t, func(c *Config) { c.Memory = memory })
	if _, taken := memory.tryTake(all); !taken {
		t.Fatal("not taken")
	}
	time.AfterFunc(memoryWait/10, func() { memory.give(all) })
	one.write(write(t, "waits", 4<<20))
	if m := one.answer("waits"); m.ErrorDetail.GetCode() != "unsupported" {
		t.Error(m)
	}
	idle(t, memory, all)
}

// A host that sends a frame ever more slowly, or stops, does not keep others from the memory for ever.
func TestSlowFramesGiveMemoryBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all = 20 << 20
		memory := NewMemory(all)
		one, _ := guest(t, func(c *Config) { c.Memory = memory })
		frame := write(t, "slow", 16<<20-100)
		begun := time.Now()
		one.write(frame[:1<<20])
		for at := 1 << 20; ; at++ {
			one.write(frame[at : at+1])
			time.Sleep(PayloadTimeout * 3 / 4)
			if _, taken := memory.tryTake(all); taken {
				break
			}
			if time.Since(begun) > time.Minute {
				t.Fatal("the memory is still taken")
			}
		}
		memory.give(all)
		one.conn.Close()
	})
}

// A host that begins a frame and says nothing more does not hold the memory for it.
func TestSilentHostsGiveMemoryBack(t *testing.T) {
	const all = 20 << 20
	memory := NewMemory(all)
	one, _ := guest(t, func(c *Config) { c.Memory = memory })
	other, _ := guest(t, func(c *Config) { c.Memory = memory })
	one.write(write(t, "silent", 15<<20)[:600])
	for range 1000 {
		if freed, taken := memory.tryTake(all); !taken {
			<-freed
			break
		}
		memory.give(all)
		time.Sleep(10 * time.Millisecond)
	}
	other.write(write(t, "other", 15<<20))
	if m := other.answer("other"); m.ErrorDetail.GetCode() != "unsupported" {
		t.Error(m)
	}
	one.send(QTX1, "ping", &pb.PingRequest{Sequence: 7}) // it is a host as before
	if m := one.answer("ping"); m.GetPong().GetSequence() != 7 {
		t.Error(m)
	}
	idle(t, memory, all)
}

// A host that asks for many large replies makes the guest hold few of them, whether it reads them or not.
func TestLargeRepliesAreMadeOneByOne(t *testing.T) {
	const asked = 8
	var made atomic.Int32
	h, _ := guest(t, func(c *Config) {
		c.Large = func(request proto.Message) bool { _, ok := request.(*pb.ListDirectoryRequest); return ok }
		c.Handle = func(context.Context, *Conn, string, proto.Message) (proto.Message, error) {
			made.Add(1)
			return &pb.ListDirectoryResponse{Error: strings.Repeat("x", 6<<20)}, nil
		}
	})
	for i := range asked {
		h.send(QTX1, fmt.Sprint("list-", i), &pb.ListDirectoryRequest{Path: "/"})
	}
	for made.Load() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // for more than may be
	if n := made.Load(); n > 3 {
		t.Errorf("%d replies were made that nobody reads", n)
	}
	for i := range asked {
		if m := h.answer(fmt.Sprint("list-", i)); len(m.GetListDirectoryResponse().GetError()) != 6<<20 {
			t.Error(i, m.ErrorDetail)
		}
	}
}

// What requests take is given back when they are answered, however they end; also what they take that wait.
func TestRequestsGiveMemoryBack(t *testing.T) {
	const all, n = 10 << 20, 12
	memory := NewMemory(all)
	h, calls := guest(t, func(c *Config) { c.Memory = memory })
	go func() {
		for i := range n {
			h.conn.Write(frameOf(Plain, envelopeOf(t, fmt.Sprint("read-", i), &pb.FileReadRequest{Path: string(make([]byte, 1000<<10))})))
		}
		h.conn.Write(frameOf(Plain, envelopeOf(t, "bomb", &pb.ExecuteRequest{Args: make([]string, 1<<20)})))
		h.conn.Write(frameOf(Plain, envelopeOf(t, "unknown", &pb.FileReadResponse{Data: make([]byte, 100<<10)})))
		h.conn.Write(frameOf(Plain, envelopeOf(t, "end", &pb.PingRequest{})))
	}()
	refused := 0
	for id := ""; id != "end"; {
		m, _ := h.next()
		id = m.MessageId
		switch m.ErrorDetail.GetCode() {
		case "busy":
			refused++
		case "", "too_large":
		default:
			t.Fatal(m)
		}
	}
	if refused == 0 {
		t.Error("all requests found memory")
	}
	for i := range n {
		if calls.Cancel(fmt.Sprint("read-", i), anyPort) {
			h.answer(fmt.Sprint("read-", i))
		}
	}
	idle(t, memory, all)
}

// The bytes of a request that stay in its frame are its own while it is served, whatever comes meanwhile.
func TestRequestsKeepTheirFrames(t *testing.T) {
	const requests = 5

	handled, proceed := make(chan struct{}, requests), make(chan struct{})
	h, _ := guest(t, func(c *Config) {
		c.Memory = NewMemory(20 << 20)
		c.Transient = func(proto.Message) bool { return true }
		c.Handle = func(_ context.Context, _ *Conn, _ string, request proto.Message) (proto.Message, error) {
			handled <- struct{}{}
			<-proceed
			data := request.(*pb.FileWriteRequest).Data
			for _, b := range data {
				if b != data[0] {
					return &pb.FileWriteResponse{BytesWritten: 99}, nil
				}
			}
			return &pb.FileWriteResponse{BytesWritten: uint64(data[0])}, nil
		}
	})
	for i := range requests {
		data := make([]byte, 200<<10)
		for k := range data {
			data[k] = byte(i)
		}
		h.write(frameOf(Plain, envelopeOf(t, fmt.Sprint(i), &pb.FileWriteRequest{Path: fmt.Sprint(i), Data: data})))
		<-handled
	}
	close(proceed)
	for i := range requests {
		if m := h.answer(fmt.Sprint(i)); m.GetFileWriteResponse().GetBytesWritten() != uint64(i) {
			t.Error(m)
		}
	}
}

// Requests that come together and find no memory wait together, and not each for itself: a ping after them comes soon.
func TestRequestsWaitForMemoryTogether(t *testing.T) {
	const all, requests = 17 << 20, 15
	memory := NewMemory(all)
	host, _ := guest(t, func(c *Config) { c.Memory = memory })
	memory.tryTake(all)
	var stream []byte
	for i := range requests {
		stream = append(stream, frameOf(QTX1, envelopeOf(t, fmt.Sprint(i), &pb.FileReadRequest{Path: string(make([]byte, 2*freeRequest))}))...)
	}
	stream = append(stream, frameOf(QTX1, envelopeOf(t, "ping", &pb.PingRequest{Sequence: 7}))...)
	start := time.Now()
	go host.conn.Write(stream)
	host.answer("ping")
	if took := time.Since(start); took > requests*memoryWait/2 {
		t.Errorf("the pong came after %v", took)
	}
}

// Frames that are found in one that is given up do not wait for memory: its own is given back only behind them.
func TestFramesInOneThatIsGivenUpDoNotWait(t *testing.T) {
	const all, requests = 34 << 20, 40
	memory := NewMemory(all)
	host, _ := guest(t, func(c *Config) { c.Memory = memory })
	memory.tryTake(all - 17<<20)
	go func() {
		host.conn.Write(write(t, "large", 16<<20-1000)[:200])
		for i := range requests {
			host.conn.Write(frameOf(QTX1, envelopeOf(t, fmt.Sprint(i), &pb.FileReadRequest{Path: string(make([]byte, 256<<10))})))
		}
		time.Sleep(PayloadTimeout + PayloadTimeout/4)
		host.conn.Write(frameOf(QTX1, envelopeOf(t, "ping", &pb.PingRequest{Sequence: 7})))
	}()
	start := time.Now()
	host.answer("ping")
	if took := time.Since(start); took > PayloadTimeout+requests*memoryWait*3/4 {
		t.Errorf("the pong came after %v", took)
	}
}

// Replies that nobody reads take no more than their share of the memory, by however many connections they were asked for. One
// that finds none is a refusal, and the memory is given back when a reply is written or its host leaves.
func TestConnectionsShareMemoryForReplies(t *testing.T) {
	const all, size, connections = 20 << 20, 6 << 20, 6
	memory := NewMemory(2 * all)
	memory.wait = 5 * time.Second
	var hosts []*host
	for range connections {
		h, _ := guest(t, func(c *Config) {
			c.Memory = memory
			c.Large = func(request proto.Message) bool { _, ok := request.(*pb.ListDirectoryRequest); return ok }
			c.Handle = func(context.Context, *Conn, string, proto.Message) (proto.Message, error) {
				return &pb.ListDirectoryResponse{Error: strings.Repeat("x", size)}, nil
			}
		})
		hosts = append(hosts, h)
		h.send(QTX1, "list", &pb.ListDirectoryRequest{Path: "/"})
	}
	var left int
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) { // nobody reads
		memory.replies.mu.Lock()
		left = memory.replies.left
		memory.replies.mu.Unlock()
		if want := all % size; left <= want && left > want-1000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are left of %d, for replies of %d", left, all, size)
		}
	}
	time.Sleep(2 * memory.wait) // those that find no memory are refused
	refused := 0
	for _, h := range hosts[1:] {
		switch m := h.answer("list"); {
		case m.ErrorDetail.GetCode() == "busy" && m.ErrorDetail.Retryable:
			refused++
		case len(m.GetListDirectoryResponse().GetError()) != size:
			t.Error(m.ErrorDetail)
		}
	}
	if most := connections - all/size; refused != most && refused != most-1 { // the first host's may be one of them
		t.Errorf("%d of %d are refused", refused, connections)
	}
	hosts[0].conn.Close()
	idle(t, memory.replies, all)
	hosts[1].send(QTX1, "again", &pb.ListDirectoryRequest{Path: "/"})
	if m := hosts[1].answer("again"); len(m.GetListDirectoryResponse().GetError()) != size {
		t.Error(m.ErrorDetail)
	}
	idle(t, memory.replies, all)
	idle(t, memory, 2*all)
}

// Memory that a request takes for its reply before that is made is held until the reply is written: another one waits for it,
// and is told where it finds none in time.
func TestMemoryForAReplyBeforeItIsMade(t *testing.T) {
	const all, size = 20 << 20, 8 << 20
	memory := NewMemory(all)
	memory.wait = 500 * time.Millisecond
	held := make(chan error, 2)
	ask := func() *host {
		h, _ := guest(t, func(c *Config) {
			c.Memory = memory
			c.Handle = func(ctx context.Context, _ *Conn, _ string, _ proto.Message) (proto.Message, error) {
				held <- ExchangeOf(ctx).HoldReply(size)
				return &pb.ExecuteResponse{Stdout: strings.Repeat("x", size)}, nil
			}
		})
		h.send(QTX1, "execute", &pb.ExecuteRequest{Command: "true"})
		return h
	}
	first := ask()
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	second := ask() // while nobody reads the reply to the first one
	if err := <-held; !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	for _, h := range []*host{first, second} {
		if m := h.answer("execute"); len(m.GetExecuteResponse().GetStdout()) != size {
			t.Error(m.ErrorDetail)
		}
	}
	idle(t, memory.replies, all/2)
	idle(t, memory, all)
}

// Memory is given back once its buffer is collected, not before: who takes it next has no other one beside.
func TestMemoryWaitsForItsBuffer(t *testing.T) {
	const n = 8 << 20
	memory := NewMemory(n)
	memory.tryTake(n)
	buf := make([]byte, n)
	memory.reclaim(n, isCollected(buf))
	time.Sleep(50 * time.Millisecond)
	if _, taken := memory.tryTake(n); taken {
		t.Error("it is given back while something refers to the buffer")
	}
	runtime.KeepAlive(buf)
	idle(t, memory, n)
}
