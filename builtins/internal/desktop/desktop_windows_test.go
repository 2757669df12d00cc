package desktop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain is the helper as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Arg {
		os.Exit(helper.Main(register))
	}
	os.Exit(m.Run())
}

// The requests to the helper of the tests are messages of the contract, with a meaning of their own here.
func register(r *helper.Registry) {
	helper.Handle(r, func(context.Context, *pb.ListJobsRequest) (*pb.RunResult, error) { // who are you?
		return &pb.RunResult{Stdout: []byte(strings.Join(os.Args[1:], " ")), Stderr: []byte(strings.Join(os.Environ(), "\n"))}, nil
	})
	helper.Handle(r, func(_ context.Context, in *pb.FileWriteRequest) (*pb.FileWriteRequest, error) { return in, nil })
	helper.Handle(r, func(context.Context, *pb.ExecuteRequest) (*pb.PongResponse, error) { // start another process
		return &pb.PongResponse{}, exec.Command("cmd.exe", "/C", "exit 0").Run()
	})
	helper.Handle(r, func(ctx context.Context, _ *pb.PingRequest) (*pb.PongResponse, error) { // be silent
		<-ctx.Done()
		return nil, ctx.Err()
	})
	helper.Handle(r, func(context.Context, *pb.ThawFilesystemsRequest) (*pb.PongResponse, error) {
		return &pb.PongResponse{}, r.Emit(&pb.ErrorEvent{Message: "told"})
	})
}

// console is what Windows says of the session at the console.
type console struct {
	mu     sync.Mutex
	number uint32
	none   bool // no session is there
	nobody bool // nobody is logged on
	locked bool
}

