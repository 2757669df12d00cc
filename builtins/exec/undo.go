package exec

import (
	"context"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// undo is exec.undo: it takes back what a command of a transaction did, or might have done. Where undo_if says that
// there is nothing to undo, it does nothing.
func (r *Room) undo(ctx context.Context, call *builtins.Call, in *pb.RunArgs) (*pb.RunResult, error) {
	if len(in.GetArgv()) == 0 || in.GetArgv()[0] == "" {
		return nil, fault.Invalid("no command")
	}
	if len(in.GetUndoIf()) > 0 {
		if needed, err := r.undoNeeded(ctx, in); err != nil || !needed {
			call.Idle = err == nil
			return &pb.RunResult{}, err
		}
	}
	after := r.watchFreezes(call)
	result, err := r.runUndo(ctx, in)
	after()
	if err == nil && exited(result) && slices.Contains(in.GetUndoOk(), int32(result.Code)) {
		return runResult(result), nil
	}
	return finish(in, false, result, err)
}

// onCommit is exec.on_commit: it runs a command when a transaction has committed. A command that fails is reported, and nothing
// else happens.
func (r *Room) onCommit(ctx context.Context, _ *builtins.Call, in *pb.RunArgs) (*pb.RunResult, error) {
	if len(in.GetArgv()) == 0 || in.GetArgv()[0] == "" {
		return nil, fault.Invalid("no command")
	}
	spec, err := r.scriptSpec(in)
	if err != nil {
		return nil, onCommand(in, err)
	}
	if spec.Timeout == 0 {
		spec.Timeout = r.config.MaxTimeout
	}
	result, err := r.guest.Run(ctx, guest.Command{Line: Quote(in.GetArgv()), Irreversible: true}, spec)
	return finish(in, false, result, err)
}

// maxNo is the largest exit code by which undo_if says no: a shell uses 126 and 127 for a program that cannot be
// executed or is missing, which says nothing about the guest.
const maxNo = 125

// undoNeeded runs undo_if, which is held to changing nothing where the kernel can do that. It sees the guest as it is; where it
// failed since it may not write, that says nothing about the guest.
func (r *Room) undoNeeded(ctx context.Context, in *pb.RunArgs) (bool, error) {
	test := &pb.RunArgs{Argv: in.GetUndoIf(), Cwd: in.GetCwd(), Env: in.GetEnv(), User: in.GetUser(), Group: in.GetGroup(),
		Timeout: in.GetTimeout(), Readonly: true}
	result, err := r.runUndo(ctx, test)
	held := r.guest.Answer == nil && r.confines()
	if err == nil && exited(result) && result.Code > 0 && result.Code <= maxNo {
		if !held || !guest.OutputContains(result, guest.ReadOnlyText) {
			return false, nil
		}
	}
	_, err = finish(test, held, result, err)
	return err == nil, err
}

// runUndo runs a command of a rollback.
func (r *Room) runUndo(ctx context.Context, in *pb.RunArgs) (*proc.Result, error) {
	spec, err := r.scriptSpec(in)
	if err != nil {
		return nil, err
	}
	if spec.Timeout == 0 {
		spec.Timeout = r.config.MaxTimeout // nobody waits for a rollback but the guest itself
	}
	return r.guest.Run(ctx, guest.Command{Line: Quote(in.GetArgv()), Undo: true, Readonly: in.GetReadonly()}, spec)
}

// exited reports whether a command ended by itself.
func exited(result *proc.Result) bool { return result.Signal == 0 && !result.TimedOut }
