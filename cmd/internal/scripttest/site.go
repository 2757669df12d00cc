package scripttest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/exec"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/host"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// site is the inside of an agent that acts on a scratch tree: its rooms, its journal, its scripts. Only commands are
// answered and not run.
type site struct {
	root    *fsys.Root
	rooms   *all.Rooms
	undo    *journal.Journal
	scripts *script.Manager
	table   *builtins.Table
	answers *answers
	// changing are the calls of the script that change something, so far.
	changing []string
	// point is told of each of them, numbered from 1: of a command also before it runs, when its undo is kept already.
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
	if s.root, err = fsys.Open(at.Dir); err != nil {
		return nil, err
	}
	s.rooms = all.New(all.Config{
		Root: s.root, Exec: exec.Config{Root: at.Dir, Answer: s.answer}, Host: host.Config{Root: at.Dir, Version: "test"},
	})
	s.undo, err = openJournal(journal.Config{
		Dir: filepath.Join(at.State, "tx"), Root: s.root, Version: "test",
		MachineID: func() string { return "scratch" }, BootID: func() string { return "scratch" },
		Run: func(ctx context.Context, name string, args proto.Message) error {
			_, err := s.table.Invoke(ctx, &builtins.Call{ID: "journal", TakesBack: true}, s.table.Script(name), args)
			return err
		},
	})
	if err != nil {
		return nil, errors.Join(err, s.rooms.Close(), s.root.Close())
	}
	s.scripts = script.New(script.Config{
		Pool: pool, Library: script.NewLibrary(0), Journal: s.undo, Secret: make([]byte, 32), Unsupported: all.Unsupported,
		Pretend: func() (*fsys.Root, error) { return s.root.Pretend(filepath.Join(at.State, "plan-"+rand.Text())) }, Files: s.root,
	})
	s.table = builtins.NewTable(s.rooms.Ops(), s.scripts.Ops())
	s.table.Audit = s.called
	s.scripts.Table = s.table
	return s, nil
}

// lockTime is how long a journal may seem to be in use that nobody uses: a runner that is just being started has its lock
// too, from the fork to the exec.
const lockTime = time.Minute

func openJournal(c journal.Config) (*journal.Journal, error) {
	for deadline := time.Now().Add(lockTime); ; time.Sleep(2 * time.Millisecond) {
		j, err := journal.Open(c)
		if !errors.Is(err, fault.ErrBusy) || time.Now().After(deadline) {
			return j, err
		}
	}
}

func (s *site) close() error {
	return errors.Join(s.undo.Close(), s.rooms.Close(), s.root.Close())
}

// called notes what the script did.
func (s *site) called(call *builtins.Call, op *builtins.Op, in proto.Message, _ error, _ time.Duration) {
	if call.Tx == nil || !op.Changes(in) {
		return
	}
	s.changing = append(s.changing, op.Name)
	s.point(len(s.changing), false)
}

func (s *site) answer(_ context.Context, command exec.Command) (*pb.RunResult, error) {
	if !command.Undo && !command.Readonly {
		s.point(len(s.changing)+1, true)
	}
	return s.answers.run(command)
}

// isCommand says whether a call may be met before it is done, with its undo kept.
func isCommand(op string) bool { return strings.HasPrefix(op, "exec.") }

// run runs the script of a request.
func (s *site) run(ctx context.Context, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
	reply, err := s.table.Invoke(ctx, &builtins.Call{ID: rand.Text()}, s.table.Native(request), request)
	if err != nil {
		return nil, err
	}
	return reply.(*pb.RunScriptResponse), nil
}

// recover ends what an agent left that was killed here.
func (s *site) recover(ctx context.Context) error {
	events, err := s.scripts.Recover(ctx)
	for _, e := range events {
		if e.Severity == pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL {
			err = errors.Join(err, errors.New(e.Message))
		}
	}
	return err
}
