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

// tree is all processes that a command started, and they in turn.
type tree interface {
	members() []int
	empty() bool
	kill() // all at once, as far as that can be had
}

// runnerSystem knows where control groups are made, and the names of this agent process.
type runnerSystem struct {
	name   string
	tag    string // tells this agent process from any other: its number and when it started
	nonce  string // tells this Runner from the others in the process
	serial atomic.Int64
	parent map[string]string // kind → directory; missing: no groups

	protected bool // from being killed for want of memory, which commands inherit

	trial    sync.Once
	cannot   error // why commands cannot be confined
	perMount bool  // act as on a kernel that cannot change a tree of mounts at once

	mu    sync.Mutex
	stale []string // groups of commands that ended while something they left still ran
}

func (s *runnerSystem) init(config *Config) {
	s.name = config.Name
	s.tag = strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(startTime(os.Getpid()), 10)
	s.nonce = rand.Text()[:8]
	score, _ := os.ReadFile("/proc/self/oom_score_adj") // without one nothing is protected
	s.protected = bytes.HasPrefix(score, []byte("-"))
	s.parent = map[string]string{}
	top, own := ownGroup()
	for kind, dir := range map[string][2]string{"tied": {config.Cgroup, own}, "job": {config.JobCgroup, ""}} {
		place := dir[0]
		if place == "" {
			place = dir[1]
		}
		if place == "" && kind == "job" && top != "" {
			// Beside all units: a unit file without KillMode=process would else end the commands with the agent. No
			// controller is asked for there, so nobody else's accounting is touched.
			place = filepath.Join(top, config.Name+"-jobs")
		}
		if place != "" && place != "none" {
			s.parent[kind] = place
		}
	}
}

// unprotect gives a command the score of any other process when memory is short: it is the agent alone that must live. It
// comes right after the command's start, long before that could have children of its own.
func (s *runnerSystem) unprotect(pid int) {
	if s.protected {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0) // a command that has ended needs none
	}
}

// ownGroup finds the top of the cgroup v2 hierarchy and the directory of this process in it; empty: there is none.
func ownGroup() (top, own string) {
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

// group is a control group of one command.
type group struct {
	dir string
	fd  int
}

// newGroup makes a group for a command of a kind.
func (s *runnerSystem) newGroup(kind string) (*group, error) {
	parent, ok := s.parent[kind]
	if !ok {
		return nil, errors.ErrUnsupported
	}
	if kind == "job" {
		os.Mkdir(parent, 0o755) // its parent is not ours to make
	}
	s.tidy(parent)
	for {
		dir := filepath.Join(parent, fmt.Sprintf("%s-%s-%s-%d", s.name, kind, s.tag, s.serial.Add(1)))
		if err := os.Mkdir(dir, 0o755); err != nil {
			if errors.Is(err, os.ErrExist) {
				continue // another Runner of this process
			}
			return nil, err
		}
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			os.Remove(dir)
			return nil, err
		}
		return &group{dir: dir, fd: fd}, nil
	}
}

// tidy removes groups that are empty by now: those this process left, and those of former agents.
func (s *runnerSystem) tidy(parent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.stale[:0]
	for _, dir := range s.stale {
		if err := unix.Rmdir(dir); err == unix.EBUSY {
			kept = append(kept, dir)
		}
	}
	s.stale = kept
	for _, dir := range s.foreign(parent, "") {
		unix.Rmdir(dir)
	}
}

