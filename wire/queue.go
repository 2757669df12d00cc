package wire

import (
	"context"
	"sync"
)

// The bounds of what waits to be written. A sender of a full lane waits, which stops the reader in the end: a host that
// does not read is not read from.
const (
	maxUrgent   = 1024    // frames
	maxBulk     = 4 << 20 // bytes, beyond the frame that is in hand
	pieceSize   = 32 << 10
	headerSpace = len(magic) + 4
	// minPooledBuffer is the smallest buffer of a frame that goes back to the pool, in bytes.
	minPooledBuffer = 4 << 10
)

// outgoing is an encoded payload with headerSpace bytes in front of it.
type outgoing struct {
	buf []byte
	// replaceable: a newer one replaces it while it waits (telemetry).
	replaceable bool
	// partial: buf is the rest of a frame whose first bytes are written.
	partial bool
}

// queue holds what waits to be written in two lanes, the urgent one first. There is one writer at a time: the goroutine that calls
// next, or whoever holds a claim while nothing waits.
type queue struct {
	mu      sync.Mutex
	work    sync.Cond // the writer waits
	changed sync.Cond // all others wait
	partial outgoing  // the rest of a frame
	urgent  []outgoing
	bulk    []outgoing
	bytes   int // of bulk
	writing bool
	claimed bool
	err     error // why nothing can be written any more
}

func newQueue() *queue {
	q := &queue{}
	q.work.L, q.changed.L = &q.mu, &q.mu
	return q
}

// claim gives the caller the right to write, where nothing is being written or queued. release must follow.
func (q *queue) claim() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || q.writing || !q.idle() {
		return false
	}
	q.claimed = true
	return true
}

// release ends what claim began, and leaves the rest of a frame to the writer.
func (q *queue) release(rest []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.claimed = false
	if len(rest) > 0 && q.err == nil {
		q.partial = outgoing{buf: rest, partial: true}
	}
	if q.pending() {
		q.work.Signal()
	}
	q.changed.Broadcast()
}

// pending reports whether something waits to be written.
func (q *queue) pending() bool { return len(q.partial.buf)+len(q.urgent)+len(q.bulk) > 0 }

// idle reports whether nothing is claimed or waits to be written.
func (q *queue) idle() bool { return !q.claimed && !q.pending() }

// put waits until the lane has room. leave is called then, before the writer can take the message.
func (q *queue) put(o outgoing, urgent bool, leave func()) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && q.full(urgent) {
		q.changed.Wait()
	}
	leave()
	if q.err != nil {
		return q.err
	}
	q.add(o, urgent)
	return nil
}

// tryPut queues a message where the lane has room now; false: it has none.
func (q *queue) tryPut(o outgoing) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.replaceable {
		for i := range q.bulk {
			if q.bulk[i].replaceable {
				q.bytes += len(o.buf) - len(q.bulk[i].buf)
				q.bulk[i] = o
				return true
			}
		}
	}
	if q.err != nil || q.full(false) {
		return false
	}
	q.add(o, false)
	return true
}

func (q *queue) full(urgent bool) bool {
	if urgent {
		return len(q.urgent) >= maxUrgent
	}
	return q.bytes > maxBulk
}

func (q *queue) add(o outgoing, urgent bool) {
	if urgent {
		q.urgent = append(q.urgent, o)
	} else {
		q.bulk = append(q.bulk, o)
		q.bytes += len(o.buf)
	}
	if !q.claimed && !q.writing {
		q.work.Signal()
	}
}

// next waits for the next message to write and returns it; false: the queue is closed.
func (q *queue) next() (outgoing, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writing = false
	q.changed.Broadcast()
	for q.err == nil && (q.claimed || !q.pending()) {
		q.work.Wait()
	}
	if q.err != nil {
		return outgoing{}, false
	}
	q.writing = true
	q.changed.Broadcast()
	if o := q.partial; len(o.buf) > 0 {
		q.partial = outgoing{}
		return o, true
	}
	lane := &q.urgent
	if len(*lane) == 0 {
		lane = &q.bulk
		q.bytes -= len((*lane)[0].buf)
	}
	o := (*lane)[0]
	(*lane)[0] = outgoing{}
	*lane = (*lane)[1:]
	if len(*lane) == 0 {
		*lane = nil
	}
	return o, true
}

// close drops what is queued; all waiting ends with err.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.partial, q.urgent, q.bulk, q.bytes = outgoing{}, nil, nil, 0
	q.work.Broadcast()
	q.changed.Broadcast()
}

// flush waits until everything queued so far and later is written, or ctx ends, or the queue is closed.
func (q *queue) flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.changed.Broadcast()
	})
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && (q.writing || !q.idle()) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		q.changed.Wait()
	}
	return q.err
}
