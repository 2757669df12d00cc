package process

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// hungAfter is how long one command line may take to be read. The kernel reads it from the memory of the process, and waits
// where that cannot be had: for the lock of a process that hangs, or for a file system or a host that does not answer.
const hungAfter = time.Second

// hung are the processes whose command line took too long, so that no list waits for them again. The zero value is ready; it
// is safe for concurrent use.
type hung struct {
	mu     sync.Mutex
	starts map[int]uint64 // by pid, in ticks
}

func (h *hung) has(e *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	start, ok := h.starts[e.pid]
	if ok && start != e.start {
		delete(h.starts, e.pid) // another process by now
		return false
	}
	return ok
}

func (h *hung) add(proc *procfs, pid int) {
	if e := proc.entry(task{pid: pid, tid: pid}); e != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.starts == nil {
			h.starts = map[int]uint64{}
		}
		h.starts[pid] = e.start
	}
}

// reader is what is known from list to list.
type reader struct {
	processes sampler // without threads
	threads   sampler // with them
	hung      hung
}

func newReader() reader { return reader{threads: sampler{threads: true}} }

// read lists the processes that are asked for. It does not hang with a process that does: that one is listed without its
// command line. The goroutine that reads it ends when the kernel lets it; nothing ends it earlier.
func (r *Room) read(ctx context.Context, in *pb.ListProcessesRequest, by order) ([]*pb.ProcessInfo, error) {
	return r.readFrom(ctx, procDir, in, by)
}

func (r *Room) readFrom(
	ctx context.Context, dir string, in *pb.ListProcessesRequest, by order,
) ([]*pb.ProcessInfo, error) {
	type result struct {
		list []*pb.ProcessInfo
		err  error
	}
	for {
		fs, err := openProc(dir)
		if err != nil {
			return nil, err
		}
		fs.hung = &r.hung
		done := make(chan result, 1)
		go func() {
			defer fs.close()
			list, err := r.readAll(ctx, fs, in, by)
			done <- result{list, err}
		}()
		stuck := make(chan int, 1)
		watching, stop := context.WithCancel(ctx)
		go watch(watching, &fs.reading, stuck)
		select {
		case got := <-done:
			stop()
			return got.list, got.err
		case pid := <-stuck:
			stop()
			if err := r.remember(dir, pid); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			stop()
			return nil, context.Cause(ctx)
		}
	}
}

// remember notes that a process hangs.
func (r *Room) remember(dir string, pid int) error {
	proc, err := openProc(dir)
	if err != nil {
		return err
	}
	defer proc.close()
	r.hung.add(proc, pid)
	return nil
}

// watch sends the pid whose command line is read for too long.
func watch(ctx context.Context, reading *atomic.Int64, stuck chan<- int) {
	ticker := time.NewTicker(hungAfter)
	defer ticker.Stop()
	for last := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := reading.Load()
		if now != 0 && now == last {
			stuck <- int(now)
			return
		}
		last = now
	}
}
