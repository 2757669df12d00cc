package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// host is the other end of a connection under test.
type host struct {
	t    *testing.T
	conn net.Conn
	dec  Decoder
	buf  []byte
	kept map[string]*pb.AgentMessage // what came before the answer that was asked for
}

// guest starts a connection with an agent that pings, executes (mutating; sleeps when told so) and reads files.
func guest(t *testing.T, change func(*Config)) (*host, *Calls) {
	t.Helper()
	guestEnd, hostEnd := net.Pipe()
	return guestOn(t, guestEnd, hostEnd, change, make(chan error, 1))
}

// guestOn is guest over a channel; served gets what Serve returned.
func guestOn(t *testing.T, guestEnd io.ReadWriteCloser, hostEnd net.Conn, change func(*Config), served chan error) (*host, *Calls) {
	t.Helper()
	calls := &Calls{}
	config := Config{
		Session: "the-session", Calls: calls,
		Urgent: func(_ *Conn, request proto.Message) (proto.Message, bool) {
			ping, ok := request.(*pb.PingRequest)
			return &pb.PongResponse{Sequence: ping.GetSequence()}, ok
		},
		Handle: func(ctx context.Context, c *Conn, id string, request proto.Message) (proto.Message, error) {
			switch request := request.(type) {
			case *pb.ExecuteRequest:
				return &pb.ExecuteResponse{Stdout: request.Command}, nil
			case *pb.FileReadRequest:
				<-ctx.Done()
				return &pb.FileReadResponse{Error: "cancelled"}, context.Cause(ctx)
			case *pb.ListProcessesRequest:
				return &pb.ListProcessesResponse{Error: string(bytes.Repeat([]byte("x"), MaxFrame))}, nil
			}
			return &pb.FileStatResponse{}, fault.Unsupported("no such thing")
		},
		Refuse: func(request proto.Message, err error) proto.Message {
			return ReplyType(request).New().Interface()
		},
		Mutates: func(request proto.Message) bool {
			_, ok := request.(*pb.ExecuteRequest)
			return ok
		},
	}
	if change != nil {
		change(&config)
	}
	over := make(chan struct{})
	go func() {
		served <- NewConn(guestEnd, config).Serve(context.Background())
		close(over)
	}()
	h := &host{t: t, conn: hostEnd, buf: make([]byte, 1<<16)}
	t.Cleanup(func() {
		hostEnd.Close()
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Error("Serve did not return when the host left")
		}
		if err := calls.Shutdown(context.Background(), errors.New("test is over")); err != nil {
			t.Error(err)
		}
	})
	return h, calls
}

func (h *host) write(b []byte) {
	h.t.Helper()
	h.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := h.conn.Write(b); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) send(f Framing, id string, request proto.Message) {
	h.t.Helper()
	h.write(frameOf(f, envelopeOf(h.t, id, request)))
}

// next is the next message, and how it was framed.
func (h *host) next() (*pb.AgentMessage, Framing) {
	h.t.Helper()
	for {
		if frame, ok := h.dec.Next(); ok {
			m := &pb.AgentMessage{}
			if err := proto.Unmarshal(frame.Payload, m); err != nil {
				h.t.Fatal(err)
			}
			return m, frame.Framing
		}
		h.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := h.conn.Read(h.buf)
		if err != nil {
			h.t.Fatal("no message: ", err)
		}
		h.dec.Feed(h.buf[:n])
	}
}

// answer is the message with an id; others that come before it are kept, for there is no order between replies.
func (h *host) answer(id string) *pb.AgentMessage {
	h.t.Helper()
	for {
		if m := h.kept[id]; m != nil {
			delete(h.kept, id)
			return m
		}
		m, _ := h.next()
		if h.kept == nil {
			h.kept = map[string]*pb.AgentMessage{}
		}
		h.kept[m.MessageId] = m
	}
}

