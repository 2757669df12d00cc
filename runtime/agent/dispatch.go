package agent

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// vsockPrefix is what the names of vsock ports begin with.
const vsockPrefix = "vsock:"

// dispatch serves one request, whatever protocol it came by. An error comes together with the reply that says so.
func (a *Agent) dispatch(ctx context.Context, call *builtins.Call, request proto.Message) (proto.Message, error) {
	switch request := request.(type) {
	case *pb.PingRequest:
		return a.pong(request), nil
	case *pb.CancelRequest:
		return a.cancel(call, request)
	case *pb.GetCapabilitiesRequest:
		return a.describe(call.Port), nil
	case *pb.GetStatusRequest:
		return a.Status(), nil
	}
	a.idle.Store(false)
	defer a.idleTimer.Reset(trimQuiet)
	if err := a.gate(ctx); err != nil {
		return a.refusal(request, err), err
	}
	op := a.native(request)
	if op == nil {
		err := fault.Unsupported("%s is not supported by this agent", request.ProtoReflect().Descriptor().Name())
		return a.refusal(request, err), err
	}
	reply, err := a.config.Calls.Execute(ctx, call, op, request)
	if err != nil {
		return op.ErrorReply(err), err
	}
	return reply, nil
}

// native returns the operation that serves a request; nil where none does.
func (a *Agent) native(request proto.Message) *builtins.Op { return a.config.Calls.Native(request) }

// refusal returns the reply to a request that is not served, in the request's own reply type.
func (a *Agent) refusal(request proto.Message, err error) proto.Message {
	if op := a.native(request); op != nil {
		return op.ErrorReply(err)
	}
	return builtins.ErrorReply(wire.ReplyType(request), err)
}

// gate returns why nothing is served at present, if so.
func (a *Agent) gate(ctx context.Context) error {
	if err := a.config.Refusing; err != nil {
		return fault.Wrapf(fault.ErrRefused, "refused: the configuration has faults: %v", err)
	}
	return a.config.Hooks.Gate(ctx)
}

func (a *Agent) pong(request *pb.PingRequest) *pb.PongResponse {
	return &pb.PongResponse{
		Sequence: request.Sequence, Version: a.config.Identity.Version, UptimeSeconds: uint64(time.Since(a.start).Seconds()),
	}
}

// Ops returns the rows of what the agent serves itself and a policy may deny, for who reads the names in one.
func Ops() []builtins.Op { return new(Agent).ops() }

func (a *Agent) ops() []builtins.Op {
	return []builtins.Op{{
		Name: "cancel", Summary: "end a request or a script that the caller's port began", EndsOwn: true,
		Routine: func(proto.Message) bool { return true }, Handler: builtins.Handle(a.end),
	}}
}

// cancel serves a request to end another one. It waits for nothing. An error comes together with the reply that says so.
func (a *Agent) cancel(call *builtins.Call, request *pb.CancelRequest) (proto.Message, error) {
	if a.config.Refusing != nil { // there is nothing to end, and no policy
		return &pb.CancelResponse{}, nil
	}
	op := a.native(request)
	reply, err := a.config.Calls.Execute(context.Background(), call, op, request)
	if err != nil {
		return op.ErrorReply(err), err
	}
	return reply, nil
}

// end ends what a request names, where the caller's port began it or may see what others did.
func (a *Agent) end(_ context.Context, call *builtins.Call, request *pb.CancelRequest) (*pb.CancelResponse, error) {
	named := 0
	for _, name := range []string{request.MessageId, request.Key, request.TransactionId} {
		if name != "" {
			named++
		}
	}
	switch {
	case named != 1:
		return nil, fault.Invalid("name one of message_id, key, transaction_id")
	case request.MessageId != "":
		return &pb.CancelResponse{Cancelled: a.calls.Cancel(request.MessageId, call.MaySee)}, nil
	}
	return &pb.CancelResponse{Cancelled: a.config.Hooks.Cancel(request, call.MaySee)}, nil
}

// describe returns the reply to get_capabilities on a port; the name is empty for the control port.
func (a *Agent) describe(port string) proto.Message {
	who := a.config.Identity
	return &pb.GetCapabilitiesResponse{
		Version: who.Version, Os: who.OS, Architecture: who.Architecture, Capabilities: a.capabilities(port),
		BuildTime: who.Built, BuildCommit: who.Commit, Features: a.config.Guest.Features(),
	}
}

// capabilities returns what the table announces on a port, and vsock while that is served. An agent that refuses everything
// has none.
func (a *Agent) capabilities(port string) []string {
	if a.config.Refusing != nil {
		return nil
	}
	list := append([]string{"status", "telemetry"}, a.config.Calls.Capabilities(port)...)
	if a.tracker.serves(vsockPrefix) {
		list = append(list, "vsock")
	}
	return list
}
