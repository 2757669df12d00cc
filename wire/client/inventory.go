package client

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Hardware describes the hardware and the system of the guest.
func (c *Client) Hardware(ctx context.Context, request *pb.GetHardwareInfoRequest) (*pb.HardwareInfo, error) {
	reply, err := Call[*pb.GetHardwareInfoResponse](ctx, c, request)
	return reply.GetHardware(), err
}

// Software lists installed packages of the guest: all that the request asks for, in as many requests as the agent has pages.
// What the reply says of the list is that of the last page; its total is that of an agent which counts beyond a page.
func (c *Client) Software(
	ctx context.Context, request *pb.ListInstalledSoftwareRequest,
) (*pb.ListInstalledSoftwareResponse, error) {
	request = proto.CloneOf(request)
	var all []*pb.InstalledSoftware
	most := request.MaxEntries
	for {
		reply, err := Call[*pb.ListInstalledSoftwareResponse](ctx, c, request)
		if err != nil {
			return nil, err
		}
		all = append(all, reply.Software...)
		done := most > 0 && len(all) >= int(most)
		if done || reply.NextOffset <= request.Offset { // an agent that does not know pages gives all at once
			reply.Software = all
			return reply, nil
		}
		request.Offset = reply.NextOffset
		if most > 0 {
			request.MaxEntries = most - uint32(len(all))
		}
	}
}
