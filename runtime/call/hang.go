package call

import (
	"context"
	"runtime/debug"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// hangTime is how long after the end of its ctx an operation may take to return before it is abandoned.
const hangTime = time.Second

// checkRemotes returns an error if the call would meet a file system that does not answer.
func (d *decision) checkRemotes(ctx context.Context) error {
	if d.config.Remotes == nil {
		return nil
	}
	return d.config.Remotes.CheckRemotes(ctx, d.access)
}

// runDetached runs an operation that changes nothing, and abandons it hangTime after its ctx has ended: a file system may stop
// answering in the middle. Its goroutine then keeps a thread until the file system answers. An operation that changes something
// is never abandoned: it could go on after a rollback.
func (d *decision) runDetached(ctx context.Context) (proto.Message, error) {
	type result struct {
		out proto.Message
		err error
	}
	own := *d.call
	own.Scratch = nil // its memory is used again after the call
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if value := recover(); value != nil {
				r = result{nil, d.panicked(value, debug.Stack())}
			}
			done <- r
		}()
		r.out, r.err = d.op.Call(ctx, &own, d.in)
	}()
	select {
	case r := <-done:
		return r.out, r.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(hangTime)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.out, r.err
	case <-timer.C:
		cause := context.Cause(ctx)
		return nil, fault.Wrapf(cause, "%v; it hangs, as on a file system that does not answer", cause)
	}
}
