package scripttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/trial"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// stage is one case of a test: a scratch tree, the answers of commands, and the script.
type stage struct {
	tester  *Tester
	script  source
	scratch string
	place
	root    *fsys.Root
	files   builtins.Room
	builtin *call.Run
	answers []*pb.TrialCommandArgs
}

// source is a script or the test of one.
type source struct {
	name string // of its file
	text []byte
}

func (t *Tester) newStage(script source) (s *stage, err error) {
	s = &stage{tester: t, script: script}
	if s.scratch, err = os.MkdirTemp("", "quantix-script-test-"); err != nil {
		return nil, err
	}
	if s.place, err = newPlace(s.scratch); err == nil {
		err = skeleton(s.Dir)
	}
	if err == nil {
		s.root, err = fsys.Open(s.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.scratch))
	}
	s.files = all.New(all.Config{Files: s.root, Dir: s.Dir}).Named("file")
	of := trial.Stage{Run: s.run, CrashAt: s.crashAt, Crash: s.crash, Command: s.command}
	executor := call.New(call.Config{Table: builtins.NewTable(s.files, of.Room()), Files: s.root})
	s.builtin = executor.Begin(call.RunConfig{Call: &builtins.Call{ID: "test"}})
	return s, nil
}

func (s *stage) close() error {
	return errors.Join(s.files.Close(), s.root.Close(), os.RemoveAll(s.scratch))
}

// call serves what the test calls: its own functions, and those on files, which act on the scratch tree.
func (s *stage) call(ctx context.Context, from *pb.RunnerCall) *pb.RunnerReply {
	op, out, err := s.builtin.Call(ctx, from.Name, func(op *builtins.Op) (proto.Message, error) { return sandbox.Bind(op, from.Args) })
	if err != nil {
		return sandbox.ErrorReply(err)
	}
	return &pb.RunnerReply{Value: sandbox.Unbind(op, out)}
}

func (s *stage) command(_ context.Context, in *pb.TrialCommandArgs) (*pb.Nothing, error) {
	if err := checkAnswer(in); err != nil {
		return nil, err
	}
	s.answers = append(s.answers, in)
	return &pb.Nothing{}, nil
}

// request is for the script under test.
func (s *stage) request(params *pb.LuaTable, secrets map[string]string, attachments map[string][]byte) (*pb.RunScriptRequest, error) {
	r := &pb.RunScriptRequest{
		Name: s.script.name, Source: s.script.text, Secrets: secrets, Modules: s.tester.config.Modules,
		ConfirmSeconds: new(uint32), // nobody is there to confirm
	}
	for name, data := range attachments {
		r.Attachments = append(r.Attachments, &pb.Attachment{Name: name, Data: data})
	}
	var err error
	if r.Params, err = sandbox.ToStruct(params); err != nil {
		return nil, fault.Invalid("params: %v", err)
	}
	return r, nil
}

// run is test.run.
func (s *stage) run(ctx context.Context, in *pb.TrialRunArgs) (*pb.Trial, error) {
	request, err := s.request(in.Params, in.Secrets, in.Attachments)
	if err != nil {
		return nil, err
	}
	before, err := look(s.root)
	if err != nil {
		return nil, err
	}
	var foretold []string
	if in.Foretold {
		if foretold, err = s.foretold(ctx, request); err != nil {
			return nil, err
		}
	}
	request.DryRun = in.DryRun
	reply, done, err := s.once(ctx, s.place, request)
	if err != nil {
		return nil, err
	}
	out, err := told(reply, done.answers.ran)
	if err != nil {
		return nil, err
	}
	switch failed := reply.Error; {
	case failed != nil && in.Fails == "":
		return nil, fault.Wrapf(errFailed, "the script ended as %s: %s", out.Status, failure(failed))
	case failed == nil && in.Fails != "":
		return nil, fault.Wrapf(errFailed, "the script ended as %s, and was to fail with %q", out.Status, in.Fails)
	case failed != nil && !strings.Contains(failed.Message, in.Fails):
		return nil, fault.Wrapf(errFailed, "the script was to fail with %q, and failed with %s", in.Fails, failure(failed))
	case failed != nil || in.DryRun:
		after, err := look(s.root)
		if list := differences(before, after, done.answers.excused, s.written()); err == nil && len(list) > 0 {
			return nil, fault.Wrapf(errFailed, "after a run that ended as %s not all is as it was: %s", out.Status, strings.Join(list, "; "))
		}
		return out, err
	case in.Foretold && !slices.Equal(foretold, deeds(reply)):
		return nil, fault.Wrapf(errFailed, "a dry run foretold %q, and the run did %q", foretold, deeds(reply))
	case in.Again == nil || in.GetAgain():
		return out, s.again(ctx, request)
	}
	return out, nil
}

