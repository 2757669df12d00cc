package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/frame"
)

// maxOutput bounds each of the two outputs so that both fit into one frame.
const maxOutput = frame.MaxBody / 2

// pipeGrace is how long a command's outputs are read after it has exited, for what its children still write: a daemon
// that keeps them open must not hold up the reply.
const pipeGrace = 200 * time.Millisecond

// run runs a command in a session of its own and waits for it.
func (p *probe) run(m frame.Message, stdin []byte) (frame.Message, []byte, error) {
	if len(m.Argv) == 0 {
		return frame.Message{}, nil, errors.New("run: empty command")
	}
	var stdout, stderr capped
	cmd := exec.Command(m.Argv[0], m.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.Env, cmd.Dir = append(os.Environ(), m.Env...), m.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = pipeGrace
	if err := p.start(m.ID, cmd); err != nil {
		return frame.Message{}, nil, err
	}
	err := cmd.Wait()
	p.forget(m.ID)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return frame.Message{}, nil, err
	}
	if stdout.over || stderr.over {
		return frame.Message{}, nil, fmt.Errorf("run %s: more than %d bytes of output", m.Argv[0], maxOutput)
	}
	reply := frame.Message{Code: exitCode(cmd.ProcessState), Stdout: stdout.Len()}
	return reply, append(stdout.Bytes(), stderr.Bytes()...), nil
}

// start starts cmd and records it under one lock, so that a cancel which was sent later finds it.
func (p *probe) start(id uint64, cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	p.running[id] = cmd.Process.Pid
	return nil
}

func (p *probe) forget(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, id)
}

func (p *probe) cancel(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pid, ok := p.running[id]; ok {
		// It may just have exited, which is as good.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

// exitCode follows the shells: 128 plus the signal for a killed command.
func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// capped keeps the first maxOutput bytes and remembers whether there were more.
type capped struct {
	bytes.Buffer
	over bool
}

func (c *capped) Write(b []byte) (int, error) {
	if room := maxOutput - c.Len(); len(b) > room {
		c.over = true
		c.Buffer.Write(b[:room])
		return len(b), nil
	}
	return c.Buffer.Write(b)
}
