package script

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// run is one run of one script.
type run struct {
	manager  *Manager
	call     *builtins.Call // of the request
	request  *pb.RunScriptRequest
	started  time.Time
	declared *pb.ScriptDeclaration
	hide     *redactor
	key      string           // what this run is known by
	print    []byte           // fingerprint of the request
	id       string           // of the transaction; under the manager's lock
	tx       *journal.Tx      // nil for a readonly script
	dry      *builtins.DryRun // nil but for a dry run
	rights   []*policy.Rights
	calls    *call.Run
	spool    *spool          // of the attachments; nil: they are in the request
	confirm  time.Duration   // within which the changes must be confirmed; 0: they need not
	refusal  *pb.RunnerError // of the last call that a policy or the rights refused
	reply    *pb.RunScriptResponse
	ended    chan struct{} // closed when reply is there

	log     []*pb.LogLine
	seq     uint64 // of events
	dropped uint32 // events since the last one that went out
}

// do runs the script, or returns the reply of an earlier run under the same key: that needs no source.
func (r *run) do(ctx context.Context) *pb.RunScriptResponse {
	r.hide = newRedactor(r.request.Secrets)
	if len(r.request.Key) > maxKey {
		return refused("params", fmt.Sprintf("the key has %d bytes; it may have %d", len(r.request.Key), maxKey))
	}
	if r.request.DryRun { // nothing of it is known by a key
		defer r.spoolAttachments()()
		return r.identified(ctx)
	}
	if r.key = r.request.Key; r.key == "" {
		r.key = r.call.ID
	}
	r.print, r.ended = fingerprint(r.manager.config.Secret(), r.request), make(chan struct{})
	earlier, leave := r.earlier(ctx)
	if earlier != nil {
		return earlier
	}
	defer leave()
	defer r.spoolAttachments()()
	r.reply = r.identified(ctx)
	return r.reply
}

// identified finds the source and runs it. The reply has no secrets and is within its limits.
func (r *run) identified(ctx context.Context) *pb.RunScriptResponse {
	s, refusal := r.manager.identify(r.request)
	if refusal != nil {
		return refusal
	}
	ref := &pb.ScriptRef{Name: s.Name, Sha256: s.SHA256}
	reply := r.prepared(ctx, s, ref)
	if !reply.Replayed {
		reply.Script = ref
	}
	r.hide.reply(reply)
	journal.LimitReply(reply)
	return reply
}

// prepared reads the declaration and runs.
func (r *run) prepared(ctx context.Context, s Script, ref *pb.ScriptRef) *pb.RunScriptResponse {
	m := r.manager
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	declared, failure := m.declaration(ctx, s, r.request.Modules)
	if failure != nil {
		return &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_REFUSED, Error: failure, Stats: &pb.ScriptStats{}}
	}
	if r.declared = declared; declared != nil {
		ref.Name, ref.Version = declared.Name, declared.Version
		if declared.Timeout > 0 && r.request.TimeoutSeconds == 0 {
			seconds := min(max(declared.Timeout, 0.001), 7*24*3600)
			limited, cancel := context.WithDeadline(ctx, r.started.Add(time.Duration(seconds*float64(time.Second))))
			defer cancel()
			ctx = limited
		}
	}
	if systems := declared.GetOs(); len(systems) > 0 && !slices.Contains(systems, runtime.GOOS) {
		return refused("unsupported", "the script is for "+strings.Join(systems, " and ")+", and this guest runs "+runtime.GOOS)
	}
	if refusal := r.wantConfirm(); refusal != nil {
		return refusal
	}
	if refusal := r.limit(); refusal != nil {
		return refusal
	}
	if r.request.DryRun {
		return r.predict(ctx, s)
	}
	if declared.GetReadonly() {
		reply := r.execute(ctx, s)
		switch {
		case reply.Error == nil:
			reply.Status = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		case r.nothingRan(reply):
			reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
		default:
			reply.Status = pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
		}
		return reply
	}
	return r.transact(ctx, s, ref)
}

// wantConfirm finds out whether the changes must be confirmed, and within which time: the request decides, else the script.
func (r *run) wantConfirm() *pb.RunScriptResponse {
	within := time.Duration(r.request.GetConfirmSeconds()) * time.Second
	if r.request.ConfirmSeconds == nil {
		seconds := min(r.declared.GetConfirm(), 2*call.MaxConfirm.Seconds()) // which a duration can hold
		within = time.Duration(seconds * float64(time.Second))
	}
	if within > 0 {
		if err := call.CheckConfirm(within); err != nil {
			return refused("params", err.Error())
		}
	}
	r.confirm = within
	return nil
}

