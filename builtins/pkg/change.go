package pkg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	lockPause  = time.Second     // between two tries to get a lock that somebody else holds
	lockMargin = 2 * time.Second // what is left of a caller's time when a lock is given up, so that the error can be returned
	maxTarget  = 1024            // bytes of names in a change

	// agentPackage is the agent's own: its scripts stop the agent, and so the package manager that it runs.
	agentPackage = "quantix-kvm-agent"
)

func (r *Room) install(ctx context.Context, call *builtins.Call, in *pb.PackageInstallArgs) (*pb.Changed, error) {
	wishes, err := parse(in.Names, true)
	if err == nil && len(wishes) == 0 {
		err = fault.Invalid("no names")
	}
	if err != nil {
		return nil, err
	}
	return r.change(ctx, call, "package.install", in.Timeout, request{
		action: install, wishes: wishes, refresh: in.Refresh, recommended: in.Recommended,
	})
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.PackageRemoveArgs) (*pb.Changed, error) {
	wishes, err := parse(in.Names, false)
	if err == nil && len(wishes) == 0 {
		err = fault.Invalid("no names")
	}
	if err != nil {
		return nil, err
	}
	return r.change(ctx, call, "package.remove", in.Timeout, request{action: remove, wishes: wishes, purge: in.Purge})
}

func (r *Room) update(ctx context.Context, call *builtins.Call, in *pb.PackageUpdateArgs) (*pb.Changed, error) {
	wishes, err := parse(in.Names, false)
	if err != nil {
		return nil, err
	}
	return r.change(ctx, call, "package.update", in.Timeout, request{
		action: update, wishes: wishes, refresh: in.Refresh == nil || *in.Refresh,
	})
}

// job is one call that changes packages.
type job struct {
	*Room
	*manager
	call    *builtins.Call
	op      string
	request request
	before  *state
	until   time.Time       // when its time is up
	real    map[string]bool // names that another package provides, and that a package has which can be installed
	acted   bool            // scripts of packages, which can change anything, may have run
}

// change does what a request wants, and reports whether that changed anything.
func (r *Room) change(
	ctx context.Context, call *builtins.Call, op string, timeout float64, q request,
) (*pb.Changed, error) {
	if timeout < 0 {
		return nil, fault.Invalid("timeout is negative")
	}
	j := &job{Room: r, call: call, op: op, request: q, real: map[string]bool{}, until: time.Now().Add(defaultTimeout)}
	if timeout > 0 {
		j.until = time.Now().Add(time.Duration(min(timeout, 1e9) * float64(time.Second)))
	}
	var err error
	if j.manager, err = r.manager(call); err != nil {
		return nil, err
	}
	if j.before, err = r.state(ctx, call, j.manager); err != nil {
		return nil, err
	}
	if done, err := j.done(ctx); done || err != nil {
		return &pb.Changed{}, err
	}
	for _, w := range j.request.wishes {
		if err := j.spare(w.name); err != nil {
			return nil, err
		}
	}
	if call.DryRun != nil {
		return j.foretell(ctx)
	}
	return j.act(ctx)
}

// spare refuses to change the package of the agent that is running.
func (j *job) spare(name string) error {
	if name, _, _ = strings.Cut(name, ":"); name != agentPackage || !j.guest.Live {
		return nil
	}
	return &fault.Error{
		Object: name, Err: fault.Refuse("it would stop the agent, and the package manager with it"),
		Hint: "run the package manager as a command that is left to itself, such as by quantix-kvm-ctl exec --detach",
	}
}