// errFailed is the cause of what a test finds.
var errFailed = errors.New("test failed")

// once runs a request at a place.
func (s *stage) once(ctx context.Context, at place, request *pb.RunScriptRequest) (*pb.RunScriptResponse, *site, error) {
	there, err := openSite(at, s.answers, s.tester.pool)
	if err != nil {
		return nil, nil, err
	}
	reply, err := there.run(ctx, request)
	return reply, there, errors.Join(err, there.Close())
}

// predicted is what a dry run says would be changed.
func (s *stage) foretold(ctx context.Context, request *pb.RunScriptRequest) ([]string, error) {
	dry := proto.Clone(request).(*pb.RunScriptRequest)
	dry.DryRun = true
	reply, _, err := s.once(ctx, s.place, dry)
	if err == nil && reply.Error != nil {
		err = fault.Wrapf(errFailed, "a dry run ended with %s", failure(reply.Error))
	}
	return deeds(reply), err
}

// deeds are the changes of a reply in words, but for commands of a dry run that only looked.
func deeds(reply *pb.RunScriptResponse) (list []string) {
	for _, c := range reply.GetChanges() {
		if c.State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
			list = append(list, c.Action+" "+c.Target)
		}
	}
	return list
}

// again runs the script once more, on a copy of the tree, and wants nothing to be changed.
func (s *stage) again(ctx context.Context, request *pb.RunScriptRequest) error {
	return s.onCopy(ctx, func(at place, _ *fsys.Root) error {
		reply, _, err := s.once(ctx, at, request)
		switch {
		case err != nil:
			return err
		case reply.Error != nil:
			return fault.Wrapf(errFailed, "a second run ended with %s", failure(reply.Error))
		case len(reply.Changes) == 0:
			return nil
		}
		return fault.Wrapf(errFailed, "a second run changed something again: %s", strings.Join(deeds(reply), "; "))
	})
}

// onCopy makes a copy of the tree for f.
func (s *stage) onCopy(ctx context.Context, f func(place, *fsys.Root) error) error {
	at, err := newPlace(s.scratch)
	if err != nil {
		return err
	}
	root, err := fsys.Open(at.Dir)
	if err != nil {
		return err
	}
	if err = copyTree(ctx, s.root, root); err == nil {
		err = f(at, root)
	}
	return errors.Join(err, root.Close(), at.remove())
}

// crashAt is test.crash_at.
func (s *stage) crashAt(ctx context.Context, in *pb.TrialCrashAtArgs) (*pb.TrialCrashes, error) {
	request, err := s.request(in.Params, in.Secrets, in.Attachments)
	if err != nil {
		return nil, err
	}
	calls, excused, err := s.calls(ctx, request)
	switch {
	case err != nil:
		return nil, err
	case in.Call < 1 || int(in.Call) > len(calls):
		return nil, fault.Invalid("call %d: the script makes %d calls that change something", in.Call, len(calls))
	}
	return s.kills(ctx, request, calls, []int{int(in.Call)}, excused)
}

// mostCalls is how many calls of a script a sweep meets: of more it takes as many, evenly.
const mostCalls = 25

