package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// streamAgent starts an agent that is stopped at the end, and not killed, so that its commands end with it.
func streamAgent(t *testing.T) *agenttest.Agent {
	t.Helper()
	a := agenttest.Start(t, agenttest.Options{})
	t.Cleanup(func() { a.Stop() })
	return a
}

// streamOf starts a line of shell.
func streamOf(t *testing.T, c *client.Client, o client.StreamOptions, line string) *client.Stream {
	t.Helper()
	s, err := c.Stream(ctxFor(t, time.Minute), client.Command{Line: line}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// heard reads until the output, both streams together, holds a text; all of it where the text is empty.
func heard(t *testing.T, s *client.Stream, so *string, text string) {
	t.Helper()
	for text == "" || !strings.Contains(*so, text) {
		out, err := s.Next(ctxFor(t, time.Minute))
		if text == "" && err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("%v; heard until then: %q", err, *so)
		}
		*so += string(out.Stdout) + string(out.Stderr)
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 60 s", what)
		}
	}
}

// runs reports whether a process is there and no zombie.
func runs(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// treeOf starts a command with a child of its own and gives the numbers of both.
func treeOf(t *testing.T, c *client.Client, o client.StreamOptions) (*client.Stream, []string) {
	t.Helper()
	s := streamOf(t, c, o, "sleep 1000 & echo tree $$ $! .; wait")
	var so string
	heard(t, s, &so, " .")
	return s, strings.Fields(so)[1:3]
}

func TestStreamedCommandTalks(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	s := streamOf(t, c, client.StreamOptions{Stdin: true}, `echo one; read x; echo "got $x"; echo two >&2; cat; exit 7`)
	var so string
	heard(t, s, &so, "one\n") // before it had any input
	ctx := ctxFor(t, time.Minute)
	if s.End() != nil {
		t.Error("it has an end while it runs")
	}
	if n, err := s.Write(ctx, []byte("a line\n")); n != 7 || err != nil {
		t.Fatal(n, err)
	}
	heard(t, s, &so, "got a line\n")
	large := strings.Repeat("0123456789abcdef", 40<<10)
	go func() {
		s.Write(ctx, []byte(large)) // what is not taken is missing in what comes back
		s.CloseInput(ctx)
	}()
	heard(t, s, &so, "")
	if !strings.HasSuffix(so, large) || !strings.Contains(so, "two\n") {
		t.Errorf("%d bytes came back", len(so))
	}
	if end := s.End(); end.GetExitCode() != 7 || end.GetError() != "" || end.GetSignal() != 0 || end.GetLeftOpen() {
		t.Errorf("%v", end)
	}
}

func TestStreamedCommandEnds(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 2*time.Minute)
	for _, test := range []struct {
		name string
		do   func(s *client.Stream) error
		want string
	}{
		{"a signal", func(s *client.Stream) error { return s.Signal(ctx, "HUP") }, "exit_code:129 signal:1"},
		{"its whole name", func(s *client.Stream) error { return s.Signal(ctx, "sigusr1") }, "exit_code:138 signal:10"},
		{"the host", func(s *client.Stream) error { return s.Terminate(ctx) }, "exit_code:143 signal:15"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, pids := treeOf(t, c, client.StreamOptions{})
			if err := test.do(s); err != nil {
				t.Fatal(err)
			}
			var so string
			heard(t, s, &so, "")
			end := s.End()
			if got := fmt.Sprintf("exit_code:%d signal:%d", end.ExitCode, end.Signal); got != test.want {
				t.Errorf("%v", end)
			}
			eventually(t, "the end of the tree", func() bool { return !runs(pids[0]) && !runs(pids[1]) })
		})
	}
	s, err := c.Stream(ctx, client.Command{Argv: []string{"sleep", "1000"}, Timeout: time.Second}, client.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Next(ctx); err != io.EOF || !s.End().GetTimedOut() {
		t.Error(err, s.End())
	}
	_, err = c.Stream(ctx, client.Command{Argv: []string{"/no/such/program", "x"}}, client.StreamOptions{})
	if !errors.Is(err, fs.ErrNotExist) || !client.IsProgram(err) {
		t.Error(err)
	}
	for range 3 { // what a command leaves running does not keep it from ending
		s := streamOf(t, c, client.StreamOptions{}, "sleep 1000 & echo $!")
		var so string
		heard(t, s, &so, "")
		pid := strings.TrimSpace(so)
		if !s.End().GetLeftOpen() || !runs(pid) {
			t.Errorf("%v; the rest runs: %t", s.End(), runs(pid))
		}
		streamOf(t, c, client.StreamOptions{}, "kill "+pid).Next(ctx)
	}
}

