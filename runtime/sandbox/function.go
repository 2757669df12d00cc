package sandbox

import (
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Function describes a script row for RunnerStart.Functions with what a check of scripts wants to know.
func Function(op *builtins.Op) *pb.RunnerFunction {
	return &pb.RunnerFunction{
		Name: op.Name, Args: op.Script.Args, Optional: uint32(op.Script.Optional), Options: optionNames(op),
		Paths: slices.Concat(op.Aspects.Reads, op.Aspects.Writes, op.Aspects.Patterns), Commands: op.Aspects.Runs,
	}
}
