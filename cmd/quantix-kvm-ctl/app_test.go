package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// fakeAgent serves a unix socket with replies that the real agent cannot be made to give. It gives the socket.
func fakeAgent(t *testing.T, reply func(c *wire.Conn, id string, request proto.Message) (proto.Message, error)) string {
	t.Helper()
	l, socket := listen(t)
	serveFake(t, l, reply)
	return socket
}

// serveFake serves as fakeAgent does until the listener is closed.
func serveFake(t *testing.T, l net.Listener,
	reply func(c *wire.Conn, id string, request proto.Message) (proto.Message, error)) {
	calls := &wire.Calls{}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			channel, err := l.Accept()
			if err != nil {
				return
			}
			conn := wire.NewConn(channel, wire.Config{
				Session: "fake", Calls: calls,
				Urgent: func(_ *wire.Conn, request proto.Message) (proto.Message, bool) {
					ping, ok := request.(*pb.PingRequest)
					return &pb.PongResponse{Sequence: ping.GetSequence(), Version: "fake"}, ok
				},
				Handle: func(_ context.Context, c *wire.Conn, id string, request proto.Message) (proto.Message, error) {
					return reply(c, id, request)
				},
				Refuse:  func(proto.Message, error) proto.Message { return nil },
				Mutates: func(proto.Message) bool { return false },
			})
			work.Go(func() { conn.Serve(context.Background()) })
			t.Cleanup(func() { conn.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
}

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	return agenttest.Listen(t)
}

// ctl runs the program with files for its streams.
func ctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var files [3]*os.File
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	a := &app{stdin: files[0], stdout: &output{file: files[1]}, stderr: files[2]}
	code = a.run(args)
	text := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return code, text(files[1]), text(files[2])
}

// What became of a script decides the exit code, and is told in words.
func TestScriptOutcomes(t *testing.T) {
	change := func(state pb.ChangeState) []*pb.Change {
		return []*pb.Change{{Op: "file.write", Target: "/etc/motd", Action: "modified", Diff: "-a\n+b\n", State: state}}
	}
	failed := &pb.ScriptError{Kind: "builtin", Message: "file.write /x: no space left on device", Script: "s.lua", Line: 7, Traceback: "s.lua:7: in main chunk", Hint: "make room"}
	for _, c := range []struct {
		reply *pb.RunScriptResponse
		code  int
		say   []string
	}{
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, Changes: change(pb.ChangeState_CHANGE_STATE_APPLIED), Replayed: true, TransactionId: "tx1"},
			0, []string{"modified /etc/motd (file.write)", "    -a", "    +b", "committed: 1 change", "transaction tx1", "stored reply"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, Changes: change(pb.ChangeState_CHANGE_STATE_WOULD)}, 0, []string{"would be modified /etc/motd", "dry run"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, Error: failed}, 5, []string{"s.lua:7: file.write"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_REFUSED, Error: &pb.ScriptError{Kind: "busy", Message: "another script runs"}}, 4, []string{"refused, nothing ran", "busy: another script"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM, ConfirmUntil: timestamppb.Now()}, 0, []string{"unless it is confirmed", "until 20"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, Error: failed, Changes: change(pb.ChangeState_CHANGE_STATE_UNDONE)},
			5, []string{"undone: modified", "rolled back", "s.lua:7: file.write /x: no space left on device", "s.lua:7: in main chunk", "hint: make room"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, Error: failed, NotUndone: change(pb.ChangeState_CHANGE_STATE_NOT_UNDONE)}, 6, []string{"ROLLBACK FAILED", "NOT UNDONE: modified /etc/motd"}},
		{&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, Error: failed}, 6, []string{"PARTIAL"}},
	} {
		socket := fakeAgent(t, func(*wire.Conn, string, proto.Message) (proto.Message, error) { return c.reply, nil })
		code, stdout, stderr := ctl(t, "-s", socket, "run", "named")
		if code != c.code || stdout != "" {
			t.Errorf("%v: exit code %d, stdout %q", c.reply.Status, code, stdout)
		}
		for _, words := range c.say {
			if !strings.Contains(stderr, words) {
				t.Errorf("%v: %q does not say %q", c.reply.Status, stderr, words)
			}
		}
	}
}

