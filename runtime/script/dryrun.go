package script

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// predict runs the script over an overlay of the files: nothing is changed, locked or stored. An error in the reply is one that
// a real run would have.
func (r *run) predict(ctx context.Context, s Script) *pb.RunScriptResponse {
	files, err := r.manager.config.Overlay()
	if err != nil {
		return refused(builtins.ErrorKind(err), "a dry run: "+err.Error())
	}
	defer files.Close()
	r.dry = &builtins.DryRun{Files: files}
	reply := r.execute(ctx, s)
	r.beforeCommit(ctx, reply)
	reply.Status = pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN
	switch {
	case r.dry.Ended != nil:
		reply.Error, reply.Result = nil, nil
	case reply.Error == nil:
		for _, action := range r.calls.After() {
			reply.AfterCommit = append(reply.AfterCommit, &pb.Change{
				Op: action.Op, Target: action.Target, Action: "ran", State: pb.ChangeState_CHANGE_STATE_WOULD,
			})
		}
	case r.nothingRan(reply):
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	default:
		reply.Result = nil
	}
	return reply
}
