package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// cancelRetryInterval is the pause before a cancel is sent again for a request that the agent did not know yet.
const cancelRetryInterval = 100 * time.Millisecond

// TimeoutWait bounds the wait of CallWait where ctx has ended because of its deadline.
const TimeoutWait = 5 * time.Second

// CallWait is CallID for a request whose reply matters also after ctx has ended, such as the outcome of a script: the
// agent is then asked to cancel it, and the reply is awaited for at most wait, after a
// deadline for at most TimeoutWait.
func CallWait[Out proto.Message](ctx context.Context, c *Client, wait time.Duration, id string, request proto.Message) (Out, error) {
	var none Out
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	inner, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	ended, joined := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(joined)
		select {
		case <-ended:
		case <-ctx.Done():
			c.awaitCancelled(inner, context.Cause(ctx), wait, id, ended)
			giveUp(context.Cause(ctx))
		}
	}()
	out, err := CallID[Out](inner, c, id, request)
	close(ended)
	<-joined
	return out, err
}

// awaitCancelled cancels a request, and returns when that has ended, or after wait. It does not wait for an agent that does not
// answer.
func (c *Client) awaitCancelled(ctx context.Context, cause error, wait time.Duration, id string, ended <-chan struct{}) {
	if errors.Is(cause, ErrNoAnswer) {
		return
	}
	if errors.Is(cause, context.DeadlineExceeded) { // the time that the caller had for all of it is over
		wait = min(wait, TimeoutWait)
	}
	ctx, stop := context.WithTimeout(ctx, wait)
	defer stop()
	for {
		reply, err := Call[*pb.CancelResponse](ctx, c, &pb.CancelRequest{MessageId: id})
		pause := cancelRetryInterval
		if err != nil || reply.Cancelled {
			pause = wait
		}
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(pause): // the request may still have been on its way
		}
	}
}
