package wire

import (
	"context"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"
	"weak"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Memory is what all connections of an agent share: for the buffers of large frames that are coming, for requests until they
// are answered, and for large replies until they are written. A nil Memory has no bound. It is safe for concurrent use.
type Memory struct {
	mu    sync.Mutex
	left  int
	freed chan struct{} // closed when some is given back; nil: nobody waits

	making  chan struct{} // held by who makes a reply that may be large
	replies *Memory       // the share of large replies that are made and not written; nil: this is that
	size    int           // of replies
	wait    time.Duration // how long a large reply waits to be made, and for the memory that it takes until it is written
}

// NewMemory returns a memory of n bytes, which must be more than the largest frame has. Replies that may be large have half of
// it at most, and one that is larger than that half takes all of it: hosts that do not read keep no others from asking.
func NewMemory(n int) *Memory {
	return &Memory{left: n, making: make(chan struct{}, maxMaking), size: n / 2, replies: &Memory{left: n / 2}, wait: replyWait}
}

// Large replies.
const (
	maxMaking = 2 // are made at a time: how large they become is known when they are made
	replyWait = 10 * time.Second
	minReply  = 64 << 10 // bytes of one that is counted
)

// errReplies is why a request is refused whose reply finds no memory.
var errReplies = fault.Wrapf(fault.ErrBusy, "busy: replies to other requests take the memory that there is for them")

// enterMaking waits until a reply that may be large can be made, for m.wait at most. leave is called when it is made, and
// encoded.
func (m *Memory) enterMaking(ctx context.Context) (leave func(), err error) {
	if m == nil {
		return noop, nil
	}
	timer := time.NewTimer(m.wait)
	defer timer.Stop()
	select {
	case m.making <- struct{}{}:
		return sync.OnceFunc(func() { <-m.making }), nil
	case <-timer.C:
		return noop, errReplies
	case <-ctx.Done():
		return noop, context.Cause(ctx)
	}
}

// What is not counted, since a ping must come through whatever other hosts do; and how long the frames of one read wait
// for memory together: the messages after them wait as long.
const (
	freeBuffer  = 2 * minReadSize // bytes of a connection's buffer
	freeRequest = 4 << 10         // bytes of a request
	memoryWait  = 500 * time.Millisecond
)

// errMemory is why a request is refused that finds no memory.
var errMemory = fault.Wrapf(fault.ErrBusy, "busy: other requests take the memory that there is for them")

// holdReply takes the memory of a reply of n bytes until it is written, or dropped. The error is errReplies where there is none
// in time. collected is as in reclaim.
func (m *Memory) holdReply(n int, collected func() bool) (done func(), err error) {
	if m == nil || n < minReply {
		return nil, nil
	}
	n = min(n, m.size)
	until := time.Now().Add(m.wait)
	if !m.replies.take(context.Background(), n, until) {
		return nil, errReplies
	}
	if !m.take(context.Background(), n, until) {
		m.replies.give(n)
		return nil, errReplies
	}
	return func() { m.replies.give(n); m.reclaim(n, collected) }, nil
}

// take takes n bytes, and waits until there are so many, until a time at most. It reports whether it has taken them; if not it
// took none.
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

// reclaim gives the n bytes of a buffer back that nothing is to refer to any more. Where they are many it frees them first, on
// a goroutine of its own, and looks whether they are: whoever takes them next must not have them beside those that wait for the
// collector, or for a goroutine that has not been run since. collected is that look; nil: there is no buffer to look for.
func (m *Memory) reclaim(n int, collected func() bool) {
	if m == nil || n < reclaimSize {
		m.give(n)
		return
	}
	go func() {
		debug.FreeOSMemory()
		for wait := time.Millisecond; collected != nil && !collected() && wait < reclaimWait; wait *= 2 {
			time.Sleep(wait)
			debug.FreeOSMemory()
		}
		m.give(n)
	}()
}

// reclaimWait bounds how long a buffer that something still refers to is waited for.
const reclaimWait = time.Second

// isCollected returns a func that reports whether a buffer is collected. It does not keep the buffer.
func isCollected(buf []byte) func() bool {
	if cap(buf) < reclaimSize {
		return nil
	}
	first := weak.Make(unsafe.SliceData(buf))
	return func() bool { return first.Value() == nil }
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
