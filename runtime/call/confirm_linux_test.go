package call

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	committed  = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	rolledBack = pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
	awaits     = pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM

	confirmIt = pb.ConfirmAction_CONFIRM_ACTION_CONFIRM
	undoIt    = pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK
	extendIt  = pb.ConfirmAction_CONFIRM_ACTION_EXTEND
)

// cautious is a guest whose journal has a clock of its own: the time since the boot moves when the test says so, or by itself.
type cautious struct {
	*guest
	boot    string
	began   time.Time
	ahead   atomic.Int64 // nanoseconds that the clock is ahead
	mu      sync.Mutex
	notices []*pb.ErrorEvent
}

func newCautious(t *testing.T) *cautious {
	g := &cautious{guest: newGuest(t), boot: "boot", began: time.Now()}
	g.config.Unconfirmed = func(e *pb.ErrorEvent) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.notices = append(g.notices, e)
	}
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	g.start()
	t.Cleanup(func() { g.calls.Close() })
	return g
}

// start opens the journal as a new agent process does, and recovers.
func (g *cautious) start() []journal.Recovered {
	g.t.Helper()
	inverses := New(g.config)
	var err error
	g.journal, err = journal.Open(journal.Config{
		Dir: g.state, Root: g.files, Run: inverses.Undo, BootID: func() string { return g.boot },
		Uptime: func() time.Duration { return time.Hour + time.Since(g.began) + time.Duration(g.ahead.Load()) },
		Step: func(name string) error {
			if g.step != nil {
				return g.step(name)
			}
			return nil
		},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	calls := inverses.WithJournal(g.journal, g.config.Table)
	g.calls = calls.WithRoom(calls.Room())
	found, err := g.journal.Recover(g.t.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, r := range found {
		if r.Tx != nil {
			g.calls.Resume(r.Tx, r.Until)
		}
	}
	return found
}

// end ends the agent process; what is open stays on disk.
func (g *cautious) end() {
	g.t.Helper()
	g.calls.Close()
	if err := g.journal.Close(); err != nil {
		g.t.Fatal(err)
	}
}

// change changes a file in a transaction that then awaits its confirmation, and returns its id.
func (g *cautious) change(path string, within time.Duration, after ...journal.Action) string {
	g.t.Helper()
	tx, err := g.journal.Begin(g.t.Context(), journal.Header{MessageID: "m", Key: "k", Port: "port", Script: &pb.ScriptRef{Name: "s"}})
	if err != nil {
		g.t.Fatal(err)
	}
	r := g.calls.Begin(RunConfig{Call: &builtins.Call{ID: "m", Port: "port"}, Tx: tx})
	if _, _, err := r.Call(g.t.Context(), "test.change", request(path)); err != nil {
		g.t.Fatal(err)
	}
	reply := &pb.RunScriptResponse{TransactionId: tx.ID(), Script: &pb.ScriptRef{Name: "s"}, Changes: r.Changes()}
	err = g.calls.Keep(g.t.Context(), Await{Tx: tx, Reply: reply, Within: within, After: after, Undone: r.Undone})
	if err != nil || reply.Status != awaits || reply.ConfirmUntil == nil {
		g.t.Fatal(reply, err)
	}
	return tx.ID()
}

// confirm asks as a host on a port does.
func (g *cautious) confirm(port, id string, action pb.ConfirmAction, more uint32) (*pb.ConfirmResponse, error) {
	in := &pb.ConfirmRequest{TransactionId: id, Action: action, ExtendSeconds: more}
	reply, err := g.calls.Execute(g.t.Context(), &builtins.Call{ID: "c", Port: port}, g.calls.Native(in), in)
	if err != nil {
		return nil, err
	}
	return reply.(*pb.ConfirmResponse), nil
}

func (g *cautious) mustConfirm(id string, action pb.ConfirmAction, more uint32, want pb.ScriptStatus) *pb.ConfirmResponse {
	g.t.Helper()
	reply, err := g.confirm("port", id, action, more)
	if err != nil || reply.Status != want || reply.Error != nil {
		g.t.Fatalf("%v, %v", reply, err)
	}
	return reply
}

// deadline is that of the transaction that awaits its confirmation; of one that has ended meanwhile, now.
func (g *cautious) deadline() journal.Deadline {
	g.calls.confirms.mu.Lock()
	defer g.calls.confirms.mu.Unlock()
	if p := g.calls.confirms.open; p != nil {
		return p.until
	}
	return g.journal.Within(0)
}

// settled waits until a transaction has ended, and returns what is stored of it.
func (g *cautious) settled(id string) *pb.RunScriptResponse {
	g.t.Helper()
	for until := time.Now().Add(hangs); ; time.Sleep(time.Millisecond) {
		entry, err := g.journal.Stored(journal.Ref{ID: id})
		switch {
		case err == nil:
			return entry.Reply
		case !errors.Is(err, fs.ErrNotExist):
			g.t.Fatal(err)
		case time.Now().After(until):
			g.t.Fatal("the transaction does not end")
		}
	}
}

// What is confirmed stays, with what was to be done after the commit; what is taken back is as before. A second request of the
// same kind is answered as the first was, and the opposite is refused and told why.
func TestConfirm(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", time.Hour, journal.Action{Op: "test.undo", Args: &pb.PathArgs{Path: "/later"}, Target: "later"})
	if g.holds("/a", "new"); len(g.undone) > 0 {
		t.Error("it is done before the commit: ", g.undone)
	}
	reply := g.mustConfirm(id, confirmIt, 0, committed)
	if len(reply.AfterCommit) != 1 || len(g.undone) != 1 {
		t.Error(reply, g.undone)
	}
	if stored := g.settled(id); stored.Status != committed || len(stored.Changes) != 1 || len(stored.AfterCommit) != 1 || stored.ConfirmUntil != nil {
		t.Error(stored)
	}
	g.mustConfirm(id, confirmIt, 0, committed)
	if reply, err := g.confirm("port", id, undoIt, 0); err != nil || reply.Status != committed || !strings.Contains(reply.Error.GetMessage(), "committed already") {
		t.Error(reply, err)
	}
	g.holds("/a", "new")
	if len(g.undone) != 1 {
		t.Error("it is done twice: ", g.undone)
	}

	id = g.change("/b", time.Hour)
	g.mustConfirm(id, undoIt, 0, rolledBack)
	g.holds("/b", "")
	stored := g.settled(id)
	if stored.Status != rolledBack || stored.Error.GetKind() != "cancelled" || stored.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
		t.Error(stored)
	}
	g.mustConfirm(id, undoIt, 0, rolledBack)
	for _, action := range []pb.ConfirmAction{confirmIt, extendIt} {
		reply, err := g.confirm("port", id, action, 5)
		if err != nil || reply.Status != rolledBack || !strings.Contains(reply.Error.GetMessage(), "as a host asked") {
			t.Error(reply, err)
		}
	}
	g.free()
}

func TestConfirmMakesSense(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", time.Hour)
	for words, in := range map[string]*pb.ConfirmRequest{
		"no transaction is named":  {Action: confirmIt},
		"action 0 is none of":      {TransactionId: id},
		"action 9 is none of":      {TransactionId: id, Action: 9},
		"extend_seconds is 0":      {TransactionId: id, Action: extendIt},
		"extend_seconds is 999999": {TransactionId: id, Action: extendIt, ExtendSeconds: 999999},
		"no transaction other":     {TransactionId: "other", Action: confirmIt},
	} {
		if reply, err := g.confirm("port", in.TransactionId, in.Action, in.ExtendSeconds); err == nil || !strings.Contains(err.Error(), words) {
			t.Error(words, reply, err)
		}
	}
	// Another port sees nothing of it, also when it has ended.
	for range 2 {
		if _, err := g.confirm("another", id, confirmIt, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if g.is("/a") == "new" {
			g.mustConfirm(id, undoIt, 0, rolledBack)
		}
	}
	for _, within := range []time.Duration{0, -1, MaxConfirm + 1} {
		if err := CheckConfirm(within); !errors.Is(err, fs.ErrInvalid) {
			t.Error(within, err)
		}
	}
}

// Without a confirmation all is taken back by itself, the agent and the host are told, and a late confirmation is refused and
// told why.
func TestUnconfirmed(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", 50*time.Millisecond)
	if stored := g.settled(id); stored.Status != rolledBack || stored.Error.GetKind() != "timeout" || stored.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
		t.Error(stored)
	}
	g.holds("/a", "")
	reply, err := g.confirm("port", id, confirmIt, 0)
	if err != nil || reply.Status != rolledBack || reply.Error.GetKind() != "timeout" || !strings.Contains(reply.Error.Message, "no confirmation came in time") {
		t.Error(reply, err)
	}
	g.calls.Close() // all that is told was told
	if len(g.notices) != 1 || g.notices[0].Details["transaction_id"] != id || !strings.Contains(g.notices[0].Message, "no confirmation came") {
		t.Error(g.notices)
	}
}

// The time can be extended, and is not made shorter by that.
func TestExtend(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", time.Minute)
	if reply := g.mustConfirm(id, extendIt, 3600, awaits); reply.RemainingMs < 3590_000 || reply.RemainingMs > 3600_000 || reply.ConfirmUntil == nil {
		t.Error(reply)
	}
	if reply := g.mustConfirm(id, extendIt, 1, awaits); reply.RemainingMs < 3580_000 {
		t.Error(reply)
	}
	g.ahead.Add(int64(30 * time.Minute))
	g.mustConfirm(id, confirmIt, 0, committed)
	g.holds("/a", "new")
}

// While a transaction awaits its confirmation, others are refused at once, also those that waited for its script; so is a
// change of what it changed. All else is served.
func TestOthersMeanwhile(t *testing.T) {
	g := newCautious(t)
	tx, err := g.journal.Begin(t.Context(), journal.Header{Port: "port"})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := g.journal.Begin(context.Background(), journal.Header{})
		waiting <- err
	}()
	if err := tx.Before(t.Context(), "/a"); err != nil {
		t.Fatal(err)
	}
	if err := g.calls.Keep(t.Context(), Await{Tx: tx, Reply: &pb.RunScriptResponse{}, Within: time.Hour}); err != nil {
		t.Fatal(err)
	}
	errs := map[string]error{"what waited": <-waiting}
	_, errs["a transaction"] = g.journal.Begin(context.Background(), journal.Header{})
	_, errs["a lock"] = g.journal.Lock(context.Background())
	errs["a native row with a transaction"] = g.native(t.Context(), "/b")
	errs["a native change of the same"] = g.execute(t.Context(), &pb.FileDeleteRequest{Path: "/a"})
	for what, err := range errs {
		if !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), tx.ID()) {
			t.Error(what, err)
		}
	}
	if err := g.execute(t.Context(), &pb.FileStatRequest{Path: "/a"}); err != nil {
		t.Error(err)
	}
	open := g.journal.Status().Open
	if open.GetPhase() != "awaiting_confirm" || open.Status != awaits || open.ConfirmRemainingMs < 3590_000 || open.ConfirmUntil == nil {
		t.Error(open)
	}
	g.mustConfirm(tx.ID(), undoIt, 0, rolledBack)
	if err := g.native(t.Context(), "/b"); err != nil {
		t.Error(err)
	}
}

