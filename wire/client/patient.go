package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// cancelAgain is the pause before an agent is told once more to cancel a request that it did not know yet.
const cancelAgain = 100 * time.Millisecond

// CallWait is CallID for a request whose reply is worth having after ctx has ended, such as what became of a script: the
// agent is then asked to cancel it, and the reply is awaited for at most patience.
func CallWait[Out proto.Message](ctx context.Context, c *Client, patience time.Duration, id string, request proto.Message) (Out, error) {
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
			c.awaitCancelled(inner, context.Cause(ctx), patience, id, ended)
			giveUp(context.Cause(ctx))
		}
	}()
	out, err := CallID[Out](inner, c, id, request)
	close(ended)
	<-joined
	return out, err
}

// awaitCancelled cancels a request, and returns when it has ended or patience has. An agent that answers nothing is not
// waited for.
func (c *Client) awaitCancelled(ctx context.Context, cause error, patience time.Duration, id string, ended <-chan struct{}) {
	if errors.Is(cause, ErrNoAnswer) {
		return
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	for {
		reply, err := Call[*pb.CancelResponse](ctx, c, &pb.CancelRequest{MessageId: id})
		pause := cancelAgain
		if err != nil || reply.Cancelled {
			pause = patience
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