// Lines that got lost on their way as events are shown all the same, each once and in order.
func TestEveryLogLineIsShownOnce(t *testing.T) {
	lines := []*pb.LogLine{{Level: "info", Message: "one"}, {Level: "info", Message: "two"}, {Level: "warn", Message: "three"}}
	socket := fakeAgent(t, func(c *wire.Conn, id string, _ proto.Message) (proto.Message, error) {
		c.Send("e1", &pb.ScriptEvent{RequestId: id, Log: lines[0]})
		c.Send("e2", &pb.ScriptEvent{RequestId: id, Progress: proto.Float64(0.25), Step: "a \x1b[31mstep"})
		c.Send("e3", &pb.ScriptEvent{RequestId: id, Log: lines[2], Dropped: 1})
		return &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, Log: lines, Result: structpb.NewNumberValue(7)}, nil
	})
	code, stdout, stderr := ctl(t, "-s", socket, "run", "named")
	for _, message := range []string{"one", "two", "three"} {
		if strings.Count(stderr, message) != 1 {
			t.Errorf("%s: %q", message, stderr)
		}
	}
	if code != 0 || stdout != "7\n" || !strings.Contains(stderr, `25 %  a \x1b[31mstep`) {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestTransactions(t *testing.T) {
	info := &pb.TransactionInfo{
		TransactionId: "tx1", Status: pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, Phase: "done", Changes: 2, Script: &pb.ScriptRef{Name: "motd"},
		Reply: &pb.RunScriptResponse{Log: []*pb.LogLine{{Level: "info", Message: "hello"}}, Error: &pb.ScriptError{Kind: "timeout", Message: "too long"}},
	}
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		switch r := request.(*pb.TransactionsRequest); {
		case r.TransactionId == "tx1":
			return &pb.TransactionsResponse{Transactions: []*pb.TransactionInfo{info}}, nil
		case r.TransactionId != "":
			return &pb.TransactionsResponse{Error: &pb.ScriptError{Kind: "not_found", Message: "no such transaction"}}, nil
		case r.ContinuationToken == "":
			return &pb.TransactionsResponse{Transactions: []*pb.TransactionInfo{info}, ContinuationToken: "more"}, nil
		}
		return &pb.TransactionsResponse{Transactions: []*pb.TransactionInfo{{TransactionId: "tx0"}}}, nil
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"tx", "list"}, 0, `(?s)tx1 .*rollback failed .*done .*2 .*motd.*\ntx0 `},
		{[]string{"tx", "list", "-n", "1"}, 0, `tx1 [^\n]*\n$`},
		{[]string{"tx", "show", "tx1"}, 0, `(?s)log: info  hello\nerror: timeout: too long`},
		{[]string{"tx", "show", "nope"}, 1, `no such transaction`},
	} {
		code, stdout, stderr := ctl(t, append([]string{"-s", socket}, c.args...)...)
		if code != c.code || !regexp.MustCompile(c.want).MatchString(stdout+stderr) {
			t.Errorf("%q: %d %q %q", c.args, code, stdout, stderr)
		}
	}
}

func TestCleanTransactions(t *testing.T) {
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *pb.GetStatusRequest:
			return &pb.GetStatusResponse{Journal: &pb.JournalStatus{Kept: []string{"/state/tx/kept/tx1"}}}, nil
		case *pb.CleanTransactionsRequest:
			if r.All != (len(r.TransactionIds) == 0) {
				return nil, errors.New("neither or both")
			}
			reply := &pb.CleanTransactionsResponse{TransactionIds: []string{"tx1"}}
			if len(r.TransactionIds) > 1 {
				reply.Error = &pb.ScriptError{Kind: "not_found", Message: "nothing is left of a transaction tx2"}
			}
			return reply, nil
		}
		return nil, errors.New("another request")
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"tx", "clean", "--all"}, 0, `removed what was left of tx1`},
		{[]string{"--json", "tx", "clean", "tx1"}, 0, `^{"removed":\["tx1"\]}\n$`},
		{[]string{"tx", "clean", "tx1", "tx2"}, 1, `(?s)left of tx1.*nothing is left of a transaction tx2`},
		{[]string{"tx", "clean"}, 2, `needs one of ID and --all`},
		{[]string{"tx", "clean", "--all", "tx1"}, 2, `needs one of ID and --all`},
		{[]string{"__complete", "tx", "clean", ""}, 0, `(?m)^tx1$`},
	} {
		code, stdout, stderr := ctl(t, append([]string{"-s", socket}, c.args...)...)
		if code != c.code || !regexp.MustCompile(c.want).MatchString(stdout+stderr) {
			t.Errorf("%q: %d %q %q", c.args, code, stdout, stderr)
		}
	}
}

