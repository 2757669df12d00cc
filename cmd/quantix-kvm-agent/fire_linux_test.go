package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

var sessions = flag.Int("sessions", 300, "how many sessions TestSessionsLeaveNoTrace has; make soak takes 10000")

// peer is a host that does with the bytes whatever it likes.
type peer struct {
	t    *testing.T
	conn net.Conn
	dec  wire.Decoder
	buf  []byte
}

func newPeer(t *testing.T, a *agenttest.Agent) *peer {
	t.Helper()
	p := &peer{t: t, buf: make([]byte, 64<<10)}
	var first []byte
	p.conn, first = connect(t, a.Socket)
	p.dec.Feed(first)
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// connect opens a session and waits for the agent's first bytes: one that comes while 32 others are open is closed again.
func connect(t *testing.T, socket string) (conn net.Conn, first []byte) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.SetDeadline(deadline)
			buf := make([]byte, 4096)
			var n int
			if n, err = conn.Read(buf); err == nil {
				conn.SetDeadline(time.Time{})
				return conn, buf[:n]
			}
			conn.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// frame makes a frame of a request without session, as foreign hosts send it.
func frame(t *testing.T, f wire.Framing, id string, request proto.Message) []byte {
	t.Helper()
	b, err := wire.AppendMessage(nil, f, wire.Wrap(id, request))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	p.conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// next gives the next message and how it was framed.
func (p *peer) next() (*pb.AgentMessage, wire.Framing) {
	p.t.Helper()
	for {
		if frame, ok := p.dec.Next(); ok {
			m := &pb.AgentMessage{}
			if err := proto.Unmarshal(frame.Payload, m); err != nil || !frame.Aligned {
				p.t.Fatalf("the agent's stream is broken (%v)", err)
			}
			return m, frame.Framing
		}
		p.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := p.conn.Read(p.buf)
		if err != nil {
			p.t.Fatal("no message: ", err)
		}
		p.dec.Feed(p.buf[:n])
	}
}

// reply gives the message with an id; others are passed over.
func (p *peer) reply(id string) (*pb.AgentMessage, wire.Framing) {
	p.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		m, f := p.next()
		if m.MessageId == id {
			return m, f
		}
		if time.Now().After(deadline) {
			p.t.Fatal("no reply to ", id)
		}
	}
}

// ping tells how long a pong takes.
func (p *peer) ping(id string) time.Duration {
	p.t.Helper()
	start := time.Now()
	p.write(frame(p.t, wire.Plain, id, &pb.PingRequest{Sequence: 2}))
	p.reply(id)
	return time.Since(start)
}

// alive wants a pong: late is what a machine under load may be, never is what it must not.
func (p *peer) alive(id string) {
	p.t.Helper()
	if took := p.ping(id); took > 20*time.Second {
		p.t.Errorf("%s: the pong took %v", id, took)
	}
}

// One byte a write, both framings mixed, replies read one byte at a time: every request is answered, in its framing.
func TestOneByteAtATime(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\n"})
	p := newPeer(t, a)
	p.buf = make([]byte, 1)
	for i, f := range []wire.Framing{wire.QTX1, wire.Plain, wire.QTX1} {
		id := fmt.Sprintf("exec-%d", i)
		for _, c := range frame(t, f, id, &pb.ExecuteRequest{Command: "echo " + id, WaitForExit: true}) {
			p.write([]byte{c})
		}
		if m, got := p.reply(id); m.GetExecuteResponse().GetStdout() != id+"\n" || got != f {
			t.Errorf("%v in %v; want %v", m, got, f)
		}
	}
}

// A host that falls silent in the middle of a frame, at any place of it, is heard again after the silence, and trusted.
func TestStallInTheMiddleOfAFrame(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	var all sync.WaitGroup
	for _, n := range []int{1, 3, 4, 5, 9, 40, 500} {
		p := newPeer(t, a)
		all.Go(func() {
			half := frame(t, wire.QTX1, "half", &pb.FileWriteRequest{Path: "/never", Data: make([]byte, 1000)})
			p.write(half[:n])
			time.Sleep(wire.PayloadTimeout + 200*time.Millisecond) // the silence itself is what is tested
			id := fmt.Sprintf("behind-%d", n)
			p.write(frame(t, wire.Plain, id, &pb.ExecuteRequest{Command: "echo heard", WaitForExit: true}))
			for {
				m, _ := p.next()
				if m.MessageId == id {
					if m.GetExecuteResponse().GetStdout() != "heard\n" {
						t.Errorf("%d bytes: %v", n, m)
					}
					return
				}
			}
		})
	}
	all.Wait()
}

// Half frames of hosts that left harm nobody: not the hosts after them, nor the one beside them.
func TestHalfFramesOfManyHosts(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	beside := newPeer(t, a)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		p := newPeer(t, a)
		whole := frame(t, wire.Framing(1+i%2), "half", &pb.FileWriteRequest{Path: "/never", Data: noise(5000, uint64(i)), Eof: true})
		p.write(whole[:r.IntN(len(whole))])
		p.conn.Close()
	}
	beside.alive("beside")
	newPeer(t, a).alive("behind")
	if _, err := os.Stat(filepath.Join(root, "never")); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a frame wrote a file: ", err)
	}
}

