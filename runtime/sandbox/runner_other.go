//go:build !linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

func lockThread() {}

func (r *runner) connect(Config) (*os.File, error) {
	return nil, fmt.Errorf("script runners are %w on this system", errors.ErrUnsupported)
}

func (r *runner) interrupt() {}

func (r *runner) cpu() (time.Duration, bool) { return 0, false }

func (r *runner) peak() uint64 { return 0 }

func (r *runner) ended() (int, syscall.Signal) { return r.cmd.ProcessState.ExitCode(), 0 }

// group is what Linux has.
type group struct{}

func (*group) outOfMemory() bool { return false }

func (*group) remove() {}

func (r *runner) confine(uint64) {}

func groupMissing() error { return errors.ErrUnsupported }

// Numbers of signals that no process here dies of.
const (
	sigSys  = syscall.Signal(-1)
	sigKill = syscall.Signal(-2)
	sigXCPU = syscall.Signal(-3)
)