// A new process of the agent keeps the deadline, which does not depend on the time of day; one that starts after it takes all
// back at once; another boot does so at any time. What is to be done after the commit is not forgotten.
func TestConfirmAcrossRestarts(t *testing.T) {
	t.Run("confirmed", func(t *testing.T) {
		g := newCautious(t)
		id := g.change("/a", time.Hour, journal.Action{Op: "test.undo", Args: &pb.PathArgs{Path: "/later"}})
		g.end()
		g.ahead.Store(int64(59 * time.Minute))
		g.start()
		g.holds("/a", "new")
		if left := g.journal.Status().Open.GetConfirmRemainingMs(); left < 30_000 || left > 60_000 {
			t.Errorf("%d ms are left", left)
		}
		if _, err := g.journal.Begin(t.Context(), journal.Header{}); !errors.Is(err, fault.ErrBusy) {
			t.Error(err)
		}
		if _, err := g.confirm("another", id, confirmIt, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		g.mustConfirm(id, confirmIt, 0, committed)
		if stored := g.settled(id); stored.Status != committed || len(stored.Changes) != 1 || len(g.undone) != 1 {
			t.Error(stored, g.undone)
		}
		g.holds("/a", "new")
		g.free()
	})
	t.Run("extended before", func(t *testing.T) {
		g := newCautious(t)
		id := g.change("/a", time.Minute)
		g.mustConfirm(id, extendIt, 7200, awaits)
		g.end()
		g.ahead.Store(int64(time.Hour))
		g.start()
		g.mustConfirm(id, confirmIt, 0, committed)
	})
	t.Run("too late", func(t *testing.T) {
		g := newCautious(t)
		id := g.change("/a", time.Hour)
		g.end()
		g.ahead.Store(int64(time.Hour))
		g.start()
		stored := g.settled(id)
		if stored.Status != rolledBack || stored.Error.GetKind() != "timeout" || stored.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
			t.Error(stored)
		}
		g.holds("/a", "")
		g.free()
	})
	for _, boot := range []string{"another", ""} { // not known: it may be another
		t.Run("boot "+boot, func(t *testing.T) {
			g := newCautious(t)
			id := g.change("/a", time.Hour)
			g.end()
			g.boot = boot
			g.start()
			stored := g.settled(id)
			if stored.Status != rolledBack || stored.Error.GetKind() != "interrupted" || !strings.Contains(stored.Error.Message, "booted again before the confirmation") ||
				stored.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
				t.Error(stored)
			}
			g.holds("/a", "")
			reply, err := g.confirm("port", id, confirmIt, 0)
			if err != nil || reply.Status != rolledBack || !strings.Contains(reply.Error.GetMessage(), "booted again") {
				t.Error(reply, err)
			}
			g.free()
		})
	}
}