// Ten thousand commands in one burst: each is answered once, most of them busy; the processes are bounded, and pings beside
// them are answered within a second, though the processors are busy with the commands; the median is looked at, since the
// machine may be busy with more.
func TestFloodOfCommands(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n", Args: []string{"--log-level", "error"}})
	p, beside := newPeer(t, a), newPeer(t, a)
	const flood = 10_000
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range flood {
			b, err := wire.AppendMessage(nil, wire.Plain, wire.Wrap(fmt.Sprintf("exec-%d", i), &pb.ExecuteRequest{Command: "true", WaitForExit: true}))
			if err == nil {
				_, err = p.conn.Write(b)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	served, most := 0, 0
	seen := map[string]bool{}
	var pings []time.Duration
	for len(seen) < flood {
		m, _ := p.next()
		if m.GetExecuteResponse() == nil {
			continue
		}
		if seen[m.MessageId] {
			t.Fatal(m.MessageId, " is answered twice")
		}
		seen[m.MessageId] = true
		switch m.ErrorDetail.GetCode() {
		case "":
			served++
		case "busy":
		default:
			t.Fatal(m)
		}
		if len(seen)%500 == 0 {
			pings = append(pings, beside.ping(fmt.Sprintf("ping-%d", len(seen))))
			most = max(most, children(t, a.PID()))
		}
	}
	writing.Wait()
	slices.Sort(pings)
	if median := pings[len(pings)/2]; median > 20*time.Second {
		t.Errorf("the median pong took %v", median)
	}
	t.Logf("%d were served; the median pong took %v, the last %v", served, pings[len(pings)/2], pings[len(pings)-1])
	if served == 0 || most > wire.MaxInFlight {
		t.Errorf("%d were served; %d processes at a time", served, most)
	}
}

// children counts the processes that a process has started.
func children(t *testing.T, pid int) (n int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		if content, err := os.ReadFile(list); err == nil { // a thread may have ended meanwhile
			n += len(bytes.Fields(content))
		}
	}
	return n
}

// A host that sends and sends and reads nothing costs bounded memory and nobody else's ping; when it reads again, all replies
// are there: whole, or with the beginning of the output, as they say.
func TestHostThatReadsNothing(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\n"})
	p, beside, ended := newPeer(t, a), newPeer(t, a), filepath.Join(t.TempDir(), "ended")
	const commands = 40
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range commands {
			p.conn.Write(frame(t, wire.Plain, fmt.Sprintf("exec-%d", i), &pb.ExecuteRequest{Command: "head -c 1000000 /dev/zero | tr '\\0' x; echo >>" + ended, WaitForExit: true}))
		}
	})
	lines := func() int { content, _ := os.ReadFile(ended); return len(content) }
	for deadline := time.Now().Add(60 * time.Second); lines() < commands; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the commands do not end while nobody reads their output")
		}
		beside.alive("beside")
	}
	writing.Wait()
	if rss := a.RSS(); rss > 400<<20 {
		t.Errorf("%d MiB for %d MB that nobody reads", rss>>20, commands)
	}
	for seen := 0; seen < commands; {
		if m, _ := p.next(); m.GetExecuteResponse() != nil {
			seen++
			if r := m.GetExecuteResponse(); len(r.Stdout) != 1_000_000 && !r.Truncated {
				t.Fatal("a reply was cut, and does not say so: ", len(r.Stdout), " bytes, ", m.ErrorDetail)
			}
		}
	}
	p.alive("again")
}

