// Package agenttest starts the real agent as a process of its own, on a private unix socket or a pipe of Windows, for tests.
//
// Not here: tests.
package agenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// Options say how an agent is started. All are optional.
type Options struct {
	Binary string   // a built agent; empty: built from this tree, once a process
	Root   string   // --root; empty: none
	State  string   // --state; empty: a fresh directory
	Config string   // the text of agent.yaml
	Args   []string // more arguments
	Env    []string // more environment
	Alone  bool     // in namespaces of its own, where it sees no processes but its own; needs root, and Linux
}

// Agent is a running one.
type Agent struct {
	Socket string
	State  string
	t      testing.TB
	cmd    *exec.Cmd
	log    *safeBuffer
	exited chan struct{} // closed when the process is gone
}

var built struct {
	once  sync.Once
	path  string
	given bool // it was built by another, and stays
	err   error
}

// ProgramsVariable names, in the environment, the directory of the agent and the ctl where there is no Go to build them, as
// under Wine.
const ProgramsVariable = "QUANTIX_WINDOWS_PROGRAMS"

// Binary builds the agent of this tree once and gives its path. race says that the tests run under the race detector,
// and then so does the agent.
func Binary() (string, error) {
	built.once.Do(func() {
		if dir := os.Getenv(ProgramsVariable); dir != "" {
			built.path, built.given = filepath.Join(dir, "quantix-kvm-agent.exe"), true
			return
		}
		dir, err := os.MkdirTemp("", "agent-bin-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "quantix-kvm-agent")
		args := []string{"build", "-buildvcs=false", "-o", built.path}
		if Race {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "github.com/quantix-kvm/guest-agent/cmd/quantix-kvm-agent")...)
		if cmd.Env = os.Environ(); !Race { // so that it runs in any guest; the race detector needs C
			cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build the agent: %w\n%s", err, out)
		}
	})
	return built.path, built.err
}

// Main runs tests and takes away what Binary built. For TestMain.
func Main(m *testing.M) {
	code := m.Run()
	Clean()
	os.Exit(code)
}

// Clean takes away what Binary built, for a TestMain that has more to do than Main.
func Clean() {
	if built.path != "" && !built.given {
		os.RemoveAll(filepath.Dir(built.path))
	}
}

// Start starts an agent and ends it with the test. It returns when the socket is there.
func Start(t testing.TB, o Options) *Agent {
	t.Helper()
	binary := o.Binary
	if binary == "" {
		var err error
		if binary, err = Binary(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	socket, device := newSocket(t)
	a := &Agent{Socket: socket, State: o.State, t: t, log: &safeBuffer{}}
	if a.State == "" {
		a.State = filepath.Join(dir, "state")
	}
	config := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(config, []byte(o.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", config, "--device", device, "--state", a.State, "--log-level", "debug"}
	if o.Root != "" {
		args = append(args, "--root", o.Root)
	}
	a.cmd = exec.Command(binary, append(args, o.Args...)...)
	a.cmd.Env = append(os.Environ(), o.Env...)
	a.cmd.Stderr = a.log
	a.cmd.SysProcAttr = startedAlone()
	if o.Alone {
		asOwnKernel(a.cmd)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.exited = make(chan struct{})
	go func() { a.cmd.Wait(); close(a.exited) }()
	t.Cleanup(func() {
		a.Kill()
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.log)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if isThere(t, a.Socket) {
			return a
		}
		select {
		case <-a.exited:
			t.Fatalf("the agent ended at once:\n%s", a.log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent made no socket:\n%s", a.log)
		}
	}
}

// Dial connects to a socket of an agent, or to its pipe.
func Dial(socket string) (net.Conn, error) { return dial(socket) }

// Client connects and waits for the agent's first word.
func (a *Agent) Client(t testing.TB, o client.Options) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, a.Socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// Log is what the agent has logged so far.
func (a *Agent) Log() string { return a.log.String() }

// AwaitLog waits until the agent's log holds a text n times: what an agent has written reaches the log after its replies.
func (a *Agent) AwaitLog(t testing.TB, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); strings.Count(a.Log(), text) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not have %s %d times within 60 s", text, n)
		}
	}
}

// PID is the agent's process id.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Stop asks the agent to end, by SIGTERM or on Windows by Ctrl+Break, and waits for the end; it returns how long that took.
func (a *Agent) Stop() time.Duration {
	start := time.Now()
	askToEnd(a.t, a.cmd.Process)
	select {
	case <-a.exited:
	case <-time.After(30 * time.Second):
		a.t.Error("the agent did not end within 30 s of being asked to")
		a.Kill()
	}
	return time.Since(start)
}

// Kill sends SIGKILL and waits for the end.
func (a *Agent) Kill() {
	select {
	case <-a.exited:
		return
	default:
	}
	if err := a.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		a.t.Error(err)
	}
	<-a.exited
}

// Wait waits for the end of the agent.
func (a *Agent) Wait(ctx context.Context) error {
	select {
	case <-a.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// RSS is the resident size of the agent in bytes, with all pages of its program: those come and go with what it does, and
// would hide what it keeps. 0 where it is not known.
func (a *Agent) RSS() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.PID()))
	if err != nil {
		return 0
	}
	program, err := os.Stat(fmt.Sprintf("/proc/%d/exe", a.PID()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb<<10 + program.Size()
		}
	}
	return 0
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
