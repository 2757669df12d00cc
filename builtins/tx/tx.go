// Package tx is what a script says and hears of its own transaction.
//
//	tx.on_rollback ──► Call.Tx.Undo, in the name of exec.undo
//	tx.on_commit ────► Call.AfterCommit, in the name of exec.on_commit
//	tx.notify ───────► Call.BeforeCommit, in the name of service.notified
//	tx.changes ◄────── Call.Changes
//
// Not here: the transaction itself (runtime/journal), and what becomes of it.
package tx

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The internal rows that do what a script has put off, and settledOp, which looks at what became of a notified unit.
const (
	commitOp   = "exec.on_commit"
	notifiedOp = "service.notified"
	settledOp  = "service.settled"

	applyOp = "netplan.apply" // what netplan, as a unit, is notified by
	netplan = "netplan"
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
			Name: "tx.on_commit", Usage: "(argv)", Summary: "have a command run once the script has committed",
			Mutates: true, Predictable: true, Defers: commitOp,
			Access: builtins.Of(onCommitAccess), Handler: builtins.Handle(onCommit),
		},
		{
			Name: "tx.notify", Usage: "(unit, [action])",
			Summary: "have a unit restarted after the last line of the script, once; if it fails then, the script is rolled back",
			Mutates: true, Predictable: true, Defers: notifiedOp, SameAs: notifiesAs,
			Access: builtins.Of(notifyAccess), Handler: builtins.Handle(notify),
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
	if err := checkCommand(in.Argv, in.Cwd, in.Timeout); err != nil {
		return nil, err
	}
	if err := guest.CheckUndo(in.UndoOk, in.UndoIf); err != nil {
		return nil, err
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

func onCommitAccess(in *pb.OnCommitArgs) builtins.Access {
	return builtins.Access{Commands: []builtins.Command{guest.CommandAccess(in.Argv, in.Env, in.Cwd)}}
}

// onCommit changes nothing before the commit, whose reply has the outcome of the command.
func onCommit(_ context.Context, call *builtins.Call, in *pb.OnCommitArgs) (*pb.Nothing, error) {
	if err := checkCommand(in.Argv, in.Cwd, in.Timeout); err != nil {
		return nil, err
	}
	return &pb.Nothing{}, call.AfterCommit(builtins.Action{
		Op: commitOp, Target: guest.Quote(in.Argv), Args: &pb.RunArgs{
			Argv: in.Argv, Cwd: in.Cwd, Env: in.Env, User: in.User, Group: in.Group, Timeout: in.Timeout,
		},
	})
}

// checkCommand refuses a command that cannot be meant.
func checkCommand(argv []string, cwd string, timeout float64) error {
	switch {
	case len(argv) == 0 || argv[0] == "":
		return fault.Invalid("no command")
	case timeout < 0:
		return fault.Invalid("timeout is negative")
	}
	for _, text := range append([]string{cwd}, argv...) {
		if strings.Contains(text, "\x00") {
			return fault.Invalid("a NUL byte in the command")
		}
	}
	return nil
}

// notifiable are the actions of tx.notify. One does what those with a lower number do.
var notifiable = map[string]int{"restart": 3, "reload-or-restart": 2, "reload": 1, "start": 1}

// notifiesAs are the rows that do at once what a request puts off.
func notifiesAs(in proto.Message) []string {
	args, _ := in.(*pb.ServiceNotifyArgs)
	switch action := args.GetAction(); {
	case args == nil:
		return []string{"service.reload", "service.restart", "service.start", applyOp}
	case args.Unit == netplan:
		return []string{applyOp}
	case action == "reload-or-restart":
		return []string{"service.reload", "service.restart"}
	case action == "":
		return []string{"service.restart"}
	default:
		return []string{"service." + action}
	}
}

// unitKind is that of the objects that units are: the scope of the room of services.
const unitKind = "service"

func notifyAccess(in *pb.ServiceNotifyArgs) builtins.Access {
	if in.Unit == netplan {
		return builtins.Access{Objects: []builtins.Object{{Kind: netplan, Name: "network"}}}
	}
	return builtins.Access{Objects: []builtins.Object{{Kind: unitKind, Name: strings.TrimSuffix(in.Unit, ".service")}}}
}

// notify changes nothing yet: what is done comes before the commit, and is reported then.
func notify(_ context.Context, call *builtins.Call, in *pb.ServiceNotifyArgs) (*pb.Nothing, error) {
	asked := in.Action
	in = &pb.ServiceNotifyArgs{Unit: strings.TrimSuffix(in.Unit, ".service"), Action: asked}
	if in.Action == "" {
		in.Action = "restart"
	}
	covers, known := notifiable[in.Action]
	switch {
	case in.Unit == netplan && asked != "" && asked != "apply":
		return nil, fault.Invalid("netplan is applied, and nothing else: there is no action %.40q", asked)
	case in.Unit == netplan:
		return &pb.Nothing{}, call.BeforeCommit(builtins.Pending{
			Action: builtins.Action{Op: applyOp, Args: &pb.NetplanApplyArgs{}, Target: netplan},
		})
	case in.Unit == "" || len(in.Unit) > 255 || strings.HasPrefix(in.Unit, "-") || strings.ContainsAny(in.Unit, "/ \t\r\n\x00"):
		return nil, fault.Invalid("%.60q is no name of a unit", in.Unit)
	case !known:
		return nil, fault.Invalid("there is no action %.40q; there are restart, reload, start and reload-or-restart", in.Action)
	}
	return &pb.Nothing{}, call.BeforeCommit(builtins.Pending{
		Action: builtins.Action{Op: notifiedOp, Args: in, Target: in.Unit},
		Check:  &builtins.Action{Op: settledOp, Args: in, Target: in.Unit}, Covers: covers,
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
