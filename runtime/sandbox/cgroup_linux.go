package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a control group of one runner, in which the kernel limits its memory: a second layer behind the limit of
// its address space. A nil one is none.
type cgroup struct{ dir string }

const (
	// cgroupsName is the directory of the groups, next to systemd's top-level units where the agent's own group cannot
	// have children with limits: a group with both is not allowed to hold processes itself.
	cgroupsName = "quantix-kvm-agent-scripts"
	// cgroupOverhead is memory beyond a script's heap, in bytes: the program itself, stacks, and what the collector has
	// not returned.
	cgroupOverhead = 128 << 20
)

// cgroupSerial numbers the groups of this process.
var cgroupSerial atomic.Uint64

// newCgroup makes a group with memory for a heap of that size.
func newCgroup(heap uint64) (*cgroup, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent is not root")
	}
	parent, err := cgroupsDir()
	if err != nil {
		return nil, err
	}
	g := &cgroup{filepath.Join(parent, fmt.Sprintf("%d-%d", os.Getpid(), cgroupSerial.Add(1)))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		forgetCgroupsDir()
		return nil, err
	}
	if err := g.write("memory.max", strconv.FormatUint(heap+cgroupOverhead, 10)); err != nil {
		g.remove()
		return nil, err
	}
	g.write("memory.swap.max", "0") //nolint:errcheck // there may be no accounting for swap
	return g, nil
}

// groupsPlace is what cgroupsDir has found out, for groupsPlaceFor: the mounts are long, and reading them is a good part of
// what a start costs the agent. A group that cannot be made has it look again at once.
var groupsPlace struct {
	sync.Mutex
	dir string
	err error
	at  time.Time // zero: nothing is known
}

const groupsPlaceFor = 10 * time.Second

// cgroupsDir returns the directory in which groups are made, as findCgroupsDir has found it lately.
func cgroupsDir() (string, error) {
	p := &groupsPlace
	p.Lock()
	defer p.Unlock()
	if p.at.IsZero() || time.Since(p.at) >= groupsPlaceFor {
		p.dir, p.err = findCgroupsDir()
		p.at = time.Now()
	}
	return p.dir, p.err
}

// forgetCgroupsDir has cgroupsDir look again.
func forgetCgroupsDir() {
	groupsPlace.Lock()
	defer groupsPlace.Unlock()
	groupsPlace.at = time.Time{}
}

// findCgroupsDir returns the directory in which groups are made, with the memory controller enabled for them. It removes
// the groups of agents that are gone.
func findCgroupsDir() (string, error) {
	parent, err := memoryCgroup()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(parent, cgroupsName)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if !delegatesMemory(dir) {
		if err := (&cgroup{dir}).write("cgroup.subtree_control", "+memory"); err != nil {
			return "", err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), strconv.Itoa(os.Getpid())+"-") {
			os.Remove(filepath.Join(dir, e.Name())) //nolint:errcheck // one with processes stays
		}
	}
	return dir, nil
}

// memoryCgroup returns a control group whose children have the memory controller: the agent's own, or the root. It
// enables the controller in neither: how other processes are accounted for is not the agent's to change.
func memoryCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	mount := cgroupMount(string(mounts))
	if mount == "" {
		return "", errors.New("no cgroup v2 is mounted")
	}
	candidates := []string{mount}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			candidates = []string{filepath.Join(mount, path), mount}
		}
	}
	for _, dir := range candidates {
		if delegatesMemory(dir) {
			return dir, nil
		}
	}
	return "", errors.New("the memory controller is not with cgroup v2, or not turned on")
}

// cgroupMount returns where the root of cgroup v2 is mounted, by /proc/self/mountinfo; empty: nowhere.
func cgroupMount(mounts string) string {
	for line := range strings.Lines(mounts) {
		mount, system, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(system, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4]
		}
	}
	return ""
}

func delegatesMemory(dir string) bool {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	return err == nil && bytes.Contains(append([]byte(" "), append(bytes.TrimSpace(controllers), ' ')...), []byte(" memory "))
}

func (g *cgroup) write(file, text string) error {
	return writeControl(filepath.Join(g.dir, file), text)
}

// writeControl writes a file of the kernel's, and does not bother the runtime's poller with it.
func writeControl(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}

// add moves a process into the group.
func (g *cgroup) add(pid int) error { return g.write("cgroup.procs", strconv.Itoa(pid)) }

// outOfMemory reports whether the kernel killed a process of the group for its memory.
func (g *cgroup) outOfMemory() bool {
	if g == nil {
		return false
	}
	events, err := os.ReadFile(filepath.Join(g.dir, "memory.events"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(events)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

// remove removes the group. Its process must be gone.
func (g *cgroup) remove() {
	if g != nil {
		os.Remove(g.dir) //nolint:errcheck // the next agent removes it then
	}
}

// limit puts a runner into a group of its own where the machine supports that, and makes it the first process
// that the kernel kills when memory runs out. Without that it would inherit the agent's own oom_score_adj, and at the
// lowest value the kernel never kills a process, not even one over the limit of its group. It is called before the
// runner gets a script. It never fails.
func (r *runner) limit(limits Limits) error {
	score := fmt.Sprintf("/proc/%d/oom_score_adj", r.cmd.Process.Pid)
	writeControl(score, "1000") //nolint:errcheck // the process may have ended
	if r.cgroup != nil {        // it was started in it
		return nil
	}
	g, err := newCgroup(limits.Memory)
	if err != nil {
		return nil // Layers reports it
	}
	if g.add(r.cmd.Process.Pid) != nil {
		g.remove() // the process has ended, or is about to
		return nil
	}
	r.cgroup = g
	return nil
}

// startCommand starts the runner's process, in its group where the kernel can do that: to move it there afterwards makes all
// forks of the machine wait.
func (r *runner) startCommand(limits Limits) error {
	g, err := newCgroup(limits.Memory)
	if err != nil {
		return r.cmd.Start()
	}
	fd, err := unix.Open(g.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		first := *r.cmd.SysProcAttr
		r.cmd.SysProcAttr.UseCgroupFD, r.cmd.SysProcAttr.CgroupFD = true, fd
		again := &exec.Cmd{
			Path: r.cmd.Path, Args: r.cmd.Args, Env: r.cmd.Env, Dir: r.cmd.Dir, Stdin: r.cmd.Stdin, Stdout: r.cmd.Stdout,
			Stderr: r.cmd.Stderr, ExtraFiles: r.cmd.ExtraFiles, WaitDelay: r.cmd.WaitDelay, SysProcAttr: &first, Err: r.cmd.Err,
		}
		if err = r.cmd.Start(); err == nil {
			r.cgroup = g
			return nil
		}
		r.cmd = again // an old kernel, or a filter on clone3
	}
	g.remove()
	return r.cmd.Start()
}

// cgroupMissing returns why runners have no groups here; nil: they have.
func cgroupMissing() error {
	forgetCgroupsDir()
	g, err := newCgroup(0)
	g.remove()
	return err
}
