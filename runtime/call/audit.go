package call

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Entry is the audit entry of one call: who asked, for what, and the outcome.
type Entry struct {
	// Call, Op and In are the call itself, not to be kept or changed. In is nil where the arguments of a script made no
	// request, and Op has nothing but a name where a script called what is not there.
	Call *builtins.Call
	Op   *builtins.Op
	In   proto.Message
	// Err is why it failed; nil: it did not.
	Err error

	// Port and ID are of the request that it belongs to.
	Port, ID string
	// Operation is the row's name.
	Operation string
	// Paths, Programs and Objects are what it was about, as it was asked. Of a command it is the program alone: arguments may
	// be secret.
	Paths, Programs, Objects []string
	// Outcome is ok, or the code of the error: its text may quote a content.
	Outcome string
	// Cause is why the executor did not let it run, in words: those of a rule or of a deadline, which quote no
	// content. Empty: it ran. What an operation itself refuses has an Outcome alone, for its words may.
	Cause string
	// DryRun says that nothing was changed, whatever it was.
	DryRun bool
	// Transaction is the id of the transaction that it belongs to, or that it was. Empty: none.
	Transaction string
	// Took is how long it took.
	Took time.Duration
}

func (d *decision) entry(out proto.Message, err error, took time.Duration) Entry {
	e := Entry{
		Call: d.call, Op: d.op, In: d.in, Err: err, Port: d.call.Port, ID: d.call.ID, Operation: d.op.Name,
		Paths:   unique(slices.Concat(d.access.Writes, d.access.Reads, d.access.Patterns)),
		Outcome: "ok", Cause: d.cause, Transaction: d.tx, DryRun: d.call.DryRun != nil, Took: took,
	}
	for _, c := range slices.Concat(d.access.Commands, d.access.Helpers) {
		if len(c.Argv) > 0 {
			e.Programs = append(e.Programs, c.Argv[0])
		}
	}
	for _, o := range d.access.Objects {
		e.Objects = append(e.Objects, o.String())
	}
	if err != nil {
		e.Outcome = fault.Code(err)
	}
	if d.op.Delegates {
		e.delegated(d.in, out)
	}
	if reply, ok := out.(*pb.ConfirmResponse); ok && reply.GetError() != nil {
		e.Outcome = reply.Error.Kind
	}
	if d.hide != nil {
		for _, list := range [][]string{e.Paths, e.Programs, e.Objects} {
			for i, text := range list {
				list[i] = d.hide(text)
			}
		}
		e.Cause = d.hide(e.Cause)
	}
	return e
}

// delegated adds what became of a run of a script, which never fails as an operation: its reply says how it ended.
func (e *Entry) delegated(in, out proto.Message) {
	if run, ok := in.(*pb.RunScriptRequest); ok {
		e.DryRun = run.DryRun
	}
	reply, ok := out.(*pb.RunScriptResponse)
	if !ok || reply == nil {
		return
	}
	e.Transaction = reply.TransactionId
	if reply.Error != nil {
		e.Outcome = reply.Error.Kind
		if reply.Error.Kind == "policy" {
			e.Cause = reply.Error.Message
		}
	}
}

// hideKey is the key of a context's function that takes secrets out of a text.
type hideKey struct{}

// WithHide returns a context for the end of a run: what takes something back within it is audited without the secrets that
// hide takes out of a text. Nil: there are none.
func WithHide(ctx context.Context, hide func(string) string) context.Context {
	return context.WithValue(ctx, hideKey{}, hide)
}

func hideOf(ctx context.Context) func(string) string {
	hide, _ := ctx.Value(hideKey{}).(func(string) string)
	return hide
}

// unique returns a list without what stands in it again.
func unique(list []string) []string {
	if len(list) < 2 {
		return list
	}
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
