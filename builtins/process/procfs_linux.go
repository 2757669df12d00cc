package process

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// procfs reads /proc. It is for one call: its buffer is used again by each read.
type procfs struct {
	dir *os.File
	fd  int
	buf []byte

	hung    *hung        // those whose command lines are not read; nil: nobody's
	reading atomic.Int64 // the pid whose command line is being read; 0: none is
}

// maxArguments is how much of a command line is read, in bytes.
const maxArguments = maxText

// procDir is where processes are read.
const procDir = "/proc"

func openProc(path string) (*procfs, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &procfs{dir: dir, fd: int(dir.Fd()), buf: make([]byte, maxArguments+1)}, nil
}

func (p *procfs) close() { p.dir.Close() }

// read returns the beginning of a file below /proc, until the next read; nil: the process is gone, or hides it.
func (p *procfs) read(path string) []byte {
	fd, err := unix.Openat(p.fd, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n := 0
	for n < len(p.buf) {
		got, err := unix.Read(fd, p.buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			break
		}
		n += got
	}
	return p.buf[:n]
}

// numbers returns the names in a directory that are numbers, ascending.
func numbers(dir *os.File) ([]int, error) {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	list := make([]int, 0, len(names))
	for _, name := range names {
		if id, err := strconv.Atoi(name); err == nil {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list, nil
}

// sample reads the processor times of all processes, and of their threads if threads is set.
func (p *procfs) sample(threads bool) (*sample, error) {
	if _, err := p.dir.Seek(0, 0); err != nil {
		return nil, err
	}
	pids, err := numbers(p.dir)
	if err != nil {
		return nil, err
	}
	s := &sample{at: sinceBoot(), tasks: make([]task, 0, len(pids))}
	for _, pid := range pids {
		s.tasks = append(s.tasks, task{pid: pid, tid: pid, cpu: processTime(pid)})
		if threads {
			s.tasks = append(s.tasks, p.threads(pid)...)
		}
	}
	s.cpu = make(map[int]time.Duration, len(s.tasks))
	for _, t := range s.tasks {
		s.cpu[t.tid] = t.cpu
	}
	return s, nil
}

// threads reads the processor times of the threads of a process but the first. The clocks of other processes' threads cannot
// be read; schedstat has the same in nanoseconds.
func (p *procfs) threads(pid int) (list []task) {
	dir, err := os.Open(p.dir.Name() + "/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil
	}
	defer dir.Close()
	tids, _ := numbers(dir) // a process that ends meanwhile has no threads
	for _, tid := range tids {
		if tid == pid {
			continue
		}
		used, _, _ := bytes.Cut(p.read(pathOf(pid, tid)+"/schedstat"), []byte{' '})
		ns, _ := strconv.ParseInt(string(used), 10, 64)
		list = append(list, task{pid: pid, tid: tid, cpu: time.Duration(ns)})
	}
	return list
}

// pathOf returns the directory of a process or thread below /proc.
func pathOf(pid, tid int) string {
	if pid == tid {
		return strconv.Itoa(pid)
	}
	return strconv.Itoa(pid) + "/task/" + strconv.Itoa(tid)
}

// entry reads the stat file of a process or thread; nil: it is gone.
func (p *procfs) entry(t task) *entry {
	e := &entry{pid: t.pid, tid: t.tid}
	if !e.parse(p.read(pathOf(t.pid, t.tid) + "/stat")) {
		return nil
	}
	return e
}

// pageSize is the unit of the resident memory in stat.
var pageSize = uint64(os.Getpagesize())

// The places of fields in a stat file after the name: the numbers of proc_pid_stat(5) less 3, since state is field 3 there.
const (
	fieldState    = 0
	fieldPPID     = 1
	fieldFlags    = 6
	fieldThreads  = 17
	fieldStart    = 19
	fieldResident = 21
)

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

// parse fills in what a stat file holds: the pid, the name in parentheses, which may hold any byte, and fields with a blank
// ahead of each.
func (e *entry) parse(stat []byte) bool {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return false
	}
	e.name = string(stat[open+1 : end])
	place, rest := -1, stat[end+1:]
	for field := range bytes.SplitSeq(rest, []byte{' '}) {
		switch place {
		case fieldState:
			if len(field) == 1 {
				e.state = field[0]
			}
		case fieldPPID:
			e.ppid = int(number(field))
		case fieldFlags:
			e.kernel = number(field)&kernelThread != 0
		case fieldThreads:
			e.threads = int(number(field))
		case fieldStart:
			e.start = number(field)
		case fieldResident:
			e.resident = number(field) * pageSize
			return true
		}
		place++
	}
	return false
}

// number reads a decimal number; 0 where it is none.
func number(field []byte) (n uint64) {
	for _, c := range field {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// arguments returns the beginning of a process's command line, until the next read, and whether it goes on.
func (p *procfs) arguments(e *entry) (raw []byte, more bool) {
	if p.hung != nil && p.hung.has(e) {
		return nil, false
	}
	p.reading.Store(int64(e.pid))
	raw = p.read(strconv.Itoa(e.pid) + "/cmdline")
	p.reading.Store(0)
	if len(raw) > maxArguments {
		return raw[:maxArguments], true
	}
	return raw, false
}

// owner returns the effective user of a process: its directory belongs to that user, also where its files do not.
func (p *procfs) owner(pid int) (uid uint32, ok bool) {
	var stat unix.Stat_t
	if unix.Fstatat(p.fd, strconv.Itoa(pid), &stat, 0) != nil {
		return 0, false
	}
	return stat.Uid, true
}

// workingDirectory returns the working directory of a process; empty: it has none, or that cannot be read.
func (p *procfs) workingDirectory(pid int) string {
	n, err := unix.Readlinkat(p.fd, strconv.Itoa(pid)+"/cwd", p.buf)
	if err != nil {
		return ""
	}
	return string(p.buf[:n])
}