// Agents of others answer with fewer words.
func TestForeignAgent(t *testing.T) {
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		switch request.(type) {
		case *pb.FileStatRequest:
			return &pb.FileStatResponse{Error: "File not found"}, nil
		case *pb.ExecuteRequest:
			return &pb.ExecuteResponse{ExitCode: -1, Error: "spawn failed"}, nil
		}
		return nil, nil // an unknown request
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"stat", "/x"}, 1, "quantix-kvm-ctl: /x: File not found"},
		{[]string{"exec", "x", "y"}, 125, "spawn failed"},
		{[]string{"scripts"}, 1, "an answer to another question"},
	} {
		code, _, stderr := ctl(t, append([]string{"-s", socket}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: %d %q", c.args, code, stderr)
		}
	}
}

// A socket that another client holds takes bytes and gives none.
func TestSilentSocket(t *testing.T) {
	_, socket := listen(t)
	code, _, stderr := ctl(t, "-s", socket, "ping")
	// A pipe that nobody accepts on says so at once, a socket by its silence.
	held := strings.Contains(stderr, "another client holds the socket") || strings.Contains(stderr, "other clients hold the socket")
	if code != exitNoAnswer || !held {
		t.Errorf("%d %q", code, stderr)
	}
}

// The time that a user gives holds, whatever the guest does.
func TestTimeout(t *testing.T) {
	release := make(chan struct{})
	socket := fakeAgent(t, func(*wire.Conn, string, proto.Message) (proto.Message, error) {
		<-release
		return nil, errors.New("late")
	})
	defer close(release)
	code, _, stderr := ctl(t, "-s", socket, "--timeout", "200ms", "stat", "/")
	if code != exitTimeout || !strings.Contains(stderr, "200ms") {
		t.Errorf("%d %q", code, stderr)
	}
}

// Help is for people: every command says what it does, at length, with examples, in lines that fit.
func TestHelp(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s has no full help", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len(line) > 130 {
				t.Errorf("%s: a line of %d characters", c.CommandPath(), len(line))
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).command())
}

func TestTexts(t *testing.T) {
	for mode, want := range map[uint32]string{0o644: "-rw-r--r--", 0o4755: "-rwsr-xr-x", 0o6644: "-rwSr-Sr--", 0o1777: "-rwxrwxrwt", 0o100600: "-rw-------",
		0o010644: "prw-r--r--", 0o020620: "crw--w----", 0o060660: "brw-rw----", 0o140755: "srwxr-xr-x"} {
		if got := modeText(&pb.DirectoryEntry{Mode: mode}); got != want {
			t.Errorf("%o: %s", mode, got)
		}
	}
	if got := ago(uint64((50*time.Hour + 61*time.Second).Seconds())); got != "2d2h1m0s" {
		t.Error(got)
	}
	for text, want := range map[string]uint64{"": 0, "7": 7, "32MiB": 32 << 20, "1 G": 1 << 30, "5K": 5 << 10} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
}

// USE is of what users may use: full is 100 also where space is reserved for root.
func TestUse(t *testing.T) {
	for _, c := range []struct {
		used, available uint64
		want            string
	}{{46, 0, "100%"}, {1, 999, "1%"}, {0, 1000, "0%"}, {500, 499, "51%"}, {0, 0, "-"}} {
		if got := use(&pb.DiskUsage{TotalBytes: 1100, UsedBytes: c.used, AvailableBytes: c.available, UsagePercent: 42}); got != c.want {
			t.Errorf("%d used, %d available: %s, want %s", c.used, c.available, got, c.want)
		}
	}
}
