// Package process lists the processes of the guest and sends them signals.
//
//	/proc, twice: processor time of each ─► share ─┐
//	/proc/PID: stat ─► filter, sort, cut ──────────┴─► cmdline, cwd, user ─► list_processes
//	pidfd of PID ─► is it what was meant? ─► the signal ──────────────────► kill_process
//
// Scripts call both as process.list and process.kill.
//
// Not here: commands that the agent itself runs (exec), and how many processes there are (telemetry).
package process

import (
	"context"
	"strconv"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are pids, and what a list is filtered by.
const kind = "process"

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest *guest.Guest
	owner Owner
	reader
}

// Owner returns by which port the command came that a process is part of; false: nobody is known to have begun it by any.
type Owner func(pid int) (port string, known bool)

// New makes the room. A tree that is not booted has no processes. Without an owner nobody began anything.
func New(g *guest.Guest, owner Owner) *Room {
	if owner == nil {
		owner = func(int) (string, bool) { return "", false }
	}
	return &Room{guest: g, owner: owner, reader: newReader()}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	list, kill := "", ""
	if r.guest.Live && canList() {
		list = "process_list"
	}
	if r.guest.Live && canKill() {
		kill = "process_kill"
	}
	room := builtins.Room{Name: "process", Ops: append(r.scriptRows(), []builtins.Op{
		{
			Name: "list_processes", Capability: list, Summary: "the processes with their present use of processors",
			Access: builtins.Of(listAccess), Handler: builtins.Handle(r.list),
		},
		{
			Name: "kill_process", Capability: kill, Summary: "send a signal to a process",
			Mutates: true, Readonly: builtins.Of(sendsNothing),
			Access: builtins.Of(killAccess), Handler: builtins.Handle(r.kill),
		},
	}...)}
	if kill != "" {
		room.Features = features
	}
	return room
}

// features says that this agent sends the signal that it is asked for, and which fields of a request it knows.
func features() map[string]string {
	return map[string]string{"process_kill": "signal_name,start_ticks"}
}

func listAccess(in *pb.ListProcessesRequest) (access builtins.Access) {
	if in.Filter != "" {
		access.Objects = []builtins.Object{{Kind: kind, Name: in.Filter}}
	}
	return access
}

func killAccess(in *pb.KillProcessRequest) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: strconv.FormatUint(uint64(in.Pid), 10)}}}
}

// served returns why a request cannot be served here.
func (r *Room) served() error {
	if !r.guest.Live {
		return fault.Unsupported("there are no processes in a tree that is not booted")
	}
	return nil
}

func (r *Room) list(
	ctx context.Context, _ *builtins.Call, in *pb.ListProcessesRequest,
) (*pb.ListProcessesResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	order, err := orderOf(in)
	if err != nil {
		return nil, err
	}
	list, err := r.read(ctx, in, order)
	if err != nil {
		return nil, err
	}
	return &pb.ListProcessesResponse{Success: true, Processes: list}, nil
}

func (r *Room) kill(_ context.Context, call *builtins.Call, in *pb.KillProcessRequest) (*pb.KillProcessResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	number, err := signalOf(in)
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
	if err := to.send(number); err != nil {
		return nil, onPID(in.Pid, err)
	}
	return &pb.KillProcessResponse{Success: true}, nil
}

// mayEnd returns why a caller must not send a signal to a process: what the hosts on a port began, others need not be able to
// end.
func (r *Room) mayEnd(call *builtins.Call, pid uint32) error {
	if port, known := r.owner(int(pid)); known && !call.MaySee(port) {
		return fault.Wrapf(builtins.ErrPolicy, "refused: it is of a command that came by another port")
	}
	return nil
}

// onPID adds the pid to an error.
func onPID(pid uint32, err error) error { return fault.On(strconv.FormatUint(uint64(pid), 10), err) }
