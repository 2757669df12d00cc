package client

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Processes lists processes of the guest.
func (c *Client) Processes(ctx context.Context, request *pb.ListProcessesRequest) ([]*pb.ProcessInfo, error) {
	reply, err := Call[*pb.ListProcessesResponse](ctx, c, request)
	return reply.GetProcesses(), err
}

// knownSignals are those that every agent sends as they are, by name and by number, which is the same on all Linux guests.
var knownSignals = map[string]int32{
	"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "TERM": 15, "1": 1, "2": 2, "3": 3, "9": 9, "15": 15,
}

// Kill sends a signal to a process of the guest. An agent that would send TERM in place of what is asked for, or not look at
// start_ticks, is not asked: the error is then errors.ErrUnsupported.
func (c *Client) Kill(ctx context.Context, request *pb.KillProcessRequest) error {
	request = proto.CloneOf(request)
	name := strings.TrimPrefix(strings.ToUpper(request.SignalName), "SIG")
	if number, ok := knownSignals[name]; ok && request.Signal == 0 {
		request.Signal, request.SignalName = number, ""
	}
	if request.SignalName != "" || request.StartTicks != 0 {
		err := c.knows(ctx, "process_kill", "the agent in the guest knows HUP, INT, QUIT, KILL and TERM alone, and no start_ticks")
		if err != nil {
			return err
		}
	}
	_, err := Call[*pb.KillProcessResponse](ctx, c, request)
	return err
}
