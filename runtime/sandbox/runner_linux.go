package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

// ownProgram is the agent itself, also where its file has been replaced.
func ownProgram() string { return "/proc/self/exe" }

// lockThread ties the goroutine to its thread, for good, and makes what it starts unable to gain privileges.
func lockThread() {
	runtime.LockOSThread()
	confine.NoNewPrivileges() //nolint:errcheck // a runner does it itself then
}

// newConn makes the socketpair and sets how the process is started: killed with its parent, in a process group of its
// own, and as a user that nobody else is where the agent is root.
func (r *runner) newConn() (child *os.File, err error) {
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if os.Geteuid() == 0 {
		id, err := freeUserID()
		if err != nil {
			return nil, err
		}
		r.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: id, Gid: id}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	// Only the agent's end is non-blocking: the runner does plain reads, which are twice as fast.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, os.NewSyscallError("fcntl", err)
	}
	r.conn = os.NewFile(uintptr(fds[0]), "runner")
	child = os.NewFile(uintptr(fds[1]), "agent")
	r.cmd.ExtraFiles = []*os.File{child}
	if null, err := nullDevice(); err == nil { // else the command opens it
		r.cmd.Stdin, r.cmd.Stdout = null, null
	}
	return child, nil
}

// nullDevice returns the null device, which is opened once.
var nullDevice = sync.OnceValues(func() (*os.File, error) { return os.OpenFile(os.DevNull, os.O_RDWR, 0) })

// interrupt asks the runner to stop its script and to say where it was.
func (r *runner) interrupt() { r.cmd.Process.Signal(syscall.SIGUSR1) } //nolint:errcheck // the kill that follows counts

// cpuTime returns the processor time of the process so far; false when it is gone.
func (r *runner) cpuTime() (time.Duration, bool) {
	// The id of another process's clock, as the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
	clock := int32(^uint32(r.cmd.Process.Pid))<<3 | 2
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}

// peakMemory returns the largest resident size of the process so far, in bytes; 0 when it is gone. The rusage of a dead
// child is of no use: it includes the agent's own memory, from the moment between fork and exec.
func (r *runner) peakMemory() uint64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(status, []byte("\nVmHWM:"))
	fields := bytes.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// exitStatus returns how the process ended by itself: its exit code, or the signal.
func (r *runner) exitStatus() (code int, signal syscall.Signal) {
	status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return r.cmd.ProcessState.ExitCode(), 0
	}
	return -1, status.Signal()
}

const (
	sigSys  = syscall.SIGSYS
	sigKill = syscall.SIGKILL
	sigXCPU = syscall.SIGXCPU
)

// oomKills returns how many processes of the machine the kernel has killed for want of memory since its boot.
func oomKills() uint64 {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(text, []byte("\noom_kill "))
	digits, _, _ := bytes.Cut(after, []byte("\n"))
	n, _ := strconv.ParseUint(string(digits), 10, 64) // without the line it stays 0
	return n
}
