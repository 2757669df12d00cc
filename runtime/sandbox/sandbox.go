// Package sandbox runs a script in a process of its own, which has nothing but one connection to the agent.
//
//	agent ── Pool.Run(Job) ──┬── Start, Reply ──►  runner process: Lua, no files, no network, no rights
//	  limits, cpu, wall,     │                     (the same binary, re-executed; package lua)
//	  memory, death          └◄── Ready, Call, Log, Progress, Done ──
//
// A runner serves one run and dies. It is taken to be hostile: what it sends is bounded and strictly decoded, what it
// may use is limited from outside, and however it ends is an Outcome with a named error and never affects the agent. From
// the first run on one more runner, the standby, is started ahead and waits, sealed, for the next job.
//
// Not here: Lua, what a builtin does, transactions, and what a script may call.
package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Arg is the first argument that makes the agent's binary a runner: a main that sees it calls lua.Main before anything
// else.
const Arg = "script-runner"

// ErrClosed is the cancellation cause of the runs that were under way when the pool was closed.
var ErrClosed = errors.New("the agent is stopping")

// Limits bound one run. Zero fields mean the default. Each has a configuration key, which ScriptError.limit names.
type Limits struct {
	// Memory is the Go heap of the runner in bytes: script.memory_limit_bytes, default 64 MiB.
	Memory uint64
	// CPU is processor time of the runner: script.cpu_limit_seconds, default 30 s. Time that builtins take in the agent
	// is not the runner's.
	CPU time.Duration
	// Wall is the whole time of a run: script.timeout_seconds, default 300 s. A deadline of the caller's context that is
	// earlier counts instead.
	Wall time.Duration
	// Source is the size of a script and of each module in bytes: script.max_source_bytes, default 256 KiB.
	Source int
	// Depth is how many calls of functions may be nested: script.max_depth, default 1024. What is nested without calls,
	// such as brackets in a source or a pattern, has 64 KiB of stack for each level.
	Depth int
	// Calls is how many builtins a run may call: script.max_calls, default 10,000.
	Calls int
	// LogLines and LogBytes bound what a run logs; the rest is counted: script.max_log_lines, default 10,000, and
	// script.max_log_bytes, default 256 KiB.
	LogLines, LogBytes int
	// Result is the encoded size of a result in bytes: script.max_result_bytes, default 1 MiB.
	Result int
}

// withDefaults returns the limits with the zero fields filled in.
func (l Limits) withDefaults() Limits {
	d := Limits{
		Memory: 64 << 20, CPU: 30 * time.Second, Wall: 300 * time.Second,
		Source: 256 << 10, Depth: 1024, Calls: 10_000, LogLines: 10_000, LogBytes: 256 << 10, Result: 1 << 20,
	}
	setDefault(&l.Memory, d.Memory)
	setDefault(&l.CPU, d.CPU)
	setDefault(&l.Wall, d.Wall)
	setDefault(&l.Source, d.Source)
	setDefault(&l.Depth, d.Depth)
	setDefault(&l.Calls, d.Calls)
	setDefault(&l.LogLines, d.LogLines)
	setDefault(&l.LogBytes, d.LogBytes)
	setDefault(&l.Result, d.Result)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Config says how runners are started. Every field is optional.
type Config struct {
	// Path is the program; default the agent itself.
	Path string
	// Args are its arguments before the runner's own; default Arg alone.
	Args []string
	// Env is added to the runner's clean environment. For tests.
	Env []string
	// Limits bound each run.
	Limits Limits
	// Runners is how many scripts run at a time, each with the memory of its limit; default 4. One of them is a Job.Writer, and
	// nothing else takes its place; there is always one place for others. Others wait within their time.
	Runners int
}

// Job is one run. Its functions are called from Run's goroutine, one at a time, and never after Run returned.
type Job struct {
	// Start is what the runner gets. Its MemoryLimit, where it is not 0, replaces Limits.Memory. Only its Functions may
	// be called. It is not changed.
	Start *pb.RunnerStart
	// Writer says that the script may change the guest. The caller runs one such job at a time, which never waits for others.
	Writer bool
	// Call answers a builtin; required where Start has functions. It must return soon after ctx ends.
	Call func(ctx context.Context, call *pb.RunnerCall) *pb.RunnerReply
	// Log and Progress receive what the script reports, within the limits; nil: it is dropped. A fraction lies in 0..1.
	Log      func(*pb.LogLine)
	Progress func(fraction *float64, step string)
}

// Outcome is the result of a run. Error is nil when the script ended well.
type Outcome struct {
	// Result is what the script returned; nil for nil.
	Result *pb.LuaValue
	// Declaration is what Start.Describe asked for; nil for a script that declares nothing.
	Declaration *pb.ScriptDeclaration
	// Descriptions are what Start.DescribeAll asked for, by the names of Start.Modules.
	Descriptions map[string]Description
	// Findings are what Start.Check asked for.
	Findings []*pb.RunnerFinding
	// Error is why the script did not end well; its fields are valid UTF-8 and bounded.
	Error *pb.ScriptError
	// Stats are never nil.
	Stats *pb.ScriptStats
	// LogDropped is how many lines of the log were over the limits.
	LogDropped uint32
}

// Description is the declaration of one of several scripts; both fields are nil where it declares nothing.
type Description struct {
	Declaration *pb.ScriptDeclaration
	// Error is why it could not be read.
	Error *pb.ScriptError
}

// Layer is one layer of the isolation of runners.
type Layer struct {
	// Name is for people, such as seccomp.
	Name string
	// Missing is why this machine does not have the layer; empty: it is in effect.
	Missing string
}
