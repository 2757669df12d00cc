package call

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is a kit whose rows change files of a scratch tree, with a journal.
type guest struct {
	*kit
	dir, state string
	files      *fsys.Root
	journal    *journal.Journal
	step       func(name string) error // is called before each action on the disk
	undone     []string                // by test.undo
	fail       error                   // of a row, after it changed the file
	then       func(ctx context.Context, call *builtins.Call) error
}

// hangs is longer than anything here takes.
const hangs = 20 * time.Second

func newGuest(t *testing.T) *guest {
	g := &guest{kit: newKit(t), dir: t.TempDir(), state: filepath.Join(t.TempDir(), "tx")}
	var err error
	if g.files, err = fsys.Open(g.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.files.Close() })
	g.config.Files = g.files
	g.do = g.change
	g.open()
	t.Cleanup(func() { g.journal.Close() })
	return g
}

// open opens the journal, as a new agent does.
func (g *guest) open() {
	g.t.Helper()
	inverses := New(g.config)
	var err error
	g.journal, err = journal.Open(journal.Config{
		Dir: g.state, Root: g.files, Run: inverses.Undo,
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
	g.calls = inverses.WithJournal(g.journal, g.config.Table)
}

// change is what each row does: it makes a file hold "new", or appends "+" where it is new already.
func (g *guest) change(ctx context.Context, call *builtins.Call, path string) error {
	if call.Undo {
		g.undone = append(g.undone, path)
		return nil
	}
	if err := call.Before(ctx, path); err != nil {
		return err
	}
	content := "new"
	if g.is(path) == "new" {
		content = "new+"
	}
	if err := os.WriteFile(filepath.Join(g.dir, path), []byte(content), 0o644); err != nil {
		return err
	}
	call.ReportApplied(&pb.Change{Op: "test", Target: path, Action: "modified"})
	if g.then != nil {
		if err := g.then(ctx, call); err != nil {
			return err
		}
	}
	return g.fail
}

func (g *guest) is(path string) string {
	content, _ := os.ReadFile(filepath.Join(g.dir, path))
	return string(content)
}

func (g *guest) holds(path, want string) {
	g.t.Helper()
	if got := g.is(path); got != want {
		g.t.Errorf("%s holds %q, want %q", path, got, want)
	}
}

// native runs the row that has a transaction of its own.
func (g *guest) native(ctx context.Context, path string) error {
	return g.execute(ctx, &pb.CreateDirectoryRequest{Path: path})
}

// stored returns what the journal says of the last transaction.
func (g *guest) stored() *pb.RunScriptResponse {
	g.t.Helper()
	list, _, err := g.journal.List("", 10, func(string) bool { return true })
	if err != nil || len(list) == 0 {
		g.t.Fatal("no transaction is stored: ", err)
	}
	entry, err := g.journal.Stored(journal.Ref{ID: list[0].TransactionId})
	if err != nil {
		g.t.Fatal(err)
	}
	return entry.Reply
}

// free says that another transaction can begin.
func (g *guest) free() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), hangs)
	defer cancel()
	tx, err := g.journal.Begin(ctx, journal.Header{})
	if err != nil {
		g.t.Fatal("the writer's right was not given back: ", err)
	}
	if err := tx.Close(ctx, nil); err != nil {
		g.t.Error(err)
	}
}

// run begins a run of a script with a transaction.
func (g *guest) run() (*Run, *journal.Tx) {
	g.t.Helper()
	tx, err := g.journal.Begin(g.t.Context(), journal.Header{})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = tx.Close(context.Background(), nil) })
	return g.calls.Begin(RunConfig{Call: &builtins.Call{ID: "id"}, Tx: tx}), tx
}

func (g *guest) call(run *Run, name, path string) error {
	g.t.Helper()
	_, _, err := run.Call(g.t.Context(), name, request(path))
	return err
}

