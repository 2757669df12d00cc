package exec

import (
	"context"
	"syscall"

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
