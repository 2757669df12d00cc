// Package builtins says what an operation is, what a room is, and holds the operations of an agent in one table.
//
//	room (a package below this one): Room{Ops: []Op{{Name, Usage, Access, Handler: Handle(f)}, …}}
//	                                   │
//	all.Rooms ──► NewTable ──► Table ──┴──► runtime/call, which runs them for hosts, scripts and the journal
//
// An operation is a typed function and one literal, its row, which says what its callers must know: its name, how Lua calls
// it, whether it changes the guest, what takes it back, and what a request would read, change and run. Hosts reach a native
// row by the type of its request, scripts reach a script row by its name; neither knows a room.
//
// Not here: any operation, the decision whether one may run, Lua, frames, and a registry that somebody could add to.
package builtins

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Op is one row: an operation and what its callers must know.
type Op struct {
	// Name is the payload's name in the envelope for a native row (file_write), and room.function for a script row
	// (file.write). Required.
	Name string
	// Usage is set for a script row, and says how Lua calls it: "(path, [owner], [group]) changed" takes three fields of the
	// request by position, of which the last two may be left out; all other fields are options in a table after them. It
	// returns the field changed of the reply; without a name after the parentheses it returns the whole reply as a table.
	Usage string
	// Summary is one line for people. Required.
	Summary string
	// Capability is what get_capabilities and agent_ready announce for a native row. Optional.
	Capability string
	// Available reports whether what Capability announces is to be had at present, such as a desktop. It returns soon. Nil:
	// always.
	Available func() bool

	// Handler is the function, made by Handle. Required.
	Handler
	// Access computes what a request would read, change and run. It must not fail or panic for any request. Nil: nothing that
	// a rule could name.
	Access func(in proto.Message) Access
	// AccessIn is Access for a row that has to read files to know it: those that the call acts on, pretended ones too. Nil
	// files are the guest's own. Optional.
	AccessIn func(files *fsys.Root, in proto.Message) Access
	// OnError makes the reply to a request that failed, for messages whose error is more than their error field. Optional.
	OnError func(err error) proto.Message

	// Mutates says that the operation changes the guest. It is then refused when the request may be stale, and has a
	// transaction when a script calls it.
	Mutates bool
	// Readonly reports whether a request to a mutating row changes nothing after all. Optional.
	Readonly func(in proto.Message) bool
	// Inverse is the operation that Tx.Undo may name to take back what this one does. Empty: the before-images of files are
	// enough.
	Inverse string
	// Defers is the internal row that the operation has done before or after the commit. Needs of the room of that row hold
	// for it, too. Optional.
	Defers string
	// SameAs returns the names of the other rows that a request does the same as, such as exec.run for a file that a program
	// validates; of a nil request all that any request may do. Rules about those rows hold for this one, too. Optional.
	SameAs func(in proto.Message) []string
	// Predictable says that the operation supports dry runs: with a Call.DryRun it changes that and nothing else. A mutating row
	// without it ends the prediction.
	Predictable bool
	// Partial says that a failed call leaves what it did until then. All others are undone before the script sees the error.
	Partial bool
	// Transaction says that a native row runs in a transaction of its own, which is rolled back if it fails.
	Transaction bool
	// NoTransaction reports whether a request to a row with Transaction runs without one, since a transaction could undo nothing of
	// it, such as the start of a service. Optional.
	NoTransaction func(in proto.Message) bool
	// EndsOwn says that the operation only ends what its caller began. It is allowed though allow_operations does not name it.
	EndsOwn bool
	// Delegates says that the row changes the guest through other rows alone, each of which is decided on by itself.
	Delegates bool
	// Internal rows are called by the journal alone, to take something back.
	Internal bool
	// Early says of an internal row, or one that is an Inverse, that it needs nothing but the file system, so that it can run
	// in the recovery at early boot.
	Early bool

	// Order names what requests of this row must be served in order with, such as the path of an upload; an empty name is
	// no order. Optional.
	Order func(in proto.Message) string
	// Transient says that nothing of the request's bytes is used after the call: their memory is reused. Nor may anything that
	// the operation starts wait for the end of its context, which is reused as well.
	Transient bool
	// Routine reports whether a request only goes on with what an audited one began: where it succeeds
	// it is not audited again. Optional.
	Routine func(in proto.Message) bool

	// Script is the parsed Usage, and Roles what the request's fields mean to Access; both are filled in by NewTable.
	Script *Signature
	Roles  Roles
}

// Signature is the shape of a call in Lua.
type Signature struct {
	// Args are the fields of In that are given by position; all others are options in a table after them.
	Args []string
	// Optional is how many of Args, from the end, may be left out.
	Optional int
	// Result is the field of Out that the call returns; empty: the whole of Out as a table.
	Result string
}

// Func is the typed function behind a row. It returns errors as wire/fault and the standard library make them, without
// the operation's name: the executor adds it.
type Func[In, Out proto.Message] func(ctx context.Context, call *Call, in In) (Out, error)

// Handler is a Func without its types.
type Handler struct {
	// In and Out are prototypes: never written to.
	In, Out proto.Message

	call func(context.Context, *Call, proto.Message) (proto.Message, error)
}

