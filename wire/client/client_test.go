package client

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// agent serves one host on a pipe with the real connection of the guest's side. handle gets all but ping and cancel.
func agent(t *testing.T, handle func(ctx context.Context, request proto.Message) (proto.Message, error)) (*Client, *wire.Calls) {
	t.Helper()
	guest, host := net.Pipe()
	calls := &wire.Calls{}
	conn := wire.NewConn(guest, wire.Config{
		Session: "test", Calls: calls,
		Urgent: func(_ *wire.Conn, request proto.Message) (proto.Message, bool) {
			switch request := request.(type) {
			case *pb.PingRequest:
				return &pb.PongResponse{Sequence: request.Sequence}, true
			case *pb.CancelRequest:
				return &pb.CancelResponse{Cancelled: calls.Cancel(request.MessageId, func(string) bool { return true })}, true
			}
			return nil, false
		},
		Handle: func(ctx context.Context, _ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
			return handle(ctx, request)
		},
		Refuse:  func(proto.Message, error) proto.Message { return nil },
		Mutates: func(proto.Message) bool { return false },
	})
	var served sync.WaitGroup
	served.Go(func() { conn.Serve(context.Background()) })
	c := New(host, Options{})
	t.Cleanup(func() {
		c.Close()
		conn.Close()
		served.Wait()
	})
	return c, calls
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// An agent that did not notice the change of hosts greets nobody; the pong must do.
func TestAliveWithoutGreeting(t *testing.T) {
	c, _ := agent(t, nil)
	if err := c.Alive(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}

// Another client holds the socket: bytes go in, nothing comes out.
func TestAliveWithoutAnswer(t *testing.T) {
	guest, host := net.Pipe()
	defer guest.Close()
	go func() {
		for buf := make([]byte, 1024); ; {
			if _, err := guest.Read(buf); err != nil {
				return
			}
		}
	}()
	c := New(host, Options{})
	defer c.Close()
	start := time.Now()
	err := c.Alive(within(t, 60*time.Second))
	if !errors.Is(err, ErrNoAnswer) || !Gone(err) || !strings.Contains(err.Error(), "another client") {
		t.Error(err)
	}
	if took := time.Since(start); took < firstPingTimeout+secondPingTimeout {
		t.Errorf("it gave up after %v", took)
	}
}

// A host that was killed in the middle of a frame leaves its beginning behind; the next one is heard all the same.
func TestAliveBehindHalfAFrame(t *testing.T) {
	guest, host := net.Pipe()
	conn := wire.NewConn(guest, wire.Config{
		Session: "test", Calls: &wire.Calls{},
		Urgent:  func(*wire.Conn, proto.Message) (proto.Message, bool) { return &pb.PongResponse{}, true },
		Handle:  func(context.Context, *wire.Conn, string, proto.Message) (proto.Message, error) { return nil, nil },
		Refuse:  func(proto.Message, error) proto.Message { return nil },
		Mutates: func(proto.Message) bool { return false },
	})
	var served sync.WaitGroup
	served.Go(func() { conn.Serve(context.Background()) })
	if _, err := host.Write([]byte{0, 1, 0, 0, 0x0a}); err != nil {
		t.Fatal(err)
	}
	c := New(host, Options{})
	defer func() { c.Close(); conn.Close(); served.Wait() }()
	if err := c.Alive(within(t, 60*time.Second)); err != nil {
		t.Error(err)
	}
}

// What a command wrote until it was cancelled is worth having.
func TestCallWaitReturnsTheReplyAfterCancel(t *testing.T) {
	running := make(chan struct{})
	c, _ := agent(t, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		close(running)
		<-ctx.Done()
		return &pb.ExecuteResponse{Stdout: "part", ExitCode: 143}, nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-running; cancel() }()
	reply, err := c.Run(ctx, Command{Argv: []string{"sleep", "60"}}, time.Minute)
	if err != nil || reply.GetStdout() != "part" {
		t.Error(reply, err)
	}
}

// After a deadline nobody waits as long as after an interrupt: the time for all of it is over.
func TestCallWaitAfterADeadline(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c, _ := agent(t, func(context.Context, proto.Message) (proto.Message, error) {
		<-release
		return &pb.RunScriptResponse{}, nil
	})
	defer close(release)
	begin := time.Now()
	_, err := CallWait[*pb.RunScriptResponse](within(t, 20*time.Millisecond), c, time.Hour, "id", &pb.RunScriptRequest{})
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > time.Hour/2 {
		t.Errorf("%v after %v", err, took) // in less than what it had for patience
	}
}

// Patience ends, with the reason why ctx ended.
func TestCallWaitIsBounded(t *testing.T) {
	release := make(chan struct{})
	running := make(chan struct{})
	c, _ := agent(t, func(context.Context, proto.Message) (proto.Message, error) {
		close(running)
		<-release
		return &pb.ExecuteResponse{}, nil
	})
	defer close(release)
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() { <-running; cancel(why) }()
	if _, err := c.Run(ctx, Command{Line: "sleep 60"}, 50*time.Millisecond); !errors.Is(err, why) {
		t.Error(err)
	}
	ended, stop := context.WithCancelCause(context.Background())
	stop(why)
	if _, err := c.Run(ended, Command{Line: "true"}, time.Minute); !errors.Is(err, why) {
		t.Error(err)
	}
}

// A guest that stops answering ends what waits for it, also where nothing can be written any more.
func TestWatchEndsWithoutPong(t *testing.T) {
	guest, host := net.Pipe()
	defer guest.Close()
	c := New(host, Options{})
	ctx, stop := c.Watch(context.Background(), time.Millisecond, 50*time.Millisecond)
	defer c.Close()
	defer stop()
	_, err := Call[*pb.FileStatResponse](ctx, c, &pb.FileStatRequest{}) // nobody reads: it waits in the write
	if !Gone(err) {
		t.Error(err)
	}
	if !errors.Is(context.Cause(ctx), ErrNoAnswer) {
		t.Error(context.Cause(ctx))
	}
}

func TestWatchGoesOnWithPongs(t *testing.T) {
	answered := make(chan struct{})
	c, _ := agent(t, func(context.Context, proto.Message) (proto.Message, error) {
		<-answered
		return &pb.FileStatResponse{Success: true}, nil
	})
	ctx, stop := c.Watch(within(t, time.Minute), time.Millisecond, 20*time.Second)
	defer stop()
	go func() {
		for range 20 {
			c.Ping(ctx)
		}
		close(answered)
	}()
	if _, err := c.Stat(ctx, "/"); err != nil {
		t.Error(err)
	}
}

// A request that the agent does not know any more ends, while others go on: it or its reply was lost. So does a command whose
// output was to come.
func TestWatchFailsLostRequests(t *testing.T) {
	const lost = "/lost"
	guest, host := net.Pipe()
	requests := make(chan *pb.AgentMessage, 99)
	go func() { // an agent that loses things
		dec := wire.Decoder{}
		for buf := make([]byte, 1<<16); ; {
			n, err := guest.Read(buf)
			if err != nil {
				close(requests)
				return
			}
			dec.Feed(buf[:n])
			for frame, ok := dec.Next(); ok; frame, ok = dec.Next() {
				m := &pb.AgentMessage{}
				if proto.Unmarshal(frame.Payload, m) == nil {
					requests <- m
				}
			}
		}
	}()
	serve := func() {
		waits := map[string]bool{}
		for m := range requests {
			switch request := wire.Payload(m).(type) {
			case *pb.FileStatRequest:
				if waits[m.MessageId] = request.Path != lost; request.Path != lost {
					defer wire.WriteMessage(guest, wire.Plain, wire.Wrap(m.MessageId, &pb.FileStatResponse{Success: true}))
				}
			case *pb.ExecStartRequest:
				wire.WriteMessage(guest, wire.Plain, wire.Wrap(m.MessageId, &pb.ExecStartResponse{ExecId: m.MessageId}))
			case *pb.PingRequest:
				pong := &pb.PongResponse{}
				for _, id := range request.Awaiting {
					if !waits[id] {
						pong.Unknown = append(pong.Unknown, id)
					}
				}
				wire.WriteMessage(guest, wire.Plain, wire.Wrap(m.MessageId, pong))
			case *pb.CreateDirectoryRequest: // enough
				return
			}
		}
	}
	var served sync.WaitGroup
	served.Go(serve)
	c := New(host, Options{})
	defer func() { c.Close(); guest.Close(); served.Wait() }()
	ctx, stop := c.Watch(within(t, time.Minute), time.Millisecond, 20*time.Second)
	defer stop()
	kept := make(chan error, 1)
	go func() { _, err := c.Stat(ctx, "/kept"); kept <- err }()
	if _, err := c.Stat(ctx, lost); !errors.Is(err, ErrLost) || !Gone(err) {
		t.Error(err)
	}
	s, err := c.Stream(ctx, Command{Line: "true"}, StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(ctx); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	c.sendLater(&pb.CreateDirectoryRequest{})
	if err := <-kept; err != nil {
		t.Error(err)
	}
}

// A request ends also without a watch where its reply was lost, as when it was written to a port whose host was another one by
// then. One that the agent still serves goes on.
func TestLostRepliesAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guest, host := net.Pipe()
		defer guest.Close()
		served := make(chan string, 1)
		go func() {
			dec := wire.Decoder{}
			known := ""
			for buf := make([]byte, 1<<16); ; {
				n, err := guest.Read(buf)
				if err != nil {
					return
				}
				dec.Feed(buf[:n])
				for frame, ok := dec.Next(); ok; frame, ok = dec.Next() {
					m := &pb.AgentMessage{}
					if err := proto.Unmarshal(frame.Payload, m); err != nil {
						t.Error(err)
					}
					switch request := wire.Payload(m).(type) {
					case *pb.FileStatRequest:
						if request.Path == "/served" {
							known = m.MessageId
							served <- known
						}
					case *pb.PingRequest:
						pong := &pb.PongResponse{Unknown: slices.DeleteFunc(request.Awaiting, func(id string) bool { return id == known })}
						wire.WriteMessage(guest, wire.Plain, wire.Wrap(m.MessageId, pong))
					}
				}
			}
		}()
		c := New(host, Options{})
		defer c.Close()
		kept := make(chan error, 1)
		go func() { _, err := c.Stat(t.Context(), "/served"); kept <- err }()
		id := <-served
		if _, err := c.Stat(t.Context(), "/lost"); !errors.Is(err, ErrLost) || !Gone(err) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		wire.WriteMessage(guest, wire.Plain, wire.Wrap(id, &pb.FileStatResponse{Success: true}))
		if err := <-kept; err != nil {
			t.Error(err)
		}
	})
}

