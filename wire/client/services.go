package client

import (
	"context"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Services lists services of the guest.
func (c *Client) Services(ctx context.Context, request *pb.ListServicesRequest) ([]*pb.ServiceInfo, error) {
	reply, err := Call[*pb.ListServicesResponse](ctx, c, request)
	return reply.GetServices(), err
}

// ownActions are those that not every agent knows, by their names in the feature service_control.
var ownActions = map[pb.ServiceAction]string{
	pb.ServiceAction_SERVICE_ACTION_RELOAD: "reload", pb.ServiceAction_SERVICE_ACTION_MASK: "mask",
	pb.ServiceAction_SERVICE_ACTION_UNMASK: "unmask",
}

// ControlService acts on a service of the guest and returns its state afterwards. An agent that would only return the state in
// place of what is asked for is not asked: the error is then errors.ErrUnsupported.
func (c *Client) ControlService(ctx context.Context, name string, action pb.ServiceAction) (*pb.ServiceControlResponse, error) {
	if word := ownActions[action]; word != "" {
		can, err := Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
		if err != nil {
			return nil, err
		}
		if !slices.Contains(strings.Split(can.Features["service_control"], ","), word) {
			return nil, fault.Unsupported("the agent in the guest cannot %s services", word)
		}
	}
	return Call[*pb.ServiceControlResponse](ctx, c, &pb.ServiceControlRequest{Name: name, Action: action})
}
