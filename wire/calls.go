package wire

import (
	"context"
	"sync"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Calls are the requests that are being served, on all connections of an agent. The zero value is ready.
type Calls struct {
	mu      sync.Mutex
	running map[string][]*running
	count   int
	closed  bool
	idle    chan struct{} // closed when nothing runs any more; set by Shutdown
}

type running struct {
	owner  string
	cancel context.CancelCauseFunc
}

// Start registers a call under its message id and its owner, the port that it came by. Its context ends with parent, and when
// Cancel is called for the id; done must be called when the call is over. After Shutdown no call starts: the error is ErrBusy.
func (c *Calls) Start(parent context.Context, owner, id string) (ctx context.Context, done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, fault.Wrapf(fault.ErrBusy, "the agent is stopping")
	}
	ctx, cancel := context.WithCancelCause(parent)
	call := &running{owner, cancel}
	if c.running == nil {
		c.running = map[string][]*running{}
	}
	c.running[id] = append(c.running[id], call)
	c.count++
	return ctx, func() { cancel(nil); c.end(id, call) }, nil
}

func (c *Calls) end(id string, call *running) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.running[id]
	for i := range list {
		if list[i] == call {
			c.running[id] = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(c.running[id]) == 0 {
		delete(c.running, id)
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
	for _, call := range c.running[id] {
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

// Shutdown makes Start fail, cancels the running calls with the given cause, and waits until all have ended, or returns the cause of
// ctx when that ends first.
func (c *Calls) Shutdown(ctx context.Context, cause error) error {
	c.mu.Lock()
	c.closed = true
	for _, list := range c.running {
		for _, call := range list {
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
