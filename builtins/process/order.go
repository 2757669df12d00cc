package process

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// tick is the unit of ProcessInfo.start_ticks on Linux, where USER_HZ is 100 on every architecture that Go knows, and how
// exactly the start of a process is known.
const tick = time.Second / 100

// entry is one process or thread, as far as it is read before the list is sorted and cut.
type entry struct {
	pid      int    // of the process
	tid      int    // of the thread; the pid for the process itself
	ppid     int    // of the process
	name     string // as it is: any bytes
	state    byte
	threads  int
	start    uint64 // as ProcessInfo.start_ticks has it
	resident uint64 // bytes
	kernel   bool
	cpu      float64 // percent of one processor
}

// order compares entries; nil is that of /proc, by pid.
type order func(a, b *entry) int

// orderOf returns the order that a list is asked for in. All orders are total, so that a cut list is the same each time.
func orderOf(in *pb.ListProcessesRequest) (order, error) {
	byPID := func(a, b *entry) int { return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.tid, b.tid)) }
	var by order
	switch in.Sort {
	case "", "pid":
		by = byPID
	case "name":
		by = func(a, b *entry) int { return cmp.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) }
	case "started":
		by = func(a, b *entry) int { return cmp.Compare(a.start, b.start) }
	case "cpu":
		by = func(a, b *entry) int { return cmp.Compare(b.cpu, a.cpu) }
	case "memory":
		by = func(a, b *entry) int { return cmp.Compare(b.resident, a.resident) }
	default:
		return nil, fault.Invalid("sort is %.40q, and neither pid, name, started, cpu nor memory", in.Sort)
	}
	way := 1
	if in.Reverse {
		way = -1
	}
	return func(a, b *entry) int { return cmp.Or(way*by(a, b), way*byPID(a, b)) }, nil
}

// sortAndCut sorts a list, and cuts it to most entries; 0: to none.
func sortAndCut(list []*entry, by order, most uint32) []*entry {
	slices.SortFunc(list, by)
	if most > 0 && uint64(len(list)) > uint64(most) {
		list = list[:most]
	}
	return list
}

// stateNames are the words of the contract for the states of the Linux kernel, see proc_pid_stat(5), whose letters stand for
// those of Windows as well. A process that waits for a device sleeps, in those words.
var stateNames = map[byte]string{
	'R': "running", 'S': "sleeping", 'D': "sleeping", 'T': "stopped", 't': "stopped", 'Z': "zombie",
	'X': "dead", 'x': "dead", 'I': "idle", 'P': "idle",
}

// stateName returns the word for a state of the kernel.
func stateName(code byte) string {
	if name := stateNames[code]; name != "" {
		return name
	}
	return "unknown"
}

// task is a process, or one of its threads, and the processor time that it has used.
type task struct {
	pid, tid int // tid is pid for the process itself
	cpu      time.Duration
}

// share returns the use of processors, in percent of one, that a task made since the sample before. One that started later
// is measured from its start, by the clock of the samples: its pid may have been another's.
func share(before, now *sample, t task, started time.Duration) float64 {
	since := before.at
	used, known := before.cpu[t.tid]
	if !known || started > before.at {
		since, used = started, 0
	}
	// A start is rounded down to a tick, so that it is never later than the task's first use.
	span := max(now.at-since, tick)
	return 100 * float64(max(t.cpu-used, 0)) / float64(span)
}