// A commit that cannot be stored is none: all is taken back, and that is told.
func TestConfirmWithoutDisk(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", time.Hour)
	g.step = func(name string) error {
		if strings.HasPrefix(name, "log.") {
			return syscall.EIO
		}
		return nil
	}
	reply, err := g.confirm("port", id, confirmIt, 0)
	if err != nil || reply.Status == committed || !strings.Contains(reply.Error.GetMessage(), "the undo journal failed") {
		t.Fatal(reply, err)
	}
	g.holds("/a", "")
	g.end()
	g.step = nil
	g.start()
	g.holds("/a", "")
	g.free()
}

// Whatever comes first, the confirmation or the deadline: what the host is told is what is there, and what is stored.
func TestConfirmRacesWithDeadline(t *testing.T) {
	g := newCautious(t)
	outcomes := map[pb.ScriptStatus]int{}
	for round := range 150 {
		id := g.change("/a", 20*time.Millisecond)
		until := g.deadline()
		early := time.Duration(round%30-5) * 10 * time.Microsecond // before the deadline
		var wg sync.WaitGroup
		replies := make([]*pb.ConfirmResponse, 2)
		for i := range replies {
			wg.Go(func() {
				for g.journal.Remaining(until) > early {
				}
				var err error
				in := &pb.ConfirmRequest{TransactionId: id, Action: confirmIt}
				if replies[i], err = g.calls.confirm(context.Background(), &builtins.Call{}, in); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		stored := g.settled(id)
		outcomes[stored.Status]++
		want := map[pb.ScriptStatus]string{committed: "new", rolledBack: ""}[stored.Status]
		if g.holds("/a", want); t.Failed() {
			t.Fatal(stored)
		}
		for _, reply := range replies {
			if reply.Status != stored.Status || (reply.Error == nil) != (stored.Status == committed) {
				t.Fatal(reply, stored)
			}
		}
		if stored.Status == committed {
			if err := os.Remove(filepath.Join(g.dir, "a")); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Log(outcomes)
	if outcomes[rolledBack] == 0 {
		t.Error("it was never late")
	}
}

// A native row with a transaction of its own may ask for a confirmation: it is told the id and the deadline for its reply.
func TestNativeRowAwaitsConfirmation(t *testing.T) {
	g := newCautious(t)
	var id string
	var until time.Time
	told := func(i string, u time.Time) { id, until = i, u }
	g.then = func(_ context.Context, call *builtins.Call) error {
		if err := call.Confirm(MaxConfirm+1, told); !errors.Is(err, fs.ErrInvalid) {
			t.Error(err)
		}
		return call.Confirm(time.Hour, told)
	}
	if err := g.native(t.Context(), "/a"); err != nil {
		t.Fatal(err)
	}
	if id == "" || time.Until(until) < 59*time.Minute {
		t.Fatal(id, until)
	}
	g.holds("/a", "new")
	g.mustConfirm(id, undoIt, 0, rolledBack)
	g.holds("/a", "")
	if stored := g.settled(id); stored.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
		t.Error(stored)
	}
	g.then = nil
	g.do = func(_ context.Context, call *builtins.Call, _ string) error { return call.Confirm(time.Hour, told) }
	id = ""
	if err := g.native(t.Context(), "/a"); err != nil || id != "" || g.journal.Awaiting() != nil {
		t.Error(err, "what changed nothing awaits a confirmation: ", id)
	}
	g.do = g.guest.change
	g.fail = syscall.EIO // a row that fails is taken back at once
	if err := g.native(t.Context(), "/a"); !errors.Is(err, syscall.EIO) || g.journal.Awaiting() != nil {
		t.Error(err)
	}
	g.holds("/a", "")
}

// The audit says what came of a request to confirm.
func TestConfirmIsAudited(t *testing.T) {
	g := newCautious(t)
	id := g.change("/a", time.Hour)
	g.entries = nil
	g.mustConfirm(id, confirmIt, 0, committed)
	if e := g.last(); e.Operation != "confirm" || e.Outcome != "ok" || len(e.Objects) != 1 || e.Objects[0] != "transaction:"+id {
		t.Errorf("%+v", e)
	}
	if _, err := g.confirm("port", id, undoIt, 0); err != nil {
		t.Fatal(err)
	}
	if e := g.last(); e.Outcome != "params" {
		t.Errorf("%+v", e)
	}
	if reply := g.calls.Native(&pb.ConfirmRequest{}).ErrorReply(fault.ErrBusy); !proto.Equal(reply, &pb.ConfirmResponse{Error: &pb.ScriptError{Kind: "busy", Message: "busy", Code: "busy"}}) {
		t.Error(reply)
	}
}
