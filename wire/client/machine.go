package client

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Shutdown asks the guest to shut down, or to drop what is pending. An agent that would shut down at once where that is to be
// cancelled, or is to come later, is not asked: the error is then errors.ErrUnsupported.
func (c *Client) Shutdown(ctx context.Context, request *pb.ShutdownRequest) (*pb.ShutdownResponse, error) {
	if request.Cancel || request.DelaySeconds > 0 {
		if err := c.knows(ctx, "shutdown", "the agent in the guest knows no shutdown that waits or is cancelled"); err != nil {
			return nil, err
		}
	}
	return Call[*pb.ShutdownResponse](ctx, c, request)
}

// SyncTime has the guest's clock set, or measured. An agent that would set it where it is to be measured is not asked: the
// error is then errors.ErrUnsupported.
func (c *Client) SyncTime(ctx context.Context, request *pb.SyncTimeRequest) (*pb.SyncTimeResponse, error) {
	if request.Measure {
		if err := c.knows(ctx, "sync_time", "the agent in the guest sets its clock and does not measure it"); err != nil {
			return nil, err
		}
	}
	return Call[*pb.SyncTimeResponse](ctx, c, request)
}

// knows returns an error unless the agent has details of a feature: with these words, or that it does not serve it at all.
func (c *Client) knows(ctx context.Context, feature, words string) error {
	can, err := Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
	switch {
	case err != nil || can.Features[feature] != "":
		return err
	case !slices.Contains(can.Capabilities, feature):
		return fault.Unsupported("the agent in the guest does not announce %s", feature)
	}
	return fault.Unsupported("%s", words)
}

// ClockOffset is how far the guest's clock is ahead of the host's.
type ClockOffset struct {
	// Guest is the guest's clock at about the time of the measurement.
	Guest time.Time
	// Offset is the guest's clock minus the host's, and it is right to within Uncertainty.
	Offset, Uncertainty time.Duration
}

// offsetSamples is how many round trips a measurement takes; the shortest counts.
const offsetSamples = 5

// ClockOffset measures how far the guest's clock is ahead of the host's.
func (c *Client) ClockOffset(ctx context.Context) (best ClockOffset, err error) {
	for i := range offsetSamples {
		sent := time.Now()
		status, err := Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
		took := time.Since(sent)
		if err != nil {
			return best, err
		}
		if status.Now.CheckValid() != nil {
			return best, fmt.Errorf("the agent does not send its time")
		}
		if i == 0 || took/2 < best.Uncertainty {
			guest := status.Now.AsTime()
			best = ClockOffset{Guest: guest, Offset: guest.Sub(sent.Round(0)) - took/2, Uncertainty: took / 2}
		}
	}
	return best, nil
}