func TestRepliesInTheHostsFraming(t *testing.T) {
	h, _ := guest(t, nil)
	for i, f := range []Framing{Plain, QTX1, Plain, QTX1} {
		id := fmt.Sprintf("request-%d", i)
		h.send(f, id, &pb.PingRequest{Sequence: uint64(i)})
		m, got := h.next()
		if got != f || m.MessageId != id || m.GetPong().GetSequence() != uint64(i) || m.Session != "the-session" || m.Timestamp == nil {
			t.Errorf("%v: %v in %v", f, m, got)
		}
	}
}

func TestUnknownRequestIsAnsweredEmpty(t *testing.T) {
	h, _ := guest(t, nil)
	unknown := append(envelopeOf(t, "unknown-1", nil), 0xc2, 0x02, 0) // field 40, empty
	h.write(frameOf(Plain, unknown))
	m := h.answer("unknown-1")
	if Payload(m) != nil || m.ErrorDetail.GetCode() != "unsupported" {
		t.Error(m)
	}
}

// Replies and events from the other side are no requests and are not answered, so that two agents cannot talk for ever.
func TestEventsAndRepliesAreNotAnswered(t *testing.T) {
	h, _ := guest(t, nil)
	h.send(Plain, "r", &pb.PongResponse{})
	h.send(Plain, "e", &pb.AgentReadyEvent{})
	empty := Wrap("empty", nil)
	empty.ErrorDetail = &pb.ErrorDetail{Code: "unsupported"}
	b, _ := proto.Marshal(empty)
	h.write(frameOf(Plain, b))
	h.send(Plain, "ping", &pb.PingRequest{})
	if m, _ := h.next(); m.MessageId != "ping" {
		t.Error("answered", m)
	}
}

// A request inside another one's data, found because the header around it was lost, is not executed.
func TestHiddenRequestThatChangesIsNotServed(t *testing.T) {
	h, _ := guest(t, nil)
	hidden := frameOf(Plain, envelopeOf(t, "hidden-exec", &pb.ExecuteRequest{Command: "rm"}))
	h.write(concat([]byte("the lost header of a file's data "), hidden, hidden))
	for range 2 {
		m := h.answer("hidden-exec")
		if m.ErrorDetail.GetCode() != "uncertain" || m.GetExecuteResponse() == nil {
			t.Error(m)
		}
	}
	h.send(Plain, "ping-after", &pb.PingRequest{})
	h.answer("ping-after")
	h.send(Plain, "direct-exec", &pb.ExecuteRequest{Command: "ls"})
	if m := h.answer("direct-exec"); m.ErrorDetail.GetCode() != "uncertain" {
		t.Error("trust came back without a silence: ", m)
	}
	time.Sleep(PayloadTimeout + 50*time.Millisecond) // the silence itself is what is tested
	h.send(Plain, "exec-again", &pb.ExecuteRequest{Command: "ls"})
	if m := h.answer("exec-again"); m.GetExecuteResponse().GetStdout() != "ls" {
		t.Error(m)
	}
}

func TestFalseHeaderIsForgottenAfterASilence(t *testing.T) {
	h, _ := guest(t, nil)
	h.write(append(binary.BigEndian.AppendUint32(nil, 1<<20), "ten bytes."...))
	time.Sleep(PayloadTimeout + 50*time.Millisecond)
	h.send(Plain, "ping", &pb.PingRequest{})
	h.answer("ping")
}

func TestTenMiBOfGarbageThenAPing(t *testing.T) {
	h, _ := guest(t, nil)
	noise := make([]byte, 10<<20)
	state := uint64(88172645463325252)
	for i := range noise {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		noise[i] = byte(state) | 2 // no plain header begins so
	}
	h.write(noise)
	h.send(Plain, "ping", &pb.PingRequest{})
	h.answer("ping")
}

// anyPort has what any port began.
func anyPort(string) bool { return true }

func TestBombIsRefusedByItsId(t *testing.T) {
	h, _ := guest(t, nil)
	h.send(Plain, "bomb", &pb.ExecuteRequest{Args: make([]string, 1<<20)})
	if m := h.answer("bomb"); m.ErrorDetail.GetCode() != "too_large" {
		t.Error(m)
	}
	h.send(Plain, "ping", &pb.PingRequest{})
	h.answer("ping")
}

