package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// group is a control group of one runner, in which the kernel holds it to its memory: a wall behind that of its address
// space. A nil one is none.
type group struct{ dir string }

const (
	// groupsName is the directory of the groups, beside the units of systemd where the agent's own may have no groups with
	// limits: a group that has both is not allowed to hold processes itself.
	groupsName = "quantix-kvm-agent-scripts"
	// groupSpare is memory beyond a script's heap: the program itself, stacks, and what the collector has not given back.
	groupSpare = 128 << 20
)

// groupSerial numbers the groups of this process.
var groupSerial atomic.Uint64

// newGroup makes a group with so much memory for the script.
func newGroup(heap uint64) (*group, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent is not root")
	}
	parent, err := groupsDir()
	if err != nil {
		return nil, err
	}
	g := &group{filepath.Join(parent, fmt.Sprintf("%d-%d", os.Getpid(), groupSerial.Add(1)))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	if err := g.write("memory.max", strconv.FormatUint(heap+groupSpare, 10)); err != nil {
		g.remove()
		return nil, err
	}
	g.write("memory.swap.max", "0") //nolint:errcheck // there may be no accounting for swap
	return g, nil
}

// groupsDir is where groups are made, with the memory controller on for them. Groups of agents that are gone are removed.
func groupsDir() (string, error) {
	place, err := withMemory()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(place, groupsName)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if !handsOnMemory(dir) {
		if err := (&group{dir}).write("cgroup.subtree_control", "+memory"); err != nil {
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

// withMemory is a control group whose children have the memory controller: the agent's own, or the top. It is turned on
// in neither: how others are accounted for is not the agent's to change.
func withMemory() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	top := cgroupTop(string(mounts))
	if top == "" {
		return "", errors.New("no cgroup v2 is mounted")
	}
	places := []string{top}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			places = []string{filepath.Join(top, path), top}
		}
	}
	for _, place := range places {
		if handsOnMemory(place) {
			return place, nil
		}
	}
	return "", errors.New("the memory controller is not with cgroup v2, or not turned on")
}

// cgroupTop is where the whole of cgroup v2 is mounted, by /proc/self/mountinfo; empty: nowhere.
func cgroupTop(mounts string) string {
	for line := range strings.Lines(mounts) {
		mount, system, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(system, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4]
		}
	}
	return ""
}

func handsOnMemory(dir string) bool {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	return err == nil && bytes.Contains(append([]byte(" "), append(bytes.TrimSpace(controllers), ' ')...), []byte(" memory "))
}

func (g *group) write(file, text string) error {
	return os.WriteFile(filepath.Join(g.dir, file), []byte(text), 0)
}

// add moves a process into the group.
func (g *group) add(pid int) error { return g.write("cgroup.procs", strconv.Itoa(pid)) }

// outOfMemory says whether the kernel killed a process of the group for what it used.
func (g *group) outOfMemory() bool {
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

// remove removes the group, whose process must be gone.
func (g *group) remove() {
	if g != nil {
		os.Remove(g.dir) //nolint:errcheck // the next agent removes it then
	}
}

// confine puts a runner into a group of its own where the machine has that, and has the kernel take it first when memory
// runs out: it would else inherit the agent's place in that order, and at the very end of it nothing kills what is over its
// limit. It comes before the runner gets a script.
func (r *runner) confine(heap uint64) {
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.cmd.Process.Pid), []byte("1000"), 0) //nolint:errcheck // it has died
	g, err := newGroup(heap)
	if err != nil {
		return // Layers says so
	}
	if g.add(r.cmd.Process.Pid) != nil {
		g.remove() // it has died, or is about to
		return
	}
	r.group = g
}

// groupMissing says why runners have no groups here; nil: they have.
func groupMissing() error {
	g, err := newGroup(0)
	g.remove()
	return err
}
