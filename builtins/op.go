// Package builtins says what an operation is, and is the one way to it.
//
//	native request ──┐                                        ┌── file
//	                 ├──► Table.Invoke: policy, journal, ──► ─┼── exec
//	script's call ───┘    audit, limits, panics              └── host …
//
// A room (a package below this one) lists its operations as rows: a typed function each, with a name and what the
// caller must know of it. The two ways in are generic: a native row is reached by the type of its request, a script row
// by its name, and neither knows a room.
//
// Not here: any operation, Lua, frames, and a registry that somebody could add to.
package builtins

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Op is one row: an operation and what its callers must know.
type Op struct {
	// Name is the payload's name in the envelope for a native row (file_write), and room.function for a script row
	// (file.write).
	Name string
	// Summary is one line for people.
	Summary string
	// Mutates says that the operation changes the guest. It is then refused when the request may be stale, and needs a
	// transaction when a script calls it.
	Mutates bool
	// Capability is what get_capabilities and agent_ready announce for a native row; empty: nothing.
	Capability string
	// Script is set for a row that scripts call.
	Script *Signature
	// Harmless tells of a request to a mutating row that it changes nothing after all; nil: none.
	Harmless func(in proto.Message) bool
	// Partial says that a call that fails may leave what it did until then: a script that catches the error goes on from
	// there. All others are taken back before the script sees the error.
	Partial bool
	// Order names what requests of this row must be served in order with, such as the path of an upload; nil: nothing.
	Order func(in proto.Message) string
	// Planned says that the operation knows dry runs: it changes Call.Plan then. At any other mutating row a dry run ends.
	Planned bool
	// Transient rows keep nothing of a request's bytes, nor do they give them away: the memory is used again when the call
	// is over.
	Transient bool
	// Routine tells of a request that it only goes on with what another one began, and that was told of: where it succeeds
	// nobody needs to hear of it. Nil: none does.
	Routine func(in proto.Message) bool
	// Delegates says that the row changes the guest through other rows alone.
	Delegates bool
	// Aspects are what a policy looks at.
	Aspects Aspects
	// Inner rows are called by the journal alone, to take something back.
	Inner bool
	// In and Out are prototypes: never written to.
	In, Out proto.Message

	call  func(context.Context, *Call, proto.Message) (proto.Message, error)
	reply func(error) proto.Message
}

// Signature is the shape of a call in Lua.
type Signature struct {
	// Args are the fields of In that are given by position; all others are options in a table behind them.
	Args []string
	// Optional is how many of Args, from the end, may be left out.
	Optional int
	// Result is the field of Out that the call returns; empty: the whole of Out as a table.
	Result string
}

// Func is the typed function behind a row. It returns errors as wire/fault and the standard library make them, without
// the operation's name: Invoke adds it.
type Func[In, Out proto.Message] func(ctx context.Context, call *Call, in In) (Out, error)

// Native is a row that the host calls by its request message. name is the request's name in the envelope.
func Native[In, Out proto.Message](name, summary string, f Func[In, Out]) Op {
	return row(name, summary, f)
}

// Script is a row that scripts call as name(args…, {options}). args are the positional fields of In, separated by
// spaces, those that may be left out in brackets; result is the field of Out that the call returns, or empty for all.
func Script[In, Out proto.Message](name, args, result, summary string, f Func[In, Out]) Op {
	op := row(name, summary, f)
	op.Script = &Signature{Result: result}
	for _, arg := range strings.Fields(args) {
		bare := strings.Trim(arg, "[]")
		if bare != arg {
			op.Script.Optional++
		}
		op.Script.Args = append(op.Script.Args, bare)
	}
	return op
}

func row[In, Out proto.Message](name, summary string, f Func[In, Out]) Op {
	var in In
	var out Out
	return Op{
		Name: name, Summary: summary,
		In:  in.ProtoReflect().Type().Zero().Interface(),
		Out: out.ProtoReflect().Type().Zero().Interface(),
		call: func(ctx context.Context, call *Call, message proto.Message) (proto.Message, error) {
			out, err := f(ctx, call, message.(In))
			if err != nil {
				return nil, err
			}
			return out, nil
		},
	}
}

