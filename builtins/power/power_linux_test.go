package power

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// inertMachine stands for the machine, which a test must not shut down: it remembers what was asked of it.
type inertMachine struct {
	mu    sync.Mutex
	steps []string
	err   error
	acted chan string
}

func (m *inertMachine) note(step string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps = append(m.steps, step)
}

func (m *inertMachine) list() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.steps, "|")
}

func (m *inertMachine) machine() machine {
	return machine{
		why:  func() error { return nil },
		tell: func(_ context.Context, text string) { m.note("tell " + strings.ReplaceAll(text, "\r\n", "/")) },
		act: func(_ context.Context, what string) error {
			m.note(what)
			m.acted <- what
			return m.err
		},
	}
}

func newRoom(t *testing.T, config Config) (*Room, *inertMachine) {
	t.Helper()
	m := &inertMachine{acted: make(chan string, 10)}
	config.Machine, config.Thaw = true, func() { m.note("thaw") }
	if config.BootID == nil {
		config.BootID = func() string { return "this-boot" }
	}
	r := New(&guest.Guest{Live: true}, config)
	r.machine = m.machine()
	t.Cleanup(func() { r.close() })
	return r, m
}

// call is one whose reply leaves when the test says so.
func call() (c *builtins.Call, reply func()) {
	replied := make(chan struct{})
	return &builtins.Call{AfterReply: func(f func()) { go func() { <-replied; f() }() }}, sync.OnceFunc(func() { close(replied) })
}

func ask(t *testing.T, r *Room, in *pb.ShutdownRequest) *pb.ShutdownResponse {
	t.Helper()
	c, reply := call()
	defer reply()
	out, err := r.shutdown(t.Context(), c, in)
	if err != nil || !out.Accepted {
		t.Fatalf("%v: %v %v", in, out, err)
	}
	return out
}

func acts(t *testing.T, m *inertMachine, want string) {
	t.Helper()
	select {
	case got := <-m.acted:
		if got != want {
			t.Errorf("the machine was asked for %s, want %s", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the machine was not asked for a %s: %s", want, m.list())
	}
}

const poweroff, reboot, halt = pb.ShutdownType_SHUTDOWN_TYPE_POWEROFF, pb.ShutdownType_SHUTDOWN_TYPE_REBOOT, pb.ShutdownType_SHUTDOWN_TYPE_HALT

func TestEachTypeIsDoneAndNoOther(t *testing.T) {
	for what, name := range map[pb.ShutdownType]string{poweroff: "poweroff", reboot: "reboot", halt: "halt"} {
		r, m := newRoom(t, Config{})
		ask(t, r, &pb.ShutdownRequest{Type: what})
		acts(t, m, name)
	}
	r, m := newRoom(t, Config{})
	for _, wrong := range []pb.ShutdownType{3, 99, -1} {
		if out, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Type: wrong}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("type %d: %v %v", wrong, out, err)
		}
	}
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Message: strings.Repeat("x", maxMessage+1)}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if m.list() != "" || r.Pending() != nil {
		t.Errorf("%s, %v", m.list(), r.Pending())
	}
}

// A tree, an agent that is a second one, and a machine whose init is not known are not shut down, and say so by name.
func TestWhereNothingIsShutDown(t *testing.T) {
	unknown := New(&guest.Guest{Live: true}, Config{Machine: true})
	unknown.machine.why = func() error { return errors.New("no init") }
	for name, r := range map[string]*Room{
		"a tree": New(&guest.Guest{}, Config{Machine: true}), "a second agent": New(&guest.Guest{Live: true}, Config{}), "no init": unknown,
	} {
		r.machine.act = func(context.Context, string) error { t.Error(name, "is shut down"); return nil }
		if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{}); !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "not supported: ") {
			t.Error(name, err)
		}
		if _, err := r.afterCommit("reboot")(t.Context(), &builtins.Call{}, &pb.PowerArgs{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(name, err)
		}
		if _, err := r.committed(t.Context(), &builtins.Call{}, &pb.PowerAction{Type: "reboot"}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(name, err)
		}
		if room := r.Room(); room.Ops[0].Capability != "" || room.Features != nil {
			t.Error(name, "is announced")
		}
	}
	r, _ := newRoom(t, Config{})
	if room := r.Room(); room.Ops[0].Capability != "shutdown" {
		t.Error("it is not announced")
	}
}

// Nothing is done before the reply has left; then what is frozen is thawed first, and the users were told before.
func TestReplyComesFirst(t *testing.T) {
	r, m := newRoom(t, Config{})
	c, reply := call()
	if out, err := r.shutdown(t.Context(), c, &pb.ShutdownRequest{Type: reboot, Message: "for a new kernel\nand \x1b[2Jmore"}); err != nil || out.Pending.GetType() != "reboot" {
		t.Fatal(out, err)
	}
	select {
	case <-m.acted:
		t.Fatal("the machine is asked before the reply has left")
	case <-time.After(300 * time.Millisecond):
	}
	reply()
	acts(t, m, "reboot")
	want := `tell for a new kernel/and \x1b[2Jmore/The system will reboot now./|thaw|thaw|reboot`
	if got := m.list(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if again := ask(t, r, &pb.ShutdownRequest{Type: reboot}); again.Replaced != nil {
		t.Error(again)
	}
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Cancel: true}); !errors.Is(err, fault.ErrBusy) {
		t.Error("what is under way is cancelled:", err)
	}
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Type: halt}); !errors.Is(err, fault.ErrBusy) {
		t.Error("what is under way is replaced:", err)
	}
}

