package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// killCounter knows of the processes that the kernel killed because memory was short. Its log names them; its counter is right
// also where the log is not there, or has lost lines. What was killed before init is not reported.
type killCounter struct {
	path, field string // where the kernel counts

	mu      sync.Mutex
	machine bool   // the log is the guest's own
	log     int    // /dev/kmsg, after what was there when it was first followed; -1: it is not open
	known   uint64 // of the counter, what was reported or came before init
	missing time.Time
}

// unnamedAfter is how long a kill that was counted may be missing in the log: it is logged right after it is counted.
const unnamedAfter = time.Second

// init notes what was killed until now. Where the guest is a container its control group counts, if that is known: the log and
// the other counter are then of others as well.
func (k *killCounter) init(container bool, cgroup string) {
	k.log, k.machine = -1, !container
	k.path, k.field = "/proc/vmstat", "oom_kill"
	switch {
	case container && cgroup == "":
		k.path = ""
	case container:
		k.path = filepath.Join(cgroup, "memory.events")
	}
	k.known = k.counted()
}

// open returns a descriptor of the log, at what was not read yet; -1: there is none, or it may not be read. The first call
// opens it at its end.
func (k *killCounter) open() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.log < 0 && k.machine {
		fd, err := unix.Open(kernelLog, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1
		}
		if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
			unix.Close(fd)
			return -1
		}
		k.log = fd // no os.File: the runtime's poller would wake up for each line, also while nobody watches
	}
	if k.log < 0 {
		return -1
	}
	fd, err := unix.FcntlInt(uintptr(k.log), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// kernelLog is described in Documentation/ABI/testing/dev-kmsg of the kernel.
const kernelLog = "/dev/kmsg"

func (k *killCounter) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.log < 0 {
		return nil
	}
	err := unix.Close(k.log)
	k.log = -1
	return err
}

// counted returns what the kernel counted since boot; 0 where it does not.
func (k *killCounter) counted() uint64 {
	text, err := os.ReadFile(k.path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); name == k.field {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}

// count reports what was counted and is not in the log.
func (k *killCounter) count(tell func(*pb.ErrorEvent) bool) {
	counted := k.counted()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case counted <= k.known:
		k.missing = time.Time{}
		return
	case k.log >= 0 && k.missing.IsZero():
		k.missing = time.Now()
		return
	case k.log >= 0 && time.Since(k.missing) < unnamedAfter:
		return
	}
	if tell(killsEvent(counted - k.known)) {
		k.known, k.missing = counted, time.Time{}
	}
}

// follow reports what the log says, from where it was read to the last time, until ctx ends.
func (k *killCounter) follow(ctx context.Context, tell func(*pb.ErrorEvent) bool) {
	fd := k.open()
	if fd < 0 {
		return
	}
	log := os.NewFile(uintptr(fd), kernelLog) // shares what was read with k.log
	stop := context.AfterFunc(ctx, func() { log.Close() })
	defer stop()
	defer log.Close()
	record := make([]byte, maxRecord)
	groups := map[string]string{} // of processes that are about to be killed
	for {
		n, err := log.Read(record)
		switch {
		case err == nil:
		case errors.Is(err, unix.EPIPE): // lines were overwritten
			continue
		case errors.Is(err, unix.EINVAL): // a longer record than there is
			continue
		default:
			return
		}
		if event := parseKill(record[:n], groups); event != nil && tell(event) {
			k.mu.Lock()
			k.known++
			k.mu.Unlock()
		}
	}
}

// maxRecord is the kernel's bound of a record (CONSOLE_EXT_LOG_MAX).
const maxRecord = 8 << 10

var (
	// killed is what __oom_kill_process of the kernel logs: "Out of memory: Killed process 7 (name) total-vm:4kB, anon-rss:…".
	killed = lazyregexp.New(`^(?:Memory cgroup out|Out) of memory.*: Killed process (\d+) \((.*)\) total-vm:\d+kB, anon-rss:(\d+)kB`)
	// chosen comes before it: "oom-kill:constraint=…,task_memcg=/group,task=name,pid=7,uid=0".
	chosen = lazyregexp.New(`^oom-kill:constraint=.*,task_memcg=(.*),task=.*,pid=(\d+),uid=\d+`)
)

// parseKill reads a record of /dev/kmsg, "PRIORITY,SEQUENCE,TIME,FLAGS;TEXT", and returns nil where it is of no kill. What
// processes wrote into the log has another facility than the kernel, 0, and is not believed. groups keeps the control group of
// a process from one record to the next.
func parseKill(record []byte, groups map[string]string) *pb.ErrorEvent {
	prefix, text, ok := bytes.Cut(record, []byte{';'})
	priority, _, _ := bytes.Cut(prefix, []byte{','})
	if level, err := strconv.ParseUint(string(priority), 10, 32); !ok || err != nil || level>>3 != 0 {
		return nil
	}
	text, _, _ = bytes.Cut(text, []byte{'\n'}) // properties follow
	if m := chosen().FindSubmatch(text); m != nil {
		clear(groups) // one at a time is killed
		groups[string(m[2])] = string(m[1])
		return nil
	}
	m := killed().FindSubmatch(text)
	if m == nil {
		return nil
	}
	pid, name := string(m[1]), strings.ToValidUTF8(string(m[2]), "?")
	details := map[string]string{"count": "1", "pid": pid, "name": name, "anon_rss_kib": string(m[3])}
	if group := groups[pid]; group != "" {
		details["cgroup"] = strings.ToValidUTF8(group, "?")
	}
	where := ""
	if bytes.HasPrefix(text, []byte("Memory cgroup")) {
		where = " in its control group"
	}
	return killEvent(fmt.Sprintf("the kernel killed process %s (%s), since memory was short%s", pid, name, where), details)
}
