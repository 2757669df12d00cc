package exec

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// hint explains what a command must say of itself.
const hint = "say what the command does to the guest, by exactly one of: readonly = true (it changes nothing), " +
	"undo = {argv} (this takes it back, also where the command failed: so run it only if there is something to do), " +
	"touches = {paths} (it changes nothing but these, which are kept before), " +
	"irreversible = true (it cannot be taken back, and a rollback will say so)"

// script is exec.run.
func (r *Room) script(ctx context.Context, call *builtins.Call, in *pb.RunArgs) (*pb.RunResult, error) {
	if len(in.GetArgv()) == 0 || in.GetArgv()[0] == "" {
		return nil, fault.Invalid("no command")
	}
	if err := fitting(in.GetArgv()); err != nil {
		return nil, onCommand(in, err)
	}
	return r.declared(ctx, call, "exec.run", Quote(in.GetArgv()), in)
}

// maxLine is the length of the longest command line in bytes: the kernel takes no longer one, whatever the limits.
const maxLine = 6 << 20

// fitting refuses a command line that no kernel takes, before it is copied for reports.
func fitting(argv []string) error {
	n := 0
	for _, arg := range argv {
		n += len(arg) + 1
	}
	if n > maxLine {
		return fault.Wrapf(fault.ErrTooLarge, "the command line has %d bytes; it may have %d", n, maxLine)
	}
	return nil
}

// shell is exec.sh.
func (r *Room) shell(ctx context.Context, call *builtins.Call, in *pb.ShellArgs) (*pb.RunResult, error) {
	if in.GetCommand() == "" {
		return nil, fault.Invalid("no command")
	}
	if err := fitting(shellLine(in.GetCommand())); err != nil {
		return nil, err
	}
	return r.declared(ctx, call, "exec.sh", in.GetCommand(), &pb.RunArgs{Argv: shellLine(in.GetCommand()), Cwd: in.GetCwd(),
		Env: in.GetEnv(), Stdin: in.GetStdin(), Timeout: in.GetTimeout(), User: in.GetUser(), Group: in.GetGroup(),
		Check: in.Check, MaxOutput: in.GetMaxOutput(), Readonly: in.GetReadonly(), Undo: in.GetUndo(), Touches: in.GetTouches(),
		Irreversible: in.GetIrreversible(), Unconfined: in.GetUnconfined(), Private: in.GetPrivate(), Plan: in.GetPlan(),
		UndoOk: in.GetUndoOk(), UndoIf: in.GetUndoIf(), MemoryLimit: in.GetMemoryLimit(), ProcessorLimit: in.GetProcessorLimit()})
}

// declared runs a command as what it says it is. target names it in the list of changes.
func (r *Room) declared(ctx context.Context, call *builtins.Call, op, target string, in *pb.RunArgs) (*pb.RunResult, error) {
	if err := checkDeclared(in); err != nil {
		return nil, onCommand(in, err)
	}
	if err := r.guarded(in); err != nil {
		return nil, onCommand(in, err)
	}
	spec, err := r.scriptSpec(in)
	if dry := call.DryRun; err != nil && !(dry != nil && dry.Changed) { // the user may be one that was made before
		return nil, onCommand(in, err)
	}
	spec.Owner = call.Port
	if says := in.GetReadonly() || len(in.GetTouches()) > 0; says && !in.GetUnconfined() && spec.Confine == nil && r.guest.Answer == nil {
		call.Warn(program(in) + " is not held to what it says of itself: confinement is " + r.confinement())
	}
	change := &pb.Change{Op: op, Target: target, Action: "ran", Reversible: !in.GetIrreversible(), State: pb.ChangeState_CHANGE_STATE_APPLIED}
	if call.DryRun != nil {
		if result, err := predict(call, in, change); result != nil || err != nil {
			return result, err
		}
		if err != nil {
			return nil, onCommand(in, call.DryRun.End(call, change))
		}
		return r.observe(ctx, call, in, spec, change)
	}
	kept, err := r.makeUndoable(ctx, call, in, change)
	if err == nil && spec.Confine != nil && len(kept) > 0 {
		if err = r.hold(spec.Confine, kept); err != nil {
			call.Tx.NotBegun()
		}
	}
	if err != nil {
		return nil, onCommand(in, err)
	}
	spec.Hold = func(size int64) error { return builtins.Large(ctx, size) }
	after := func() {}
	if spec.Confine == nil { // a confined one may not freeze
		after = r.watchFreezes(call)
	}
	result, err := r.guest.Run(ctx, guest.Command{
		Line: target, Readonly: in.GetReadonly(), Irreversible: in.GetIrreversible(), Touches: in.GetTouches(),
	}, spec)
	after()
	switch {
	case in.GetReadonly():
	case result != nil: // it was started, so it may have changed something, however it ended
		call.Report(change)
	case call.Tx != nil:
		call.Tx.NotBegun()
	}
	out, err := finish(in, spec.Confine != nil, result, err)
	if result != nil && call.Tx != nil && confinable(in) {
		if stray := strayed(ctx, call, op); stray != nil && err == nil {
			return nil, onCommand(in, stray)
		}
	}
	return out, err
}

