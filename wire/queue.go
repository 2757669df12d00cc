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
	// worthKeeping is the size from which the buffer of a frame is used again.
	worthKeeping = 4 << 10
)

// outgoing is an encoded payload with headerSpace bytes in front of it.
type outgoing struct {
	buf []byte
	// replaces: a newer one takes its place while it waits (telemetry).
	replaceable bool
	// begun: buf is what is left of a whole frame, whose first bytes are written.
	begun bool
}

// queue holds what waits to be written in two lanes, the urgent one first. One writes at a time: the writer, which takes
// what waits, or who has claimed its place while nothing does.
type queue struct {
	mu      sync.Mutex
	work    sync.Cond // the writer waits
	changed sync.Cond // all others do
	hand    outgoing  // the rest of a frame
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

// claim takes the writer's place, where nothing is being written or waits. release gives it back.
func (q *queue) claim() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || q.writing || !q.idle() {
		return false
	}
	q.claimed = true
	return true
}

// release gives the writer its place back, and what is left of a frame.
func (q *queue) release(rest []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.claimed = false
	if len(rest) > 0 && q.err == nil {
		q.hand = outgoing{buf: rest, begun: true}
	}
	if q.waits() {
		q.work.Signal()
	}
	q.changed.Broadcast()
}

// waits says that there is something to write.
func (q *queue) waits() bool { return len(q.hand.buf)+len(q.urgent)+len(q.bulk) > 0 }

// idle says that nobody has anything to write.
func (q *queue) idle() bool { return !q.claimed && !q.waits() }

// put waits for room in the lane. leave is called when it has it, before the writer can take what is put.
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

// offer puts only where there is room now.
func (q *queue) offer(o outgoing) bool {
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

// next takes what is to be written next; it waits for it. False: the queue is closed.
func (q *queue) next() (outgoing, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writing = false
	q.changed.Broadcast()
	for q.err == nil && (q.claimed || !q.waits()) {
		q.work.Wait()
	}
	if q.err != nil {
		return outgoing{}, false
	}
	q.writing = true
	q.changed.Broadcast()
	if o := q.hand; len(o.buf) > 0 {
		q.hand = outgoing{}
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

// close ends all waiting with err and drops what is queued.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.hand, q.urgent, q.bulk, q.bytes = outgoing{}, nil, nil, 0
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