// A reply that is too large for a frame is still a reply, of its type.
func TestReplyOverTheBound(t *testing.T) {
	h, _ := guest(t, nil)
	h.send(Plain, "big", &pb.ListProcessesRequest{})
	m := h.answer("big")
	if m.GetListProcessesResponse() == nil || m.ErrorDetail.GetCode() != "too_large" {
		t.Error(m)
	}
}

// Of the requests on one connection some are served, others wait until those have ended, and what is more than may wait is
// refused.
func TestManyRequestsWait(t *testing.T) {
	var most, now atomic.Int64
	h, calls := guest(t, func(c *Config) {
		c.Handle = func(ctx context.Context, _ *Conn, _ string, _ proto.Message) (proto.Message, error) {
			for n := now.Add(1); n > most.Load(); {
				most.Store(n)
			}
			defer now.Add(-1)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
	})
	request := func(i int) []byte {
		return frameOf(Plain, envelopeOf(t, fmt.Sprint("read-", i), &pb.FileReadRequest{}))
	}
	const waiting, over = 200, 20
	accepted := MaxInFlight + waiting
	go func() {
		for i := range accepted {
			h.conn.Write(request(i))
		}
		huge := &pb.FileReadRequest{Path: strings.Repeat("x", maxWaiting-waiting*waitingSize)}
		for i := range over {
			h.conn.Write(frameOf(Plain, envelopeOf(t, fmt.Sprint("over-", i), huge)))
		}
	}()
	for i := range over {
		if m := h.answer(fmt.Sprint("over-", i)); m.ErrorDetail.GetCode() != "busy" || !m.ErrorDetail.Retryable {
			t.Fatal(m)
		}
	}
	for end := time.Now().Add(time.Minute); now.Load() < MaxInFlight && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // they are accepted, and their goroutines need not have begun
	}
	if calls.Len() != accepted || now.Load() != MaxInFlight {
		t.Error(calls.Len(), "calls,", now.Load(), "of them are served")
	}
	for i := accepted - 1; i >= 0; i-- { // those that wait first: they get their replies at once
		id := fmt.Sprint("read-", i)
		if !calls.Cancel(id, anyPort) {
			t.Fatal("no call ", id)
		}
		if m := h.answer(id); m.ErrorDetail.GetCode() != "cancelled" {
			t.Fatal(m)
		}
	}
	if n := most.Load(); n != MaxInFlight {
		t.Errorf("%d were served at a time", n)
	}
}

// Requests that wait are served in the order in which they came, when those before them have ended.
func TestWaitingRequestsAreServedInOrder(t *testing.T) {
	const requests = 200
	turn := make(chan struct{})
	served := make(chan string, requests)
	h, calls := guest(t, func(c *Config) {
		c.Handle = func(_ context.Context, _ *Conn, id string, _ proto.Message) (proto.Message, error) {
			<-turn
			served <- id
			return nil, nil
		}
	})
	for i := range requests {
		h.write(frameOf(Plain, envelopeOf(t, fmt.Sprint(i), &pb.ExecuteRequest{})))
	}
	for calls.Len() < requests {
		time.Sleep(time.Millisecond)
	}
	for i := range requests {
		turn <- struct{}{}
		id := <-served
		if m := h.answer(id); m.ErrorDetail != nil {
			t.Fatal(m)
		}
		if n, err := strconv.Atoi(id); err != nil || n > i+MaxInFlight {
			t.Fatalf("%s was served after %d", id, i)
		}
	}
}

// What only the host could want ends with it; what changes the guest goes on.
func TestHostLeaves(t *testing.T) {
	var ended sync.WaitGroup
	ended.Add(2)
	release := make(chan struct{})
	causes := make(chan error, 2)
	h, calls := guest(t, func(c *Config) {
		c.Handle = func(ctx context.Context, _ *Conn, _ string, request proto.Message) (proto.Message, error) {
			defer ended.Done()
			if _, read := request.(*pb.FileReadRequest); read {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return nil, nil
			}
			<-release
			causes <- ctx.Err()
			return nil, nil
		}
	})
	h.send(Plain, "read", &pb.FileReadRequest{})
	h.send(Plain, "exec", &pb.ExecuteRequest{})
	for calls.Len() < 2 {
		time.Sleep(time.Millisecond)
	}
	h.conn.Close()
	if err := <-causes; !errors.Is(err, ErrHostGone) {
		t.Error("the read ended with", err)
	}
	close(release)
	if err := <-causes; err != nil {
		t.Error("the exec was ended with", err)
	}
	ended.Wait()
}