// A payload of exactly 16 MiB is taken; one of a byte more is garbage, after which a ping is found at once and a change is not
// trusted.
func TestLargestFrame(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	for _, f := range []wire.Framing{wire.Plain, wire.QTX1} {
		p := newPeer(t, a)
		request := &pb.FileWriteRequest{Path: "/large", Eof: true}
		m := wire.Wrap("large", request)
		for n := wire.MaxFrame; ; n -= proto.Size(m) - wire.MaxFrame {
			request.Data = bytes.Repeat([]byte{0xff}, n)
			if proto.Size(m) == wire.MaxFrame {
				break
			}
		}
		whole, err := wire.AppendMessage(nil, f, m)
		if err != nil {
			t.Fatal(err)
		}
		p.write(whole)
		if m, _ := p.reply("large"); !m.GetFileWriteResponse().GetSuccess() {
			t.Fatal(m)
		}
		if info, err := os.Stat(filepath.Join(root, "large")); err != nil || info.Size() != int64(len(request.Data)) {
			t.Error(info, err)
		}
		header := len(whole) - wire.MaxFrame
		binary.BigEndian.PutUint32(whole[header-4:], wire.MaxFrame+1)
		p.write(append(whole, 0xff))
		p.alive("behind")
		p.write(frame(t, f, "change", &pb.FileDeleteRequest{Path: "/large"}))
		if m, _ := p.reply("change"); m.ErrorDetail.GetCode() != "uncertain" {
			t.Error(m)
		}
	}
}

// Ten megabytes of noise, then a ping.
func TestNoiseThenAPing(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	p := newPeer(t, a)
	b := noise(10<<20, 7)
	for i := range b {
		b[i] |= 2 // no plain header begins so
	}
	p.write(b)
	p.alive("behind")
	if n := strings.Count(a.Log(), "belong to no frame"); n > 10 {
		t.Errorf("%d lines in the log", n)
	}
}

// A clock that is an hour off refuses nothing that did not wait in the channel; a session of another run of the agent always
// does.
func TestClocksAnHourOff(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	p := newPeer(t, a)
	for _, off := range []time.Duration{-time.Hour, time.Hour, -50 * 365 * 24 * time.Hour} {
		m := wire.Wrap("exec", &pb.ExecuteRequest{Command: "echo served", WaitForExit: true})
		m.Timestamp = timestamppb.New(time.Now().Add(off))
		b, err := wire.AppendMessage(nil, wire.Plain, m)
		if err != nil {
			t.Fatal(err)
		}
		p.write(b)
		if m, _ := p.reply("exec"); m.GetExecuteResponse().GetStdout() != "served\n" {
			t.Errorf("%v off: %v", off, m)
		}
	}
	m := wire.Wrap("foreign", &pb.ExecuteRequest{Command: "echo served", WaitForExit: true})
	m.Session = "000000000000000000000000"
	b, err := wire.AppendMessage(nil, wire.Plain, m)
	if err != nil {
		t.Fatal(err)
	}
	p.write(b)
	if m, _ := p.reply("foreign"); m.ErrorDetail.GetCode() != "stale" || m.GetExecuteResponse() == nil {
		t.Error(m)
	}
}

// A pushed file full of frames executes none of them, however the push is cut off and begun again.
func TestFramesInAPushedFile(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	var hidden []byte
	for i := range 300 {
		hidden = append(hidden, frame(t, wire.Framing(1+i%2), fmt.Sprintf("hidden-%d", i), &pb.FileWriteRequest{Path: "/planted", Data: []byte("x"), Eof: true})...)
		hidden = append(hidden, noise(i, uint64(i))...)
	}
	proxy := agenttest.NewProxy(t, a, func(n int) (int64, int64) { return []int64{2000, 9999, 20_001, 0}[min(n, 3)], 0 })
	if _, err := linkTo(t, proxy).PushFile(ctxFor(t, 60*time.Second), "/file", bytes.NewReader(hidden), client.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, a) // and with its beginning lost, on one connection
	push := frame(t, wire.Plain, "push", &pb.FileWriteRequest{Path: "/file", Data: hidden, Eof: true})
	p.write(append([]byte{0xff}, push[100:]...))
	time.Sleep(wire.PayloadTimeout + 200*time.Millisecond) // what looks like a long frame in the file is given up then
	p.alive("behind")
	if _, err := os.Stat(filepath.Join(root, "planted")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a frame in a file was executed: ", err)
	}
	if now, err := os.ReadFile(filepath.Join(root, "file")); err != nil || !bytes.Equal(now, hidden) {
		t.Errorf("%d bytes, %v", len(now), err)
	}
}