// A host that takes nothing holds the command up, and nothing else: neither the agent's memory nor a ping.
func TestSlowHostHoldsTheCommandUp(t *testing.T) {
	a := streamAgent(t)
	var mu sync.Mutex
	var bytes, biggest int
	c := a.Client(t, client.Options{Event: func(_ string, event proto.Message) {
		if e, ok := event.(*pb.ExecOutputEvent); ok {
			mu.Lock()
			defer mu.Unlock()
			bytes += len(e.Stdout)
			biggest = max(biggest, proto.Size(e))
		}
	}})
	ctx := ctxFor(t, 2*time.Minute)
	came := func() int { mu.Lock(); defer mu.Unlock(); return bytes }
	id := client.NewID()
	reply, err := client.CallID[*pb.ExecStartResponse](ctx, c, id, &pb.ExecStartRequest{Command: "cat", Args: []string{"/dev/zero"}, Window: 64 << 10})
	if err != nil || reply.ExecId != id || reply.Window != 64<<10 {
		t.Fatal(reply, err)
	}
	wrote := func() (n int) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", reply.Pid))
		for line := range strings.Lines(string(text)) {
			fmt.Sscanf(line, "wchar: %d", &n)
		}
		return n
	}
	eventually(t, "a full window", func() bool { return came() == 64<<10 })
	before, was := a.RSS(), wrote()
	for range 20 {
		took, _, err := c.Ping(ctx)
		if err != nil || took > 20*time.Second {
			t.Fatal(took, err)
		}
		time.Sleep(10 * time.Millisecond) // the time in which nothing may happen
	}
	if n := came(); n != 64<<10 {
		t.Errorf("%d bytes came, more than the window", n)
	}
	if now := wrote(); now > 1<<20 {
		t.Errorf("the command wrote %d bytes, then %d: it is not held up", was, now)
	}
	if after := a.RSS(); after-before > 8<<20 {
		t.Errorf("the agent grew from %d to %d bytes", before, after)
	}
	for total := 64 << 10; total < 4<<20; total += 64 << 10 { // as much as it takes, so much comes
		if _, err := client.Call[*pb.ExecInputResponse](ctx, c, &pb.ExecInputRequest{ExecId: id, Consumed: uint64(total)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another window", func() bool { return came() == total+64<<10 })
	}
	if mu.Lock(); biggest > 31000 {
		t.Errorf("an event of %d bytes does not fit a small frame", biggest)
	}
	mu.Unlock()
	if _, err := client.Call[*pb.ExecInputResponse](ctx, c, &pb.ExecInputRequest{ExecId: id, Consumed: 1 << 40}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("more was consumed than sent: %v", err)
	}
}

// The Go client is a host that takes what it is asked for: nothing piles up in it, and nothing is lost.
func TestStreamIsWholeForASlowReader(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 2*time.Minute)
	s := streamOf(t, c, client.StreamOptions{}, "head -c 20000000 /dev/zero; exit 4")
	total := 0
	for {
		out, err := s.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if total += len(out.Stdout); total%7 == 0 {
			time.Sleep(time.Millisecond) // a reader with something else to do
		}
	}
	if total != 20_000_000 || s.End().GetExitCode() != 4 {
		t.Errorf("%d bytes, %v", total, s.End())
	}
}