// observe runs a readonly command in a dry run. It sees the guest as it is: where something was pretended before, what it
// says is no prediction, and the list of changes says so; and that it fails is none either, so it ends there.
func (r *Room) observe(
	ctx context.Context, call *builtins.Call, in *pb.RunArgs, spec proc.Spec, change *pb.Change,
) (*pb.RunResult, error) {
	spec.Hold = func(size int64) error { return builtins.Large(ctx, size) }
	result, err := r.guest.Run(ctx, guest.Command{Line: change.Target, Readonly: true}, spec)
	out, err := finish(in, spec.Confine != nil, result, err)
	switch {
	case !call.DryRun.Changed:
		return out, err
	case err != nil && context.Cause(ctx) == nil:
		return nil, onCommand(in, call.DryRun.End(call, change))
	}
	change.State, change.Action = pb.ChangeState_CHANGE_STATE_UNKNOWN, "ran, and saw nothing of the changes before it"
	call.Report(change)
	return out, err
}

// predict serves a command of a dry run that changes something: it gives what it declares as its plan, or ends the
// prediction. One that changes nothing and has no plan is to be run: there is neither a result nor an error.
func predict(call *builtins.Call, in *pb.RunArgs, change *pb.Change) (*pb.RunResult, error) {
	switch {
	case in.GetPlan() != "":
		change.State, change.Diff = pb.ChangeState_CHANGE_STATE_WOULD, in.GetPlan()
		if !in.GetReadonly() {
			call.Report(change)
			call.DryRun.Planned = true
		}
		return &pb.RunResult{}, nil
	case !in.GetReadonly():
		return nil, onCommand(in, call.DryRun.End(call, change))
	}
	return nil, nil
}

