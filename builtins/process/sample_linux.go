package process

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// minSpan is the shortest time that use of processors is measured over. The kernel counts it in nanoseconds, so it only
	// has to be long against the pauses of a program that works in bursts.
	minSpan = 200 * time.Millisecond
	// maxSpan is the longest: what was longer ago is not present use.
	maxSpan = 10 * time.Second
)

// sampler measures use of processors. It keeps the last sample, so that whoever lists again and again need not wait, and is
// given the usage of all the time in between. It is safe for concurrent use.
type sampler struct {
	threads bool

	mu   sync.Mutex
	last *sample
}

// take returns the present sample, and one to compare it with. Where the last one is too old it takes one now, and waits.
func (s *sampler) take(ctx context.Context, fs *procfs) (before, now *sample, err error) {
	s.mu.Lock()
	before = s.last
	s.mu.Unlock()
	if before == nil || sinceBoot()-before.at > maxSpan {
		if before, err = fs.sample(s.threads); err != nil {
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
	if now, err = fs.sample(s.threads); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = now
	return before, now, nil
}

// sinceBoot is the clock that starts of processes are counted by: it goes on while the guest is suspended.
func sinceBoot() time.Duration { return readClock(unix.CLOCK_BOOTTIME) }

// processTime returns the processor time that all threads of a process, also those that have ended, have used; 0: it is
// gone. It reads the clock that clock_getcpuclockid(3) names, in nanoseconds, where /proc/PID/stat has ticks.
func processTime(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED of the kernel's include/linux/posix-timers_types.h
	return readClock(^int32(pid)<<3 | sched)
}

// readClock returns what a clock shows; 0: there is none.
func readClock(id int32) time.Duration {
	var at unix.Timespec
	if unix.ClockGettime(id, &at) != nil {
		return 0
	}
	return time.Duration(at.Nano())
}

// sample is the use of processors at one time.
type sample struct {
	at    time.Duration // since boot
	tasks []task        // by pid, each process ahead of its threads
	cpu   map[int]time.Duration
}
