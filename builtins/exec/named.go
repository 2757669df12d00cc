package exec

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Commands with input or a terminal are no jobs, since they end with their connection. One that has a name is listed beside the
// jobs while it runs, and is ended as they are.

// named describes a command that is called by a name; nil: it has none.
func (r *Room) named(call *builtins.Call, spec proc.Spec, in *pb.ExecStartRequest) *pb.Job {
	if in.GetName() == "" {
		return nil
	}
	job := r.jobs.newJob(call, spec, commandLine(in, spec), in.GetRunAsUser(), in.GetName())
	job.Attached, job.Started = true, timestamppb.New(time.Now())
	return job
}

// description is what is listed of a command; nil: nothing, since it has no name, is a job as well, or does not run.
func (s *streamed) description() *pb.Job {
	if s.job == nil {
		return nil
	}
	select {
	case <-s.started:
	default:
		return nil
	}
	select {
	case <-s.done:
		return nil
	default:
	}
	if s.outlives {
		return nil
	}
	job := proto.CloneOf(s.job)
	job.Pid = uint32(s.live.PID())
	return job
}

// named returns the commands with names that a caller may see, the newest first.
func (s *streams) named(call *builtins.Call) (list []*pb.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, command := range s.running {
		if job := command.description(); job != nil && call.MaySee(job.Port) {
			list = append(list, job)
		}
	}
	slices.SortFunc(list, newerJob)
	return list
}

// newerJob orders jobs by their ids, which begin with the time: the newest first.
func newerJob(a, b *pb.Job) int { return strings.Compare(b.Id, a.Id) }

// find returns the command that is listed by an id; nil: there is none that the caller may see.
func (s *streams) find(call *builtins.Call, id string) *streamed {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, command := range s.running {
		if job := command.description(); job != nil && job.Id == id && call.MaySee(job.Port) {
			return command
		}
	}
	return nil
}

// watched returns what list_jobs reports of a running command, at once or, where the caller waits, when the wait is over. It
// returns nil if the command has ended, since nothing of it is kept.
func (s *streamed) watched(ctx context.Context, in *pb.ListJobsRequest) (*pb.ListJobsResponse, error) {
	wait := time.NewTimer(min(time.Duration(in.GetWaitSeconds())*time.Second, maxJobWait))
	defer wait.Stop()
	select {
	case <-s.done:
	case <-wait.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if job := s.description(); job != nil {
		return &pb.ListJobsResponse{Jobs: []*pb.Job{job}}, nil
	}
	return nil, nil
}