// timeout is the time for waiting and running.
func (r *run) timeout() time.Duration {
	if n := r.request.TimeoutSeconds; n > 0 {
		return time.Duration(n) * time.Second
	}
	if limit := r.manager.config.Timeout; limit > 0 {
		return limit
	}
	return r.manager.config.Pool.Limits().Wall
}

// execute runs the script in a runner. The status is the caller's to say.
func (r *run) execute(ctx context.Context, s Script) *pb.RunScriptResponse {
	r.calls = r.manager.config.Calls.Begin(call.RunConfig{
		Call: r.call, Attachment: r.attachment, Warned: r.warned, Rights: r.rights, Readonly: r.declared.GetReadonly(),
		Tx: r.tx, DryRun: r.dry, Hide: r.hide.function(),
	})
	params, err := sandbox.FromStruct(r.request.Params)
	if err != nil {
		return refused("params", err.Error())
	}
	outcome := r.manager.config.Pool.Run(ctx, sandbox.Job{
		Start: &pb.RunnerStart{
			Name: s.Name, Source: s.Source, Params: params, Secrets: r.request.Secrets, Modules: r.request.Modules,
			Functions: r.manager.functions(), Unsupported: r.manager.config.Unsupported,
			MemoryLimit: r.request.MemoryLimitBytes,
		},
		Writer: r.tx != nil, Call: r.builtin, Log: r.logged, Progress: r.progressed,
	})
	reply := &pb.RunScriptResponse{
		Error: outcome.Error, Stats: outcome.Stats, LogDropped: outcome.LogDropped, Log: r.log, Changes: r.calls.Changes(),
	}
	if outcome.Error == nil {
		if reply.Result, err = sandbox.ToValue(outcome.Result); err != nil {
			reply.Error = &pb.ScriptError{Kind: "result", Message: err.Error(), Script: s.Name}
		}
	}
	r.explain(reply.Error)
	return reply
}

// beforeCommit does what the script wants done after its last line, unless it failed. An error becomes the script's.
func (r *run) beforeCommit(ctx context.Context, reply *pb.RunScriptResponse) {
	if r.calls == nil {
		return
	}
	defer func() { reply.Changes = r.calls.Merged() }()
	if reply.Error != nil {
		return
	}
	if err := r.calls.BeforeCommit(ctx); err != nil {
		e := sandbox.ErrorReply(err).Error
		reply.Error = &pb.ScriptError{Kind: "builtin", Message: err.Error(), Op: e.Op, Code: e.Code, Object: e.Object, Hint: e.Hint}
		if cause := context.Cause(ctx); cause != nil {
			reply.Error.Kind = builtins.ErrorKind(cause)
		}
	}
}

// refusedKinds are the errors of a script of which no line ran.
var refusedKinds = map[string]bool{"syntax": true, "params": true, "source": true, "busy": true}

// builtin serves one call of the script.
func (r *run) builtin(ctx context.Context, from *pb.RunnerCall) *pb.RunnerReply {
	op, out, err := r.calls.Call(ctx, from.Name, func(op *builtins.Op) (proto.Message, error) {
		in, err := sandbox.Bind(op, from.Args)
		from.Args = nil // large ones need not be held twice while the call runs
		return in, err
	})
	if err == nil {
		return &pb.RunnerReply{Value: sandbox.Unbind(op, out)}
	}
	reply := sandbox.ErrorReply(err)
	if call.Refused(err) {
		r.refusal = reply.Error
	}
	return reply
}

func (r *run) logged(line *pb.LogLine) {
	line.Message = r.hide.text(line.Message)
	r.log = append(r.log, line)
	r.event(&pb.ScriptEvent{Log: line})
}

// warned adds a line of the agent's own to the log of the script, each text once.
func (r *run) warned(text string) {
	text = r.hide.text(text)
	known := func(line *pb.LogLine) bool { return line.Level == "warn" && line.Message == text }
	if !slices.ContainsFunc(r.log, known) {
		r.logged(&pb.LogLine{At: timestamppb.Now(), Level: "warn", Message: text})
	}
}

func (r *run) progressed(fraction *float64, step string) {
	r.event(&pb.ScriptEvent{Progress: fraction, Step: r.hide.text(step), Log: nil})
}

// event sends the host an event while the script runs, where it asked for events.
func (r *run) event(event *pb.ScriptEvent) {
	if !r.request.Events || r.call.Event == nil {
		return
	}
	r.seq++
	event.RequestId, event.Seq, event.Dropped = r.call.ID, r.seq, r.dropped
	if event.Log != nil {
		event.Log = proto.Clone(event.Log).(*pb.LogLine)
		if event.Log.At == nil {
			event.Log.At = timestamppb.Now()
		}
	}
	if r.call.Event(event) {
		r.dropped = 0
	} else {
		r.dropped++
	}
}
