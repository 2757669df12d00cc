package sandbox

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// runner is one process and the agent's end of its connection.
type runner struct {
	cmd      *exec.Cmd
	conn     *os.File
	messages *framing.Reader
	stderr   headBuffer
	cgroup   *cgroup       // on Windows a job object
	oomKills uint64        // of the machine before it got a script; without a cgroup alone
	exited   chan struct{} // closed once the process is reaped and its stderr read

	mu     sync.Mutex
	killed bool // by kill
}

// spawn starts a runner. It is called on the pool's spawner thread only.
func spawn(cfg Config, limits Limits) (*runner, error) {
	cmd := exec.Command(cfg.Path, append(append([]string(nil), cfg.Args...), runnerArgs(limits)...)...)
	cmd.Dir = string(os.PathSeparator)
	// With two threads a script can fill its address space while the kernel lets the collector's thread wait (measured:
	// 26 of 180 honest runs died, none with one). A fixed number, and the two settings, also keep the runtime from reading
	// cgroup files, which a sealed runner may not. Huge pages would make 6 MiB of a heap of 2.
	cmd.Env = append([]string{
		"GOMAXPROCS=1", "GOTRACEBACK=none", "GODEBUG=updatemaxprocs=0,containermaxprocs=0,disablethp=1", "LANG=C", "MALLOC_ARENA_MAX=1",
	}, cfg.Env...)
	r := &runner{cmd: cmd, exited: make(chan struct{})}
	cmd.Stderr = &r.stderr
	child, err := r.newConn()
	if err != nil {
		return nil, err
	}
	// Wait must return even if something else holds the runner's stderr open.
	cmd.WaitDelay = time.Second
	err = r.startCommand(limits)
	child.Close()
	if err != nil {
		r.conn.Close()
		r.cgroup.remove()
		return nil, err
	}
	if err := r.limit(limits); err != nil {
		r.cmd.Process.Kill() //nolint:errcheck // it is suspended
		r.cmd.Wait()         //nolint:errcheck // as it was killed
		r.conn.Close()
		r.cgroup.remove()
		return nil, err
	}
	if r.cgroup == nil { // which knows it otherwise
		r.oomKills = oomKills()
	}
	r.messages = framing.NewReader(r.conn, framing.MaxFromRunner)
	go func() {
		defer close(r.exited)
		r.cmd.Wait() //nolint:errcheck // ProcessState has it
	}()
	return r, nil
}

// runnerArgs returns the limits that a runner sets for itself: bytes of heap, whole seconds of processor time, and
// depth. The agent watches the exact time; the runner's own limit only backs that up.
func runnerArgs(limits Limits) []string {
	seconds := int64((limits.CPU + time.Second - 1) / time.Second)
	return []string{strconv.FormatUint(limits.Memory, 10), strconv.FormatInt(seconds, 10), strconv.Itoa(limits.Depth)}
}

// kill ends the process and unblocks reads from it and writes to it.
func (r *runner) kill() {
	r.mu.Lock()
	r.killed = true
	r.mu.Unlock()
	r.cmd.Process.Kill()                //nolint:errcheck // it may be gone already
	r.conn.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // only a closed one fails
}

// close kills the process and returns when it is reaped.
func (r *runner) close() {
	r.kill()
	<-r.exited
	r.conn.Close()
	r.cgroup.remove()
}

// exitedWithin reports whether the process ends by itself within the given time.
func (r *runner) exitedWithin(within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-r.exited:
	case <-timer.C:
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.killed
}

// cpuUsed returns the processor time of a process that has ended.
func (r *runner) cpuUsed() time.Duration {
	return r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime()
}

// outOfMemory reports whether the kernel killed the process for want of memory: its group's or the machine's.
func (r *runner) outOfMemory() bool {
	return r.cgroup.outOfMemory() || r.cgroup == nil && oomKills() != r.oomKills
}

// stderrText returns what the runner wrote to stderr, as valid UTF-8.
func (r *runner) stderrText() string { return strings.TrimSpace(text.ToValidUTF8(r.stderr.String())) }

// headBuffer keeps the first bytes that are written to it, where a dying Go program says why, and drops the rest.
type headBuffer struct {
	mu   sync.Mutex
	kept []byte
}

// maxStderr is how much of stderr is kept, in bytes: enough for the reason of a fatal error.
const maxStderr = 8 << 10

// Write never fails: a runner must not block on a full pipe while it dies.
func (t *headBuffer) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := maxStderr - len(t.kept); room > 0 {
		t.kept = append(t.kept, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

func (t *headBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
