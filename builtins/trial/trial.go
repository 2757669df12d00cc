// Package trial lists what a test of a script can call: the table named test.
//
//	site_test.lua ─► test.run, test.crash_at … ─► Stage ─► the script, on a scratch tree
//
// No agent has these operations. They are rows like those of any room so that the check of their arguments, their
// reference and what editors know of them come from the same description.
//
// Not here: what they do, which is the Stage's to give.
package trial

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Stage is what runs the script under test. A program that only lists the rows leaves it empty.
type Stage struct {
	// Run runs the script, and by itself a second time.
	Run func(context.Context, *pb.TrialRunArgs) (*pb.Trial, error)
	// CrashAt kills the agent at one call of the script, and Crash at each.
	CrashAt func(context.Context, *pb.TrialCrashAtArgs) (*pb.TrialCrashes, error)
	Crash   func(context.Context, *pb.TrialCrashArgs) (*pb.TrialCrashes, error)
	// Command keeps an answer.
	Command func(context.Context, *pb.TrialCommandArgs) (*pb.Nothing, error)
}

// Ops are the rows of a test.
func (s Stage) Ops() []builtins.Op {
	return []builtins.Op{
		builtins.Script("test.run", "[params]", "", "run the script, and once more on a copy of the tree, where it must change nothing", of(s.Run)),
		builtins.Script("test.crash_at", "call [params]", "kills",
			"on a copy of the tree, kill the agent at a call that changes something, start it again, and compare: all must be as it was", of(s.CrashAt)),
		builtins.Script("test.crash", "[params]", "kills", "the same at every such call", of(s.Crash)),
		builtins.Script("test.command", "command", "", "say what a command of the script answers; others succeed and say nothing", of(s.Command)).Free("command"),
	}
}

// of leaves out what a test need not know of its call.
func of[In, Out proto.Message](f func(context.Context, In) (Out, error)) func(context.Context, *builtins.Call, In) (Out, error) {
	return func(ctx context.Context, _ *builtins.Call, in In) (Out, error) { return f(ctx, in) }
}