// A request that changes nothing that a journal keeps has no transaction, and does not wait for one.
func TestABareRequestHasNoTransaction(t *testing.T) {
	g := newGuest(t)
	bare := true
	g.then = func(_ context.Context, call *builtins.Call) error {
		bare = bare && call.Tx == nil
		return nil
	}
	if _, tx := g.run(); tx == nil {
		t.Fatal("no transaction is open")
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	if err := g.native(ctx, "/bare"); err != nil || !bare {
		t.Error(bare, err)
	}
}

func TestANativeTransactionCommits(t *testing.T) {
	g := newGuest(t)
	if err := g.native(t.Context(), "/x"); err != nil {
		t.Fatal(err)
	}
	g.holds("/x", "new")
	reply, e := g.stored(), g.last()
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Script.GetName() != "create_directory" || len(reply.Changes) != 1 ||
		reply.Changes[0].Target != "/x" || !reply.Changes[0].Reversible || reply.Stats.GetCalls() != 1 || reply.Error != nil {
		t.Errorf("stored is %v", reply)
	}
	if e.Transaction == "" || e.Transaction != reply.TransactionId || e.Outcome != "ok" {
		t.Errorf("the audit has %+v", e)
	}
	if id, owned := g.journal.Owns("/x"); owned {
		t.Errorf("transaction %s is open still", id)
	}
	g.free()
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	g.open() // and nothing of it is to be taken back
	if found, err := g.journal.Recover(t.Context(), nil); err != nil || len(found) > 0 {
		t.Error(found, err)
	}
	g.holds("/x", "new")
}

func TestANativeTransactionFails(t *testing.T) {
	g := newGuest(t)
	for name, c := range map[string]struct {
		fail  error
		then  func(context.Context, *builtins.Call) error
		cause error
		words string
	}{
		"error": {fail: fault.On("/x", fs.ErrPermission), cause: fs.ErrPermission, words: "create_directory /x: permission denied"},
		"panic": {then: func(context.Context, *builtins.Call) error { panic("oops") }, cause: fault.ErrInternal, words: "create_directory: internal error: oops"},
		"inverse": {then: func(ctx context.Context, call *builtins.Call) error {
			if err := call.Tx.Undo(ctx, "test.undo", &pb.PathArgs{Path: "/of " + call.ID}); err != nil {
				return err
			}
			return fs.ErrExist
		}, cause: fs.ErrExist, words: "create_directory: file already exists"},
		"another inverse": {then: func(ctx context.Context, call *builtins.Call) error {
			return call.Tx.Undo(ctx, "test.change", &pb.PathArgs{})
		}, cause: fault.ErrInternal, words: "the inverse test.change is not the one that create_directory declares"},
		"no inverse": {then: func(ctx context.Context, call *builtins.Call) error {
			return call.Tx.Undo(ctx, "", &pb.PathArgs{})
		}, cause: fault.ErrInternal, words: "is not the one that create_directory declares"},
	} {
		t.Run(name, func(t *testing.T) {
			g.undone, g.fail, g.then = nil, c.fail, c.then
			if err := os.WriteFile(filepath.Join(g.dir, "x"), []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			err := g.native(t.Context(), "/x")
			if !errors.Is(err, c.cause) || !strings.Contains(err.Error(), c.words) {
				t.Error(err)
			}
			g.holds("/x", "old")
			reply, e := g.stored(), g.entries[len(g.entries)-1] // before it there may be the inverse
			if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.Error.GetCode() != fault.Code(c.cause) || len(reply.NotUndone) > 0 ||
				len(reply.Changes) != 1 || reply.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNDONE {
				t.Errorf("stored is %v", reply)
			}
			if e.Outcome != fault.Code(c.cause) || e.Transaction != reply.TransactionId || e.Cause != "" {
				t.Errorf("the audit has %+v", e)
			}
			if (name == "inverse") != slices.Equal(g.undone, []string{"/of id"}) {
				t.Errorf("%q was undone", g.undone)
			}
			g.entries = nil
			g.free()
		})
	}
}

// What cannot be taken back is said with the cause, and stored.
func TestANativeTransactionThatIsNotTakenBackWhole(t *testing.T) {
	g := newGuest(t)
	g.fail = fs.ErrExist
	g.then = func(ctx context.Context, call *builtins.Call) error {
		return call.Tx.Irreversible(ctx, &pb.Change{Op: "create_directory", Target: "mail", Action: "sent"})
	}
	err := g.native(t.Context(), "/x")
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "was not taken back: create_directory mail") {
		t.Error(err)
	}
	if reply := g.stored(); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || len(reply.NotUndone) != 1 {
		t.Errorf("stored is %v", reply)
	}
	g.holds("/x", "")
	g.free()
}

// Whoever asked may go: the transaction ends all the same, and well.
func TestANativeTransactionIsCancelled(t *testing.T) {
	g := newGuest(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	g.then = func(context.Context, *builtins.Call) error {
		cancel(fault.Wrapf(context.Canceled, "the host went"))
		return nil
	}
	if err := g.native(ctx, "/x"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the host went") {
		t.Error(err)
	}
	g.holds("/x", "")
	if reply := g.stored(); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("stored is %v", reply)
	}
	g.free()
}

func TestANativeTransactionWaitsForTheOpenOne(t *testing.T) {
	g := newGuest(t)
	run, tx := g.run()
	if err := g.call(run, "test.change", "/x"); err != nil {
		t.Fatal(err)
	}
	g.entries = nil
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.native(short, "/x"); !errors.Is(err, fault.ErrBusy) || len(g.ran) != 1 {
		t.Errorf("%v; %q ran", err, g.ran)
	}
	if e := g.last(); e.Outcome != "busy" || e.Transaction != "" {
		t.Errorf("%+v", e)
	}
	g.holds("/x", "new")
	done := make(chan error)
	go func() { done <- g.native(context.WithoutCancel(t.Context()), "/x") }()
	select {
	case err := <-done:
		t.Fatal("it did not wait: ", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	g.holds("/x", "new") // and not new+: the open one was taken back before
}

func TestAfterACommit(t *testing.T) {
	g := newGuest(t)
	after := func(path string) builtins.Action {
		return builtins.Action{Op: "test.undo", Args: &pb.PathArgs{Path: path}, Target: path}
	}
	g.then = func(_ context.Context, call *builtins.Call) error {
		if len(g.undone) > 0 {
			t.Error("it came before the commit")
		}
		return call.AfterCommit(after("/after"))
	}
	if err := g.native(t.Context(), "/x"); err != nil || !slices.Equal(g.undone, []string{"/after"}) {
		t.Errorf("%q was done, error %v", g.undone, err)
	}
	if reply := g.stored(); len(reply.AfterCommit) != 1 || reply.AfterCommit[0].Target != "/after" {
		t.Errorf("stored is %v", reply)
	}
	g.undone, g.fail = nil, fs.ErrExist
	if err := g.native(t.Context(), "/x"); !errors.Is(err, fs.ErrExist) || len(g.undone) > 0 {
		t.Errorf("of a transaction that failed %q was done, error %v", g.undone, err)
	}
	g.fail = nil
	for _, wrong := range []builtins.Action{{}, {Op: "test.undo"}, {Op: "test.nothing", Args: &pb.PathArgs{}}, {Op: "test.undo", Args: &pb.RunArgs{}}} {
		g.then = func(_ context.Context, call *builtins.Call) error { return call.AfterCommit(wrong) }
		if err := g.native(t.Context(), "/y"); !errors.Is(err, fault.ErrInternal) {
			t.Errorf("%v: %v", wrong, err)
		}
		g.holds("/y", "")
	}
	// In a script: of calls that succeeded, and of what is left of those that may leave something.
	g.undone = nil
	run, tx := g.run()
	for name, fail := range map[string]error{"test.change": nil, "test.foretold": fs.ErrExist, "test.part": fs.ErrExist} {
		g.fail = fail
		g.then = func(_ context.Context, call *builtins.Call) error { return call.AfterCommit(after(name)) }
		_ = g.call(run, name, "/z")
	}
	var names []string
	for _, a := range run.After() {
		names = append(names, a.Target)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"test.change", "test.part"}) {
		t.Error(names)
	}
	if err := tx.Close(t.Context(), nil); err != nil || len(g.undone) > 0 {
		t.Errorf("%q was done, error %v", g.undone, err)
	}
}

// An agent that dies between the commit and what comes after it leaves that to the next.
func TestRecoveryDoesWhatComesAfterACommit(t *testing.T) {
	g := newGuest(t)
	g.then = func(_ context.Context, call *builtins.Call) error {
		return call.AfterCommit(builtins.Action{Op: "test.undo", Args: &pb.PathArgs{Path: "/after"}})
	}
	g.step = func(name string) error {
		if name == "after.run" {
			panic("the agent dies")
		}
		return nil
	}
	if err := g.native(t.Context(), "/x"); !errors.Is(err, fault.ErrInternal) || len(g.undone) > 0 {
		t.Errorf("%v; %q was done", err, g.undone)
	}
	g.step = nil
	g.holds("/x", "new") // it has committed
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	g.open()
	found, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(found) != 1 || found[0].Err != nil || !slices.Equal(g.undone, []string{"/after"}) {
		t.Errorf("found %v, error %v, %q was done", found, err, g.undone)
	}
	g.holds("/x", "new")
	if reply := g.stored(); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Script.GetName() != "create_directory" {
		t.Errorf("stored is %v", reply)
	}
	g.free()
}

// A panic beside the operation, in the middle of the end, must not leave the writer's right to nobody.
func TestAPanicAtTheEndGivesTheRightBack(t *testing.T) {
	g := newGuest(t)
	g.step = func(name string) error {
		if strings.HasPrefix(name, "commit.") {
			g.step = nil
			panic("in the commit")
		}
		return nil
	}
	if err := g.native(t.Context(), "/x"); !errors.Is(err, fault.ErrInternal) {
		t.Error(err)
	}
	g.free()
	g.holds("/x", "")
}

// A call of a script that fails is taken back before the script sees it; what it did before stays.
func TestAFailingCallIsTakenBack(t *testing.T) {
	g := newGuest(t)
	run, tx := g.run()
	if err := g.call(run, "test.change", "/x"); err != nil {
		t.Fatal(err)
	}
	if e := g.last(); e.Transaction != tx.ID() {
		t.Errorf("%+v", e)
	}
	g.fail = fs.ErrExist
	if err := g.call(run, "test.change", "/x"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	g.holds("/x", "new")
	if changes := run.Changes(); len(changes) != 1 {
		t.Error(changes)
	}
	g.then = func(context.Context, *builtins.Call) error { panic("oops") }
	if err := g.call(run, "test.change", "/x"); !errors.Is(err, fault.ErrInternal) {
		t.Error(err)
	}
	g.holds("/x", "new")
	g.then = nil
	if err := g.call(run, "test.part", "/x"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	g.holds("/x", "new+")
	if changes := run.Changes(); len(changes) != 2 {
		t.Error(changes)
	}
	report := tx.Rollback(t.Context())
	if left := run.Undone(report); len(left) > 0 || report.Err != nil {
		t.Error(left, report)
	}
	for _, c := range run.Changes() {
		if c.State != pb.ChangeState_CHANGE_STATE_UNDONE {
			t.Error(c)
		}
	}
	g.holds("/x", "")
}

// Once the journal has failed nothing more is changed, whatever a script catches.
func TestAFailedJournalIsTheEnd(t *testing.T) {
	g := newGuest(t)
	run, tx := g.run()
	broken := errors.New("the disk is gone")
	g.step = func(name string) error {
		if strings.HasPrefix(name, "begin.") {
			return broken
		}
		return nil
	}
	if err := g.call(run, "test.change", "/x"); !errors.Is(err, broken) {
		t.Error(err)
	}
	g.step = nil
	ran := len(g.ran)
	if err := g.call(run, "test.part", "/x"); !errors.Is(err, fault.ErrInternal) || !strings.Contains(err.Error(), "the undo journal has failed") || len(g.ran) != ran {
		t.Errorf("%v; %q", err, g.ran)
	}
	if !errors.Is(tx.Err(), broken) {
		t.Error(tx.Err())
	}
	g.holds("/x", "")
}

// The inverse that a row does not declare would not be found by a recovery.
func TestAnUndeclaredInverseIsRefused(t *testing.T) {
	g := newGuest(t)
	run, _ := g.run()
	g.then = func(ctx context.Context, call *builtins.Call) error {
		return call.Tx.Undo(ctx, "test.undo", &pb.PathArgs{Path: "/back"})
	}
	if err := g.call(run, "test.foretold", "/x"); !errors.Is(err, fault.ErrInternal) {
		t.Error(err)
	}
	g.holds("/x", "")
	if err := g.call(run, "test.change", "/x"); err != nil {
		t.Error(err)
	}
}

// Secrets stay out of what the journal keeps for people.
func TestIrreversibleHidesSecrets(t *testing.T) {
	g := newGuest(t)
	tx, err := g.journal.Begin(t.Context(), journal.Header{})
	if err != nil {
		t.Fatal(err)
	}
	run := g.calls.Begin(RunConfig{Call: &builtins.Call{}, Tx: tx, Hide: func(s string) string { return strings.ReplaceAll(s, "s3cret", "[secret]") }})
	told := &pb.Change{Op: "test.change", Target: "mail s3cret"}
	g.then = func(ctx context.Context, call *builtins.Call) error { return call.Tx.Irreversible(ctx, told) }
	if err := g.call(run, "test.change", "/x"); err != nil {
		t.Fatal(err)
	}
	list := tx.Rollback(t.Context()).NotUndone()
	if len(list) != 1 || list[0].Target != "mail [secret]" || told.Target != "mail s3cret" {
		t.Error(list, told)
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// What an open transaction keeps is not changed beside it: it would be lost, or in its way.
func TestKeptObjectsAreNotChangedBesideTheTransaction(t *testing.T) {
	g := newGuest(t)
	if err := os.Mkdir(filepath.Join(g.dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	run, tx := g.run()
	if err := g.call(run, "test.change", "/d/x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d", filepath.Join(g.dir, "l")); err != nil {
		t.Fatal(err)
	}
	g.entries = nil
	for _, path := range []string{"/d/x", "/d", "/l/x", "/d/../d/x"} {
		err := g.execute(t.Context(), &pb.FileDeleteRequest{Path: path})
		detail := fault.Detail(err)
		if !errors.Is(err, fault.ErrBusy) || detail.GetDetails()["transaction_id"] != tx.ID() || detail.Op != "file_delete" {
			t.Errorf("%s: %v, %v", path, err, detail)
		}
		if e := g.last(); e.Outcome != "busy" || !strings.Contains(e.Cause, tx.ID()) || e.Transaction != "" {
			t.Errorf("%s: %+v", path, e)
		}
	}
	g.then = nil
	if err := g.execute(t.Context(), &pb.FileDeleteRequest{Path: "/other"}); err != nil {
		t.Error(err)
	}
	g.do = func(context.Context, *builtins.Call, string) error { return nil }
	if err := g.execute(t.Context(), &pb.FileStatRequest{Path: "/d/x"}); err != nil {
		t.Errorf("a look is refused: %v", err)
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := g.execute(t.Context(), &pb.FileDeleteRequest{Path: "/d/x"}); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// Without files no rule is about paths.
func TestAnExecutorWithoutFiles(t *testing.T) {
	g := newGuest(t)
	g.config.Files = nil
	g.calls = New(g.config).WithJournal(g.journal, g.config.Table)
	if err := g.execute(t.Context(), &pb.FileDeleteRequest{Path: "/x"}); err != nil {
		t.Error(err)
	}
}

// A dry run changes an overlay, and the audit says that nothing else was.
func TestADryRun(t *testing.T) {
	g := newGuest(t)
	over, err := g.files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	dry := &builtins.DryRun{Files: over}
	run := g.calls.Begin(RunConfig{Call: &builtins.Call{}, DryRun: dry})
	g.do = func(_ context.Context, call *builtins.Call, path string) error {
		at, err := call.DryRun.Files.At(path)
		if err != nil {
			return err
		}
		defer at.Close()
		staged, err := at.Stage()
		if err != nil {
			return err
		}
		if _, err = staged.File.WriteString("foretold"); err == nil {
			err = staged.Commit(fsys.Attr{}, false)
		}
		call.ReportApplied(&pb.Change{Target: path})
		return errors.Join(err, g.fail)
	}
	if err := g.call(run, "test.foretold", "/x"); err != nil {
		t.Fatal(err)
	}
	if content, err := over.ReadFile("/x", 100); err != nil || string(content) != "foretold" {
		t.Errorf("%q, %v", content, err)
	}
	if _, err := os.Lstat(filepath.Join(g.dir, "x")); !errors.Is(err, fs.ErrNotExist) || !dry.Changed {
		t.Error("the guest was changed, or nothing: ", err)
	}
	if e := g.last(); !e.DryRun || e.Outcome != "ok" || e.Transaction != "" {
		t.Errorf("%+v", e)
	}
	g.fail = fs.ErrExist
	if err := g.call(run, "test.foretold", "/x"); !errors.Is(err, fs.ErrExist) || len(run.Changes()) != 1 {
		t.Errorf("a call that fails left %v, error %v", run.Changes(), err)
	}
	if err := g.call(run, "test.part", "/x"); !errors.Is(err, fs.ErrExist) || len(run.Changes()) != 2 {
		t.Errorf("a call that may leave something left %v, error %v", run.Changes(), err)
	}
	g.entries, g.ran = nil, nil
	for range 2 { // the second time because the first ended it
		if err := g.call(run, "test.change", "/x"); !errors.Is(err, fault.ErrRefused) {
			t.Error(err)
		}
		if e := g.last(); !e.DryRun || e.Outcome != "refused" || e.Cause == "" {
			t.Errorf("%+v", e)
		}
	}
	if err := g.call(run, "test.look", "/x"); !errors.Is(err, dry.Ended) {
		t.Error(err)
	}
	changes := run.Changes()
	if last := changes[len(changes)-1]; len(changes) != 3 || last.State != pb.ChangeState_CHANGE_STATE_UNKNOWN || last.Op != "test.change" || len(g.ran) > 0 {
		t.Errorf("%v; %q ran", changes, g.ran)
	}
}
