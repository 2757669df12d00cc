package builtins

import (
	"context"
	"errors"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// transaction counts what it is asked to keep.
type transaction struct {
	Tx
	kept []string
}

func (tx *transaction) Before(_ context.Context, paths ...string) error {
	tx.kept = append(tx.kept, paths...)
	return nil
}

// A call that no executor made, as in the tests of rooms, does what it can and refuses the rest.
func TestACallWithoutAnExecutor(t *testing.T) {
	call := &Call{}
	if err := call.AfterCommit(Action{Op: "a.b", Args: &pb.PathArgs{}}); !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
	if got := call.Buffer(5); len(got) != 5 {
		t.Error(len(got))
	}
	if err := call.Before(t.Context(), "/x"); err != nil {
		t.Error(err)
	}
	call.Report(&pb.Change{})
	change := &pb.Change{}
	call.ReportApplied(change)
	if change.State != pb.ChangeState_CHANGE_STATE_APPLIED || change.Reversible {
		t.Error(change)
	}
}

func TestACallUsesWhatTheExecutorGave(t *testing.T) {
	deferred := []Action{}
	call := &Call{
		Deferred: func(a Action) error { deferred = append(deferred, a); return nil },
		Scratch:  func(n int) []byte { return make([]byte, n, 100) },
	}
	if err := call.AfterCommit(Action{Op: "a.b", Args: &pb.PathArgs{}}); err != nil || len(deferred) != 1 {
		t.Error(deferred, err)
	}
	if cap(call.Buffer(5)) != 100 {
		t.Error("the memory is not the one that was given")
	}
	tx := &transaction{}
	call.Tx = tx
	var told *pb.Change
	call.Changed = func(c *pb.Change) { told = c }
	call.ReportApplied(&pb.Change{Target: "/x"})
	if err := call.Before(t.Context(), "/x", "/y"); err != nil || len(tx.kept) != 2 || !told.GetReversible() {
		t.Error(tx.kept, told, err)
	}
}

func TestACallOfADryRun(t *testing.T) {
	var told []*pb.Change
	dry := &DryRun{}
	call := &Call{DryRun: dry, Changed: func(c *pb.Change) { told = append(told, c) }}
	call.ReportApplied(&pb.Change{Target: "/x"})
	if told[0].State != pb.ChangeState_CHANGE_STATE_WOULD || !told[0].Reversible {
		t.Error(told)
	}
	if err := call.AfterCommit(Action{Op: "a.b", Args: &pb.PathArgs{}}); err != nil {
		t.Errorf("what a run would take, its dry run does not: %v", err)
	}
	err := dry.End(call, &pb.Change{Op: "a.b"})
	if !errors.Is(err, fault.ErrRefused) || dry.Ended != err || told[1].State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
		t.Error(err, told)
	}
}
