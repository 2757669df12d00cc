package wire

import (
	"context"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Exchange is what is known of one request beside its payload, and the moment at which its reply has left. See ExchangeOf.
type Exchange struct {
	// Sent is the timestamp of the request, by the clock of who sent it; the zero time: there is none.
	Sent time.Time
	// Received is when its last byte had come. It has a reading of the monotonic clock.
	Received time.Time

	kept      *keptFrame
	memory    *Memory
	replyHeld func() // gives back what HoldReply took; nil: nothing

	mu      sync.Mutex
	replied bool
	after   []func()
}

// exchangeKey is the key of the Exchange in the context of a call.
type exchangeKey struct{}

// ExchangeOf returns the exchange that a call belongs to, from the context that Handle gets; nil for a Transient request, and
// for a context of another kind.
func ExchangeOf(ctx context.Context) *Exchange {
	e, _ := ctx.Value(exchangeKey{}).(*Exchange)
	return e
}

// replyTimeout is how long the reply may take to leave before what waits for it is done all the same: a host that does not read
// has asked for it.
const replyTimeout = 10 * time.Second

// AfterReply calls f, on a goroutine of its own, when the reply has been given to the channel, when the host has left, or 10
// s after the reply was made. It may be called until then, and later: f is then called at once.
func (e *Exchange) AfterReply(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.replied {
		go f()
		return
	}
	e.after = append(e.after, f)
}

// ReleaseRequest returns all but keep bytes of the request's share of the memory budget of all hosts, before the reply is made.
// The request's bytes must not be used afterwards.
func (e *Exchange) ReleaseRequest(keep int) { e.kept.shrink(keep) }

// HoldReply takes memory of all hosts for a reply of n bytes until that is written, or the host has left: before it is made,
// where its size is known. It waits for 10 s at most; the error then is fault.ErrBusy. A second call does nothing.
func (e *Exchange) HoldReply(n int) error {
	if e.replyHeld != nil {
		return nil
	}
	done, err := e.memory.holdReply(n, nil)
	e.replyHeld = done
	return err
}

// newExchange begins an exchange with a request that has just come.
func newExchange(m *pb.AgentMessage) *Exchange {
	e := &Exchange{Received: time.Now()}
	if m.Timestamp != nil && m.Timestamp.IsValid() {
		e.Sent = m.Timestamp.AsTime()
	}
	return e
}

// end has the reply queued, and then calls those who wait for its leaving, if there are any.
func (e *Exchange) end(q *queue, reply func()) {
	e.mu.Lock()
	waits := len(e.after) > 0
	e.mu.Unlock()
	if !waits {
		reply()
		e.left()
		return
	}
	limited, cancel := context.WithTimeout(context.Background(), replyTimeout)
	queued := make(chan struct{})
	go func() {
		defer cancel()
		select {
		case <-queued:
			_ = q.flush(limited) // whatever has become of the reply
		case <-limited.Done():
		}
		e.left()
	}()
	reply()
	close(queued)
}

// left calls those who wait.
func (e *Exchange) left() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.after {
		go f()
	}
	e.replied, e.after = true, nil
}