// crash is test.crash.
func (s *stage) crash(ctx context.Context, in *pb.TrialCrashArgs) (*pb.TrialCrashes, error) {
	request, err := s.request(in.Params, in.Secrets, in.Attachments)
	if err != nil {
		return nil, err
	}
	calls, excused, err := s.calls(ctx, request)
	if err != nil {
		return nil, err
	}
	var at []int
	for i := range min(len(calls), mostCalls) {
		at = append(at, 1+i*len(calls)/min(len(calls), mostCalls))
	}
	return s.kills(ctx, request, calls, at, excused)
}

// calls runs the script on a copy, and gives its calls that change something, and what nothing takes back.
func (s *stage) calls(ctx context.Context, request *pb.RunScriptRequest) (calls []string, excused map[string]bool, err error) {
	err = s.onCopy(ctx, func(at place, _ *fsys.Root) error {
		reply, done, err := s.once(ctx, at, request)
		if err != nil {
			return err
		}
		calls, excused = done.changing, done.answers.excused
		refused := reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_REFUSED
		if refused || reply.GetError() != nil && len(calls) == 0 { // nothing was there that could be killed
			return fault.Wrapf(errFailed, "the script does not run: %s", reply.GetError().GetMessage())
		}
		return nil
	})
	return calls, excused, err
}

// kills meets the script at calls, and gives how often. A command is met twice, before it runs and after.
func (s *stage) kills(ctx context.Context, request *pb.RunScriptRequest, calls []string, at []int, excused map[string]bool) (*pb.TrialCrashes, error) {
	out := &pb.TrialCrashes{}
	for _, n := range at {
		for _, before := range []bool{true, false} {
			if before && !isCommand(calls[n-1]) {
				continue
			}
			err := s.onCopy(ctx, func(at place, root *fsys.Root) error { return s.killed(ctx, at, root, request, n, before, excused) })
			if err != nil {
				when := "after"
				if before {
					when = "in"
				}
				return nil, fault.Wrapf(errFailed, "killed %s call %d, %s: %v", when, n, calls[n-1], err)
			}
			out.Kills++
		}
	}
	return out, nil
}

// killed has an agent die at one call, and the next one take back what is left.
func (s *stage) killed(ctx context.Context, at place, root *fsys.Root, request *pb.RunScriptRequest, call int, before bool, excused map[string]bool) error {
	was, err := look(root)
	if err != nil {
		return err
	}
	if err := kill(ctx, at, request, s.answers, call, before); err != nil {
		return err
	}
	next, err := openSite(at, s.answers, s.tester.pool)
	if err != nil {
		return err
	}
	if err := errors.Join(next.takeBack(ctx), next.Close()); err != nil {
		return err
	}
	is, err := look(root)
	if list := differences(was, is, excused, s.written()); err == nil && len(list) > 0 {
		return errors.New("not all is as it was: " + strings.Join(list, "; "))
	}
	return err
}

// written are the paths that commands change.
func (s *stage) written() map[string]bool {
	paths := map[string]bool{}
	for _, answer := range s.answers {
		for _, name := range answer.Remove {
			paths[path.Clean(name)] = true
		}
		for name := range answer.Write {
			paths[path.Clean(name)] = true
		}
	}
	return paths
}

// told is a reply as a test sees it.
func told(reply *pb.RunScriptResponse, commands []string) (*pb.Trial, error) {
	out := &pb.Trial{Status: strings.ToLower(strings.TrimPrefix(reply.Status.String(), "SCRIPT_STATUS_")), Commands: slices.Clone(commands)}
	if e := reply.Error; e != nil {
		out.Error = &pb.TrialError{Kind: e.Kind, Message: e.Message, Op: e.Op, Code: e.Code, Line: e.Line}
	}
	for _, c := range reply.Changes {
		out.Changes = append(out.Changes, &pb.TrialChange{Op: c.Op, Target: c.Target, Action: c.Action})
	}
	for _, line := range reply.Log {
		out.Log = append(out.Log, line.Message)
	}
	result, err := sandbox.FromValue(reply.Result)
	out.Result = result
	return out, err
}

// failure is an error of a script with its place.
func failure(e *pb.ScriptError) string {
	text := e.Message
	if e.Line > 0 {
		text = fmt.Sprintf("%s:%d: %s", e.Script, e.Line, text)
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}
