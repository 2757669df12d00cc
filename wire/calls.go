package wire

import (
	"context"
	"sync"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Calls are the requests that are being served, on all connections of an agent. The zero value is ready.
type Calls struct {
	mu      sync.Mutex
	running map[string]*running // the last one of each id
	count   int
	closed  bool
	idle    chan struct{} // closed when nothing runs any more; set by Shutdown
}

// running is one of them.
type running struct {
	owner, id string
	ctx       context.Context
	cancel    context.CancelCauseFunc
	next      *running // of the same id
}

// Start registers a call under its message id and its owner, the port that it came by. Its context ends with parent, and when
// Cancel is called for the id; done must be called when the call is over. After Shutdown no call starts: the error is ErrBusy.
func (c *Calls) Start(parent context.Context, owner, id string) (ctx context.Context, done func(), err error) {
	call := &running{owner: owner, id: id}
	call.ctx, call.cancel = context.WithCancelCause(parent)
	if err := c.begin(call); err != nil {
		call.cancel(err)
		return nil, nil, err
	}
	return call.ctx, func() { call.cancel(nil); c.end(call) }, nil
}

// begin registers a call with its context. The error is ErrBusy after Shutdown.
func (c *Calls) begin(call *running) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fault.Wrapf(fault.ErrBusy, "the agent is stopping")
	}
	if c.running == nil {
		c.running = map[string]*running{}
	}
	call.next = c.running[call.id]
	c.running[call.id] = call
	c.count++
	return nil
}

// end removes a call that is over. Nobody cancels it any more.
func (c *Calls) end(call *running) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.running[call.id]; first == call && call.next == nil {
		delete(c.running, call.id)
	} else if first == call {
		c.running[call.id] = call.next
	} else {
		for ; first != nil; first = first.next {
			if first.next == call {
				first.next = call.next
				break
			}
		}
	}
	c.count--
	if c.count == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// errCancelRequested is the cause of a call that a host cancelled.
var errCancelRequested = fault.Wrapf(context.Canceled, "a host asked for it")

// Cancel ends the contexts of the calls with a message id whose owner is of those that sees reports true for, with a cause that
// is context.Canceled. It reports whether there was one, and does not wait for its end.
func (c *Calls) Cancel(id string, sees func(owner string) bool) (found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for call := c.running[id]; call != nil; call = call.next {
		if sees(call.owner) {
			call.cancel(errCancelRequested)
			found = true
		}
	}
	return found
}

// Len returns how many calls are being served.
func (c *Calls) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Shutdown makes Start fail, cancels the running calls with the given cause, and waits until all have ended, or returns the
// cause of ctx when that ends first.
func (c *Calls) Shutdown(ctx context.Context, cause error) error {
	c.mu.Lock()
	c.closed = true
	for _, call := range c.running {
		for ; call != nil; call = call.next {
			call.cancel(cause)
		}
	}
	idle := make(chan struct{})
	if c.count == 0 {
		close(idle)
	} else {
		c.idle = idle
	}
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
