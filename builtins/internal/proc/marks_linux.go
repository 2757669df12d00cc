package proc

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

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

// isFormer reports whether an entry of an environment is the mark of another agent process that has the same secret.
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

// process is a process, and not a later one of the same PID.
type process struct {
	pid   int
	start uint64
}

// ofUser reports whether the user that a process was started by, whatever it has become, is this process's.
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
// longer. That is distinguished from an empty environment, as after "env -i". One that hangs is none: it does nothing.
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
	s.emptyEnv = len(fields) > envEnd && fields[startCode] != "0" && fields[envEnd] != "0" && fields[envEnd] == fields[envEnd-1]
	return s, true
}

// The indexes of start_code and env_end, the 26th and the 51st field of proc(5), behind the name; env_start is the one before
// env_end. In the middle of an exec they are 0. At its end the kernel sets first env_start, and env_end to the same, then env_end to
// where the environment ends, and last start_code (fs/binfmt_elf.c).
const (
	startCode = 26 - 3
	envEnd    = 51 - 3
)

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

func startTime(pid int) uint64 {
	s, _ := readStat(pid)
	return s.start
}
