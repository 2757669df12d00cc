package call

import (
	"context"
	"runtime/debug"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// hangTime is how long after its ctx an operation may take to return before it is left behind.
const hangTime = time.Second

// hangs returns an error if the call would meet a file system that does not answer.
func (d *decision) hangs(ctx context.Context) error {
	if d.config.Remotes == nil {
		return nil
	}
	return d.config.Remotes.CheckRemotes(ctx, d.access)
}

// runDetached runs an operation that changes nothing, and leaves it behind if it hangs beyond its time: a file system
// may stop to answer in the middle. Its thread waits for as long as that does not answer. One that changes something is
// waited for, since it might go on behind a rollback.
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