// trouble is one session of a host that does one of many things wrong, or none.
func trouble(t *testing.T, socket string, n int) {
	conn, _ := connect(t, socket)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	write := func(id string, request proto.Message, part int) {
		if b := frame(t, wire.Framing(1+n%2), id, request); part == 0 {
			conn.Write(b)
		} else {
			conn.Write(b[:part])
		}
	}
	switch n % 8 {
	case 0: // comes and goes
	case 1:
		write("half", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, 1000)}, 500)
	case 2:
		conn.Write(noise(3000, uint64(n)))
	case 3: // leaves before the reply
		write("stat", &pb.ListDirectoryRequest{Path: "/"}, 0)
	case 4: // an upload that does not end
		write("upload", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, 10_000)}, 0)
	case 5: // asks for a lot and reads a part
		for i := range 10 {
			write(fmt.Sprintf("read-%d", i), &pb.FileReadRequest{Path: "/large", Offset: uint64(i) * 31000}, 0)
		}
		conn.Read(make([]byte, 100))
	case 6:
		conn.Write(binary.BigEndian.AppendUint32(nil, wire.MaxFrame))
	case 7: // nothing wrong
		write("ping", &pb.PingRequest{}, 0)
		conn.Read(make([]byte, 4096))
	}
}

// After ten thousand sessions an agent is as after ten: the same descriptors, the same goroutines, at most 1.1 times the size.
func TestSessionsLeaveNoTrace(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("there is no /proc to count descriptors in")
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "large"), noise(400_000, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *agenttest.Agent {
		return agenttest.Start(t, agenttest.Options{Root: root, Args: []string{"--log-level", "error"}})
	}
	few, many := start(), start()
	run := func(a *agenttest.Agent, from, to int) {
		for n := from; n < to; n++ {
			trouble(t, a.Socket, n)
		}
	}
	const warm = 80 // ten of each kind
	run(few, 0, warm)
	run(many, 0, warm)
	calm(t, many) // it gives back, once, what only its start needed, pages of its program among that
	run(many, 0, warm)
	fds, rss := calm(t, many)
	run(many, warm, *sessions)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		nowFds, nowRSS := descriptors(t, many), many.RSS()
		if nowFds <= fds && (agenttest.Race || nowRSS <= rss*11/10) {
			t.Logf("%d sessions: descriptors %d, then %d; resident %d KiB, then %d KiB", *sessions, fds, nowFds, rss>>10, nowRSS>>10)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions: descriptors %d, then %d; resident %d KiB, then %d KiB\n%s", *sessions, fds, nowFds, rss>>10, nowRSS>>10, strings.Join(openFiles(t, many), "\n"))
		}
	}
	calm(t, few)
	before, after := goroutines(t, few), goroutines(t, many)
	if t.Logf("goroutines %d, then %d", before, after); before == 0 || after > before {
		t.Errorf("%d goroutines after %d sessions, %d after %d", before, warm, after, *sessions)
	}
}

// calm waits until an agent has given back what its last hosts cost, and gives its descriptors and its size.
func calm(t *testing.T, a *agenttest.Agent) (fds int, rss int64) {
	t.Helper()
	same := 0
	for deadline := time.Now().Add(30 * time.Second); same < 20; time.Sleep(100 * time.Millisecond) {
		nowFds, nowRSS := descriptors(t, a), a.RSS()
		if same++; nowFds != fds || nowRSS < rss*98/100 || nowRSS > rss*102/100 {
			fds, rss, same = nowFds, nowRSS, 0
		}
		if time.Now().After(deadline) {
			break // a busy machine; what comes is compared with what is there now
		}
	}
	return fds, rss
}

func descriptors(t *testing.T, a *agenttest.Agent) int { return len(openFiles(t, a)) }

// openFiles names what an agent has open.
func openFiles(t *testing.T, a *agenttest.Agent) (names []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", a.PID())
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		name, err := os.Readlink(filepath.Join(dir, one.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		names = append(names, one.Name()+" "+name)
	}
	return names
}

// goroutines ends an agent with SIGQUIT and counts what it had running.
func goroutines(t *testing.T, a *agenttest.Agent) int {
	t.Helper()
	if err := syscall.Kill(a.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := a.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	// Goroutine 0 is a thread's own, and shown where that one took the signal.
	return strings.Count(a.Log(), "\ngoroutine ") - strings.Count(a.Log(), "\ngoroutine 0 ")
}
