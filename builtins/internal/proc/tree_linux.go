package proc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// processTree is a command's process with all descendants.
type processTree interface {
	members() []int
	empty() bool
	kill() // may miss a process that is being forked: call it until empty
}

// platform is the state of a Runner that depends on the system: where control groups are made, and their names.
type platform struct {
	name    string
	tag     string // identifies this agent process: its PID and start time
	nonce   string // identifies this Runner in the process
	secret  func() []byte
	serial  atomic.Int64
	parents map[string]string // kind → directory; missing: no groups

	oomProtected bool // the agent's oom_score_adj is negative, which commands inherit

	confineOnce sync.Once
	confineErr  error // why commands cannot be confined
	perMount    bool  // act as on a kernel without mount_setattr

	mu          sync.Mutex
	staleGroups []string             // groups of commands that ended, in which something still ran
	looked      map[string]time.Time // when groups of former agents were looked for last, by parent
	spares      map[string][]*cgroup // by kind, of the next commands: see keepSpare
	controls    map[string]int       // by kind, the open cgroup.subtree_control of the parent

	hung hung
}

// staleEvery is how often groups of former agents are looked for: reading a directory costs as much as making a group in it.
const staleEvery = time.Minute

func (s *platform) init(config *Config) {
	s.name = config.Name
	s.tag = strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(startTime(os.Getpid()), 10)
	s.nonce = rand.Text()[:8]
	random := []byte(rand.Text())
	s.secret = func() []byte {
		if config.Secret != nil {
			if secret := config.Secret(); len(secret) > 0 {
				return secret
			}
		}
		return random
	}
	score, _ := os.ReadFile("/proc/self/oom_score_adj") // without the file nothing is protected
	s.oomProtected = bytes.HasPrefix(score, []byte("-"))
	s.parents, s.looked, s.spares = map[string]string{}, map[string]time.Time{}, map[string][]*cgroup{}
	s.controls = map[string]int{}
	top, own := ownCgroup()
	for kind, dir := range map[string][2]string{"tied": {config.Cgroup, own}, "job": {config.JobCgroup, ""}} {
		place := dir[0]
		if place == "" {
			place = dir[1]
		}
		if place == "" && kind == "job" && top != "" {
			// Outside of all units: a unit file without KillMode=process would else end the commands with the agent. No
			// controller is enabled there, so nobody else's accounting changes.
			place = filepath.Join(top, config.Name+"-jobs")
		}
		if place != "" && place != "none" {
			s.parents[kind] = place
		}
	}
}

// resetOOMScore sets the oom_score_adj of a command to 0: only the agent is protected from the OOM killer. It is called right
// after the start of the command, before that has children.
func (s *platform) resetOOMScore(pid int) {
	if !s.oomProtected {
		return
	}
	// It fails if the command has ended already. Not os.WriteFile, which asks the runtime's poller first.
	if fd, err := unix.Open(fmt.Sprintf("/proc/%d/oom_score_adj", pid), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Write(fd, []byte("0"))
		unix.Close(fd)
	}
}

// ownCgroup returns the top of the cgroup v2 hierarchy and the directory of this process in it; empty: there is none.
func ownCgroup() (top, own string) {
	mounts, err := readMounts()
	if err != nil {
		return "", ""
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" && m.root == "/" {
			top = m.point
		}
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if top == "" || err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return top, filepath.Join(top, path)
		}
	}
	return "", ""
}

// cgroup is the control group of one command.
type cgroup struct {
	dir    string
	fd     int // of dir
	events int // of its cgroup.events
}

// newGroup makes a group for a command of a kind, "tied" or "job".
func (s *platform) newGroup(kind string) (*cgroup, error) {
	parent, ok := s.parents[kind]
	if !ok {
		return nil, errors.ErrUnsupported
	}
	s.removeStaleGroups(parent)
	if g := s.takeSpare(kind); g != nil {
		return g, nil
	}
	return s.makeGroup(kind, parent)
}

// maxSpares bounds the groups of a kind that are kept for the next commands. One takes 8 KiB of the kernel's memory.
const maxSpares = 64

