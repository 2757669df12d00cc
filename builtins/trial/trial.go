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

// Room is what the table knows of the functions of a test.
func (s Stage) Room() builtins.Room {
	return builtins.Room{Name: "test", Ops: []builtins.Op{
		{
			Name: "test.run", Usage: "([params])", Handler: of(s.Run),
			Summary: "run the script, and once more on a copy of the tree, where it must change nothing",
		},
		{
			Name: "test.crash_at", Usage: "(call, [params]) kills", Handler: of(s.CrashAt),
			Summary: "on a copy of the tree, " +
				"kill the agent at a call that changes something, start it again, and compare: all must be as it was",
		},
		{
			Name: "test.crash", Usage: "([params]) kills", Handler: of(s.Crash),
			Summary: "do at each call that changes something, 25 at most, what test.crash_at does at one",
		},
		{
			Name: "test.command", Usage: "(command)", Handler: of(s.Command),
			Summary: "say what a command of the script answers; others succeed and say nothing",
		},
	}}
}

// of makes the handler of a function that need not know of its call.
func of[In, Out proto.Message](f func(context.Context, In) (Out, error)) builtins.Handler {
	return builtins.Handle(func(ctx context.Context, _ *builtins.Call, in In) (Out, error) { return f(ctx, in) })
}