// done reports whether nothing is to be done, and leaves out of the request what is so already.
func (j *job) done(ctx context.Context) (bool, error) {
	q := &j.request
	switch q.action {
	case install:
		var missing []wish
		for _, w := range q.wishes {
			fulfilled := j.before.fulfils(w)
			if !fulfilled && w.version == "" && j.provides(ctx, j.before, w.name) {
				real, err := j.isReal(ctx, w)
				if err != nil {
					return false, err
				}
				fulfilled = !real
			}
			if !fulfilled {
				missing = append(missing, w)
			}
		}
		q.wishes = missing
	case remove:
		q.wishes = slices.DeleteFunc(q.wishes, func(w wish) bool {
			name, _, _ := strings.Cut(w.name, ":")
			left := j.before.partly[name]
			return !j.before.has(w.name) && (left == "" || left == configOnly && !q.purge)
		})
	case update:
		for _, w := range q.wishes {
			if !j.before.has(w.name) {
				return false, fault.On(w.name, fault.Wrapf(fs.ErrNotExist, "it is not installed"))
			}
		}
		return false, nil
	}
	return len(q.wishes) == 0, nil
}

// isReal reports whether there is a package of a name that an installed one merely provides: then that is what is meant. The
// manager knows, by what it would do.
func (j *job) isReal(ctx context.Context, w wish) (bool, error) {
	if j.guest.Answer != nil {
		return false, nil
	}
	steps, err := j.steps(ctx, request{action: install, wishes: []wish{w}})
	if errors.Is(err, fs.ErrNotExist) { // several packages provide it, and none has the name
		return false, nil
	}
	real := slices.ContainsFunc(steps, func(s step) bool { return s.name == w.name && s.after != "" })
	if real {
		j.real[w.name] = true
	}
	return real, err
}

// provides reports whether an installed package goes by a name that is not its own: what rpm's packages provide is not read
// with the list.
func (j *job) provides(ctx context.Context, now *state, name string) bool {
	if now.provided[name] {
		return true
	}
	if j.kind != packages.RPM || now.has(name) {
		return false
	}
	query := packages.Of(j.guest, j.call).Query
	if query == nil {
		return false
	}
	_, err := query(ctx, "rpm", "-q", "--whatprovides", "--", name)
	return err == nil
}

// predict reports what a manager's simulation says. That sees the guest as it is: after other changes of the same run, or
// where lists would be read anew, what it does not know ends the prediction.
func (j *job) foretell(ctx context.Context) (*pb.Changed, error) {
	steps, err := j.simulate(ctx)
	unsure := j.call.DryRun.Changed || j.request.refresh
	certain := errors.Is(err, fault.ErrRefused) || errors.Is(err, errors.ErrUnsupported) || ctx.Err() != nil
	if err != nil && unsure && !certain {
		return nil, j.call.DryRun.End(j.call, &pb.Change{Op: j.op, Target: j.target(), Action: j.words()})
	}
	if err != nil {
		return nil, err
	}
	if j.request.refresh {
		j.call.Report(j.refreshed(pb.ChangeState_CHANGE_STATE_UNKNOWN))
	}
	for _, s := range steps {
		j.report(s, pb.ChangeState_CHANGE_STATE_WOULD)
		pretended(j.call.DryRun)[s.id] = s
		j.call.DryRun.Planned = true // nobody knows the files and users of a package
	}
	return &pb.Changed{Changed: len(steps) > 0}, nil
}

// simulate returns what the manager would do, by its own word, which it gives without changing anything.
func (j *job) simulate(ctx context.Context) ([]step, error) {
	steps, err := j.steps(ctx, j.request)
	if err != nil {
		return nil, err
	}
	for i := range steps {
		j.complete(&steps[i])
	}
	steps = slices.DeleteFunc(steps, func(s step) bool { return s.before == s.after })
	for _, s := range steps {
		if err := j.spare(s.name); err != nil {
			return nil, err
		}
	}
	return steps, j.named(steps)
}

// steps returns what the manager prints that it would do for a request.
func (j *job) steps(ctx context.Context, q request) (steps []step, err error) {
	err = j.patient(ctx, j.command(q, true), true, nil, func(result *proc.Result) bool {
		steps = j.plan(string(result.Stdout))
		return result.Code == 0 || slices.Contains(j.simulated, result.Code) && (len(steps) > 0 || nothing(result))
	})
	return steps, err
}

