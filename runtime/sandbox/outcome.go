package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// refused is the outcome of a run that did not begin.
func refused(kind, message, limit string) Outcome {
	return Outcome{Error: &pb.ScriptError{Kind: kind, Message: message, Limit: limit}, Stats: &pb.ScriptStats{}}
}

// limitText is a limit as ScriptError tells it.
func limitText(key string, value any) string { return fmt.Sprintf("%s=%v", key, value) }

// startFailed is the outcome where no runner could be had.
func startFailed(ctx context.Context, err error, limits Limits) Outcome {
	if why := context.Cause(ctx); why != nil {
		return Outcome{Error: stoppedError(why, limits), Stats: &pb.ScriptStats{}}
	}
	switch {
	case errors.Is(err, ErrClosed):
		return refused("cancelled", err.Error(), "")
	case errors.Is(err, errors.ErrUnsupported):
		return refused("unsupported", err.Error(), "")
	default:
		return refused("sandbox", "cannot start a process for the script: "+err.Error(), "")
	}
}

// stoppedError is the error of a run that the agent ended.
func stoppedError(why error, limits Limits) *pb.ScriptError {
	switch {
	case errors.Is(why, errCPU):
		return &pb.ScriptError{Kind: "cpu", Message: why.Error(),
			Limit: limitText("script.cpu_limit_seconds", limits.CPU.Seconds())}
	case errors.Is(why, errWall):
		return &pb.ScriptError{Kind: "timeout", Message: why.Error(),
			Limit: limitText("script.timeout_seconds", limits.Wall.Seconds())}
	case errors.Is(why, context.DeadlineExceeded):
		return &pb.ScriptError{Kind: "timeout", Message: errWall.Error()}
	case why == context.Canceled: // which says no more
		return &pb.ScriptError{Kind: "cancelled", Message: "the script was cancelled"}
	default:
		return &pb.ScriptError{Kind: "cancelled", Message: "the script was cancelled: " + why.Error()}
	}
}

// death names why a runner died by itself. A Go program that cannot go on says so on stderr and exits with 2.
func (s *run) death() *pb.ScriptError {
	said := s.r.said()
	code, signal := s.r.ended()
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
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
	case signal == sigXCPU, signal == sigKill && s.r.used() > 2*s.limits.CPU: // by the limit that stands behind ours
		return stoppedError(errCPU, s.limits)
	case signal == sigSys:
		return &pb.ScriptError{Kind: "sandbox", Message: "the script's process did what no script may do, and was killed"}
	case s.r.group.outOfMemory():
		return memoryError(s.limits)
	case signal == sigKill:
		// Neither by us, so by the kernel, which kills what takes the last of the memory.
		e := memoryError(s.limits)
		e.Message = "the kernel killed the script's process, probably for want of memory"
		return e
	default:
		message := fmt.Sprintf("the script's process died: %v", s.r.cmd.ProcessState)
		if said != "" {
			message += ": " + cut(said, 512)
		}
		return &pb.ScriptError{Kind: "internal", Message: message}
	}
}

func memoryError(limits Limits) *pb.ScriptError {
	return &pb.ScriptError{Kind: "memory", Message: "the script used up its memory",
		Limit: limitText("script.memory_limit_bytes", limits.Memory)}
}

func depthLimit(limits Limits) string { return limitText("script.max_depth", limits.Depth) }

// scriptError is what a runner says of a script, as far as it can know.
func scriptError(f *pb.RunnerFailure, limits Limits) *pb.ScriptError {
	e := &pb.ScriptError{
		Kind: f.GetKind(), Message: cut(printable(f.GetMessage()), maxMessage),
		Script: cut(f.GetScript(), maxName), Line: f.GetLine(), Column: f.GetColumn(),
		Traceback: cut(printable(f.GetTraceback()), maxTraceback),
		Op:        cut(f.GetOp(), maxName), Code: cut(f.GetCode(), maxName), Object: cut(f.GetObject(), maxMessage),
		Hint: cut(printable(f.GetHint()), maxMessage),
	}
	switch e.Kind {
	case "syntax", "runtime", "builtin", "params", "unsupported", "internal":
	case "result":
		if e.Code == "too_large" {
			e.Limit = limitText("script.max_result_bytes", limits.Result)
		}
	case "depth":
		e.Limit = depthLimit(limits)
	case "memory":
		e.Limit = limitText("script.memory_limit_bytes", limits.Memory)
	default:
		return &pb.ScriptError{Kind: "sandbox", Message: (&broken{"an error of no known kind"}).Error()}
	}
	return e
}

// printable is text as it may stand in a reply: bytes that are not UTF-8 are written as \xNN.
func printable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// cut shortens text to a number of bytes, between characters, and says so.
func cut(s string, size int) string {
	if len(s) <= size {
		return s
	}
	end := size - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
