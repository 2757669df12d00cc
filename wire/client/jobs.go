package client

import (
	"context"
	"fmt"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Detach starts a command that outlives the connection, and returns its job. MaxOutput is not used, and without a Timeout there is
// none.
func (c *Client) Detach(ctx context.Context, cmd Command) (*pb.ExecStartResponse, error) {
	plain, err := cmd.request(false)
	if err != nil {
		return nil, err
	}
	program := len(cmd.Argv) > 0
	if program {
		plain.Command = cmd.Argv[0] // a lone program needs no shell here
	}
	return Call[*pb.ExecStartResponse](ctx, c, &pb.ExecStartRequest{
		Command: plain.Command, Args: plain.Args, Program: program, WorkingDirectory: plain.WorkingDirectory, Environment: plain.Environment,
		RunAsUser: plain.RunAsUser, RunAsGroup: plain.RunAsGroup, IncludeSupplementaryGroups: true, TimeoutSeconds: plain.TimeoutSeconds,
		Detach: true,
	})
}

// Jobs lists the detached commands, newest first.
func (c *Client) Jobs(ctx context.Context) ([]*pb.Job, error) {
	reply, err := Call[*pb.ListJobsResponse](ctx, c, &pb.ListJobsRequest{})
	return reply.GetJobs(), err
}

// Job returns one job, which the request must name, and the reply.
func (c *Client) Job(ctx context.Context, request *pb.ListJobsRequest) (*pb.ListJobsResponse, *pb.Job, error) {
	reply, err := Call[*pb.ListJobsResponse](ctx, c, request)
	if err != nil {
		return nil, nil, err
	}
	if len(reply.Jobs) != 1 {
		return nil, nil, fmt.Errorf("job %s: the agent shows %d", request.JobId, len(reply.Jobs))
	}
	return reply, reply.Jobs[0], nil
}

// Job is Client.Job, repeated where the connection was lost or the agent restarted: jobs outlive both.
func (l *Link) Job(ctx context.Context, request *pb.ListJobsRequest) (reply *pb.ListJobsResponse, job *pb.Job, err error) {
	err = l.Do(ctx, func(ctx context.Context, c *Client) (err error) {
		reply, job, err = c.Job(ctx, request)
		return err
	})
	return reply, job, err
}

// SignalJob sends a signal, by its name, to the process group of a job; end ends it with all that it started.
func (c *Client) SignalJob(ctx context.Context, id, signal string, end bool) error {
	_, err := Call[*pb.ExecInputResponse](ctx, c, &pb.ExecInputRequest{JobId: id, Signal: signal, End: end})
	return err
}