// nothing reports whether a simulation failed merely since there is nothing to do.
func nothing(result *proc.Result) bool {
	return strings.Contains(string(result.Stdout), "Nothing to do")
}

// complete adds to a step what the simulation does not have.
func (j *job) complete(s *step) {
	if j.manager.name == "pacman" && j.request.action == remove {
		s.before, s.after = s.after, ""
	}
	for i, p := range j.before.by {
		if i.name == s.name && (s.arch == "" || i.arch == s.arch) {
			s.id, s.before = i, p.Version
			return
		}
	}
}

// named says which package that is asked for a simulation leaves out: the manager does not know it, and has taken the name for
// another word for something else.
func (j *job) named(steps []step) error {
	if !j.exact || j.request.action != install {
		return nil
	}
	for _, w := range j.request.wishes {
		name, _, _ := strings.Cut(w.name, ":")
		if j.before.partly[name] != "" || slices.ContainsFunc(steps, func(s step) bool { return s.name == name && s.after != "" }) {
			continue
		}
		return &fault.Error{
			Object: w.String(), Err: fault.Wrapf(fs.ErrNotExist, "%s knows no package of this name", j.manager.name), Hint: refreshHint,
		}
	}
	return nil
}

// act changes the packages. The journal gets to know before; afterwards what has changed is found out, and reported whatever
// the manager said.
func (j *job) act(ctx context.Context) (*pb.Changed, error) {
	if j.request.refresh {
		if err := j.refreshLists(ctx); err != nil {
			return nil, err
		}
	}
	if (j.exact || j.request.action == update) && j.guest.Answer == nil {
		steps, err := j.simulate(ctx)
		if err != nil {
			return nil, err
		}
		if len(steps) == 0 && j.request.action == update {
			return &pb.Changed{}, nil
		}
	}
	restore, err := j.holdServices(ctx)
	if err != nil {
		return nil, err
	}
	announced := false
	announce := func() error {
		if j.call.Tx == nil {
			return nil
		}
		err := j.call.Tx.Irreversible(ctx, &pb.Change{
			Op: j.op, Target: j.target(), Action: j.words(), State: pb.ChangeState_CHANGE_STATE_APPLIED,
		})
		announced = err == nil
		return err
	}
	err = j.patient(ctx, j.command(j.request, false), false, announce, j.succeeded)
	return j.result(context.WithoutCancel(ctx), announced, errors.Join(err, restore()))
}

