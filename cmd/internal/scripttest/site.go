package scripttest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// site is a core on a scratch tree. Commands are answered by the test, and not run.
type site struct {
	*core.Core
	answers *answers
	// changing are the calls of the script that change something, so far.
	changing []string
	// point is called for each of them, numbered from 1: for a command also before it runs, when its undo is kept already.
	point func(call int, before bool)
}

// place is where a site works.
type place struct{ Dir, State string }

// newPlace makes an empty one below a directory.
func newPlace(below string) (place, error) {
	dir, err := os.MkdirTemp(below, "site-")
	p := place{filepath.Join(dir, "root"), filepath.Join(dir, "state")}
	return p, errors.Join(err, os.Mkdir(p.Dir, 0o755), os.Mkdir(p.State, 0o700))
}

func (p place) remove() error { return os.RemoveAll(filepath.Dir(p.Dir)) }

func openSite(at place, list []*pb.TrialCommandArgs, pool *sandbox.Pool) (s *site, err error) {
	s = &site{answers: &answers{dir: at.Dir, list: list, excused: map[string]bool{}}, point: func(int, bool) {}}
	scratch := func() string { return "scratch" }
	s.Core, err = core.Open(core.Config{
		Root: at.Dir, State: at.State, Rooms: all.Config{Version: "test", Answer: s.answer}, Pool: pool, Library: script.NewLibrary(0),
		Audit: s.called, MachineID: scratch, BootID: scratch, Key: make([]byte, 32), LockWait: lockTime,
	})
	return s, err
}

// lockTime is how long a journal may seem to be in use that nobody uses.
const lockTime = time.Minute

// called notes what the script did.
func (s *site) called(e call.Entry) {
	if e.Call.Tx == nil || !e.Op.Changes(e.In) {
		return
	}
	s.changing = append(s.changing, e.Operation)
	s.point(len(s.changing), false)
}

func (s *site) answer(_ context.Context, command all.Command) (*pb.RunResult, error) {
	if !command.Undo && !command.Readonly {
		s.point(len(s.changing)+1, true)
	}
	return s.answers.run(command)
}

// isCommand reports whether a call may be met before it is done, with its undo kept.
func isCommand(op string) bool { return strings.HasPrefix(op, "exec.") }

// run runs the script of a request.
func (s *site) run(ctx context.Context, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
	reply, err := s.Calls.Execute(ctx, &builtins.Call{ID: rand.Text()}, s.Calls.Native(request), request)
	if err != nil {
		return nil, err
	}
	return reply.(*pb.RunScriptResponse), nil
}

// takeBack ends what an agent left that was killed here.
func (s *site) takeBack(ctx context.Context) error {
	events, err := s.Recover(ctx)
	for _, e := range events {
		if e.Severity == pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL {
			err = errors.Join(err, errors.New(e.Message))
		}
	}
	return err
}