func TestStreamedCommandEndsWithItsHost(t *testing.T) {
	a := streamAgent(t)
	for name, o := range map[string]client.StreamOptions{"pipes": {}, "terminal": {Stdin: true, Terminal: &pb.Terminal{}}} {
		c := a.Client(t, client.Options{})
		_, pids := treeOf(t, c, o)
		_, other := treeOf(t, a.Client(t, client.Options{}), o)
		flood := streamOf(t, c, o, "echo pid $$ .; exec cat /dev/zero") // nobody takes it
		var so string
		heard(t, flood, &so, " .")
		pids = append(pids, strings.Fields(so)[1])
		c.Close()
		for _, pid := range pids {
			eventually(t, name+": the end of "+pid, func() bool { return !runs(pid) })
		}
		for _, pid := range other {
			if !runs(pid) {
				t.Errorf("%s: a command of another connection ended", name)
			}
		}
	}
}

func TestStreamedCommandEndsWithItsAgent(t *testing.T) {
	for _, how := range []string{"stop", "kill"} {
		a := streamAgent(t)
		c := a.Client(t, client.Options{})
		s, pids := treeOf(t, c, client.StreamOptions{})
		if how == "kill" {
			a.Kill()
			eventually(t, "the end of the command", func() bool { return !runs(pids[0]) })
			streamKill(t, pids[1])
			continue
		}
		if took := a.Stop(); took > 20*time.Second {
			t.Errorf("the agent took %v to stop", took)
		}
		for _, pid := range pids {
			if runs(pid) {
				t.Errorf("%s runs on", pid)
			}
		}
		if _, err := s.Next(ctxFor(t, time.Minute)); err == nil {
			t.Error("output of an agent that is gone")
		}
	}
}

// streamKill ends a process that only the death of its agent left.
func streamKill(t *testing.T, pid string) {
	t.Helper()
	var n int
	fmt.Sscan(pid, &n)
	if p, err := os.FindProcess(n); err == nil {
		p.Kill()
	}
}