// Handle makes the handler of a row.
func Handle[In, Out proto.Message](f func(context.Context, *Call, In) (Out, error)) Handler {
	var in In
	var out Out
	return Handler{
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

// Call runs the function, unguarded. runtime/call is its one caller.
func (h Handler) Call(ctx context.Context, call *Call, in proto.Message) (proto.Message, error) {
	return h.call(ctx, call, in)
}

// Of returns f as a function of any proto.Message, for the fields of a row such as Access. In must be the row's request type.
func Of[In proto.Message, R any](f func(In) R) func(proto.Message) R {
	return func(in proto.Message) R { return f(in.(In)) }
}

// In is Of for the field AccessIn.
func In[In proto.Message](f func(*fsys.Root, In) Access) func(*fsys.Root, proto.Message) Access {
	return func(files *fsys.Root, in proto.Message) Access { return f(files, in.(In)) }
}

// Changes reports whether a request to this row may change the guest.
func (op *Op) Changes(in proto.Message) bool {
	return op.Mutates && !(op.Readonly != nil && op.Readonly(in))
}

// Transacts reports whether a request to this row runs in a transaction of its own.
func (op *Op) Transacts(in proto.Message) bool {
	return op.Transaction && op.Changes(in) && !(op.NoTransaction != nil && op.NoTransaction(in))
}

// AccessOf returns what a request that acts on the guest's own files would read, change and run.
func (op *Op) AccessOf(in proto.Message) Access { return op.AccessOn(nil, in) }

// AccessOn is AccessOf for one that acts on files, such as those of a dry run.
func (op *Op) AccessOn(files *fsys.Root, in proto.Message) Access {
	switch {
	case op.AccessIn != nil:
		return op.AccessIn(files, in)
	case op.Access != nil:
		return op.Access(in)
	}
	return Access{}
}

// Room returns the part of a script row's name before the dot; of a native row it is empty.
func (op *Op) Room() string {
	room, _, ok := strings.Cut(op.Name, ".")
	if !ok {
		return ""
	}
	return room
}

// ErrorReply returns a reply with err in the operation's own message: in its error field where it has one.
func (op *Op) ErrorReply(err error) proto.Message {
	if op.OnError != nil {
		return op.OnError(err)
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
		message.Set(field, protoreflect.ValueOfMessage((&pb.ScriptError{Kind: ErrorKind(err), Message: err.Error()}).ProtoReflect()))
	}
	return message.Interface()
}

// parseUsage reads what Op.Usage says.
func parseUsage(usage string) (*Signature, error) {
	list, result, ok := strings.Cut(strings.TrimPrefix(usage, "("), ")")
	if !ok || !strings.HasPrefix(usage, "(") {
		return nil, fmt.Errorf("the usage %q is not like (path, [mode]) changed", usage)
	}
	sig := &Signature{Result: strings.TrimSpace(result)}
	if strings.TrimSpace(list) == "" {
		return sig, nil
	}
	for arg := range strings.SplitSeq(list, ",") {
		arg = strings.TrimSpace(arg)
		name, optional := strings.CutPrefix(arg, "[")
		name, closed := strings.CutSuffix(name, "]")
		switch {
		case optional != closed || strings.ContainsAny(name, "[]( "):
			return nil, fmt.Errorf("the usage %q is not like (path, [mode]) changed", usage)
		case name == "":
			return nil, fmt.Errorf("the usage %q has an argument without a name", usage)
		case slices.Contains(sig.Args, name):
			return nil, fmt.Errorf("the usage %q has %s twice", usage, name)
		case optional:
			sig.Optional++
		case sig.Optional > 0:
			return nil, fmt.Errorf("the usage %q requires %s behind one that may be left out", usage, name)
		}
		sig.Args = append(sig.Args, name)
	}
	return sig, nil
}

// complete fills in what NewTable does, and checks a row against its messages. A fault is a programmer's.
func (op *Op) complete() (err error) {
	if op.call == nil || op.Summary == "" {
		return fmt.Errorf("it has no handler or no summary")
	}
	if op.Usage == "" {
		err = op.completeNative()
	} else {
		err = op.completeScript()
	}
	if err != nil {
		return err
	}
	op.Roles, err = probe(op)
	return err
}

func (op *Op) completeNative() error {
	field := (&pb.AgentMessage{}).ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(op.Name))
	switch {
	case field == nil || field.Message() != op.In.ProtoReflect().Descriptor():
		return fmt.Errorf("the envelope has no request %s of type %s", op.Name, op.In.ProtoReflect().Descriptor().Name())
	case op.Internal:
		return fmt.Errorf("a native row is called by hosts, and internal ones by the journal alone")
	case op.Transaction && (!op.Mutates || op.Delegates):
		return fmt.Errorf("a transaction of its own is for rows that change something themselves")
	case op.NoTransaction != nil && !op.Transaction:
		return fmt.Errorf("it has no transaction that a request could be without")
	}
	return nil
}

func (op *Op) completeScript() (err error) {
	in, out := op.In.ProtoReflect().Descriptor(), op.Out.ProtoReflect().Descriptor()
	if room, function, ok := strings.Cut(op.Name, "."); !ok || room == "" || function == "" {
		return fmt.Errorf("%s is not room.function", op.Name)
	}
	if op.Transaction {
		return fmt.Errorf("a script has a transaction already")
	}
	if op.Script, err = parseUsage(op.Usage); err != nil {
		return err
	}
	for _, arg := range op.Script.Args {
		if in.Fields().ByName(protoreflect.Name(arg)) == nil {
			return fmt.Errorf("%s has no argument %s", in.Name(), arg)
		}
	}
	if r := op.Script.Result; r != "" && out.Fields().ByName(protoreflect.Name(r)) == nil {
		return fmt.Errorf("%s has no result %s", out.Name(), r)
	}
	return nil
}