// The delay is one of seconds: it is not over before, and what is pending is told meanwhile.
func TestDelayIsExact(t *testing.T) {
	r, m := newRoom(t, Config{})
	before := time.Now()
	out := ask(t, r, &pb.ShutdownRequest{DelaySeconds: 2})
	if p := out.Pending; p.GetType() != "poweroff" || p.RemainingMs > 2000 || p.RemainingMs < 1000 || p.Due.AsTime().Before(before) {
		t.Error(p)
	}
	if p := r.Pending(); p.GetType() != "poweroff" || p.WaitingFor != "" {
		t.Error(p)
	}
	acts(t, m, "poweroff")
	if took := time.Since(before); took < 2*time.Second {
		t.Errorf("it was done after %v", took)
	}
	if got := m.list(); !strings.HasPrefix(got, "tell The system will be powered off in 2s./|thaw|") ||
		!strings.Contains(got, "|tell The system will be powered off now./|") {
		t.Error(got)
	}
}

func TestReplaceAndCancel(t *testing.T) {
	note := filepath.Join(t.TempDir(), "shutdown")
	r, m := newRoom(t, Config{Note: note})
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Cancel: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a cancel without a shutdown:", err)
	}
	ask(t, r, &pb.ShutdownRequest{Type: reboot, DelaySeconds: 3600, Message: "first"})
	out := ask(t, r, &pb.ShutdownRequest{Type: halt, DelaySeconds: 4000})
	if out.Replaced.GetType() != "reboot" || out.Replaced.Message != "first" || out.Replaced.RemainingMs > 3600e3 || out.Pending.GetType() != "halt" {
		t.Error(out)
	}
	out = ask(t, r, &pb.ShutdownRequest{Cancel: true, Message: "never mind"})
	if out.Replaced.GetType() != "halt" || out.Pending != nil || r.Pending() != nil {
		t.Error(out, r.Pending())
	}
	if _, err := os.Stat(note); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a later agent would do it all the same:", err)
	}
	r.close()
	if got := m.list(); strings.Contains(got, "thaw") || !strings.Contains(got, "tell never mind/The halt of this system was cancelled./") {
		t.Error(got)
	}
}

// What is pending survives the agent, but neither another boot nor a time that is long over.
func TestPendingSurvivesTheAgent(t *testing.T) {
	note := filepath.Join(t.TempDir(), "shutdown")
	first, m := newRoom(t, Config{Note: note})
	ask(t, first, &pb.ShutdownRequest{Type: reboot, DelaySeconds: 2, Message: "a \"b\"\nc"})
	first.close()
	if strings.Contains(m.list(), "thaw") {
		t.Error("the agent's end makes it act:", m.list())
	}
	kept, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	other, o := newRoom(t, Config{Note: note, BootID: func() string { return "another-boot" }})
	other.start()
	if other.Pending() != nil || o.list() != "" {
		t.Error("it survives another boot:", other.Pending())
	}
	if _, err := os.Stat(note); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the note of another boot stays:", err)
	}
	if err := os.WriteFile(note, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	second, m := newRoom(t, Config{Note: note})
	second.start()
	if p := second.Pending(); p.GetType() != "reboot" || p.Message != "a \"b\"\nc" {
		t.Error(p)
	}
	acts(t, m, "reboot")
	second.close()
	if _, err := os.Stat(note); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the note stays after the act:", err)
	}
	late := newShutdown("reboot", 0, "")
	late.due -= lateTime + time.Second
	third, m := newRoom(t, Config{Note: note})
	if err := third.writeNote(late); err != nil {
		t.Fatal(err)
	}
	third.start()
	if p := third.Pending(); p.GetError() == "" || m.list() != "" {
		t.Error("one that is long over:", p, m.list())
	}
	for _, wrong := range []string{"", "1 this-boot sleep 0 \"\"\n", "1 this-boot reboot x \"\"\n", "1 this-boot reboot 0 x\n", "2 this-boot reboot 0 \"\"\n"} {
		if err := os.WriteFile(note, []byte(wrong), 0o600); err != nil {
			t.Fatal(err)
		}
		broken, m := newRoom(t, Config{Note: note})
		broken.start()
		if broken.Pending() != nil || m.list() != "" {
			t.Errorf("%q: %v", wrong, broken.Pending())
		}
	}
}

// A delayed one that no later agent could know is refused; one that is due now needs no note.
func TestNoteThatCannotBeWritten(t *testing.T) {
	r, m := newRoom(t, Config{Note: filepath.Join(t.TempDir(), "missing", "shutdown")})
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{DelaySeconds: 60}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if r.Pending() != nil {
		t.Error(r.Pending())
	}
	ask(t, r, &pb.ShutdownRequest{})
	acts(t, m, "poweroff")
}

