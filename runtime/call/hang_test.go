package call_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// remotes says that a file system is mounted that may hang.
type remotes struct{ err error }

func (remotes) HasRemotes() bool                                      { return true }
func (r remotes) CheckRemotes(context.Context, builtins.Access) error { return r.err }
func hanging(end chan bool) func(context.Context, *builtins.Call, *pb.NoArgs) (*pb.Nothing, error) {
	return func(context.Context, *builtins.Call, *pb.NoArgs) (*pb.Nothing, error) {
		<-end
		return &pb.Nothing{}, nil
	}
}

// An operation that hangs in the kernel is left behind at the end of its time, if it changes nothing.
func TestHangingOperationIsLeftBehind(t *testing.T) {
	end := make(chan bool)
	defer close(end)
	op := builtins.Op{Name: "x.look", Usage: "()", Summary: "hangs", Handler: builtins.Handle(hanging(end))}
	table := builtins.NewTable(builtins.Room{Name: "x", Ops: []builtins.Op{op}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	x := call.New(call.Config{Table: table, Remotes: remotes{}})
	if _, err := x.Execute(ctx, &builtins.Call{}, table.Script("x.look"), &pb.NoArgs{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	x = call.New(call.Config{Table: table, Remotes: remotes{fault.ErrBusy}})
	if _, err := x.Execute(t.Context(), &builtins.Call{}, table.Script("x.look"), &pb.NoArgs{}); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
}

// The end of a transaction outlives the call that it belongs to, but not the agent.
func TestEndingIsHalted(t *testing.T) {
	halt := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	end, done := call.New(call.Config{Halt: halt}).Ending(ctx)
	defer done()
	if end.Err() != nil {
		t.Error("it ends with the call")
	}
	close(halt)
	<-end.Done()
	if cause := context.Cause(end); cause != builtins.ErrStopping {
		t.Error(cause)
	}
}
