package proc

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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
		if slices.Contains(c.members(), pid) {
			return owner, true
		}
	}
	return "", false
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

// mark returns a new mark of a command. Any user can read what others call theirs, so it ends in a code that only who knows the
// secret can make: else anybody's processes could pass for those of a former agent, and hold up what waits for their end.
func (s *platform) mark(kind string) string {
	text := fmt.Sprintf("%s%s.%s.%s.%s.%d.", markName, s.name, kind, s.tag, s.nonce, s.serial.Add(1))
	return text + s.code(text)
}

// code returns what ends a mark.
func (s *platform) code(text string) string {
	mac := hmac.New(sha256.New, s.secret())
	mac.Write([]byte("mark of a command\x00" + text))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// isFormer says whether an entry of an environment is the mark of another agent process that has the same secret.
func (s *platform) isFormer(entry []byte) bool {
	end := bytes.LastIndexByte(entry, '.') + 1
	text, ok := bytes.CutPrefix(entry[:end], []byte(markName+s.name+".tied."))
	return ok && !bytes.HasPrefix(text, []byte(s.tag+".")) && hmac.Equal(entry[end:], []byte(s.code(string(entry[:end]))))
}

// sessionTree is the process tree without a control group: the processes of a session, and those that carry a mark.
type sessionTree struct {
	id     int                     // the session ID; 0: only marks count
	prefix string                  // what a mark begins with in an entry of the environment
	isMark func(entry []byte) bool // whether such an entry is one; nil: it is
	since  uint64                  // older processes, by start time in clock ticks since boot, do not count
	dir    string                  // of procfs; empty: /proc
	hung   *hung                   // where those are noted that cannot be read
}

// process is one, told apart from a later one of the same PID.
type process struct {
	pid   int
	start uint64
}

// ofUser says whether the user that a process was started by, whatever it has become, is this process's.
func (s *sessionTree) ofUser(p process) bool {
	status, err := os.ReadFile(fmt.Sprintf("%s/%d/status", s.procfs(), p.pid)) // the owner of the directory is root's for some
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Uid:" {
			return fields[1] == strconv.Itoa(os.Getuid())
		}
	}
	return false
}

func (s *sessionTree) members() []int {
	list, _ := s.scan()
	return pidsOf(list)
}

func pidsOf(list []process) (pids []int) {
	for _, p := range list {
		pids = append(pids, p.pid)
	}
	return pids
}

func (s *sessionTree) procfs() string {
	if s.dir == "" {
		return "/proc"
	}
	return s.dir
}

// scan returns the members, and the processes that may be some: in the middle of an exec none has an environment.
func (s *sessionTree) scan() (list, unsure []process) {
	names, _ := filepath.Glob(s.procfs() + "/[0-9]*")
	for _, dir := range names {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid <= 1 || pid == os.Getpid() {
			continue
		}
		stat, ok := readStatOf(dir)
		if !ok || stat.state == "Z" || stat.state == "X" || stat.kernel || stat.start < s.since {
			continue
		}
		p := process{pid, stat.start}
		member, sure := s.hasMark(p)
		switch {
		case member || s.id != 0 && (stat.session == s.id || stat.group == s.id):
			list = append(list, p)
		case !sure:
			unsure = append(unsure, p)
		}
	}
	return list, unsure
}

// hasMark reports whether a process carries the mark; sure is false if it has no environment yet, or, at its end, no
// longer. That is told apart from an empty environment, as after "env -i". One that hangs is none: it does nothing.
func (s *sessionTree) hasMark(p process) (member, sure bool) {
	dir := fmt.Sprintf("%s/%d", s.procfs(), p.pid)
	environ, err := s.hung.read(dir+"/environ", p)
	if err != nil {
		return false, true
	}
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.HasPrefix(entry, []byte(s.prefix)) && (s.isMark == nil || s.isMark(entry)) {
			return true, true
		}
	}
	if len(environ) > 0 {
		return false, true
	}
	stat, ok := readStatOf(dir) // again, and after the look: it may have begun to exec since the first time
	return false, !ok || stat.emptyEnv
}

// hungAfter is how long an environment may take to be read: the kernel reads it from the memory of the process, and waits for
// that with one that hangs.
const hungAfter = time.Second

// hung are the processes whose environment took too long, so that none is waited for again. Nil waits for any.
type hung struct {
	mu    sync.Mutex
	known map[process]bool
}

// read reads the environment of a process. The goroutine that reads one that hangs ends when the kernel lets it.
func (h *hung) read(path string, p process) ([]byte, error) {
	if h == nil {
		return os.ReadFile(path)
	}
	h.mu.Lock()
	known := h.known[p]
	h.mu.Unlock()
	if known {
		return nil, fault.ErrBusy
	}
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	go func() {
		content, err := os.ReadFile(path)
		done <- result{content, err}
	}()
	late := time.NewTimer(hungAfter)
	defer late.Stop()
	select {
	case got := <-done:
		return got.content, got.err
	case <-late.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = map[process]bool{}
	}
	h.known[p] = true
	return nil, fault.ErrBusy
}

// formerTree is what commands of former agents left without a control group. A command may have run as another user, who has
// its mark then, and can start processes with it faster than they end: of those that do not run as the agent does only the ones
// count that were there at first.
type formerTree struct {
	sessionTree
	first map[process]bool
}

// left returns what has to end, and what may have to.
func (f *formerTree) left() (list, unsure []process) {
	list, unsure = f.scan()
	if f.first == nil {
		poll(execTime, func() bool {
			if len(unsure) > 0 {
				list, unsure = f.scan()
			}
			return len(unsure) == 0
		})
		f.first = map[process]bool{}
		for _, p := range list {
			f.first[p] = true
		}
	}
	counts := func(p process) bool { return f.first[p] || f.ofUser(p) }
	return filter(list, counts), filter(unsure, counts)
}

func filter(list []process, keep func(process) bool) []process {
	return slices.DeleteFunc(list, func(p process) bool { return !keep(p) })
}

func (f *formerTree) members() []int {
	list, _ := f.left()
	return pidsOf(list)
}

func (f *formerTree) kill() { killAll(f.members()) }

func (f *formerTree) empty() bool { return isEmpty(f.left) }

// empty scans twice: a process that dies during a scan may have forked one with a PID that the scan had passed. A
// process in the middle of an exec is looked at again until that is over.
func (s *sessionTree) empty() bool { return isEmpty(s.scan) }

func isEmpty(scan func() (list, unsure []process)) bool {
	for range 2 {
		list, unsure := scan()
		if len(unsure) > 0 {
			poll(execTime, func() bool {
				list, unsure = scan()
				return len(list) > 0 || len(unsure) == 0
			})
		}
		if len(list) > 0 {
			return false
		}
	}
	return true
}

// execTime is how long a process may be in the middle of an exec: it waits for the disk, and for its turn.
const execTime = 5 * time.Second

// kill stops all members before it kills them, so that none forks meanwhile.
func (s *sessionTree) kill() { killAll(s.members()) }

func killAll(pids []int) {
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

func readStat(pid int) (procStat, bool) { return readStatOf(fmt.Sprintf("/proc/%d", pid)) }

// readStatOf reads the stat of the process that has a directory in procfs.
func readStatOf(dir string) (procStat, bool) {
	text, err := os.ReadFile(dir + "/stat")
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
