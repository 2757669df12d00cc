// Package tx is what a script says and hears of its own transaction.
//
//	tx.on_rollback ──► Call.Tx.Undo, in the name of exec.undo
//	tx.changes ◄────── Call.Changes
//
// Not here: the transaction itself (runtime/journal), and what becomes of it.
package tx

import (
	"context"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Room is what the table and the executor know of the room. It needs nothing of the guest.
func Room() builtins.Room {
	return builtins.Room{Name: "tx", Ops: []builtins.Op{
		{
			Name: "tx.on_rollback", Usage: "(argv)",
			Summary: "have a rollback run a command when it comes to this point",
			Mutates: true, Predictable: true, Inverse: "exec.undo",
			Access: builtins.Of(onRollbackAccess), Handler: builtins.Handle(onRollback),
		},
		{
			Name: "tx.changes", Usage: "() changes", Summary: "what the script changed so far",
			Handler: builtins.Handle(changes),
		},
	}}
}

// onRollbackAccess is the commands of a request to tx.on_rollback.
func onRollbackAccess(in *pb.OnRollbackArgs) builtins.Access {
	a := builtins.Access{Commands: []builtins.Command{guest.CommandAccess(in.Argv, in.Env, in.Cwd)}}
	if len(in.UndoIf) > 0 {
		a.Commands = append(a.Commands, guest.CommandAccess(in.UndoIf, in.Env, in.Cwd))
	}
	return a
}

// onRollback changes nothing, so nothing is reported: it only makes a promise of the journal.
func onRollback(ctx context.Context, call *builtins.Call, in *pb.OnRollbackArgs) (*pb.Nothing, error) {
	switch {
	case len(in.Argv) == 0 || in.Argv[0] == "":
		return nil, fault.Invalid("no command")
	case in.Timeout < 0:
		return nil, fault.Invalid("timeout is negative")
	}
	if err := guest.CheckUndo(in.UndoOk, in.UndoIf); err != nil {
		return nil, err
	}
	for _, text := range append([]string{in.Cwd}, in.Argv...) {
		if strings.Contains(text, "\x00") {
			return nil, fault.Invalid("a NUL byte in the command")
		}
	}
	if call.DryRun != nil {
		return &pb.Nothing{}, nil
	}
	if call.Tx == nil {
		return nil, fault.Refuse("there is no transaction")
	}
	return &pb.Nothing{}, call.Tx.Undo(ctx, "exec.undo", &pb.RunArgs{
		Argv: in.Argv, Cwd: in.Cwd, Env: in.Env, User: in.User, Group: in.Group, Timeout: in.Timeout,
		UndoOk: in.UndoOk, UndoIf: in.UndoIf,
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
