package wire

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Memory is what all connections of an agent share for what hosts send: the buffers of large frames that are coming, and requests
// until they are answered. A nil Memory has no bound. It is safe for concurrent use.
type Memory struct {
	mu    sync.Mutex
	left  int
	freed chan struct{} // closed when some is given back; nil: nobody waits
}

// NewMemory returns a memory of n bytes. It must be larger than the largest frame.
func NewMemory(n int) *Memory { return &Memory{left: n} }

// What is not counted, since a ping must come through whatever other hosts do; and how long the frames of one read wait
// for memory together: the messages behind them wait as long.
const (
	freeBuffer  = 2 * minReadSize // bytes of a connection's buffer
	freeRequest = 4 << 10         // bytes of a request
	memoryWait  = 500 * time.Millisecond
)

// errMemory is why a request is refused that finds no memory.
var errMemory = fault.Wrapf(fault.ErrBusy, "busy: other requests take the memory that there is for them")

// take takes n bytes, and waits until there are so many, until a time at most. It reports whether it has taken them; if not it took
// none.
func (m *Memory) take(ctx context.Context, n int, until time.Time) bool {
	freed, taken := m.tryTake(n)
	if taken {
		return true
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		select {
		case <-freed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
		if freed, taken = m.tryTake(n); taken {
			return true
		}
	}
}

// tryTake takes n bytes where there are so many now. Otherwise freed is closed when some are given back.
func (m *Memory) tryTake(n int) (freed <-chan struct{}, taken bool) {
	if m == nil {
		return nil, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= m.left {
		m.left -= n
		return nil, true
	}
	if m.freed == nil {
		m.freed = make(chan struct{})
	}
	return m.freed, false
}

// reclaim gives the n bytes of a buffer back that nothing refers to any more. Where they are many it frees them first, on a
// goroutine of its own: whoever takes them next must not have them beside those that wait for the collector.
func (m *Memory) reclaim(n int) {
	if m == nil || n < reclaimSize {
		m.give(n)
		return
	}
	go func() { debug.FreeOSMemory(); m.give(n) }()
}

// reclaimSize is the size from which a buffer is worth a collection, in bytes.
const reclaimSize = 4 << 20

// give gives n bytes back.
func (m *Memory) give(n int) {
	if m == nil || n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left += n
	if m.freed != nil {
		close(m.freed)
		m.freed = nil
	}
}
