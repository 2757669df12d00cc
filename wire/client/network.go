package client

import (
	"context"
	"errors"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Network describes interfaces, routes and name servers of the guest.
func (c *Client) Network(ctx context.Context) (*pb.NetworkResponse, error) {
	return Call[*pb.NetworkResponse](ctx, c, &pb.NetworkRequest{})
}

// Wait waits until something holds in the guest, which the agent watches. Whether it has is asked once: when the connection is
// lost the wait is over.
func (c *Client) Wait(ctx context.Context, request *pb.WaitRequest) (*pb.WaitResponse, error) {
	return Call[*pb.WaitResponse](ctx, c, request)
}

// Later reports whether an error may be gone on another connection: none came about, it was lost, or the agent is starting
// or ending.
func Later(err error) bool {
	return Gone(err) || errors.Is(err, ErrNoAnswer) || errors.Is(err, fault.ErrStale) || errors.Is(err, fault.ErrUncertain) ||
		errors.Is(err, fault.ErrBusy) || errors.Is(err, context.Canceled)
}
