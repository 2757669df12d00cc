package exec

import (
	"context"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// canKeep: what outlives the agent cannot be read on Windows yet.
const canKeep = false

var errNoJobs = fault.Unsupported("jobs are not supported on Windows")

func (r *Room) keep(context.Context, string, *pb.Job, proc.Spec) error { return errNoJobs }

func jobMain() bool { return false }

func held(string) bool { return false }

func tellJob(string, *pb.Job, syscall.Signal, bool) error { return errNoJobs }