func TestCommandRequests(t *testing.T) {
	for _, c := range []struct {
		in   Command
		want *pb.ExecuteRequest
	}{
		{Command{Argv: []string{"ls", "-l"}}, &pb.ExecuteRequest{Command: "ls", Args: []string{"-l"}}},
		{Command{Argv: []string{"/a b/it's"}}, &pb.ExecuteRequest{Command: `exec '/a b/it'\''s'`}},
		{Command{Line: "a | b"}, &pb.ExecuteRequest{Command: "a | b"}},
		{Command{Line: "a", Timeout: 1001 * time.Millisecond}, &pb.ExecuteRequest{Command: "a", TimeoutSeconds: 2}},
		{Command{}, nil},
		{Command{Line: "a", Argv: []string{"b"}}, nil},
	} {
		got, err := c.in.request(true)
		if c.want == nil {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%v: %v", c.in, err)
			}
			continue
		}
		c.want.WaitForExit, c.want.IncludeSupplementaryGroups = true, true
		if err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%v: %v %v", c.in, got, err)
		}
	}
}

// Errors keep their meaning, and those about the request are never taken for a lost connection.
func TestErrorsKeepTheirMeaning(t *testing.T) {
	for _, code := range []string{"not_found", "no_space", "timeout", "cancelled", "io", "internal"} {
		if err := fault.FromDetail(&pb.ErrorDetail{Code: code, Message: code}); Gone(err) {
			t.Errorf("%s counts as a lost connection", code)
		}
	}
	if _, err := os.Open(t.TempDir() + "/none"); Gone(err) {
		t.Error("an error of this host counts as a lost connection")
	}
	for kind, cause := range map[string]error{"unsupported": errors.ErrUnsupported, "policy": fault.ErrRefused, "busy": fault.ErrBusy, "params": fs.ErrInvalid} {
		if err := replyError(&pb.ScriptError{Kind: kind, Message: "x"}, nil); !errors.Is(err, cause) || err.Error() != "x" {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestFindSocket(t *testing.T) {
	root, err := os.MkdirTemp("", "qs-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	listen := func(name string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if noSockets(err) {
			t.Skip("this system has no unix sockets, as Wine")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	expect := func(id, want string, cause error) {
		t.Helper()
		got, err := FindSocket(root, id)
		if cause == nil && (err != nil || got != filepath.Join(root, want)) || cause != nil && !errors.Is(err, cause) {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	const libvirt = "run/libvirt/qemu/channel/"
	expect("web", "", fs.ErrNotExist)
	listen("var/lib/libvirt/qemu/channel/7-web/org.limiquantix.agent.0")
	expect("web", "var/lib/libvirt/qemu/channel/7-web/org.limiquantix.agent.0", nil)
	listen(libvirt + "7-web/org.quantix.agent.0")
	expect("web", libvirt+"7-web/org.quantix.agent.0", nil)
	listen(libvirt + "7-web/org.quantix.agent.1")
	expect("web", libvirt+"7-web/org.quantix.agent.1", nil)
	listen(libvirt + "8-webmail/org.quantix.agent.1")
	expect("web", libvirt+"7-web/org.quantix.agent.1", nil)
	expect("10-webmail", "", fs.ErrNotExist)
	listen(libvirt + "10-webmail/org.quantix.agent.1")
	expect("10-webmail", libvirt+"10-webmail/org.quantix.agent.1", nil) // with libvirt's number
	expect("webmail", "", ErrAmbiguous)
	listen(libvirt + "11-2-cache/org.quantix.agent.1")
	expect("2-cache", libvirt+"11-2-cache/org.quantix.agent.1", nil)
	listen(libvirt + "12-a-name-of-more-than-/org.quantix.agent.1")
	expect("a-name-of-more-than-twenty", libvirt+"12-a-name-of-more-than-/org.quantix.agent.1", nil)
	if err := os.MkdirAll(filepath.Join(root, libvirt, "13-web"), 0o755); err != nil { // without an agent's socket
		t.Fatal(err)
	}
	expect("web", libvirt+"7-web/org.quantix.agent.1", nil)
	for _, part := range []string{"we", "mail", "eb", "7", "cache", "a-name-of-more-than", "-web", "WEB"} {
		expect(part, "", fs.ErrNotExist) // a part of a name is none
	}
	if _, err := FindSocket(root, "webmai"); err == nil || !strings.Contains(err.Error(), "2-cache, a-name-of-more-than-, web, webmail in "+root) {
		t.Error(err)
	}
	if _, err := FindSocket(root, "webmail"); err == nil || !strings.Contains(err.Error(), "10-webmail, 8-webmail") {
		t.Error(err)
	}
	listen("var/run/quantix-kvm/vms/web.agent.sock")
	expect("web", "var/run/quantix-kvm/vms/web.agent.sock", nil)
	for _, id := range []string{"", "..", ".", "../x", "a/b"} {
		expect(id, "", fs.ErrInvalid)
	}
}

// noSockets reports whether an error means that the system knows no unix sockets.
func noSockets(err error) bool {
	const noFamily = syscall.Errno(10047) // WSAEAFNOSUPPORT
	return runtime.GOOS == "windows" && errors.Is(err, noFamily)
}

// A guest lies about names; none of them may lead out of the directory that a tree is copied to.
func TestPullTreeStaysInside(t *testing.T) {
	entries := []*pb.DirectoryEntry{
		{Name: "../up"}, {Name: "a/b"}, {Name: ".."}, {Name: "/abs"}, {Name: "", IsDirectory: true},
		{Name: "out", IsSymlink: true, SymlinkTarget: ".."},
		{Name: "out", IsDirectory: true}, // a directory where the link is by now
		{Name: "good", Mode: 0o106755, SizeBytes: 3},
	}
	c, _ := agent(t, func(_ context.Context, request proto.Message) (proto.Message, error) {
		switch request := request.(type) {
		case *pb.ListDirectoryRequest:
			if request.Path == "/t" {
				return &pb.ListDirectoryResponse{Success: true, Entries: entries}, nil
			}
			return &pb.ListDirectoryResponse{Success: true, Entries: []*pb.DirectoryEntry{{Name: "escaped"}}}, nil
		case *pb.FileReadRequest:
			return &pb.FileReadResponse{Success: true, Data: []byte("abc"), Eof: true, Mode: 0o106755}, nil
		}
		return nil, errors.ErrUnsupported
	})
	base := t.TempDir()
	links, mode := 1, fs.FileMode(0o755)
	if runtime.GOOS == "windows" {
		mode = 0o666 // which has no modes
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if root.Symlink("x", "link") != nil {
			links = 0 // a right that not every user has, and Wine does not know
		}
	}
	var failed []string
	got, err := c.PullTree(within(t, 20*time.Second), "/t", filepath.Join(base, "copy"), Tree{Failed: func(_ string, err error) error {
		failed = append(failed, err.Error())
		return nil
	}})
	if err != nil || got.Files != 2-links || got.Links != links || links == 1 && len(failed) != 7 {
		t.Errorf("%+v %v %q", got, err, failed)
	}
	names, err := filepath.Glob(base + "/*")
	if err != nil || len(names) != 1 {
		t.Errorf("beside the copy lies %q", names)
	}
	info, err := os.Stat(filepath.Join(base, "copy/good"))
	if err != nil || info.Mode() != mode {
		t.Errorf("setuid came along: %v %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(base + "/copy/.quantix-*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
