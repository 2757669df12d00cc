// Package tx is what a script says and hears of its own transaction.
//
//	tx.on_rollback ──► Call.Tx.Undo, in the name of exec.undo
//	tx.changes ◄────── Call.Changes
//
// Not here: the transaction itself (runtime/journal), and what becomes of it.
package tx

import (
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Ops are the rows of the room.
func Ops() []builtins.Op {
	return []builtins.Op{
		builtins.Script("tx.on_rollback", "argv", "", "have a rollback run a command when it comes to this point", onRollback).
			Runs(taking, "argv").Mutating().Plans(),
		builtins.Script("tx.changes", "", "changes", "what the script changed so far", changes),
	}
}

// taking is the command of a request to tx.on_rollback.
func taking(in proto.Message) []builtins.Command {
	request := in.(*pb.OnRollbackArgs)
	return []builtins.Command{{Argv: request.Argv, Paths: proc.SearchPaths(request.Env),
		Env: slices.Sorted(maps.Keys(request.Env)), Dir: request.Cwd}}
}

// onRollback changes nothing, so nothing is reported: it only makes a promise of the journal.
func onRollback(ctx context.Context, call *builtins.Call, in *pb.OnRollbackArgs) (*pb.Nothing, error) {
	switch {
	case len(in.Argv) == 0 || in.Argv[0] == "":
		return nil, fault.Invalid("no command")
	case in.Timeout < 0:
		return nil, fault.Invalid("timeout is negative")
	}
	for _, text := range append([]string{in.Cwd}, in.Argv...) {
		if strings.Contains(text, "\x00") {
			return nil, fault.Invalid("a NUL byte in the command")
		}
	}
	if call.Plan != nil {
		return &pb.Nothing{}, nil
	}
	if call.Tx == nil {
		return nil, fault.Refuse("there is no transaction")
	}
	return &pb.Nothing{}, call.Tx.Undo(ctx, "exec.undo", &pb.RunArgs{
		Argv: in.Argv, Cwd: in.Cwd, Env: in.Env, User: in.User, Group: in.Group, Timeout: in.Timeout,
	})
}

func changes(_ context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.ScriptChanges, error) {
	out := &pb.ScriptChanges{}
	if call.Changes == nil {
		return out, nil
	}
	for _, c := range call.Changes() {
		out.Changes = append(out.Changes, &pb.ScriptChange{Op: c.Op, Target: c.Target, Action: c.Action, Reversible: c.Reversible})
	}
	return out, nil
}