// It waits for the open transaction, says so, and lets no other begin.
func TestWaitsForTheTransaction(t *testing.T) {
	writer := make(chan struct{}, 1)
	var phase atomic.Value
	phase.Store("running")
	r, m := newRoom(t, Config{
		Lock: func(ctx context.Context) (func(), error) {
			select {
			case writer <- struct{}{}:
				return func() { <-writer }, nil
			case <-ctx.Done():
				return nil, fault.Wrapf(fault.ErrBusy, "busy: another transaction is open")
			}
		},
		Open: func() *pb.TransactionInfo {
			return &pb.TransactionInfo{TransactionId: "t-1", Phase: phase.Load().(string)}
		},
	})
	writer <- struct{}{}
	if out := ask(t, r, &pb.ShutdownRequest{Type: reboot}); out.Pending.GetWaitingFor() != "transaction t-1" {
		t.Error(out)
	}
	select {
	case <-m.acted:
		t.Fatal("it does not wait")
	case <-time.After(1500 * time.Millisecond): // more than one attempt
	}
	phase.Store("awaiting_confirm")
	if p := r.Pending(); p.WaitingFor != "transaction t-1, which awaits a confirmation" {
		t.Error(p)
	}
	if ask(t, r, &pb.ShutdownRequest{Cancel: true}).Replaced.GetType() != "reboot" {
		t.Error("what waits cannot be cancelled")
	}
	ask(t, r, &pb.ShutdownRequest{Type: halt})
	<-writer // the transaction has ended
	acts(t, m, "halt")
	if len(writer) != 1 {
		t.Error("a transaction could begin while the guest goes down")
	}
}

// A failure is told to who asked and in the status, and another request can follow.
func TestFailureIsTold(t *testing.T) {
	r, m := newRoom(t, Config{})
	m.err = errors.New("no such thing")
	events := make(chan *pb.ErrorEvent, 1)
	c, reply := call()
	c.Event = func(e proto.Message) bool { events <- e.(*pb.ErrorEvent); return true }
	if _, err := r.shutdown(t.Context(), c, &pb.ShutdownRequest{Type: halt}); err != nil {
		t.Fatal(err)
	}
	reply()
	acts(t, m, "halt")
	select {
	case e := <-events:
		if e.Code != "shutdown" || !strings.Contains(e.Message, "the halt failed: no such thing") {
			t.Error(e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the failure is not told")
	}
	if p := r.Pending(); p.GetError() != "no such thing" {
		t.Error(p)
	}
	m.err = nil
	ask(t, r, &pb.ShutdownRequest{Type: poweroff})
	acts(t, m, "poweroff")
}

// What a script asked for waits for the reply of the script, and is done without one where no such call is known any more, as
// in a recovery.
func TestAfterTheCommit(t *testing.T) {
	r, m := newRoom(t, Config{})
	var action builtins.Action
	c, reply := call()
	c.Deferred = func(a builtins.Action) error { action = a; return nil }
	var changes []*pb.Change
	c.Changed = func(change *pb.Change) { changes = append(changes, change) }
	if _, err := r.afterCommit("reboot")(t.Context(), c, &pb.PowerArgs{Message: "m"}); err != nil {
		t.Fatal(err)
	}
	if action.Op != "power.shutdown" || !action.SameBoot || len(changes) != 1 || r.Pending() != nil {
		t.Error(action, changes, r.Pending())
	}
	for range 2 { // at least once means that it may be twice
		if _, err := r.committed(t.Context(), &builtins.Call{Undo: true}, action.Args.(*pb.PowerAction)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-m.acted:
		t.Fatal("it is done before the reply of the script has left")
	case <-time.After(300 * time.Millisecond):
	}
	reply()
	acts(t, m, "reboot")
	r.close()
	if strings.Count(m.list(), "reboot|")+strings.Count(m.list(), "thaw|reboot") > 2 || len(m.acted) != 0 {
		t.Error("it is done twice:", m.list())
	}
	later, m := newRoom(t, Config{})
	if _, err := later.committed(t.Context(), &builtins.Call{Undo: true}, action.Args.(*pb.PowerAction)); err != nil {
		t.Fatal(err)
	}
	acts(t, m, "reboot")
	dry, m := newRoom(t, Config{})
	if _, err := dry.afterCommit("poweroff")(t.Context(), &builtins.Call{DryRun: &builtins.DryRun{}, Changed: func(change *pb.Change) {
		if change.State != pb.ChangeState_CHANGE_STATE_WOULD {
			t.Error(change)
		}
	}}, &pb.PowerArgs{}); err != nil || m.list() != "" {
		t.Error(err, m.list())
	}
	if _, err := dry.committed(t.Context(), &builtins.Call{}, &pb.PowerAction{Type: "halt"}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
}

// The bound of a wait is the end of its context, too.
func TestWaitUntilEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errReplaced) })
	if err := waitUntil(ctx, bootTime()+time.Hour); !errors.Is(err, errReplaced) {
		t.Error(err)
	}
	if err := waitUntil(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