func TestStreamInputThatCannotBe(t *testing.T) {
	a := streamAgent(t)
	c, other := a.Client(t, client.Options{}), a.Client(t, client.Options{})
	ctx := ctxFor(t, time.Minute)
	start := func(in *pb.ExecStartRequest) string {
		t.Helper()
		id := client.NewID()
		if _, err := client.CallID[*pb.ExecStartResponse](ctx, c, id, in); err != nil {
			t.Fatal(err)
		}
		return id
	}
	cat := start(&pb.ExecStartRequest{Command: "cat", Stdin: true})
	deaf := start(&pb.ExecStartRequest{Command: "exec 0<&-; sleep 1000", Stdin: true})
	none := start(&pb.ExecStartRequest{Command: "sleep 1000"})
	over := start(&pb.ExecStartRequest{Command: "true", Stdin: true})
	input := func(c *client.Client, in *pb.ExecInputRequest) error {
		_, err := client.Call[*pb.ExecInputResponse](ctx, c, in)
		return err
	}
	eventually(t, "the end of true", func() bool { return errors.Is(input(c, &pb.ExecInputRequest{ExecId: over}), fs.ErrNotExist) })
	eventually(t, "a closed input", func() bool {
		return errors.Is(input(c, &pb.ExecInputRequest{ExecId: deaf, Data: []byte("x")}), fault.ErrRefused)
	})
	data := []byte("x")
	for _, test := range []struct {
		name string
		c    *client.Client
		in   *pb.ExecInputRequest
		want error
	}{
		{"no id", c, &pb.ExecInputRequest{Data: data}, fs.ErrNotExist},
		{"an unknown id", c, &pb.ExecInputRequest{ExecId: "7", Data: data}, fs.ErrNotExist},
		{"another connection's", other, &pb.ExecInputRequest{ExecId: cat, Data: data}, fs.ErrNotExist},
		{"after the end", c, &pb.ExecInputRequest{ExecId: over, Signal: "TERM"}, fs.ErrNotExist},
		{"no input", c, &pb.ExecInputRequest{ExecId: none, Data: data}, fs.ErrInvalid},
		{"no input to close", c, &pb.ExecInputRequest{ExecId: none, CloseStdin: true}, fs.ErrInvalid},
		{"no terminal", c, &pb.ExecInputRequest{ExecId: cat, Rows: 3}, fs.ErrInvalid},
		{"no such size", c, &pb.ExecInputRequest{ExecId: cat, Rows: 70000}, fs.ErrInvalid},
		{"no such signal", c, &pb.ExecInputRequest{ExecId: cat, Signal: "9"}, fs.ErrInvalid},
		{"no such name", c, &pb.ExecInputRequest{ExecId: cat, Signal: "SIGSIGTERM"}, fs.ErrInvalid},
		{"a close", c, &pb.ExecInputRequest{ExecId: deaf, CloseStdin: true}, nil},
		{"a second close", c, &pb.ExecInputRequest{ExecId: deaf, CloseStdin: true}, nil},
		{"input behind it", c, &pb.ExecInputRequest{ExecId: deaf, Data: data}, fs.ErrInvalid},
	} {
		if err := input(test.c, test.in); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	for name, in := range map[string]*pb.ExecStartRequest{
		"no command": {}, "no variable": {Command: "true", Environment: map[string]string{"": "x"}},
		"no such terminal": {Command: "true", Terminal: &pb.Terminal{Cols: 70000}},
	} {
		if _, err := client.Call[*pb.ExecStartResponse](ctx, c, in); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := client.CallID[*pb.ExecStartResponse](ctx, c, cat, &pb.ExecStartRequest{Command: "true"}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a second command of one id: %v", err)
	}
	if _, err := client.CallID[*pb.ExecStartResponse](ctx, c, strings.Repeat("x", 200), &pb.ExecStartRequest{Command: "true"}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a long id: %v", err)
	}
	// Input that the command does not read waits, signals go past it, and the end of the command ends the wait.
	waits := make(chan error, 1)
	go func() { waits <- input(c, &pb.ExecInputRequest{ExecId: start2(t, c), Data: make([]byte, 500<<10)}) }()
	if err := <-waits; err == nil {
		t.Error("a command that reads nothing took its input")
	}
}

// start2 starts a command that reads nothing of its input, and ends by itself.
func start2(t *testing.T, c *client.Client) string {
	id := client.NewID()
	if _, err := client.CallID[*pb.ExecStartResponse](context.Background(), c, id, &pb.ExecStartRequest{Command: "sleep 1", Stdin: true}); err != nil {
		t.Error(err)
	}
	return id
}

func TestSignalsOvertakeInput(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, time.Minute)
	s, _ := treeOf(t, c, client.StreamOptions{Stdin: true})
	wrote := make(chan error, 1)
	go func() { _, err := s.Write(ctx, make([]byte, 1<<20)); wrote <- err }()
	if err := s.Signal(ctx, "KILL"); err != nil {
		t.Error(err)
	}
	var so string
	heard(t, s, &so, "")
	if err := <-wrote; err == nil {
		t.Error("nobody read it, yet it was written")
	}
	if s.End().GetSignal() != 9 {
		t.Error(s.End())
	}
}

func TestStreamedTerminal(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, time.Minute)
	s := streamOf(t, c, client.StreamOptions{Stdin: true, Terminal: &pb.Terminal{Term: "dumb", Rows: 11, Cols: 44}},
		`stty -echo; echo $TERM $(stty size); trap 'echo resized $(stty size)' WINCH; trap 'echo interrupted' INT; echo ready
		while ! read x; do :; done; echo "got $x"; tty; exit 5`)
	var so string
	heard(t, s, &so, "ready")
	if !strings.Contains(so, "dumb 11 44") {
		t.Errorf("%q", so)
	}
	if err := s.Resize(ctx, 20, 0); err != nil {
		t.Fatal(err)
	}
	heard(t, s, &so, "resized 20 44")
	if _, err := s.Write(ctx, []byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	heard(t, s, &so, "interrupted")
	if _, err := s.Write(ctx, []byte("a line\r")); err != nil {
		t.Fatal(err)
	}
	heard(t, s, &so, "")
	if !strings.Contains(so, "got a line") || !strings.Contains(so, filepath.Join("/dev/pts", "")) || s.End().GetExitCode() != 5 {
		t.Errorf("%q %v", so, s.End())
	}
	s = streamOf(t, c, client.StreamOptions{Stdin: true, Terminal: &pb.Terminal{}}, "cat; echo over")
	if err := s.CloseInput(ctx); err != nil {
		t.Fatal(err)
	}
	so = ""
	heard(t, s, &so, "over")
}