// foreign lists the groups under parent that another process of this agent made.
func (s *runnerSystem) foreign(parent, kind string) []string {
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

func (s *runnerSystem) postpone(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = append(s.stale, dir)
}

// Sweep ends what tied commands of a former agent process left running, and returns when nothing of it is left. It comes
// before anything is undone at the start of an agent. What does not die is an error of cause fault.ErrBusy.
func (r *Runner) Sweep(ctx context.Context) error {
	var trees []tree
	for _, dir := range r.system.foreign(r.system.parent["tied"], "tied") {
		g := &group{dir: dir, fd: -1}
		defer g.remove()
		trees = append(trees, g)
	}
	trees = append(trees, &session{mark: markName + r.system.name + ".tied.", except: r.system.tag})
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

func (g *group) close() {
	if g.fd >= 0 {
		unix.Close(g.fd)
		g.fd = -1
	}
}

// remove removes the group, and those that the command made in it.
func (g *group) remove() error {
	for _, sub := range g.subgroups() {
		unix.Rmdir(sub)
	}
	return unix.Rmdir(g.dir)
}

// subgroups are the groups below, the deepest first.
func (g *group) subgroups() []string {
	var dirs []string
	entries, _ := os.ReadDir(g.dir)
	for _, e := range entries {
		if e.IsDir() {
			sub := &group{dir: filepath.Join(g.dir, e.Name())}
			dirs = append(append(dirs, sub.subgroups()...), sub.dir)
		}
	}
	return dirs
}

func (g *group) empty() bool {
	events, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
	return errors.Is(err, os.ErrNotExist) || err == nil && bytes.Contains(events, []byte("populated 0"))
}

func (g *group) members() []int {
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

// kill uses the kernel's own way where it has it (5.14), which no fork outruns.
func (g *group) kill() {
	if os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	g.killEach()
}

// killEach holds all of them still, so that nobody forks away from the look round.
func (g *group) killEach() {
	os.WriteFile(filepath.Join(g.dir, "cgroup.freeze"), []byte("1"), 0)
	for _, pid := range g.members() {
		unix.Kill(pid, unix.SIGKILL)
	}
	os.WriteFile(filepath.Join(g.dir, "cgroup.freeze"), []byte("0"), 0)
}

// markName is the variable that commands carry where there is no control group to tell them by.
const markName = "QUANTIX_KVM_RUN="

func (s *runnerSystem) mark(kind string) string {
	return fmt.Sprintf("%s%s.%s.%s.%s.%d.", markName, s.name, kind, s.tag, s.nonce, s.serial.Add(1))
}

// session is the tree where there is no control group: who is of the session, and who carries the mark.
type session struct {
	id     int    // 0: marks alone
	mark   string // the beginning of an entry of the environment
	except string // but not those of this tag
	since  uint64 // who is older, in clock ticks since boot, is none of them
}

func (s *session) members() []int {
	pids, _ := s.look()
	return pids
}

// look finds the members, and those of whom nobody can tell: a process in the middle of an exec shows no environment.
func (s *session) look() (pids, unsure []int) {
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
		member, sure := s.marked(pid)
		switch {
		case member || s.id != 0 && (stat.session == s.id || stat.group == s.id):
			pids = append(pids, pid)
		case !sure:
			unsure = append(unsure, pid)
		}
	}
	return pids, unsure
}

// marked tells whether a process carries the mark; not sure: it shows no environment at all.
func (s *session) marked(pid int) (member, sure bool) {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false, true
	}
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if rest, ok := bytes.CutPrefix(entry, []byte(s.mark)); ok {
			return s.except == "" || !bytes.HasPrefix(rest, []byte(s.except+".")), true
		}
	}
	return false, len(environ) > 0
}

// empty looks twice: a process that dies during a look may have forked one that the look was already past. Who shows no
// environment gets the time of an exec to show one; who has none by then runs without any, as "env -i" does.
func (s *session) empty() bool {
	for range 2 {
		pids, unsure := s.look()
		if len(unsure) > 0 {
			poll(execTime, func() bool {
				pids, unsure = s.look()
				return len(pids) > 0 || len(unsure) == 0
			})
		}
		if len(pids) > 0 {
			return false
		}
	}
	return true
}

// execTime is how long a process may be in the middle of an exec, between two of its environments.
const execTime = 50 * time.Millisecond

// kill stops everybody first, so that nobody forks away from the look round.
func (s *session) kill() {
	pids := s.members()
	for _, signal := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, pid := range pids {
			unix.Kill(pid, signal)
		}
	}
}

// stat is what /proc/PID/stat tells of a process.
type stat struct {
	state          string
	group, session int
	kernel         bool   // a thread of the kernel, which has no environment
	start          uint64 // clock ticks since boot
}

func readStat(pid int) (stat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	_, rest, ok := strings.Cut(string(text[max(bytes.LastIndexByte(text, ')'), 0):]), ") ") // names may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return stat{}, false
	}
	s := stat{state: fields[0]}
	s.group, _ = strconv.Atoi(fields[2])
	s.session, _ = strconv.Atoi(fields[3])
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	s.kernel = flags&kernelThread != 0
	s.start, _ = strconv.ParseUint(fields[19], 10, 64)
	return s, true
}

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

func startTime(pid int) uint64 {
	s, _ := readStat(pid)
	return s.start
}
