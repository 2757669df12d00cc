package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg { // this program is the runner of checkScripts
		os.Exit(lua.Main(os.Args[2:]))
	}
	if scripttest.ChildMain() { // and the agent that testScripts kills
		return
	}
	code := m.Run()
	agenttest.Clean()
	ctltest.Clean()
	os.Exit(code)
}

func ctxFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// requests lists every request of the envelope, empty.
func requests() []proto.Message {
	var list []proto.Message
	fields := (&pb.AgentMessage{}).ProtoReflect().Descriptor().Oneofs().ByName("payload").Fields()
	for i := range fields.Len() {
		request := (&pb.AgentMessage{}).ProtoReflect().NewField(fields.Get(i)).Message().Interface()
		if wire.ReplyType(request) != nil {
			list = append(list, request)
		}
	}
	return list
}

// Every request of the contract, empty as a careless host would send it, is answered at once, once, by its id and in
// its own reply type; what the agent cannot do yet says so by name.
func TestEveryRequestIsAnsweredInItsType(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	for _, request := range requests() {
		name := string(request.ProtoReflect().Descriptor().Name())
		reply, err := client.Call[proto.Message](ctxFor(t, 20*time.Second), c, request)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: no reply", name)
			continue
		}
		if reply == nil || reply.ProtoReflect().Descriptor() != wire.ReplyType(request).Descriptor() {
			t.Errorf("%s: answered with %T (%v)", name, reply, err)
		}
		envelope := wire.Wrap("", request).ProtoReflect()
		operation := string(envelope.WhichOneof(envelope.Descriptor().Oneofs().ByName("payload")).Name())
		if errors.Is(err, errors.ErrUnsupported) && !strings.Contains(err.Error(), name) && !strings.HasPrefix(err.Error(), operation+":") {
			t.Errorf("%s: %v does not name it", name, err)
		}
	}
}

// With a fault in the configuration the agent answers ping and get_capabilities, tells the fault with line and key, and
// refuses every other request.
func TestRefusingMode(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "log_level: info\ntelemetri: 5\n"})
	told := make(chan string, 10)
	c := a.Client(t, client.Options{Event: func(_ string, event proto.Message) {
		if e, ok := event.(*pb.ErrorEvent); ok {
			told <- e.Message
		}
	}})
	select {
	case message := <-told:
		if !strings.Contains(message, "line 2: telemetri") {
			t.Error(message)
		}
	case <-time.After(20 * time.Second):
		t.Error("the fault was not told")
	}
	for _, request := range requests() {
		_, err := client.Call[proto.Message](ctxFor(t, 20*time.Second), c, request)
		switch request.(type) {
		case *pb.PingRequest, *pb.GetCapabilitiesRequest, *pb.GetStatusRequest:
			if err != nil {
				t.Errorf("%T: %v", request, err)
			}
		case *pb.CancelRequest:
		default:
			if !errors.Is(err, fault.ErrRefused) && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%T was not refused: %v", request, err)
			}
		}
	}
}

