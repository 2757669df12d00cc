package winguest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// Program returns the path of a program, and skips the test where it was not built.
func Program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv(agenttest.ProgramsVariable)
	if dir == "" {
		t.Skip("needs the programs: go run ./cmd/internal/rig/wintest ./cmd/internal/rig/winguest")
	}
	return filepath.Join(dir, name+".exe")
}

// Log is what a process has written; it may still run.
type Log struct {
	mu  sync.Mutex
	all bytes.Buffer
}

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

// String returns all that was written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// Agent is a running agent.
type Agent struct {
	State string
	Log   *Log
	cmd   *exec.Cmd
}

// StartAgent starts an agent with a state directory of its own, and ends it with the test.
func StartAgent(t testing.TB, args ...string) *Agent {
	t.Helper()
	a := &Agent{State: filepath.Join(t.TempDir(), "state"), Log: &Log{}}
	a.cmd = exec.Command(Program(t, "quantix-kvm-agent"), append([]string{"--state", a.State, "--log-level", "debug"}, args...)...)
	a.cmd.Stderr = a.Log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Kill()
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.Log)
		}
	})
	return a
}

// Kill ends the agent at once.
func (a *Agent) Kill() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

// noAnswer is the ctl's exit status where the agent has not answered its first ping in time. Nothing was asked for then.
const noAnswer = 3

// Ctl runs the ctl and returns what it printed, with its exit status. On a busy machine, where no answer comes in time, it runs
// it again.
func Ctl(t testing.TB, h *Host, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	for range 10 {
		if stdout, stderr, status = runCtl(t, h, args...); status != noAnswer {
			break
		}
	}
	return stdout, stderr, status
}

func runCtl(t testing.TB, h *Host, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Program(t, "quantix-kvm-ctl"), append([]string{"--socket", h.Path}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// CPU returns how much time of a processor the agent has used.
func (a *Agent) CPU(t testing.TB) time.Duration {
	t.Helper()
	var created, ended, kernel, user windows.Filetime
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	if err := windows.GetProcessTimes(h, &created, &ended, &kernel, &user); err != nil {
		t.Fatal(err)
	}
	ticks := func(f windows.Filetime) time.Duration {
		return time.Duration(uint64(f.HighDateTime)<<32|uint64(f.LowDateTime)) * 100 * time.Nanosecond
	}
	return ticks(kernel) + ticks(user)
}