// keepSpare keeps the group of a command that has ended for the next one of its kind, if it is as a new one: to remove one
// and to make another takes a tenth of what a start takes, and all that change groups wait for each other. It is empty, and
// is removed by endSpares, or by a later agent as those of commands.
func (s *platform) keepSpare(kind string, g *cgroup) bool {
	if !g.isAsNew() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spares[kind]) >= maxSpares || s.haveLimits(kind) {
		return false
	}
	s.spares[kind] = append(s.spares[kind], g)
	return true
}

// takeSpare returns a spare group of a kind; nil: there is none, or somebody has removed, frozen or entered it. A start in a
// frozen one would hang.
func (s *platform) takeSpare(kind string) *cgroup {
	s.mu.Lock()
	list := s.spares[kind]
	if len(list) == 0 {
		s.mu.Unlock()
		return nil
	}
	g := list[len(list)-1]
	s.spares[kind] = list[:len(list)-1]
	s.mu.Unlock()
	if !holds(g.events, eventsAsNew) {
		if g.remove() != nil {
			s.addStaleGroup(g.dir)
		}
		g.close()
		return nil
	}
	return g
}

// haveLimits reports whether the groups of a kind may have limits, which the next command would feel. The caller holds mu.
func (s *platform) haveLimits(kind string) bool {
	fd, ok := s.controls[kind]
	if !ok {
		var err error
		fd, err = unix.Open(filepath.Join(s.parents[kind], "cgroup.subtree_control"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return true
		}
		s.controls[kind] = fd
	}
	if holds(fd, "") {
		return false
	}
	unix.Close(fd) // the directory may be another one by now
	delete(s.controls, kind)
	return true
}

// endSpares removes the spare groups of each kind but some.
func (s *platform) endSpares(but int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, list := range s.spares {
		if len(list) <= but {
			continue
		}
		for _, g := range list[but:] {
			_ = g.remove() // somebody may have removed it
			g.close()
		}
		clear(list[but:])
		s.spares[kind] = list[:but]
	}
	if but > 0 {
		return
	}
	for kind, fd := range s.controls {
		unix.Close(fd)
		delete(s.controls, kind)
	}
}

// makeGroup makes a group in the directory of a kind.
func (s *platform) makeGroup(kind, parent string) (*cgroup, error) {
	for made := false; ; {
		dir := filepath.Join(parent, fmt.Sprintf("%s-%s-%s-%d", s.name, kind, s.tag, s.serial.Add(1)))
		err := os.Mkdir(dir, 0o755)
		if err != nil {
			if errors.Is(err, os.ErrExist) {
				continue // another Runner of this process
			}
			if errors.Is(err, os.ErrNotExist) && kind == "job" && !made {
				made = true
				os.Mkdir(parent, 0o755) // not MkdirAll: its parent belongs to the system
				continue
			}
			return nil, err
		}
		g := &cgroup{dir: dir, fd: -1, events: -1}
		g.fd, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			g.events, err = unix.Openat(g.fd, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			g.close()
			os.Remove(dir)
			return nil, err
		}
		return g, nil
	}
}

// removeStaleGroups removes groups that are empty by now: those that this process left, and those of former agents.
func (s *platform) removeStaleGroups(parent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.staleGroups[:0]
	for _, dir := range s.staleGroups {
		if err := unix.Rmdir(dir); err == unix.EBUSY {
			kept = append(kept, dir)
		}
	}
	s.staleGroups = kept
	if time.Since(s.looked[parent]) < staleEvery {
		return
	}
	s.looked[parent] = time.Now()
	for _, dir := range s.otherAgentGroups(parent, "") {
		unix.Rmdir(dir)
	}
}

// otherAgentGroups returns the groups in parent that another agent process of this name made; empty kind: of both kinds.
func (s *platform) otherAgentGroups(parent, kind string) []string {
	entries, _ := os.ReadDir(parent)
	var dirs []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), s.name+"-")
		if !ok || !e.IsDir() {
			continue
		}
		is, tag, _ := strings.Cut(rest, "-")
		if (is == "tied" || is == "job") && (kind == "" || kind == is) && !strings.HasPrefix(tag, s.tag+"-") {
			dirs = append(dirs, filepath.Join(parent, e.Name()))
		}
	}
	return dirs
}

