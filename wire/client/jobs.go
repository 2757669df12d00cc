package client

import (
	"context"
	"fmt"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Detach starts a command that outlives the connection, and returns its job. MaxOutput is not used, and without a Timeout there
// is none.
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
		Detach: true, Name: cmd.Name, MemoryLimitBytes: plain.MemoryLimitBytes, ProcessorLimitMs: plain.ProcessorLimitMs,
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

// followSeconds is how long the guest may delay one reply about a job, in seconds; followChunk is how much of each stream one
// has at most, in bytes.
const (
	followSeconds = 20
	followChunk   = 1 << 20
)

// Follow calls take with what a job writes, from these offsets on, and returns how the job ended; nil where nobody knows. When
// ctx ends first the job is ended in the guest, and its end is awaited for at most wait. missing is how many bytes the guest
// did not keep. The error is fs.ErrNotExist where there is no such job.
func (l *Link) Follow(
	ctx context.Context, id string, stdout, stderr uint64, wait time.Duration, take func(Output) error,
) (end *pb.ExecEnd, missing uint64, err error) {
	waiting, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	unhook := context.AfterFunc(ctx, func() {
		limited, cancel := context.WithTimeout(waiting, wait)
		defer cancel()
		ending := l.Do(limited, func(ctx context.Context, c *Client) error { return c.SignalJob(ctx, id, "", true) })
		if ending == nil {
			<-limited.Done() // also when the caller has seen the end
		}
		stop(context.Cause(ctx))
	})
	defer unhook()
	request := &pb.ListJobsRequest{JobId: id, MaxBytes: followChunk, WaitSeconds: followSeconds, StdoutOffset: stdout, StderrOffset: stderr}
	for {
		reply, job, err := l.Job(waiting, request)
		if err != nil {
			return nil, missing, err
		}
		missing += reply.StdoutOffset - request.StdoutOffset + reply.StderrOffset - request.StderrOffset
		for _, out := range []Output{{Stdout: reply.Stdout}, {Stderr: reply.Stderr}} {
			if len(out.Stdout)+len(out.Stderr) == 0 {
				continue
			}
			if err := take(out); err != nil {
				return nil, missing, err
			}
		}
		request.StdoutOffset = reply.StdoutOffset + uint64(len(reply.Stdout))
		request.StderrOffset = reply.StderrOffset + uint64(len(reply.Stderr))
		if len(reply.Stdout)+len(reply.Stderr) == 0 && job.State != pb.JobState_JOB_STATE_RUNNING {
			return job.Exit, missing, nil
		}
	}
}