// result returns what has changed, and why that is not what was wanted.
func (j *job) result(ctx context.Context, announced bool, failed error) (*pb.Changed, error) {
	if j.guest.Answer != nil { // nothing was run, so nothing can be seen
		if failed != nil {
			return nil, failed
		}
		j.report(step{id: id{name: j.target()}}, pb.ChangeState_CHANGE_STATE_APPLIED)
		return &pb.Changed{Changed: true}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // also where the caller's time is up
	defer cancel()
	after, err := j.state(ctx, j.call, j.manager)
	if err != nil {
		j.report(step{id: id{name: j.target()}}, pb.ChangeState_CHANGE_STATE_UNKNOWN)
		return nil, errors.Join(failed, fmt.Errorf("what has changed cannot be read: %w", err))
	}
	steps, broken := difference(j.before, after), after.broken(j.before)
	for _, s := range steps {
		j.report(s, pb.ChangeState_CHANGE_STATE_APPLIED)
	}
	for _, name := range broken {
		j.call.Report(&pb.Change{
			Op: j.op, Target: name, Action: "left " + after.partly[name], State: pb.ChangeState_CHANGE_STATE_APPLIED,
		})
	}
	if failed != nil {
		switch {
		case len(steps)+len(broken) > 0:
		case j.acted: // a script that fails first leaves no package changed, and whatever it did
			j.report(step{id: id{name: j.target()}}, pb.ChangeState_CHANGE_STATE_UNKNOWN)
		case announced && harmless(failed):
			j.call.Tx.NotBegun()
		}
		return nil, failed
	}
	if err := j.verify(ctx, after); err != nil {
		return nil, err
	}
	return &pb.Changed{Changed: len(steps) > 0 || j.request.action == remove}, nil
}

// verify says what is not as it was wanted, though the manager said that it was done.
func (j *job) verify(ctx context.Context, after *state) error {
	for _, w := range j.request.wishes {
		switch {
		case j.request.action == remove && after.has(w.name):
			return fault.On(w.name, fault.Wrapf(fault.ErrOutput, "%s has ended well, and it is still installed", j.manager.name))
		case j.request.action == install && !after.fulfils(w) &&
			!(w.version == "" && !j.real[w.name] && j.provides(ctx, after, w.name)):
			have := strings.Join(after.versions(w.name), ", ")
			if have == "" {
				have = "not there"
			}
			return fault.On(w.String(), fault.Wrapf(fault.ErrOutput, "%s has ended well, and it is %s", j.manager.name, have))
		}
	}
	return nil
}

// succeeded reports whether the manager has done what was asked, by its own word.
func (j *job) succeeded(result *proc.Result) bool {
	return result.Code == 0 || slices.Contains(j.good, result.Code)
}

// patient runs a command of the manager until that finds its lock free, or the time is up. One that came to run scripts of
// packages had its lock, and is not run again. announce comes first of all; nil:
// nothing is to be said. good reports whether a result is a success.
func (j *job) patient(
	ctx context.Context, argv []string, readonly bool, announce func() error, good func(*proc.Result) bool,
) error {
	until := j.until
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-lockMargin).Before(until) {
		until = deadline.Add(-lockMargin)
	}
	if announce != nil {
		if err := announce(); err != nil {
			return err
		}
	}
	for {
		began := time.Now()
		result, err := j.run(ctx, argv, readonly)
		if err != nil {
			return err
		}
		if !result.TimedOut && good(result) {
			return nil
		}
		acted, certain := j.manager.acted(result)
		j.acted = j.acted || !readonly && (acted || !certain)
		err = j.judge(result, acted)
		if !errors.Is(err, fault.ErrBusy) || !certain {
			return err
		}
		if next := lockPause + 2*time.Since(began); time.Now().Add(next).After(until) { // a try would be cut short
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPause):
		}
	}
}

// run runs the manager. What it changes ends with the agent, as any command of a script.
func (j *job) run(ctx context.Context, argv []string, readonly bool) (*proc.Result, error) {
	left := time.Until(j.until)
	if left <= 0 {
		return nil, fault.On(j.manager.name, context.DeadlineExceeded)
	}
	result, err := j.guest.Run(ctx, guest.Command{
		Line: strings.Join(argv, " "), Readonly: readonly, Irreversible: !readonly,
	}, proc.Spec{
		Argv: argv, Root: j.guest.Root(), Env: packages.Environment(j.guest), Tied: true, Timeout: left, MaxOutput: 4 << 20,
		Owner: j.call.Port,
	})
	if err != nil {
		var start *proc.StartError
		j.acted = j.acted || !readonly && !errors.As(err, &start)
		return nil, fault.On(j.manager.name, packages.NotStarted(j.guest, err))
	}
	return result, nil
}

// target names the packages of the request.
func (j *job) target() string {
	if len(j.request.wishes) == 0 {
		return "all packages"
	}
	words := strings.Join(j.request.targets("="), " ")
	if len(words) > maxTarget {
		words = words[:maxTarget] + "…"
	}
	return words
}

// words are what is done with them.
func (j *job) words() string {
	return [...]string{install: "installed", remove: "removed", update: "updated"}[j.request.action]
}

func (j *job) report(s step, state pb.ChangeState) {
	change := &pb.Change{Op: j.op, Target: s.name, Action: s.action(), Diff: s.words(), State: state}
	if s.before == "" && s.after == "" {
		change.Action, change.Diff = j.words(), ""
	}
	j.call.Report(change)
}
