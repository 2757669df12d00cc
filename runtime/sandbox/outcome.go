package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// refusedOutcome returns the outcome of a run that did not begin.
func refusedOutcome(kind, message string) Outcome {
	return Outcome{Error: &pb.ScriptError{Kind: kind, Message: message}, Stats: &pb.ScriptStats{}}
}

// formatLimit returns a limit as ScriptError.limit has it.
func formatLimit(key string, value any) string { return fmt.Sprintf("%s=%v", key, value) }

// startFailedOutcome returns the outcome of a run that got no runner.
func startFailedOutcome(ctx context.Context, err error, limits Limits) Outcome {
	if cause := context.Cause(ctx); cause != nil {
		return Outcome{Error: stoppedError(cause, limits), Stats: &pb.ScriptStats{}}
	}
	switch {
	case errors.Is(err, ErrClosed):
		return refusedOutcome("cancelled", err.Error())
	case errors.Is(err, errors.ErrUnsupported):
		return refusedOutcome("unsupported", err.Error())
	default:
		return refusedOutcome("sandbox", "cannot start a process for the script: "+err.Error())
	}
}

// stoppedError returns the error of a run that the agent ended.
func stoppedError(cause error, limits Limits) *pb.ScriptError {
	switch {
	case errors.Is(cause, errCPU):
		return &pb.ScriptError{Kind: "cpu", Message: cause.Error(),
			Limit: formatLimit("script.cpu_limit_seconds", limits.CPU.Seconds())}
	case errors.Is(cause, errTimeout):
		return &pb.ScriptError{Kind: "timeout", Message: cause.Error(),
			Limit: formatLimit("script.timeout_seconds", limits.Wall.Seconds())}
	case errors.Is(cause, context.DeadlineExceeded):
		return &pb.ScriptError{Kind: "timeout", Message: errTimeout.Error()}
	case cause == context.Canceled: // which carries no cause
		return &pb.ScriptError{Kind: "cancelled", Message: "the script was cancelled"}
	default:
		return &pb.ScriptError{Kind: "cancelled", Message: "the script was cancelled: " + cause.Error()}
	}
}

// exitError returns the error of a script whose runner ended by itself. A Go program that cannot go on writes why to
// stderr and exits with 2.
func (s *run) exitError() *pb.ScriptError {
	stderr := s.runner.stderrText()
	code, signal := s.runner.exitStatus()
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(stderr, w) {
				return code == 2
			}
		}
		return false
	}
	switch {
	case has("stack exceeds", "stack overflow"):
		return &pb.ScriptError{Kind: "depth", Message: "the script, or a pattern or value in it, is nested too deeply", Limit: depthLimit(s.limits)}
	case has("out of memory", "cannot allocate", "newosproc", "cannot map pages", "failed to reserve"):
		return memoryError(s.limits)
	case signal == sigXCPU, signal == sigKill && s.runner.cpuUsed() > 2*s.limits.CPU: // by the rlimit, which backs up the agent's limit
		return stoppedError(errCPU, s.limits)
	case signal == sigSys:
		return &pb.ScriptError{Kind: "sandbox", Message: "the script's process did what no script may do, and was killed"}
	case signal == sigKill && s.runner.outOfMemory():
		return memoryError(s.limits)
	case signal != 0:
		message := fmt.Sprintf("the script's process was killed by signal %d (%v)", int(signal), signal)
		return &pb.ScriptError{Kind: "sandbox", Message: message}
	default:
		message := fmt.Sprintf("the script's process died: %v", s.runner.cmd.ProcessState)
		if stderr != "" {
			message += ": " + text.Truncate(stderr, 512)
		}
		return &pb.ScriptError{Kind: "internal", Message: message}
	}
}

func memoryError(limits Limits) *pb.ScriptError {
	return &pb.ScriptError{Kind: "memory", Message: "the script used up its memory",
		Limit: formatLimit("script.memory_limit_bytes", limits.Memory)}
}

func depthLimit(limits Limits) string { return formatLimit("script.max_depth", limits.Depth) }

// scriptError returns the error that a runner reported, with its fields bounded.
func scriptError(f *pb.RunnerFailure, limits Limits) *pb.ScriptError {
	e := &pb.ScriptError{
		Kind: f.GetKind(), Message: text.Truncate(text.ToValidUTF8(f.GetMessage()), maxMessage),
		Script: text.Truncate(f.GetScript(), maxName), Line: f.GetLine(), Column: f.GetColumn(),
		Traceback: text.Truncate(text.ToValidUTF8(f.GetTraceback()), maxTraceback),
		Op:        text.Truncate(f.GetOp(), maxName), Code: text.Truncate(f.GetCode(), maxName), Object: text.Truncate(f.GetObject(), maxMessage),
		Hint: text.Truncate(text.ToValidUTF8(f.GetHint()), maxMessage),
	}
	switch e.Kind {
	case "syntax", "runtime", "builtin", "params", "unsupported", "internal":
	case "result":
		if e.Code == "too_large" {
			e.Limit = formatLimit("script.max_result_bytes", limits.Result)
		}
	case "depth":
		e.Limit = depthLimit(limits)
	case "memory":
		e.Limit = formatLimit("script.memory_limit_bytes", limits.Memory)
	default:
		return &pb.ScriptError{Kind: "sandbox", Message: (&protocolError{"an error of no known kind"}).Error()}
	}
	return e
}
