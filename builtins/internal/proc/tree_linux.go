package proc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	serial  atomic.Int64
	parents map[string]string // kind → directory; missing: no groups

	oomProtected bool // the agent's oom_score_adj is negative, which commands inherit

	confineOnce sync.Once
	confineErr  error // why commands cannot be confined
	perMount    bool  // act as on a kernel without mount_setattr

	mu          sync.Mutex
	staleGroups []string             // groups of commands that ended, in which something still ran
	looked      map[string]time.Time // when groups of former agents were looked for last, by parent
}

// staleEvery is how often groups of former agents are looked for: reading a directory costs as much as making a group in it.
const staleEvery = time.Minute

func (s *platform) init(config *Config) {
	s.name = config.Name
	s.tag = strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(startTime(os.Getpid()), 10)
	s.nonce = rand.Text()[:8]
	score, _ := os.ReadFile("/proc/self/oom_score_adj") // without the file nothing is protected
	s.oomProtected = bytes.HasPrefix(score, []byte("-"))
	s.parents, s.looked = map[string]string{}, map[string]time.Time{}
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
	if s.oomProtected {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0) // fails if the command has ended already
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
	dir string
	fd  int
}

// newGroup makes a group for a command of a kind, "tied" or "job".
func (s *platform) newGroup(kind string) (*cgroup, error) {
	parent, ok := s.parents[kind]
	if !ok {
		return nil, errors.ErrUnsupported
	}
	s.removeStaleGroups(parent)
	for made := false; ; {
		dir := filepath.Join(parent, fmt.Sprintf("%s-%s-%s-%d", s.name, kind, s.tag, s.serial.Add(1)))
		if err := os.Mkdir(dir, 0o755); err != nil {
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
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			os.Remove(dir)
			return nil, err
		}
		return &cgroup{dir: dir, fd: fd}, nil
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
		g := &cgroup{dir: dir, fd: -1}
		defer g.remove()
		trees = append(trees, g)
	}
	trees = append(trees, &sessionTree{mark: markName + r.platform.name + ".tied.", exceptTag: r.platform.tag})
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

func (g *cgroup) close() {
	if g.fd >= 0 {
		unix.Close(g.fd)
		g.fd = -1
	}
}

// remove removes the group, and the groups that the command made in it.
func (g *cgroup) remove() error {
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

// markName is the environment variable that marks commands without a control group.
const markName = "QUANTIX_KVM_RUN="

func (s *platform) mark(kind string) string {
	return fmt.Sprintf("%s%s.%s.%s.%s.%d.", markName, s.name, kind, s.tag, s.nonce, s.serial.Add(1))
}

// sessionTree is the process tree without a control group: the processes of a session, and those that carry a mark.
type sessionTree struct {
	id        int    // the session ID; 0: only marks count
	mark      string // the prefix of an entry of the environment
	exceptTag string // marks with this tag do not count
	since     uint64 // older processes, by start time in clock ticks since boot, do not count
}

func (s *sessionTree) members() []int {
	pids, _ := s.scan()
	return pids
}

// scan returns the members, and the processes that may be some: in the middle of an exec none has an environment.
func (s *sessionTree) scan() (pids, unsure []int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range names {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid <= 1 || pid == os.Getpid() {
			continue
		}
		stat, ok := readStat(pid)
		if !ok || stat.state == "Z" || stat.state == "X" || stat.kernel || stat.start < s.since {
			continue
		}
		member, sure := s.hasMark(pid)
		switch {
		case member || s.id != 0 && (stat.session == s.id || stat.group == s.id):
			pids = append(pids, pid)
		case !sure:
			unsure = append(unsure, pid)
		}
	}
	return pids, unsure
}

// hasMark reports whether a process carries the mark; sure is false if it has no environment yet, or, at its end, no
// longer. That is told apart from an empty environment, as after "env -i".
func (s *sessionTree) hasMark(pid int) (member, sure bool) {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false, true
	}
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if rest, ok := bytes.CutPrefix(entry, []byte(s.mark)); ok {
			return s.exceptTag == "" || !bytes.HasPrefix(rest, []byte(s.exceptTag+".")), true
		}
	}
	if len(environ) > 0 {
		return false, true
	}
	stat, ok := readStat(pid) // again, and after the look: it may have begun to exec since the first time
	return false, !ok || stat.emptyEnv
}

// empty scans twice: a process that dies during a scan may have forked one with a PID that the scan had passed. A
// process in the middle of an exec is looked at again until that is over.
func (s *sessionTree) empty() bool {
	for range 2 {
		pids, unsure := s.scan()
		if len(unsure) > 0 {
			poll(execTime, func() bool {
				pids, unsure = s.scan()
				return len(pids) > 0 || len(unsure) == 0
			})
		}
		if len(pids) > 0 {
			return false
		}
	}
	return true
}

// execTime is how long a process may be in the middle of an exec: it waits for the disk, and for its turn.
const execTime = 5 * time.Second

// kill stops all members before it kills them, so that none forks meanwhile.
func (s *sessionTree) kill() {
	pids := s.members()
	for _, signal := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, pid := range pids {
			unix.Kill(pid, signal)
		}
	}
}

// procStat is the part of /proc/PID/stat that is used.
type procStat struct {
	state          string
	group, session int
	kernel         bool   // a kernel thread, which has no environment
	start          uint64 // clock ticks since boot
	emptyEnv       bool   // it has an environment, with nothing in it
}

func readStat(pid int) (procStat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, false
	}
	_, rest, ok := strings.Cut(string(text[max(bytes.LastIndexByte(text, ')'), 0):]), ") ") // the name may contain anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return procStat{}, false
	}
	s := procStat{state: fields[0]}
	s.group, _ = strconv.Atoi(fields[2])
	s.session, _ = strconv.Atoi(fields[3])
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	s.kernel = flags&kernelThread != 0
	s.start, _ = strconv.ParseUint(fields[19], 10, 64)
	s.emptyEnv = len(fields) > envEnd && fields[envEnd] != "0" && fields[envEnd] == fields[envEnd-1]
	return s, true
}

// envEnd is the index of env_end, the 51st field of proc(5), behind the name; env_start is the one before. Both are 0
// in the middle of an exec: the kernel sets them at its end.
const envEnd = 51 - 3

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

func startTime(pid int) uint64 {
	s, _ := readStat(pid)
	return s.start
}
