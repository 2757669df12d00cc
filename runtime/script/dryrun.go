package script

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// predict runs the script over a plan: nothing is changed, locked or stored. An error in the reply is one that a real run
// would have.
func (r *run) predict(ctx context.Context, s Script) *pb.RunScriptResponse {
	files, err := r.manager.config.Pretend()
	if err != nil {
		return refused(kindOf(err), "a dry run: "+err.Error())
	}
	defer files.Close()
	r.plan = &builtins.Plan{Files: files}
	reply := r.execute(ctx, s)
	reply.Status = pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN
	switch {
	case r.plan.Ended != nil:
		reply.Error, reply.Result = nil, nil
	case reply.Error == nil:
	case r.nothingRan(reply):
		reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	default:
		reply.Result = nil
	}
	return reply
}

// pretend serves one call of a dry run.
func (r *run) pretend(ctx context.Context, call *builtins.Call, op *builtins.Op, in proto.Message) (proto.Message, error) {
	call.Plan = r.plan
	if r.plan.Ended != nil {
		return nil, r.plan.Ended
	}
	if op.Changes(in) && !op.Planned {
		return nil, r.plan.End(call, &pb.Change{Op: op.Name, Action: "ran"})
	}
	before := len(r.changes)
	out, err := r.manager.Table.Invoke(ctx, call, op, in)
	if err != nil && !op.Partial && r.plan.Ended == nil {
		r.forget(before) // as a run takes it back
	}
	r.plan.Changed = r.plan.Changed || len(r.changes) > before
	return out, err
}
