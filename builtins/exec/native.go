package exec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unicode"
	"unsafe"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// replyBudget bounds both streams together as they stand in the reply. A frame is at most 16 MiB, and while it is made the
// agent has them twice, of which it may hold 32 MiB.
const replyBudget = 13 << 20

// collectAfter is the size of output from which it is worth a collection that it is gone, in bytes.
const collectAfter = 4 << 20

// execute is the native operation. A command that was started always gives a reply of its own, also where it was cancelled:
// what it wrote until then is worth having.
func (r *Room) execute(ctx context.Context, call *builtins.Call, in *pb.ExecuteRequest) (*pb.ExecuteResponse, error) {
	spec, err := r.nativeSpec(in)
	if err != nil {
		return nil, onStart(err)
	}
	spec.Owner = call.Port
	if !in.GetWaitForExit() {
		return r.leaveAlone(ctx, call, spec, in)
	}
	asked := time.Duration(in.GetTimeoutSeconds()) * time.Second
	spec.Timeout = r.config.MaxTimeout
	if asked > 0 {
		spec.Timeout = min(asked, r.config.MaxTimeout)
	}
	ctx, done := outlive(ctx)
	defer done()
	if call.HoldReply != nil {
		spec.Hold = func(size int64) error { return call.HoldReply(int(size)) }
	}
	after := r.watchFreezes(call)
	result, err := r.guest.Runner.Run(ctx, spec)
	after()
	if result == nil {
		return nil, onStart(err)
	}
	return r.reply(result, err, asked), nil
}

// leaveAlone starts a command that nobody waits for: as a job, or where none are kept, without a trace.
func (r *Room) leaveAlone(ctx context.Context, call *builtins.Call, spec proc.Spec, in *pb.ExecuteRequest) (*pb.ExecuteResponse, error) {
	begin, out := time.Now(), &pb.ExecuteResponse{}
	if r.jobs.kept() {
		line := in.GetCommand()
		if len(in.GetArgs()) > 0 {
			line = Quote(spec.Argv)
		}
		job, err := r.startJob(ctx, call, spec, line, in.GetRunAsUser(), "")
		if err != nil {
			return nil, onStart(err)
		}
		out.JobId = job.Id
	} else if _, err := r.guest.Runner.Spawn(spec); err != nil {
		return nil, onStart(err)
	}
	out.DurationMs = uint64(time.Since(begin).Milliseconds())
	return out, nil
}

// outlive gives a context that ends like ctx, but not because the agent stops: the command then runs on, and Release ends
// the wait for it.
func outlive(ctx context.Context) (context.Context, func()) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); !errors.Is(cause, builtins.ErrStopping) {
			cancel(cause)
		}
	})
	return own, func() { stop(); cancel(nil) }
}

// nativeSpec makes a command of a request.
func (r *Room) nativeSpec(in *pb.ExecuteRequest) (proc.Spec, error) {
	spec := proc.Spec{Dir: in.GetWorkingDirectory(), Root: r.guest.Root(), MaxOutput: int64(in.GetMaxOutputBytes()),
		Limits: proc.Limits{Memory: in.GetMemoryLimitBytes(), Processor: milliseconds(in.GetProcessorLimitMs())}}
	if in.GetCommand() == "" {
		return spec, fault.Invalid("no command")
	}
	if err := noNUL(append([]string{in.GetCommand(), in.GetWorkingDirectory()}, in.GetArgs()...)); err != nil {
		return spec, err
	}
	spec.Argv = nativeArgv(in)
	return spec, r.identity(&spec, in.GetRunAsUser(), in.GetRunAsGroup(), in.GetIncludeSupplementaryGroups(), in.GetEnvironment())
}

// milliseconds is a time of a request; what is longer than any process lives is no limit.
func milliseconds(n uint64) time.Duration { return time.Duration(min(n, 1e12)) * time.Millisecond }

// noNUL refuses what the kernel would cut off.
func noNUL(texts []string) error {
	for _, text := range texts {
		if strings.Contains(text, "\x00") {
			return fault.Invalid("a NUL byte in the command")
		}
	}
	return nil
}