func TestStaleRequests(t *testing.T) {
	h, _ := guest(t, nil)
	foreign := Wrap("foreign", &pb.ExecuteRequest{Command: "x"})
	foreign.Session = "another"
	b, _ := proto.Marshal(foreign)
	h.write(frameOf(Plain, b))
	if m := h.answer("foreign"); m.ErrorDetail.GetCode() != "stale" {
		t.Error(m)
	}
	foreign.Session = "the-session"
	b, _ = proto.Marshal(foreign)
	h.write(frameOf(Plain, b))
	if m := h.answer("foreign"); m.GetExecuteResponse().GetStdout() != "x" {
		t.Error(m)
	}
}

// After a host that echoes the session, one that does not is another one, or a frame hidden in the first one's file: what
// changes the guest is then told to come again, and is served after a silence.
func TestARequestWithoutTheSessionBehindOneWithIt(t *testing.T) {
	h, _ := guest(t, nil)
	echo := Wrap("echo", &pb.PingRequest{})
	echo.Session = "the-session"
	frame, err := AppendMessage(nil, Plain, echo)
	if err != nil {
		t.Fatal(err)
	}
	h.send(Plain, "before", &pb.ExecuteRequest{Command: "x"})
	if m := h.answer("before"); m.ErrorDetail != nil {
		t.Error(m)
	}
	h.write(frame)
	h.answer("echo")
	h.send(Plain, "behind", &pb.ExecuteRequest{Command: "x"})
	if m := h.answer("behind"); m.ErrorDetail.GetCode() != "uncertain" {
		t.Error(m)
	}
	h.send(Plain, "stat", &pb.FileStatRequest{})
	if m := h.answer("stat"); m.ErrorDetail.GetCode() != "unsupported" {
		t.Error("what changes nothing was not served: ", m)
	}
	time.Sleep(PayloadTimeout + 50*time.Millisecond) // the silence itself is what is tested
	h.send(Plain, "after", &pb.ExecuteRequest{Command: "x"})
	if m := h.answer("after"); m.ErrorDetail != nil {
		t.Error(m)
	}
}

// A host that never echoes the session and is never silent is served again some time after one that did.
func TestTheSessionOfAnEarlierHostIsForgotten(t *testing.T) {
	c := NewConn(nil, Config{Session: "the-session"})
	bare := &pb.AgentMessage{MessageId: "bare"}
	for _, x := range []struct {
		echoed time.Time
		want   error
	}{{time.Time{}, nil}, {time.Now(), fault.ErrUncertain}, {time.Now().Add(-echoWindow), nil}} {
		c.lastEcho = x.echoed
		if err := c.checkTrust(Frame{Aligned: true}, bare, false); !errors.Is(err, x.want) {
			t.Errorf("%v: %v, want %v", x.echoed, err, x.want)
		}
	}
}

// backlog is a channel whose first read gives what waited.
type backlog struct {
	net.Conn
	old bool
}

func (b *backlog) Backlog() bool { return b.old }

