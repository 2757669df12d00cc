package process

import (
	"context"
	"errors"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// minSpan is the shortest time that use of processors is measured over: Windows counts it in ticks of 15.6 ms.
	minSpan = 500 * time.Millisecond
	// maxSpan is the longest: what was longer ago is not present use.
	maxSpan = 10 * time.Second

	firstSnapshot = 512 << 10 // bytes
	maxSnapshot   = 256 << 20
)

// sample is the use of processors at one time.
type sample struct {
	at  time.Duration // since boot
	cpu map[int]time.Duration
}

// snapshot is all processes and threads at one time, as the kernel has them.
type snapshot struct {
	sample
	processes []*entry         // sorted by nothing, without that of idle processors
	threads   map[int][]*entry // by the pid of their process
	started   map[int]time.Duration
}

// threadInformation is SYSTEM_THREAD_INFORMATION, of which NtQuerySystemInformation returns one per thread after each process.
type threadInformation struct {
	KernelTime, UserTime, CreateTime int64
	WaitTime                         uint32
	StartAddress                     uintptr
	Process, Thread                  uintptr
	Priority, BasePriority           int32
	ContextSwitches                  uint32
	State, WaitReason                uint32
}

// The states of threads and reasons to wait (KTHREAD_STATE, KWAIT_REASON).
const (
	threadReady      = 1
	threadRunning    = 2
	threadStandby    = 3
	threadTerminated = 4
	threadDeferred   = 7
	waitSuspended    = 5
)

// state is that of a thread by a letter of stateNames.
func (t *threadInformation) state() byte {
	switch {
	case t.State == threadReady || t.State == threadRunning || t.State == threadStandby || t.State == threadDeferred:
		return 'R'
	case t.State == threadTerminated:
		return 'X'
	case t.WaitReason == waitSuspended:
		return 'T'
	}
	return 'S'
}

// takeSnapshot reads the table of the kernel.
func takeSnapshot() (*snapshot, error) {
	size := uint32(firstSnapshot)
	for {
		table := make([]uint64, size/8) // which is aligned
		var used uint32
		err := windows.NtQuerySystemInformation(windows.SystemProcessInformation, unsafe.Pointer(&table[0]), size, &used)
		if err == nil {
			return parseSnapshot(table, used)
		}
		if !errors.Is(err, windows.STATUS_INFO_LENGTH_MISMATCH) || size >= maxSnapshot {
			return nil, fault.On("the list of processes", fault.Cause(err))
		}
		size = min(max(2*size, used+used/4)&^7, maxSnapshot)
	}
}

// parseSnapshot reads a table of used bytes. It is the kernel's, so only its end is checked.
func parseSnapshot(table []uint64, used uint32) (*snapshot, error) {
	s := &snapshot{
		sample:  sample{at: sinceBoot(), cpu: map[int]time.Duration{}},
		threads: map[int][]*entry{}, started: map[int]time.Duration{},
	}
	now := time.Now()
	base := unsafe.Pointer(&table[0])
	for at := uintptr(0); at+unsafe.Sizeof(windows.SYSTEM_PROCESS_INFORMATION{}) <= uintptr(used); {
		p := (*windows.SYSTEM_PROCESS_INFORMATION)(unsafe.Add(base, at))
		threads := unsafe.Slice((*threadInformation)(unsafe.Add(unsafe.Pointer(p), unsafe.Sizeof(*p))), p.NumberOfThreads)
		if p.UniqueProcessID != 0 {
			s.add(p, threads, now)
		}
		if p.NextEntryOffset == 0 {
			break
		}
		at += uintptr(p.NextEntryOffset)
	}
	if len(s.processes) == 0 {
		return nil, fault.Wrapf(fault.ErrOutput, "the list of processes is empty")
	}
	return s, nil
}

func (s *snapshot) add(p *windows.SYSTEM_PROCESS_INFORMATION, threads []threadInformation, now time.Time) {
	pid := int(p.UniqueProcessID)
	e := &entry{
		pid: pid, tid: pid, ppid: int(p.InheritedFromUniqueProcessID), name: p.ImageName.String(), state: 'S',
		threads: int(p.NumberOfThreads), start: s.begun(pid, p.CreateTime, now), resident: uint64(p.WorkingSetSize),
		kernel: pid == systemPID,
	}
	s.note(e, p.KernelTime+p.UserTime)
	suspended := len(threads) > 0
	for i := range threads {
		t := &threads[i]
		tid := int(t.Thread)
		of := &entry{
			pid: pid, tid: tid, ppid: e.ppid, name: e.name, state: t.state(), threads: 1, resident: e.resident,
			start: s.begun(tid, t.CreateTime, now),
		}
		s.note(of, t.KernelTime+t.UserTime)
		s.threads[pid] = append(s.threads[pid], of)
		if of.state == 'R' {
			e.state = 'R'
		}
		suspended = suspended && of.state == 'T'
	}
	if suspended {
		e.state = 'T'
	}
	s.processes = append(s.processes, e)
}

// begun notes when something started, which the kernel says in 100 ns since 1601, and returns the start_ticks of that.
func (s *snapshot) begun(id int, created int64, now time.Time) uint64 {
	t := windows.Filetime{LowDateTime: uint32(created), HighDateTime: uint32(created >> 32)}
	unix := t.Nanoseconds()
	s.started[id] = s.at - now.Sub(time.Unix(0, unix))
	return startTicks(unix)
}

// note keeps the processor time that something has used, in 100 ns.
func (s *snapshot) note(e *entry, used int64) { s.cpu[e.tid] = time.Duration(used) * 100 }

// share is what an entry used of processors since the snapshot before, in percent of one.
func (s *snapshot) share(before *snapshot, e *entry) float64 {
	return share(&before.sample, &s.sample, task{pid: e.pid, tid: e.tid, cpu: s.cpu[e.tid]}, s.started[e.tid])
}

// sinceBoot counts from the boot, suspends included.
func sinceBoot() time.Duration { return windows.DurationSinceBoot() }

// reader keeps the last snapshot, so that whoever lists again and again need not wait.
type reader struct{ *snapshots }

type snapshots struct {
	mu   sync.Mutex
	last *snapshot
}

func newReader() reader { return reader{&snapshots{}} }

// take returns the present snapshot, and one to compare it with. Where the last one is too old it takes one now, and waits.
func (r *snapshots) take(ctx context.Context) (before, now *snapshot, err error) {
	r.mu.Lock()
	before = r.last
	r.mu.Unlock()
	if before == nil || sinceBoot()-before.at > maxSpan {
		if before, err = takeSnapshot(); err != nil {
			return nil, nil, err
		}
	}
	if wait := minSpan - (sinceBoot() - before.at); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	if now, err = takeSnapshot(); err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = now
	return before, now, nil
}