func (c *console) set(f func(*console)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

func (c *console) api() consoleAPI {
	return consoleAPI{
		active: func() (uint32, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.number, !c.none
		},
		token: func(uint32) (windows.Token, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.nobody {
				return 0, fault.Unsupported("nobody is logged on at the console")
			}
			return consoleToken(windows.WTSGetActiveConsoleSessionId())
		},
		locked: func(uint32) (bool, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.locked, nil
		},
	}
}

func open(t *testing.T, c *console, told func(string)) *Desktop {
	t.Helper()
	d := New(Config{Live: true, Warn: told})
	if c != nil {
		d.finder.console = c.api()
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func whoami(t *testing.T, d *Desktop) *pb.RunResult {
	t.Helper()
	reply, err := Do[*pb.RunResult](t.Context(), d, Request{Message: &pb.ListJobsRequest{}, Limit: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// The helper runs in the session at the console, as the user there, with the environment of a logon and without what the agent
// has in its own. What is large passes in both directions.
func TestHelperInTheSessionAtTheConsole(t *testing.T) {
	t.Setenv("QUANTIX_SECRET", "of the agent")
	d := open(t, nil, nil)
	if s := d.Status(); s.HelperStarts != 0 {
		t.Errorf("a helper was started before it was needed: %v", s)
	}
	reply := whoami(t, d)
	if string(reply.Stdout) != Arg {
		t.Errorf("its arguments: %q", reply.Stdout)
	}
	env := "\n" + strings.ToUpper(string(reply.Stderr)) + "\n"
	if !strings.Contains(env, "\nSYSTEMROOT=") || !strings.Contains(env, "\nUSERPROFILE=") {
		t.Error(env)
	}
	for _, forbidden := range []string{"QUANTIX_SECRET", "QUANTIX_SESSION_PIPE"} {
		if strings.Contains(env, forbidden) {
			t.Error(forbidden, "is in its environment")
		}
	}
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	name, _, _, err := user.User.Sid.LookupAccount("")
	if err != nil {
		t.Fatal(err)
	}
	s := d.Status()
	if s.Type != "windows" || !strings.HasSuffix(s.User, `\`+name) || s.HelperPid == 0 || s.Session == "" || s.Locked {
		t.Errorf("%v", s)
	}
	large := &pb.FileWriteRequest{Data: bytes.Repeat([]byte("content"), ipc.MaxContent/7)}
	got, err := Do[*pb.FileWriteRequest](t.Context(), d, Request{Message: large, Limit: time.Minute})
	if err != nil || !bytes.Equal(got.Data, large.Data) {
		t.Error("what is large:", err)
	}
	events := make(chan string, 1)
	other := open(t, nil, nil)
	OnEvent(other, func(_ *Session, e *pb.ErrorEvent) { events <- e.Message })
	tell := Request{Message: &pb.ThawFilesystemsRequest{}, Limit: time.Minute}
	if _, err := Do[*pb.PongResponse](t.Context(), other, tell); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e != "told" {
		t.Errorf("the event is %q", e)
	}
}

// A helper that is killed, or does not answer, is reported and started again.
func TestHelperIsStartedAgain(t *testing.T) {
	told := make(chan string, 10)
	d := open(t, nil, func(words string) { told <- words })
	whoami(t, d)
	first := d.Status().HelperPid
	process, err := os.FindProcess(int(first))
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	process.Release()
	if words := <-told; !strings.Contains(words, "exit status 1") || !strings.Contains(words, "windows session of") {
		t.Error(words)
	}
	waitFor(t, "another helper", func() bool { pid := d.Status().HelperPid; return pid != 0 && pid != first })
	whoami(t, d)
	starts := d.Status().HelperStarts
	_, err = Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.PingRequest{}, Limit: 50 * time.Millisecond})
	if fault.Code(err) != "timeout" {
		t.Errorf("a helper that is silent: %v", err)
	}
	whoami(t, d)
	if now := d.Status().HelperStarts; now != starts && now != starts+1 {
		t.Errorf("%d helpers were started, %d before", now, starts)
	}
}

// The helper moves to the session at the console when the service manager reports a change, and ends with the last session.
func TestTheHelperFollowsTheConsole(t *testing.T) {
	c := &console{number: windows.WTSGetActiveConsoleSessionId()}
	d := open(t, c, nil)
	d.Keep(&pb.ListJobsRequest{}) // from now on there is a helper wherever there is a session
	helperOf := func() uint32 { return d.Status().HelperPid }
	waitFor(t, "a helper", func() bool { return helperOf() != 0 })
	first := helperOf()

	c.set(func(c *console) { c.number += 7 }) // another user is switched to
	d.Changed()
	waitFor(t, "a helper in the other session", func() bool { pid := helperOf(); return pid != 0 && pid != first })
	if err := gone(first); err != nil {
		t.Error("the helper of the former session:", err)
	}

	c.set(func(c *console) { c.locked = true })
	s, err := d.Front(t.Context())
	if err != nil || !s.Locked {
		t.Error("a locked session:", s, err)
	}

	for what, change := range map[string]func(*console){
		"nobody is logged on":          func(c *console) { c.nobody = true },
		"no session is at the console": func(c *console) { c.none = true },
	} {
		c.set(change)
		d.Changed()
		waitFor(t, "the helper ends: "+what, func() bool {
			return helperOf() == 0 && strings.Contains(d.Status().Reason, what)
		})
		if _, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("without a session: %v", err)
		}
		c.set(func(c *console) { c.nobody, c.none = false, false })
		d.Changed()
		waitFor(t, "a helper again", func() bool { return helperOf() != 0 })
	}
}

// gone returns an error if a process does not end.
func gone(pid uint32) error {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, pid)
	if err != nil {
		return nil
	}
	defer windows.CloseHandle(h)
	if what, err := windows.WaitForSingleObject(h, 10_000); err != nil || what != windows.WAIT_OBJECT_0 {
		return fmt.Errorf("process %d runs still", pid)
	}
	return nil
}

// An agent that is killed leaves no helper.
func TestTheHelperEndsWithTheAgent(t *testing.T) {
	if os.Getenv("QUANTIX_AGENT") != "" { // the agent, which is killed
		p, err := proc.StartPeer(proc.PeerSpec{Args: []string{Arg}, Env: os.Environ()})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("helper", p.PID)
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "QUANTIX_AGENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid uint32
	if _, err := fmt.Fscanf(out, "helper %d", &pid); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := gone(pid); err != nil {
		t.Error(err)
	}
}

func TestATreeHasNoDesktop(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	if _, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{}); fault.Code(err) != "unsupported" {
		t.Error(err)
	}
}

// A helper starts no other process: its job has room for one.
func TestTheHelperStartsNothing(t *testing.T) {
	d := open(t, nil, nil)
	_, err := Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.ExecuteRequest{}, Limit: time.Minute})
	if err == nil && wineVersion.Find() == nil {
		t.Skip("Wine does not hold a job to its number of processes")
	}
	if err == nil {
		t.Error("it has started a process")
	}
}

// A process that nobody started as a helper is none, and one that does not open its channel is ended.
func TestPeerWithoutAChannel(t *testing.T) {
	if _, err := proc.OpenPeerChannel(); fault.Code(err) != "invalid" {
		t.Error(err)
	}
	_, err := proc.StartPeer(proc.PeerSpec{Args: []string{"-test.run", "^$"}, Env: os.Environ()})
	if !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a process that ends at once: %v", err)
	}
}