func TestRequestsThatWaitedAreServedOnlyWhenFresh(t *testing.T) {
	for _, c := range []struct {
		at   time.Time
		want string
	}{{time.Now(), ""}, {time.Now().Add(-time.Hour), "stale"}, {time.Now().Add(time.Hour), "stale"}} {
		guestEnd, hostEnd := net.Pipe()
		h := &host{t: t, conn: hostEnd, buf: make([]byte, 1000)}
		conn := NewConn(&backlog{guestEnd, true}, Config{
			Session: "s", Calls: &Calls{},
			Urgent: func(*Conn, proto.Message) (proto.Message, bool) { return nil, false },
			Handle: func(context.Context, *Conn, string, proto.Message) (proto.Message, error) {
				return &pb.ShutdownResponse{Accepted: true}, nil
			},
			Refuse:  func(request proto.Message, _ error) proto.Message { return ReplyType(request).New().Interface() },
			Mutates: func(proto.Message) bool { return true },
		})
		done := make(chan error, 1)
		go func() { done <- conn.Serve(context.Background()) }()
		m := Wrap("shutdown", &pb.ShutdownRequest{})
		m.Timestamp = timestamppb.New(c.at)
		b, _ := proto.Marshal(m)
		h.write(frameOf(Plain, b))
		got := h.answer("shutdown")
		if got.ErrorDetail.GetCode() != c.want || got.GetShutdownResponse().GetAccepted() != (c.want == "") {
			t.Errorf("%v: %v", c.at, got)
		}
		hostEnd.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Requests with one order are served one after the other, in the order in which they came.
func TestOrder(t *testing.T) {
	var mu sync.Mutex
	var order []uint64
	h, _ := guest(t, func(c *Config) {
		c.Order = func(request proto.Message) string { return request.(*pb.FileWriteRequest).Path }
		c.Handle = func(_ context.Context, _ *Conn, _ string, request proto.Message) (proto.Message, error) {
			mu.Lock()
			order = append(order, request.(*pb.FileWriteRequest).Offset)
			mu.Unlock()
			runtime.Gosched()
			return &pb.FileWriteResponse{Success: true}, nil
		}
	})
	go func() {
		for i := range 50 {
			h.conn.Write(frameOf(Plain, envelopeOf(t, fmt.Sprint("chunk-", i), &pb.FileWriteRequest{Path: "/x", Offset: uint64(i)})))
		}
	}()
	for range 50 {
		h.next()
	}
	for i, offset := range order {
		if uint64(i) != offset {
			t.Fatal(order)
		}
	}
}

// A host that reads nothing gets few old telemetry reports before what it asks for: one that is being written, and one
// that waits.
func TestTelemetryIsNotQueued(t *testing.T) {
	var conn *Conn
	ready := make(chan struct{})
	h, _ := guest(t, func(c *Config) {
		c.Greet = func(_ context.Context, c *Conn) {
			if conn == nil {
				conn = c
				close(ready)
			}
		}
	})
	<-ready
	h.send(Plain, "first", &pb.PingRequest{})
	h.answer("first")
	for i := range 1000 {
		conn.Send(fmt.Sprint("report-", i), &pb.TelemetryReport{UptimeSeconds: uint64(i)})
	}
	h.send(Plain, "ping", &pb.PingRequest{})
	reports := 0
	for {
		m, _ := h.next()
		if m.MessageId == "ping" {
			break
		}
		reports++
	}
	if reports > 2 {
		t.Errorf("%d reports before the pong", reports)
	}
}

// A frame goes out in one write: on a port one of ours is then taken whole or not at all.
func TestFramesAreOneWrite(t *testing.T) {
	h, _ := guest(t, nil)
	for _, n := range []int{10, 30_000, 500_000} {
		h.send(QTX1, "echo", &pb.ExecuteRequest{Command: strings.Repeat("x", n)})
		whole := make([]byte, 1<<20)
		h.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		got, err := h.conn.Read(whole) // a pipe gives what one write brought
		if err != nil {
			t.Fatal(err)
		}
		var d Decoder
		d.Feed(whole[:got])
		frame, ok := d.Next()
		if !ok || d.Pending() || len(frame.Payload) < n {
			t.Errorf("a reply of over %d bytes: the first write has %d bytes", n, got)
		}
	}
}

// Who has the reply may send the next request, also under the same id, and where as many are under way as may be.
func TestAReplyEndsItsRequest(t *testing.T) {
	h, _ := guest(t, nil)
	for range 3000 {
		h.send(QTX1, "again", &pb.ExecuteRequest{Command: "x"})
		h.answer("again")
	}
	request := func(n int) []byte {
		return frameOf(QTX1, envelopeOf(t, fmt.Sprint("one of many ", n), &pb.ExecuteRequest{Command: "x"}))
	}
	var sent int
	for ; sent < MaxInFlight; sent++ {
		h.write(request(sent))
	}
	for n := range 3000 {
		if m, _ := h.next(); m.ErrorDetail != nil {
			t.Fatalf("reply %d: %v", n, m.ErrorDetail)
		}
		h.write(request(sent))
		sent++
	}
}

// Headers are not looked for byte by byte: a frame costs one read, and garbage no more than its size in buffers.
func TestReadsAreBuffered(t *testing.T) {
	var reads atomic.Int64
	guestEnd, hostEnd := net.Pipe()
	h, _ := guestOn(t, countingReads{guestEnd, &reads}, hostEnd, nil, make(chan error, 1))
	const pings = 20
	for range pings {
		h.send(QTX1, "ping", &pb.PingRequest{})
		h.answer("ping")
	}
	if n := reads.Load(); n > pings+1 { // one waits
		t.Errorf("%d frames took %d reads", pings, n)
	}
	const garbage = 1 << 20
	before := reads.Load()
	h.write(append(bytes.Repeat([]byte{0xff}, garbage), frameOf(QTX1, envelopeOf(t, "ping", &pb.PingRequest{}))...))
	h.answer("ping")
	if n := reads.Load() - before; n > garbage/minReadSize+2 {
		t.Errorf("%d bytes that are no frame took %d reads", garbage, n)
	}
}

type countingReads struct {
	net.Conn
	n *atomic.Int64
}

func (c countingReads) Read(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Read(p)
}

// Goroutines after many sessions are as after few.
func TestSessionsLeaveNothing(t *testing.T) {
	calls := &Calls{}
	session := func() {
		guestEnd, hostEnd := net.Pipe()
		conn := NewConn(guestEnd, Config{
			Session: "s", Calls: calls,
			Urgent:  func(*Conn, proto.Message) (proto.Message, bool) { return &pb.PongResponse{}, true },
			Mutates: func(proto.Message) bool { return false },
			Greet:   func(_ context.Context, c *Conn) { c.Send("hello", &pb.AgentReadyEvent{}) },
		})
		done := make(chan error, 1)
		go func() { done <- conn.Serve(context.Background()) }()
		go func() {
			hostEnd.Write(frameOf(Plain, envelopeOf(t, "ping", &pb.PingRequest{}))[:20]) // half a frame
			hostEnd.Close()
		}()
		if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
	}
	for range 10 {
		session()
	}
	before := runtime.NumGoroutine()
	for range 2000 {
		session()
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines after ten sessions, %d after two thousand", before, after)
	}
}

// Half a frame of a host that is gone does not swallow what the next one sends right after it: what reads is served, what
// changes is told to come again.
func TestRequestsBehindHalfAFrameAreFound(t *testing.T) {
	h, _ := guest(t, nil)
	half := frameOf(Plain, envelopeOf(t, "half", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, 60000)}))[:1000]
	h.write(concat(half, frameOf(Plain, envelopeOf(t, "stat-behind", &pb.FileStatRequest{})), frameOf(Plain, envelopeOf(t, "exec-behind", &pb.ExecuteRequest{Command: "x"}))))
	time.Sleep(PayloadTimeout + 50*time.Millisecond) // the silence after which the half is given up
	h.send(Plain, "after", &pb.ExecuteRequest{Command: "y"})
	seen := map[string]string{}
	for len(seen) < 3 {
		m, _ := h.next()
		seen[m.MessageId] = m.ErrorDetail.GetCode()
	}
	if seen["stat-behind"] != "unsupported" || seen["exec-behind"] != "uncertain" || seen["after"] != "" {
		t.Error(seen)
	}
}