// checkDeclared refuses a command that does not say what it is, or says it twice.
func checkDeclared(in *pb.RunArgs) error {
	kinds := 0
	for _, said := range []bool{in.GetReadonly(), len(in.GetUndo()) > 0, len(in.GetTouches()) > 0, in.GetIrreversible()} {
		if said {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return &fault.Error{Err: fault.Refuse("it is not said what the command does to the guest"), Hint: hint}
	case kinds > 1:
		return &fault.Error{Err: fault.Refuse("more than one of readonly, undo, touches, irreversible is said"), Hint: hint}
	case in.GetUnconfined() && len(in.GetTouches()) == 0 && !in.GetReadonly():
		return fault.Invalid("unconfined goes with touches and readonly")
	case in.GetPrivate() && (!in.GetReadonly() || in.GetUnconfined()):
		return fault.Invalid("private goes with readonly, without unconfined")
	case len(in.GetUndo()) > 0 && in.GetUndo()[0] == "":
		return fault.Invalid("undo has no program")
	case len(in.GetUndo()) == 0 && len(in.GetUndoOk())+len(in.GetUndoIf()) > 0:
		return fault.Invalid("undo_ok and undo_if go with undo")
	case in.GetTimeout() < 0:
		return fault.Invalid("timeout is negative")
	}
	if err := guest.CheckUndo(in.GetUndoOk(), in.GetUndoIf()); err != nil {
		return err
	}
	if err := noNUL(slices.Concat([]string{in.GetCwd()}, in.GetArgv(), in.GetUndo())); err != nil {
		return err
	}
	for _, p := range in.GetTouches() {
		if !fsys.IsAbs(p) || fsys.IsRoot(p) || strings.Contains(p, "\x00") {
			return fault.Invalid("touches: %q is not an absolute path below /", p)
		}
	}
	return nil
}

// guarded refuses a command that touches what is the agent's own: no before-image can be kept of what keeps them.
func (r *Room) guarded(in *pb.RunArgs) error {
	for _, p := range touched(in) {
		for _, follow := range []bool{false, true} {
			place, err := r.guest.Files.Resolve(p, follow)
			if err != nil && follow {
				continue // a link that leads nowhere, or that nothing here follows
			}
			if err == nil {
				err = r.guest.Guard(place, false)
			}
			if err != nil {
				return fault.On("touches "+p, err)
			}
		}
	}
	return nil
}

// scriptSpec makes a command of a script's arguments. Where commands are answered it is empty: it would ask the guest.
func (r *Room) scriptSpec(in *pb.RunArgs) (proc.Spec, error) {
	if r.guest.Answer != nil {
		return proc.Spec{}, nil
	}
	spec := proc.Spec{Argv: in.GetArgv(), Dir: in.GetCwd(), Root: r.guest.Root(), Stdin: in.GetStdin(), Tied: true,
		Timeout: seconds(in.GetTimeout()), MaxOutput: int64(min(in.GetMaxOutput(), 1<<40)),
		Limits: proc.Limits{Memory: in.GetMemoryLimit(), Processor: seconds(in.GetProcessorLimit())}}
	if len(spec.Stdin) == 0 {
		spec.Stdin = nil
	}
	if (in.GetReadonly() && !in.GetUnconfined() || confinable(in)) && r.confines() {
		spec.Confine = &proc.Confine{Writable: touched(in), Private: in.GetPrivate()}
	}
	if in.GetPrivate() && spec.Confine == nil { // what it writes would stay
		return spec, fault.Unsupported("no private view can be made: confinement is %s", r.confinement())
	}
	return spec, r.identity(&spec, in.GetUser(), in.GetGroup(), true, in.GetEnv())
}

// confines reports whether commands are held to what they declare.
func (r *Room) confines() bool { return r.guest.Runner.Confinement() == proc.Confined }

// makeUndoable keeps what takes a command back before it runs. It returns what was kept for one that is held to what it
// touches.
func (r *Room) makeUndoable(
	ctx context.Context, call *builtins.Call, in *pb.RunArgs, change *pb.Change,
) (kept []builtins.Touched, err error) {
	if err := r.CheckRemotes(ctx, builtins.Access{Trees: in.GetTouches()}); err != nil { // all of them is read
		return nil, err
	}
	switch {
	case call.Tx == nil:
	case len(in.GetUndo()) > 0:
		return nil, call.Tx.Undo(ctx, "exec.undo", &pb.RunArgs{Argv: in.GetUndo(), Cwd: in.GetCwd(), Env: in.GetEnv(),
			User: in.GetUser(), Group: in.GetGroup(), Timeout: in.GetTimeout(),
			UndoOk: in.GetUndoOk(), UndoIf: in.GetUndoIf()})
	case confinable(in):
		return call.Tx.BeforeTouch(ctx, touched(in)...)
	case len(in.GetTouches()) > 0:
		return nil, r.keepTouched(ctx, call, in)
	case in.GetIrreversible():
		return nil, call.Tx.Irreversible(ctx, change)
	}
	return nil, nil
}

// hold has a confined command write to what was kept, and to nothing that somebody puts in its place: where others than root
// can exchange a directory on the way it must still be the object that was kept.
func (r *Room) hold(confine *proc.Confine, kept []builtins.Touched) error {
	confine.Writable, confine.Inodes = nil, map[string]uint64{}
	for _, k := range kept {
		path := text.UnescapePath(k.Path)
		confine.Writable = append(confine.Writable, path)
		others, err := r.guest.Files.Exchangeable(k.Path)
		if err != nil {
			return fault.On("touches "+k.Path, err)
		}
		if others {
			confine.Inodes[path] = k.Ino
		}
	}
	return nil
}

// confinable reports whether a command is held to what it touches, where the guest can do that. A program that changes a file
// mostly puts another in its place, so the directory that a touched file is in must be writable for it. The files and
// directories in it are read-only all the same; but nothing keeps a command from making something new beside them, or from
// removing a link. That is looked for afterwards.
func confinable(in *pb.RunArgs) bool { return len(in.GetTouches()) > 0 && !in.GetUnconfined() }

// touched are the paths that a command touches.
func touched(in *pb.RunArgs) []string {
	var paths []string
	for _, p := range in.GetTouches() {
		paths = append(paths, fsys.Clean(p))
	}
	return paths
}

// keepTouched is for a command that is not held: where it may write through a link, what that leads to is kept as well.
func (r *Room) keepTouched(ctx context.Context, call *builtins.Call, in *pb.RunArgs) error {
	root := r.guest.Files
	var paths []string
	for _, p := range touched(in) {
		place, err := root.Resolve(p, false)
		if err != nil {
			return err
		}
		target, err := root.Resolve(p, true)
		if err != nil {
			return err
		}
		paths = append(paths, p)
		if target != place {
			paths = append(paths, target)
		}
	}
	return call.Tx.BeforeTree(ctx, paths...)
}

// strayed names what a command changed beside what it touches; that is an error.
func strayed(ctx context.Context, call *builtins.Call, op string) error {
	list, err := call.Tx.UndeclaredChanges(ctx, op)
	if err != nil || len(list) == 0 {
		return err
	}
	for _, change := range list {
		call.Report(change)
	}
	return &fault.Error{
		Err:  fault.Refuse("%s was %s, which touches does not name", list[0].Target, list[0].Action),
		Hint: "name in touches all that the command changes, also what it makes beside; or the directory",
	}
}

const unconfinedHint = "unconfined = true runs it without holding it to what it says"

// finish makes the script's result of how a command ended.
func finish(in *pb.RunArgs, confined bool, result *proc.Result, err error) (*pb.RunResult, error) {
	var start *proc.StartError
	if errors.As(err, &start) && start.Stage == "confinement" && confined {
		return nil, &fault.Error{Object: program(in), Err: err, Hint: unconfinedHint}
	}
	if err != nil {
		return nil, onCommand(in, err)
	}
	check := in.Check == nil || in.GetCheck()
	if err := result.Err(); err != nil && (check || result.TimedOut) {
		failed := &fault.Error{Object: program(in), Err: err}
		if confined && guest.OutputContains(result, guest.ReadOnlyText) {
			failed.Hint = "the command may write only what touches names, and files under $TMPDIR; " + unconfinedHint
			if in.GetReadonly() {
				failed.Hint = "a readonly command may write only files under $TMPDIR, and with private = true below /run, /tmp and /var, " +
					"which is thrown away; " + unconfinedHint
			}
		}
		if confined && strings.Contains(string(result.Tail), "Operation not permitted") {
			failed.Hint = "a command that is readonly or has touches may not mount, make devices or look into other processes"
		}
		return nil, failed
	}
	return runResult(result), nil
}

func runResult(r *proc.Result) *pb.RunResult {
	return &pb.RunResult{Code: int32(r.Code), Stdout: r.Stdout, Stderr: r.Stderr, Truncated: r.Truncated}
}

// onCommand names the program that an error is about.
func onCommand(in *pb.RunArgs, err error) error {
	if f, ok := err.(*fault.Error); ok && f.Object == "" {
		f.Object = program(in)
		return f
	}
	return fault.On(program(in), err)
}

func program(in *pb.RunArgs) string {
	if len(in.GetArgv()) == 0 {
		return ""
	}
	return fsys.Base(in.GetArgv()[0])
}

// seconds makes a duration of a number that may be larger than one can be; 0 stays "no bound but the script's".
func seconds(s float64) time.Duration {
	return time.Duration(min(s, 1e9) * float64(time.Second))
}

// Quote writes arguments as a shell would read them.
func Quote(argv []string) string { return guest.Quote(argv) }
