package client

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Displays returns the outputs of the desktop in front in the guest. Where there is none the error is errors.ErrUnsupported.
func (c *Client) Displays(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	return Call[*pb.ListDisplaysResponse](ctx, c, &pb.ListDisplaysRequest{})
}

// SetDisplays sets outputs, all or none, and returns them as the guest read them back. An empty name is the primary output.
func (c *Client) SetDisplays(ctx context.Context, settings ...*pb.DisplaySetting) (*pb.DisplayLayoutResponse, error) {
	return Call[*pb.DisplayLayoutResponse](ctx, c, &pb.DisplayLayoutRequest{Outputs: settings})
}