// A host that keeps talking after a false header is heard again after a while.
func TestFalseHeaderDoesNotDeafenForEver(t *testing.T) {
	h, _ := guest(t, nil)
	h.write(binary.BigEndian.AppendUint32(nil, MaxFrame))
	go func() { // until the connection is closed
		for i := 0; ; i++ {
			if _, err := h.conn.Write(frameOf(Plain, envelopeOf(t, fmt.Sprint("ping-", i), &pb.PingRequest{}))); err != nil {
				return
			}
			time.Sleep(PayloadTimeout / 4)
		}
	}()
	h.next()
}

// A request sent twice is served once and answered once.
func TestSameIdTwiceIsServedOnce(t *testing.T) {
	h, calls := guest(t, nil)
	h.send(Plain, "twice", &pb.FileReadRequest{})
	h.send(Plain, "twice", &pb.FileReadRequest{})
	h.send(Plain, "ping", &pb.PingRequest{})
	h.answer("ping")
	if n := calls.Len(); n != 1 {
		t.Error(n, "calls")
	}
	calls.Cancel("twice", anyPort)
	h.answer("twice")
	h.send(Plain, "last", &pb.PingRequest{})
	if m, _ := h.next(); m.MessageId != "last" {
		t.Error("answered again:", m)
	}
}