// A ping with sequence 1 is answered after a fresh telemetry report.
func TestPingWithSequenceOnePushesTelemetryFirst(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\n"})
	conn, err := agenttest.Dial(a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := newReader(conn)
	ask := func(id string, sequence uint64) (telemetry int) {
		if err := wire.WriteMessage(conn, wire.QTX1, wire.Wrap(id, &pb.PingRequest{Sequence: sequence})); err != nil {
			t.Fatal(err)
		}
		for {
			m := r.next(t)
			if m.GetTelemetry() != nil {
				telemetry++
			}
			if m.MessageId == id {
				if m.GetPong().GetSequence() != sequence {
					t.Fatal(m)
				}
				return telemetry
			}
		}
	}
	if ask("first", 2) == 0 {
		for r.next(t).GetTelemetry() == nil { // that of the greeting
		}
	}
	for i := range 3 {
		if n := ask(fmt.Sprint("one-", i), 1); n < 1 {
			t.Errorf("%d reports before the pong", n)
		}
	}
}

// reader takes frames from a connection.
type reader struct {
	conn net.Conn
	dec  wire.Decoder
	buf  []byte
}

func newReader(conn net.Conn) *reader { return &reader{conn: conn, buf: make([]byte, 1<<16)} }

func (r *reader) next(t *testing.T) *pb.AgentMessage {
	t.Helper()
	for {
		if frame, ok := r.dec.Next(); ok {
			m := &pb.AgentMessage{}
			if err := proto.Unmarshal(frame.Payload, m); err != nil {
				t.Fatal(err)
			}
			return m
		}
		n, err := r.conn.Read(r.buf)
		if err != nil {
			t.Fatal(err)
		}
		r.dec.Feed(r.buf[:n])
	}
}

func (r *reader) answer(t *testing.T, id string) *pb.AgentMessage {
	t.Helper()
	for {
		if m := r.next(t); m.MessageId == id {
			return m
		}
	}
}

// badInput is what a broken or hostile host sends. Each leaves the agent serving.
func badInput(t *testing.T, socket string, i int) {
	t.Helper()
	conn, err := agenttest.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	r := newReader(conn)
	plain := func(payload []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
	}
	encode := func(id string, request proto.Message) []byte {
		b, err := proto.Marshal(wire.Wrap(id, request))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	expect := func(id, code string) {
		t.Helper()
		if m := r.answer(t, id); m.ErrorDetail.GetCode() != code {
			t.Errorf("%s: code %q, want %q (%v)", id, m.ErrorDetail.GetCode(), code, m)
		}
	}
	switch i % 7 {
	case 0: // a payload that is no protobuf
		conn.Write(plain(append(encode("malformed", nil), 0xff, 0xff, 0xff)))
		expect("malformed", "corrupt")
	case 1: // a length over the bound, then a request
		conn.Write([]byte{0x7f, 0xff, 0xff, 0xff})
		conn.Write(plain(encode("after-oversized", &pb.FileStatRequest{Path: "/"})))
		expect("after-oversized", "")
	case 2: // cut off in the middle
		whole := plain(encode("truncated", &pb.FileStatRequest{Path: "/"}))
		conn.Write(whole[:len(whole)/2])
	case 3: // another protocol
		conn.Write([]byte("GET / HTTP/1.1\r\nHost: guest\r\n\r\n"))
		conn.Write(plain(encode("after-http", &pb.PingRequest{})))
		expect("after-http", "")
	case 4: // an unknown request
		unknown := protowire.AppendTag(encode("unknown", nil), 45, protowire.BytesType)
		conn.Write(plain(protowire.AppendBytes(unknown, []byte("x"))))
		if m := r.answer(t, "unknown"); wire.Payload(m) != nil || m.ErrorDetail.GetCode() != "unsupported" {
			t.Error(m)
		}
	case 5: // 4 MiB of empty values
		var list []byte
		for range 2 << 20 {
			list = append(list, 0x12, 0)
		}
		bomb := protowire.AppendTag(encode("bomb", nil), 11, protowire.BytesType)
		conn.Write(plain(protowire.AppendBytes(bomb, list)))
		expect("bomb", "too_large")
	case 6: // a request, and gone before the reply
		conn.Write(plain(encode("gone", &pb.ListDirectoryRequest{Path: "/"})))
	}
}

// settled gives the least resident size of several moments. The agent gives memory back a second after a host left, so a
// host comes and goes for each; it ends sooner when the size is small enough.
func settled(t *testing.T, a *agenttest.Agent, enough int64, moments int) int64 {
	t.Helper()
	size := a.RSS()
	for range moments {
		if size <= enough {
			break
		}
		conn, err := agenttest.Dial(a.Socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		time.Sleep(1300 * time.Millisecond)
		size = min(size, a.RSS())
	}
	return size
}

// Whatever comes in, the agent serves on, and is no bigger after the thousandth than after the tenth. On a busy machine more
// hosts are there at once, and the heap then keeps pages of which little is used: that comes once, so where it was too much
// the next thousand must not add half as much again, as what is really kept does.
func TestBadInputLeavesTheAgentAsItWas(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the size of a process is read from /proc")
	}
	a := agenttest.Start(t, agenttest.Options{Config: "log_level: error\n"})
	rounds := 1000
	if testing.Short() {
		rounds = 140
	}
	done := 0
	until := func(n int) {
		for ; done < n && !t.Failed(); done++ {
			badInput(t, a.Socket, done)
		}
	}
	until(70) // each kind ten times
	after10 := settled(t, a, 0, 2)
	bound := after10 * 11 / 10
	until(rounds)
	if after := settled(t, a, bound, 15); after > bound && !agenttest.Race {
		until(2 * rounds)
		if twice := settled(t, a, after, 15); twice-after > (after-after10)/2 {
			t.Errorf("resident size %d after ten rounds, %d after %d, %d after twice as many", after10, after, rounds, twice)
		}
	}
	if t.Failed() {
		return
	}
	c := a.Client(t, client.Options{})
	if _, err := client.Call[*pb.PongResponse](ctxFor(t, 20*time.Second), c, &pb.PingRequest{Sequence: 5}); err != nil {
		t.Error(err)
	}
}

// modeHere is the mode of a file that was made with one: Windows knows whether it may be written to.
func modeHere(mode uint32) uint32 {
	if runtime.GOOS == "windows" {
		return 0o666
	}
	return mode
}

// Files go to the guest and come back as they were, in both framings, below a root of their own.
func TestPushAndPull(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	for _, framing := range []wire.Framing{wire.Plain, wire.QTX1} {
		c := a.Client(t, client.Options{Framing: framing})
		for _, size := range []int{0, 1, 30999, 31000, 31001, 65536, 65537, 3_000_000} {
			content := bytes.Repeat([]byte("0123456789abcdef\n"), size/17+1)[:size]
			path := fmt.Sprintf("/data/%v-%d", framing, size)
			ctx := ctxFor(t, 60*time.Second)
			if n, err := c.Push(ctx, path, bytes.NewReader(content), client.PushOptions{Mode: 0o640, Parents: true, SHA256: true}); err != nil || n != int64(size) {
				t.Fatal(n, err)
			}
			var got bytes.Buffer
			if p, err := c.Pull(ctx, path, &got, client.PullOptions{}); err != nil || p.Size != int64(size) || p.Mode != modeHere(0o640) {
				t.Fatal(p, err)
			}
			onDisk, err := os.ReadFile(filepath.Join(root, path))
			if err != nil || !bytes.Equal(onDisk, content) || !bytes.Equal(got.Bytes(), content) {
				t.Fatalf("%s: %d bytes on disk, %d came back (%v)", path, len(onDisk), got.Len(), err)
			}
		}
	}
}

// The host's errors.Is holds for what happened in the guest.
func TestErrorsOfTheGuestOnTheHost(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	_, err := client.Call[*pb.FileStatResponse](ctxFor(t, 20*time.Second), c, &pb.FileStatRequest{Path: "/none"})
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != "file_stat /none: no such file or directory" {
		t.Error(err)
	}
	_, err = client.Call[*pb.FileDeleteResponse](ctxFor(t, 20*time.Second), c, &pb.FileDeleteRequest{Path: "/", Recursive: true})
	if !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
}

// Every script that goes wrong has its named error and status, and none costs the agent anything.
func TestScriptsThatGoWrong(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Root: t.TempDir(), Config: "script:\n  cpu_limit_seconds: 5\n"}) // enough to fill the memory on a slow machine
	c := a.Client(t, client.Options{})
	for _, s := range []struct{ source, kind, status string }{
		{"return 1 +", "syntax", "REFUSED"},
		{"while true do end", "cpu", "ROLLED_BACK"},
		{"local t = {} while true do t[#t+1] = ('x'):rep(1024) .. #t end", "memory", "ROLLED_BACK"},
		{"return function() end", "result", "ROLLED_BACK"},
		{`return "\255"`, "result", "ROLLED_BACK"},
		{"error('on purpose')", "runtime", "ROLLED_BACK"},
		{"file.read('/none')", "builtin", "ROLLED_BACK"},
		{"clipboard.set('x')", "builtin", "ROLLED_BACK"},
		{"return nil", "", "COMMITTED"},
	} {
		if s.kind == "cpu" && agenttest.Wine() { // which does not count processor time
			continue
		}
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(s.source)})
		if err != nil {
			t.Fatal(err)
		}
		if status := strings.TrimPrefix(reply.Status.String(), "SCRIPT_STATUS_"); reply.GetError().GetKind() != s.kind || status != s.status {
			t.Errorf("%s: %s, %v", s.source, status, reply.Error)
		}
	}
}

// A stop is quick, and what is running is told.
func TestStopIsQuick(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Root: t.TempDir()})
	c := a.Client(t, client.Options{})
	done := make(chan *pb.RunScriptResponse, 1)
	go func() {
		reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte("file.write('/x', 'y') while true do end")})
		done <- reply
	}()
	a.AwaitLog(t, `"op":"file.write"`, 1)
	if took := a.Stop(); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if reply := <-done; reply.GetError().GetKind() != "cancelled" {
		t.Error("the script ended with", reply)
	}
}
