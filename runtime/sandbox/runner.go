package sandbox

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/link"
)

// runner is one process and the agent's end of its connection.
type runner struct {
	cmd    *exec.Cmd
	conn   *os.File
	in     *link.Reader
	stderr tail
	group  *group
	exited chan struct{} // closed once the process is reaped and its stderr read

	mu     sync.Mutex
	killed bool // by us
}

// spawn starts a runner. It is called on the keeper thread alone.
func spawn(cfg Config, limits Limits) (*runner, error) {
	cmd := exec.Command(cfg.Path, append(append([]string(nil), cfg.Args...), runnerArgs(limits)...)...)
	cmd.Dir = "/"
	// With two threads a script can fill its address space while the kernel lets the collector's thread wait (measured:
	// 26 of 180 honest runs died, none with one). A fixed number, and the two settings, also keep the runtime from reading
	// cgroup files, which a sealed runner may not. Huge pages would make 6 MiB of a heap of 2.
	cmd.Env = append([]string{
		"GOMAXPROCS=1", "GOTRACEBACK=none", "GODEBUG=updatemaxprocs=0,containermaxprocs=0,disablethp=1", "LANG=C", "MALLOC_ARENA_MAX=1",
	}, cfg.Env...)
	r := &runner{cmd: cmd, exited: make(chan struct{})}
	cmd.Stderr = &r.stderr
	child, err := r.connect(cfg)
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{child}
	// A killed runner's stderr ends with it; were it not to, Wait must still return.
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	child.Close()
	if err != nil {
		r.conn.Close()
		return nil, err
	}
	r.confine(limits.Memory)
	r.in = link.NewReader(r.conn, link.FromRunner)
	go func() {
		defer close(r.exited)
		cmd.Wait() //nolint:errcheck // the state says it all
	}()
	return r, nil
}

// runnerArgs tell a runner what to seal itself with: bytes of heap, whole seconds of processor time, and depth. The exact time
// is the agent's to watch; the runner's own limit only stands behind it.
func runnerArgs(limits Limits) []string {
	seconds := int64((limits.CPU + time.Second - 1) / time.Second)
	return []string{strconv.FormatUint(limits.Memory, 10), strconv.FormatInt(seconds, 10), strconv.Itoa(limits.Depth)}
}

// kill ends the process and unblocks whoever reads from it or writes to it.
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
	r.group.remove()
}

// gone says whether the process ended by itself, within the time given to it.
func (r *runner) gone(within time.Duration) bool {
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

// used is the processor time of a process that has ended.
func (r *runner) used() time.Duration {
	return r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime()
}

// said is what the runner wrote to stderr, cleaned for a message.
func (r *runner) said() string { return strings.TrimSpace(printable(r.stderr.String())) }

// tail keeps the first bytes that are written to it, where a dying Go program says why, and drops the rest.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

// stderrKept is ample for the reason of a fatal error.
const stderrKept = 8 << 10

// Write never fails: a full pipe must not hold up the runner's death.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := stderrKept - len(t.kept); room > 0 {
		t.kept = append(t.kept, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