// Mutating marks a row that changes the guest.
func (op Op) Mutating() Op { op.Mutates = true; return op }

// Unless names the requests that change nothing though the row is a mutating one.
func (op Op) Unless(harmless func(in proto.Message) bool) Op { op.Harmless = harmless; return op }

// Changes tells whether a request to this row may change the guest.
func (op *Op) Changes(in proto.Message) bool {
	return op.Mutates && !(op.Harmless != nil && op.Harmless(in))
}

// LeavesPart marks a row whose failure does not take back what was done until then.
func (op Op) LeavesPart() Op { op.Partial = true; return op }

// Plans marks a mutating row that knows dry runs.
func (op Op) Plans() Op { op.Planned = true; return op }

// Announce names the capability that a native row stands for.
func (op Op) Announce(capability string) Op { op.Capability = capability; return op }

// Hidden marks a script row that only the journal calls.
func (op Op) Hidden() Op { op.Inner = true; return op }

// Ordered keeps requests that give the same name in the order in which they came; an empty name does not.
func (op Op) Ordered(by func(in proto.Message) string) Op { op.Order = by; return op }

// KeepsNothing marks a row that keeps none of a request's bytes after it returned.
func (op Op) KeepsNothing() Op { op.Transient = true; return op }

// Continues marks a row whose requests may be Routine.
func (op Op) Continues(routine func(in proto.Message) bool) Op { op.Routine = routine; return op }

// OnError makes the reply to a request that failed, for messages whose error is more than their error field.
func (op Op) OnError(reply func(error) proto.Message) Op { op.reply = reply; return op }

// ErrorReply is the reply that tells err in the operation's own message: its error field where it has one.
func (op *Op) ErrorReply(err error) proto.Message {
	if op.reply != nil {
		return op.reply(err)
	}
	return ErrorReply(op.Out.ProtoReflect().Type(), err)
}

// ErrorReply makes a message of a type and puts the text of err into its error field, where it has one.
func ErrorReply(of protoreflect.MessageType, err error) proto.Message {
	message := of.New()
	field := message.Descriptor().Fields().ByName("error")
	switch {
	case field == nil || field.Cardinality() == protoreflect.Repeated:
	case field.Kind() == protoreflect.StringKind:
		message.Set(field, protoreflect.ValueOfString(err.Error()))
	case field.Message() != nil && field.Message().Name() == "ScriptError":
		message.Set(field, protoreflect.ValueOfMessage((&pb.ScriptError{Kind: scriptKind(err), Message: err.Error()}).ProtoReflect()))
	}
	return message.Interface()
}

// check holds a row against what its messages really have. A fault is a programmer's, and met at start-up.
func (op *Op) check() error {
	if err := op.Aspects.check(op.In.ProtoReflect().Descriptor()); err != nil && !op.Inner {
		return err
	}
	if op.Script == nil {
		field := envelope.ByName(protoreflect.Name(op.Name))
		if field == nil || field.Message() != op.In.ProtoReflect().Descriptor() {
			return fmt.Errorf("the envelope has no request %s of type %s", op.Name, op.In.ProtoReflect().Descriptor().Name())
		}
		return nil
	}
	if room, function, ok := strings.Cut(op.Name, "."); !ok || room == "" || function == "" {
		return fmt.Errorf("%s is not room.function", op.Name)
	}
	for _, arg := range op.Script.Args {
		if op.In.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(arg)) == nil {
			return fmt.Errorf("%s has no argument %s", op.In.ProtoReflect().Descriptor().Name(), arg)
		}
	}
	if r := op.Script.Result; r != "" && op.Out.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(r)) == nil {
		return fmt.Errorf("%s has no result %s", op.Out.ProtoReflect().Descriptor().Name(), r)
	}
	return nil
}

var envelope = (&pb.AgentMessage{}).ProtoReflect().Descriptor().Fields()