// A request whose text is not UTF-8 is refused by its id, and costs the connection no trust.
func TestTextThatIsNotUTF8InARequest(t *testing.T) {
	h, _ := guest(t, nil)
	bad := append(envelopeOf(t, "bad-text", nil), 0x5a, 4, 0x0a, 2, 0xff, 0xfe) // execute.command
	h.write(frameOf(Plain, bad))
	if m := h.answer("bad-text"); m.ErrorDetail.GetCode() != "invalid" {
		t.Error(m)
	}
	h.send(Plain, "exec", &pb.ExecuteRequest{Command: "x"})
	if m := h.answer("exec"); m.ErrorDetail != nil {
		t.Error(m)
	}
}

// A frame found in garbage does not change the framing that the host hears.
func TestGarbageDoesNotFlipTheFraming(t *testing.T) {
	h, _ := guest(t, nil)
	h.send(QTX1, "first", &pb.PingRequest{})
	h.answer("first")
	h.write(concat([]byte("garbage "), frameOf(Plain, envelopeOf(t, "found", &pb.PingRequest{}))))
	if m, f := h.next(); m.MessageId != "found" || f != QTX1 {
		t.Error(m, f)
	}
}

// A cancelled request that waits for its turn ends at once, and what waits after it still waits for what is before it.
func TestCancelWhileWaitingForATurn(t *testing.T) {
	release := make(chan struct{})
	var order []string
	h, calls := guest(t, func(c *Config) {
		c.Order = func(proto.Message) string { return "one" }
		c.Handle = func(_ context.Context, _ *Conn, id string, _ proto.Message) (proto.Message, error) {
			if id == "first" {
				<-release
			}
			order = append(order, id)
			return &pb.FileWriteResponse{Success: true}, nil
		}
	})
	for _, id := range []string{"first", "second", "third"} {
		h.send(Plain, id, &pb.FileWriteRequest{})
	}
	for calls.Len() < 3 {
		time.Sleep(time.Millisecond)
	}
	calls.Cancel("second", anyPort)
	if m, _ := h.next(); m.MessageId != "second" || m.ErrorDetail.GetCode() != "cancelled" {
		t.Error(m)
	}
	close(release)
	h.answer("first")
	h.answer("third")
	if fmt.Sprint(order) != "[first third]" {
		t.Error(order)
	}
}

// A light request is served while as many others as may be are, and those that wait are not.
func TestLightRequestsDoNotWait(t *testing.T) {
	h, calls := guest(t, func(c *Config) {
		c.Handle = func(ctx context.Context, _ *Conn, _ string, request proto.Message) (proto.Message, error) {
			if _, ok := request.(*pb.PingRequest); ok {
				return &pb.PongResponse{Sequence: 7}, nil
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		c.Urgent = func(*Conn, proto.Message) (proto.Message, bool) { return nil, false }
		c.Light = func(request proto.Message) bool { _, ping := request.(*pb.PingRequest); return ping }
	})
	for i := range MaxInFlight + 3 {
		h.send(Plain, fmt.Sprint("read-", i), &pb.FileReadRequest{})
	}
	h.send(Plain, "ping", &pb.PingRequest{Awaiting: []string{"read-0"}})
	if m := h.answer("ping"); m.GetPong().GetSequence() != 7 {
		t.Error(m)
	}
	for i := range MaxInFlight + 3 {
		calls.Cancel(fmt.Sprint("read-", i), anyPort)
	}
}
