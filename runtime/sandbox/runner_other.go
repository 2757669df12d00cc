//go:build !linux && !windows

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

func lockThread() {}

func ownProgram() string { return "" }

func (r *runner) newConn() (*os.File, error) {
	return nil, fmt.Errorf("script runners are %w on this system", errors.ErrUnsupported)
}

func (r *runner) interrupt() {}

func (r *runner) cpuTime() (time.Duration, bool) { return 0, false }

func (r *runner) peakMemory() uint64 { return 0 }

func oomKills() uint64 { return 0 }

func (r *runner) exitStatus() (int, syscall.Signal) { return r.cmd.ProcessState.ExitCode(), 0 }

// cgroup exists on Linux only.
type cgroup struct{}

func (*cgroup) outOfMemory() bool { return false }

func (*cgroup) remove() {}

func (r *runner) startCommand(Limits) error { return r.cmd.Start() }

func (r *runner) limit(Limits) error { return errors.ErrUnsupported }

// Signals that no process is killed by on these systems.
const (
	sigSys  = syscall.Signal(-1)
	sigKill = syscall.Signal(-2)
	sigXCPU = syscall.Signal(-3)
)
