package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// startAttempts bounds how often a program is started whose start fails.
const startAttempts = 3

// runBinary runs a test binary, as go test wants it of -exec. One process in some hundred of Wine ends with status 1 before the
// program has begun. A test binary that fails has always said something, so one that has said nothing is started again.
func runBinary(ctx context.Context, args []string) error {
	runtime.LockOSThread() // the thread whose end kills the child
	var err error
	for range startAttempts {
		said := &noted{}
		cmd := exec.CommandContext(ctx, loader(), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, io.MultiWriter(said, os.Stdout), io.MultiWriter(said, os.Stderr)
		cmd.WaitDelay = 2 * time.Second // what a test has left running may hold its output open
		if err = cmd.Run(); errors.Is(err, exec.ErrWaitDelay) {
			err = nil // the binary itself has ended well
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || said.anything.Load() {
			return err
		}
	}
	return err
}

// noted notes whether anything was written, by either of two writers.
type noted struct{ anything atomic.Bool }

func (n *noted) Write(p []byte) (int, error) {
	if len(p) > 0 {
		n.anything.Store(true)
	}
	return len(p), nil
}