// onStart names the program, directory or user that kept a command from starting; the detail "stage" says which of them.
func onStart(err error) error {
	var start *proc.StartError
	if !errors.As(err, &start) || start.Object == "" {
		return err
	}
	words := fmt.Sprintf("%s: %v", start.Stage, start.Err)
	if start.Stage == "user" && errors.Is(start.Err, fs.ErrNotExist) {
		words = start.Err.Error()
	}
	return &fault.Error{Object: start.Object, Err: fault.Wrapf(start.Err, "%s", words),
		Details: map[string]string{"stage": start.Stage}}
}

// identity sets who a command runs as, and what follows from it: the environment of a login, with env on top, and the home
// directory where none is asked for.
func (r *Room) identity(spec *proc.Spec, user, group string, supplementary bool, env map[string]string) error {
	if err := checkEnv(env); err != nil {
		return err
	}
	if user != "" || group != "" {
		u, err := proc.LookupUser(r.guest.Files, user, group, supplementary)
		if err != nil {
			return err
		}
		spec.User = u
		if spec.Dir == "" && user != "" && r.isDir(u.Home) {
			spec.Dir = u.Home
		}
	}
	spec.Env = proc.Environ(r.guest.Runner.LoginEnv(spec.User), env)
	return nil
}

// isDir reports whether a path of the guest is a directory.
func (r *Room) isDir(path string) bool {
	if path == "" {
		return false
	}
	if !r.guest.Live {
		return false // what its links mean is not seen from here
	}
	if r.CheckRemotes(context.Background(), builtins.Access{Reads: []string{path}}) != nil {
		return false // a home on a server that does not answer
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// checkEnv refuses names that would come out as others, also to what reads them line by line.
func checkEnv(env map[string]string) error {
	for name, value := range env {
		plain := name != "" && !strings.ContainsRune(name, '=') && !strings.ContainsFunc(name, unicode.IsControl)
		if !plain || strings.Contains(value, "\x00") {
			return fault.Invalid("environment variable %q cannot be set", name)
		}
	}
	return nil
}

// reply returns what a command did. cause is why it was ended before its time; nil for none.
func (r *Room) reply(result *proc.Result, cause error, asked time.Duration) *pb.ExecuteResponse {
	out := &pb.ExecuteResponse{ExitCode: int32(result.Code), TimedOut: result.TimedOut, Truncated: result.Truncated,
		DurationMs: uint64(result.Duration.Milliseconds())}
	var cutOut, cutErr bool
	out.Stderr, cutErr = outputText(result.Stderr, result.Truncated, replyBudget/2)
	out.Stdout, cutOut = outputText(result.Stdout, result.Truncated, replyBudget-len(out.Stderr))
	out.Truncated = out.Truncated || cutOut || cutErr
	raw := len(result.Stdout) + len(result.Stderr)
	if result.Stdout, result.Stderr = nil, nil; raw > collectAfter && len(out.Stdout)+len(out.Stderr) > raw {
		debug.FreeOSMemory() // it was copied, and the reply is encoded next
	}
	switch {
	case errors.Is(cause, proc.ErrReleased):
		out.ExitCode, out.Error = -1, cause.Error()
	case result.TimedOut:
		out.ExitCode, out.Error = -1, result.How()
		if asked > r.config.MaxTimeout {
			out.Error += fmt.Sprintf("; %s were asked for, but the configured maximum is %s", asked, r.config.MaxTimeout)
		}
		if cause != nil { // it does not die
			out.Error += "; " + cause.Error()
		}
	case cause != nil:
		out.Error = fmt.Sprintf("cancelled: %v: %s", cause, result.How())
		if out.ExitCode == 0 { // it cleaned up and exited in peace, but did not do its work
			out.ExitCode = -1
		}
	case result.Signal != 0, result.Exceeded:
		out.Error = result.How()
	}
	return out
}

// outputText makes output fit for a string field of at most budget bytes: valid UTF-8 stays as it is, any other byte is written
// as \xNN. Nothing is cut within a rune; output that was cut already loses a half rune at its end.
func outputText(raw []byte, wasCut bool, budget int) (s string, cut bool) {
	s = unsafe.String(unsafe.SliceData(raw), len(raw)) // of 15 MiB there is no second copy; nobody writes to raw any more
	if wasCut {
		s = text.TrimPartialRune(s)
	}
	return text.ToValidUTF8Max(s, budget)
}