func (s *platform) addStaleGroup(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staleGroups = append(s.staleGroups, dir)
}

// Sweep ends what tied commands of a former agent process left running, and waits until nothing of it is left. The agent
// calls it at its start, before anything is undone. If a process survives SIGKILL the error is of cause fault.ErrBusy.
func (r *Runner) Sweep(ctx context.Context) error {
	var trees []processTree
	for _, dir := range r.platform.otherAgentGroups(r.platform.parents["tied"], "tied") {
		g := &cgroup{dir: dir, fd: -1, events: -1}
		defer g.remove()
		trees = append(trees, g)
	}
	trees = append(trees, &formerTree{sessionTree{
		prefix: markName + r.platform.name + ".tied.", isMark: r.platform.isFormer, hung: &r.platform.hung,
	}, nil})
	for _, t := range trees {
		gone := poll(killWait, func() bool {
			t.kill()
			return t.empty() || ctx.Err() != nil
		})
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if !gone {
			return fault.Wrapf(fault.ErrBusy, "processes %s of a former run outlive SIGKILL", strings.Trim(fmt.Sprint(t.members()), "[]"))
		}
	}
	return nil
}

// OwnerOf returns whose command a process is part of that Run or Serve has running; false: of none that has an owner.
func (r *Runner) OwnerOf(pid int) (owner string, ok bool) {
	r.mu.Lock()
	running := maps.Clone(r.running)
	r.mu.Unlock()
	for c, owner := range running {
		if !slices.Contains(c.members(), pid) {
			continue
		}
		r.mu.Lock()
		_, still := r.running[c] // else its group may be another command's by now
		r.mu.Unlock()
		if still {
			return owner, true
		}
	}
	return "", false
}

func (g *cgroup) close() {
	for _, fd := range []*int{&g.fd, &g.events} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// remove removes the group, and the groups that the command made in it.
func (g *cgroup) remove() error {
	if err := unix.Rmdir(g.dir); err != unix.EBUSY {
		return err
	}
	for _, sub := range g.subgroups() {
		unix.Rmdir(sub)
	}
	return unix.Rmdir(g.dir)
}

// subgroups returns the groups below, the deepest first.
func (g *cgroup) subgroups() []string {
	var dirs []string
	entries, _ := os.ReadDir(g.dir)
	for _, e := range entries {
		if e.IsDir() {
			sub := &cgroup{dir: filepath.Join(g.dir, e.Name())}
			dirs = append(append(dirs, sub.subgroups()...), sub.dir)
		}
	}
	return dirs
}

// eventsAsNew is cgroup.events of a group that nothing runs in, and that is not frozen.
const eventsAsNew = "populated 0\nfrozen 0\n"

// isAsNew reports whether nothing is left in the group of what ran in it: no process, no group, no other owner, and no freeze.
func (g *cgroup) isAsNew() bool {
	var stat unix.Stat_t
	return unix.Fstat(g.fd, &stat) == nil && stat.Nlink == 2 && int(stat.Uid) == os.Geteuid() && stat.Mode&0o022 == 0 &&
		holds(g.events, eventsAsNew)
}

// holds reports whether an open file of the kernel's, which is short, has this content now.
func holds(fd int, content string) bool {
	var buf [64]byte
	n, err := unix.Pread(fd, buf[:], 0)
	return err == nil && string(buf[:n]) == content
}

func (g *cgroup) empty() bool {
	events, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
	return errors.Is(err, os.ErrNotExist) || err == nil && bytes.Contains(events, []byte("populated 0"))
}

func (g *cgroup) members() []int {
	var pids []int
	for _, dir := range append(g.subgroups(), g.dir) {
		list, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// kill uses cgroup.kill (kernel 5.14), which also covers processes that are being forked.
func (g *cgroup) kill() {
	if os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	g.killEach()
}

// killEach freezes the group while it kills the members, so that none of them forks meanwhile.
func (g *cgroup) killEach() {
	os.WriteFile(filepath.Join(g.dir, "cgroup.freeze"), []byte("1"), 0)
	for _, pid := range g.members() {
		unix.Kill(pid, unix.SIGKILL)
	}
	os.WriteFile(filepath.Join(g.dir, "cgroup.freeze"), []byte("0"), 0)
}
