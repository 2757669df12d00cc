package wire

import (
	"context"
	"slices"
	"sync"
)

// The bounds of what waits to be written. A sender of a full lane waits, which stops the reader in the end: a host that
// does not read is not read from.
const (
	maxUrgent   = 1024    // frames
	maxBulk     = 4 << 20 // bytes, beyond the frame that is in hand
	maxLane     = 8       // messages that an empty lane keeps memory for
	pieceSize   = 32 << 10
	headerSpace = len(magic) + 4
	chunkSize   = SocketChunk + MaxHead
	// minPooledBuffer is the smallest buffer of a frame that goes back to the pool, in bytes.
	minPooledBuffer = 4 << 10
)

// outgoing is an encoded payload with headerSpace bytes in front of it.
type outgoing struct {
	buf []byte
	// whole is the buffer that buf lies in, for its pool; nil: it is buf.
	whole []byte
	// framing is that of its frame; Auto: that of the host.
	framing Framing
	// replaceable: a newer one replaces it while it waits (telemetry).
	replaceable bool
	// partial: buf is the rest of a frame whose first bytes are written, or a whole one with its header.
	partial bool
	// done is called when it is written, or will not be; nil: nobody waits for that. It must not block.
	done func()
	// request is the frame of the request that this answers, where it may be another host's than the session's; else nil. It is
	// not of a frame that has begun to be written.
	request []byte
}

// queue holds what waits to be written in two lanes, the urgent one first. There is one writer at a time: the goroutine that
// calls next, or whoever holds a claim while nothing waits.
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

	inHand     []byte   // the request of the message that next returned last
	unanswered [][]byte // requests whose answers were dropped
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
func (q *queue) release(rest outgoing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.claimed = false
	if len(rest.buf) > 0 {
		if q.err == nil {
			q.partial = rest
		} else {
			q.dropped(rest)
		}
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

// put waits until the lane has room. The request that the message answers, if any, leaves those in flight then, before the
// writer can take the message.
func (q *queue) put(o outgoing, urgent bool, s *servedCall) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && q.full(urgent) {
		q.changed.Wait()
	}
	if s != nil {
		s.leave()
	}
	if q.err != nil {
		q.dropped(o)
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
	q.writing, q.inHand = false, nil
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
		q.partial, q.inHand = outgoing{}, o.request
		return o, true
	}
	lane := &q.urgent
	if len(*lane) == 0 {
		lane = &q.bulk
		q.bytes -= len((*lane)[0].buf)
	}
	o := (*lane)[0]
	q.inHand = o.request
	if len(*lane) == 1 && cap(*lane) <= maxLane { // as most often: its memory is used again
		(*lane)[0], *lane = outgoing{}, (*lane)[:0]
		return o, true
	}
	(*lane)[0] = outgoing{}
	if *lane = (*lane)[1:]; len(*lane) == 0 {
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
	q.dropped(q.partial)
	for _, o := range slices.Concat(q.urgent, q.bulk) {
		q.dropped(o)
	}
	q.partial, q.urgent, q.bulk, q.bytes = outgoing{}, nil, nil, 0
	q.work.Broadcast()
	q.changed.Broadcast()
}

// dropped notes the request of an answer that will not be written. The caller holds the lock.
func (q *queue) dropped(o outgoing) {
	o.end()
	if o.request != nil {
		q.unanswered = append(q.unanswered, o.request)
	}
}

// end calls done.
func (o outgoing) end() {
	if o.done != nil {
		o.done()
	}
}

// notWritten is dropped for the message that next returned last, which comes before all that is queued.
func (q *queue) notWritten(o outgoing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.request != nil {
		q.unanswered = slices.Insert(q.unanswered, 0, o.request)
	}
}

// owes reports whether an answer waits to be written, or was dropped, whose request may be another host's.
func (q *queue) owes() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.unanswered) > 0 || q.inHand != nil
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
