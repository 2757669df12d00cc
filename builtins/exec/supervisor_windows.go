package exec

import (
	"context"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// jobsSupported is false: on Windows nothing reads the output of a command that outlives the agent yet.
const jobsSupported = false

var errNoJobs = fault.Unsupported("jobs are not supported on Windows")

func (r *Room) startSupervisor(context.Context, string, *pb.Job, proc.Spec) error { return errNoJobs }

func jobMain() bool { return false }

func supervisorAlive(string) bool { return false }

func signalProcess(string, *pb.Job, syscall.Signal, bool) error { return errNoJobs }

// attached is a command that outlives the agent: none does on Windows.
type attached struct{ live }

func (r *Room) attach(context.Context, *builtins.Call, proc.Spec, string, *pb.ExecStartRequest) (*attached, string, error) {
	return nil, "", errNoJobs
}

func (a *attached) follow(*streamed) *pb.ExecEnd { return nil }
func (a *attached) told()                        {}
func (a *attached) release()                     {}
