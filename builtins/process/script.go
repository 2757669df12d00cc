package process

import (
	"context"
	"fmt"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// scriptRows are the operations as scripts call them.
func (r *Room) scriptRows() []builtins.Op {
	return []builtins.Op{
		{
			Name: "process.list", Usage: "([filter]) processes", Summary: "the processes with their present use of processors",
			Access:  builtins.Of(func(in *pb.ProcessListArgs) builtins.Access { return listAccess(listRequest(in)) }),
			Handler: builtins.Handle(r.scriptList),
		},
		{
			Name: "process.kill", Usage: "(pid, [signal])", Summary: "send a signal to a process, which nothing takes back",
			Mutates: true, Predictable: true,
			Readonly: builtins.Of(func(in *pb.ProcessKillArgs) bool { return sendsNothing(killRequest(in)) }),
			Access:   builtins.Of(func(in *pb.ProcessKillArgs) builtins.Access { return killAccess(killRequest(in)) }),
			Handler:  builtins.Handle(r.scriptKill),
		},
	}
}

func listRequest(in *pb.ProcessListArgs) *pb.ListProcessesRequest {
	return &pb.ListProcessesRequest{
		Filter: in.Filter, Sort: in.Sort, Reverse: in.Reverse, MaxEntries: in.Max,
		IncludeThreads: in.Threads, OmitArguments: in.OmitArguments,
	}
}

func killRequest(in *pb.ProcessKillArgs) *pb.KillProcessRequest {
	return &pb.KillProcessRequest{Pid: in.Pid, SignalName: in.Signal, StartTicks: in.StartTicks}
}

func (r *Room) scriptList(ctx context.Context, call *builtins.Call, in *pb.ProcessListArgs) (*pb.ProcessList, error) {
	listed, err := r.list(ctx, call, listRequest(in))
	if err != nil {
		return nil, err
	}
	out := &pb.ProcessList{}
	for _, p := range listed.Processes {
		out.Processes = append(out.Processes, &pb.Process{
			Pid: p.Pid, Ppid: p.Ppid, Name: p.Name, CommandLine: p.CommandLine, User: p.User, State: p.State,
			CpuPercent: p.CpuPercent, MemoryBytes: p.MemoryBytes, Threads: p.ThreadCount, ThreadOf: p.ThreadOf,
			Started: float64(p.StartedAt.AsTime().UnixMilli()) / 1000, StartTicks: p.StartTicks,
			WorkingDirectory: p.WorkingDirectory,
		})
	}
	return out, nil
}

func (r *Room) scriptKill(ctx context.Context, call *builtins.Call, in *pb.ProcessKillArgs) (*pb.Nothing, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	number, err := signalOf(killRequest(in))
	if err != nil {
		return nil, onPID(in.Pid, err)
	}
	to, err := reach(in.Pid, in.StartTicks)
	if err != nil {
		return nil, onPID(in.Pid, err)
	}
	defer to.close()
	if err := r.mayEnd(call, in.Pid); err != nil && number != 0 {
		return nil, onPID(in.Pid, err)
	}
	change := &pb.Change{
		Op: "process.kill", Target: fmt.Sprintf("%d (%s)", in.Pid, printable(to.name)), Action: "signalled",
		State: pb.ChangeState_CHANGE_STATE_APPLIED,
	}
	if number != 0 && call.DryRun != nil {
		return nil, call.DryRun.End(call, change) // what a process makes of a signal is not known
	}
	if number != 0 && call.Tx != nil {
		if err := call.Tx.Irreversible(ctx, change); err != nil {
			return nil, err
		}
	}
	if err := to.send(number); err != nil {
		if number != 0 && call.Tx != nil {
			call.Tx.NotBegun()
		}
		return nil, onPID(in.Pid, err)
	}
	if number != 0 {
		call.Report(change)
	}
	return &pb.Nothing{}, nil
}
