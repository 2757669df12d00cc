package sandbox

import (
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Function returns the description of a script row for RunnerStart.Functions, with all that a check of scripts uses. scope is
// that of its room.
func Function(op *builtins.Op, scope builtins.Scope) *pb.RunnerFunction {
	f := &pb.RunnerFunction{
		Name: op.Name, Args: op.Script.Args, Optional: uint32(op.Script.Optional), Options: optionNames(op),
		Paths: op.Roles.Paths, Commands: op.Roles.Commands, Scope: pb.NeedScope_NEED_SCOPE_NAMES,
	}
	if room, _, other := strings.Cut(op.Defers, "."); other && room != op.Room() && len(op.Roles.Objects) > 0 {
		f.Names, f.NamesRoom = op.Roles.Objects, room
	}
	switch scope {
	case builtins.ScopeNone:
		f.Scope = pb.NeedScope_NEED_SCOPE_NONE
	case builtins.ScopePaths:
		f.Scope = pb.NeedScope_NEED_SCOPE_PATHS
	case builtins.ScopeCommands:
		f.Scope = pb.NeedScope_NEED_SCOPE_COMMANDS
	default:
		f.Names = op.Roles.Objects
	}
	return f
}
