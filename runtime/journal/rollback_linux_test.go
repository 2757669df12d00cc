package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// abandonTx leaves an open transaction behind as an agent that dies does. do makes its changes.
func abandonTx(t *testing.T, p testDirs, change func(*Config), do func(g *guest, tx *Tx)) {
	t.Helper()
	g, err := openGuest(p, change)
	if err != nil {
		t.Fatal(err)
	}
	tx := g.begin(t)
	do(g, tx)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
}

func mustPopulate(t *testing.T, p testDirs) map[string]string {
	t.Helper()
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	return mustDescribeTree(t, p.files)
}

// anyPort has what any port began.
func anyPort(string) bool { return true }

// What somebody else made of an object meanwhile is kept under a conflict name; a mere change of time or mode is not.
func TestConflict(t *testing.T) {
	for name, recovery := range map[string]bool{"live": false, "recovery": true} {
		t.Run(name, func(t *testing.T) {
			p := newTestDirs(t)
			before := mustPopulate(t, p)
			g, err := openGuest(p, nil)
			if err != nil {
				t.Fatal(err)
			}
			tx := g.begin(t)
			for _, c := range sampleCalls()[:8] {
				g.mustCall(t, tx, c.op, c.in)
			}
			tx.Mark()
			g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/etc/later"}) // so that what the last call left is on disk, too
			theirs := map[string]string{"etc/small": "replaced by others", "etc/two": "in place by others", "etc/new/er/theirs": "in our directory"}
			for name, content := range theirs {
				path := filepath.Join(p.files, name)
				if name == "etc/small" {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var report Report
			if recovery {
				if err := g.close(); err != nil {
					t.Fatal(err)
				}
				g = newGuest(t, p, nil)
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				report = list[0].Report
			} else {
				defer g.close()
				report = tx.Rollback(t.Context())
			}
			if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) < len(theirs) {
				t.Fatalf("%+v", report)
			}
			for _, path := range report.Conflicts() {
				if _, err := os.Lstat(filepath.Join(p.files, path)); err != nil {
					t.Errorf("a conflict that is not there: %v", err)
				}
				if !strings.Contains(report.Hint(), path) {
					t.Errorf("%s is not in %q", path, report.Hint())
				}
			}
			now := mustDescribeTree(t, p.files)
			kept := 0
			for name := range now {
				if !strings.Contains(name, ".quantix-conflict-") {
					continue
				}
				delete(now, name)
				if data, err := os.ReadFile(filepath.Join(p.files, name)); err == nil {
					kept++
					found := false
					for _, content := range theirs {
						found = found || string(data) == content
					}
					if !found {
						t.Errorf("%s holds %q", name, data)
					}
				}
			}
			if d := differences(before, now); d != "" || kept != len(theirs) {
				t.Errorf("%d kept\n%s", kept, d)
			}
		})
	}
}

// An object that the transaction did not change keeps what others made of it.
func TestUntouchedIsNoConflict(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	if err := tx.Before(t.Context(), "/etc/small"); err != nil {
		t.Fatal(err)
	}
	tx.Mark()
	path := filepath.Join(p.files, "etc/small")
	if err := os.WriteFile(path, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	report := tx.Rollback(t.Context())
	if data, _ := os.ReadFile(path); string(data) != "theirs" || len(report.Conflicts()) > 0 {
		t.Errorf("%q, %+v", data, report)
	}
}

// Attributes that the transaction did not change keep what others made of them. Those that it changed are restored, and
// the report names what others had set.
func TestAttributesOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changes owners: run as root")
	}
	p := newTestDirs(t)
	mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	if err := tx.Before(t.Context(), "/etc/app.d"); err != nil {
		t.Fatal(err)
	}
	tx.Mark()
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("ours")})
	g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0700"})
	g.mustCall(t, tx, "file.symlink", &pb.SymlinkArgs{Path: "/etc/link", Target: "large"})
	tx.Mark()
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	err := errors.Join(os.Chmod(at("app.d"), 0o700), os.Chown(at("app.d"), 1, 1), os.Chmod(at("small"), 0o600),
		os.Chown(at("program"), 1, 1), os.Chmod(at("program"), 0o711), os.Lchown(at("link"), 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(report.Hint(), "mode 0711 of /etc/program") {
		t.Errorf("%+v, %s", report, report.Hint())
	}
	now := mustDescribeTree(t, p.files)
	for name, want := range map[string]string{
		"app.d": "mode 40700 owner 1:1", "small": "mode 100600 owner 1234:4321", "program": "mode 100755 owner 1:1",
		"link": "mode 120777 owner 1:1",
	} {
		if !strings.HasPrefix(now["etc/"+name], want+" ") {
			t.Errorf("%s is %s, want %s", name, now["etc/"+name], want)
		}
	}
	if !strings.Contains(now["etc/small"], " 6 bytes") || !strings.Contains(now["etc/link"], " to small") {
		t.Error(now["etc/small"], now["etc/link"])
	}
}

// Inverses run in order with the other steps, newest first. One that fails is reported, and all else is undone.
func TestInverses(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	var order []string
	broken := errors.New("will not")
	run := func(c *Config) {
		c.Run = func(_ context.Context, op string, args proto.Message) (bool, error) {
			data, _ := os.ReadFile(filepath.Join(p.files, "etc/small"))
			order = append(order, op+" "+args.(*pb.PathArgs).Path+" "+strings.TrimSpace(string(data)))
			if op == "bad" {
				return false, broken
			}
			return false, nil
		}
	}
	g := newGuest(t, p, run)
	tx := g.begin(t)
	undo := func(op, path string) {
		t.Helper()
		if err := tx.Undo(t.Context(), op, &pb.PathArgs{Path: path}); err != nil {
			t.Fatal(err)
		}
	}
	undo("good", "1")
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("new")})
	undo("bad", "2")
	if err := tx.Irreversible(t.Context(), &pb.Change{Op: "exec.run", Target: "mkfs"}); err != nil {
		t.Fatal(err)
	}
	undo("good", "3")
	report := tx.Rollback(t.Context())
	if got := strings.Join(order, ", "); got != "good 3 new, bad 2 new, good 1 small" {
		t.Errorf("ran %s", got)
	}
	if list := report.NotUndone(); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED || len(list) != 2 ||
		list[0].Target != "mkfs" || list[1].Op != "bad" || !strings.Contains(list[1].Target, "will not") {
		t.Errorf("%v: %v", report.Status(), list)
	}
	checkTree(t, before, p.files)
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
		t.Fatal(err)
	}
	g.awaitCleaning(t)
	if kept, err := os.ReadDir(filepath.Join(p.state, "kept")); err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
}

// Actions run after the commit, and again in recovery if the agent died before Close; not those with SameBoot after a
// reboot.
func TestAfter(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	var ran []string
	run := func(c *Config) {
		c.Run = func(_ context.Context, op string, args proto.Message) (bool, error) {
			ran = append(ran, args.(*pb.PathArgs).Path)
			return false, nil
		}
	}
	actions := []Action{{Op: "do", Args: &pb.PathArgs{Path: "one"}, Target: "one"}, {Op: "do", Args: &pb.PathArgs{Path: "boot"}, SameBoot: true}}
	abandonTx(t, p, run, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("new")})
		if err := tx.Commit(t.Context(), committedReply(), actions...); err != nil {
			t.Fatal(err)
		}
		if done := tx.After(t.Context()); len(done) != 2 || done[0].Target != "one" {
			t.Errorf("%v", done)
		}
	})
	g := newGuest(t, p, func(c *Config) { run(c); c.BootID = func() string { return "another" } })
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || len(list[0].Entry.Reply.AfterCommit) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if got := strings.Join(ran, " "); got != "one boot one" {
		t.Errorf("ran %s", got)
	}
	if data, _ := os.ReadFile(filepath.Join(p.files, "etc/small")); string(data) != "new" {
		t.Errorf("%q", data)
	}
}

// A transaction that awaits its confirmation is reopened after a restart of the agent, and rolled back after a reboot.
func TestAwait(t *testing.T) {
	until := Deadline{Boottime: 42 * time.Second, Wall: time.Unix(1e9, 0).UTC()}
	wait := func(t *testing.T, p testDirs) {
		abandonTx(t, p, nil, func(g *guest, tx *Tx) {
			for _, c := range sampleCalls()[:5] {
				g.mustCall(t, tx, c.op, c.in)
			}
			if err := tx.Await(t.Context(), committedReply(), until); err != nil {
				t.Fatal(err)
			}
			if err := tx.Before(t.Context(), "/etc/small"); err == nil {
				t.Error("it can still be changed")
			}
		})
	}
	recovered := func(t *testing.T, p testDirs, boot string) (*guest, Recovered) {
		g := newGuest(t, p, func(c *Config) { c.BootID = func() string { return boot } })
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return g, list[0]
	}
	t.Run("another boot", func(t *testing.T) {
		p := newTestDirs(t)
		before := mustPopulate(t, p)
		wait(t, p)
		if _, r := recovered(t, p, "another"); r.Tx != nil {
			t.Error("still open")
		}
		checkTree(t, before, p.files)
	})
	t.Run("confirmed", func(t *testing.T) {
		p := newTestDirs(t)
		mustPopulate(t, p)
		wait(t, p)
		after := mustDescribeTree(t, p.files)
		g, r := recovered(t, p, "boot")
		if r.Tx == nil || r.Until != until {
			t.Fatalf("%+v", r)
		}
		if list, _, _ := g.journal.List("", 10, anyPort); len(list) != 1 || list[0].Phase != "awaiting_confirm" {
			t.Errorf("%v", list)
		}
		if err := errors.Join(r.Tx.Commit(t.Context(), committedReply()), r.Tx.Close(t.Context(), nil)); err != nil {
			t.Fatal(err)
		}
		checkTree(t, after, p.files)
		g.begin(t)
	})
	t.Run("rolled back", func(t *testing.T) {
		p := newTestDirs(t)
		before := mustPopulate(t, p)
		wait(t, p)
		_, r := recovered(t, p, "boot")
		if report := r.Tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%+v", report)
		}
		checkTree(t, before, p.files)
		if err := r.Tx.Close(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	})
}

// However often it gets more time, the journal of what awaits its confirmation does not hold the reply again, and the last deadline
// counts after a restart.
func TestMoreTime(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	long := committedReply()
	long.Result = structpb.NewStringValue(strings.Repeat("x", 100_000))
	until := Deadline{Boottime: 3000 * time.Second, Wall: time.Unix(1e9+3000, 0).UTC()}
	abandonTx(t, p, nil, func(g *guest, tx *Tx) {
		c := sampleCalls()[0]
		g.mustCall(t, tx, c.op, c.in)
		for i := range 200 {
			more := time.Duration(i-199) * time.Second
			if err := tx.Await(t.Context(), long, Deadline{Boottime: until.Boottime + more, Wall: until.Wall.Add(more)}); err != nil {
				t.Fatal(err)
			}
		}
	})
	files, err := filepath.Glob(filepath.Join(p.state, "open/*/journal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Size() > 2<<20 {
		t.Error(info.Size(), err)
	}
	g := newGuest(t, p, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Tx == nil || list[0].Until != until {
		t.Fatalf("%+v, %v", list, err)
	}
	if open := g.journal.Awaiting(); len(open.GetReply().GetResult().GetStringValue()) != 100_000 {
		t.Error("the reply is lost")
	}
	if err := list[0].Tx.Close(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// What takes back writes as a commit does: it is held up while the file systems are frozen.
func TestTakingBackWaitsForTheThaw(t *testing.T) {
	entered, p := 0, newTestDirs(t)
	mustPopulate(t, p)
	g := newGuest(t, p, func(c *Config) {
		c.Enter = func(context.Context) (func(), error) { entered++; return func() {}, nil }
	})
	tx := g.begin(t)
	c := sampleCalls()[0]
	g.mustCall(t, tx, c.op, c.in)
	if err := tx.Await(t.Context(), committedReply(), g.journal.Within(time.Minute)); err != nil {
		t.Fatal(err)
	}
	was := entered
	if tx.TakeBack(t.Context(), &pb.ScriptError{Kind: "timeout"}); entered == was {
		t.Error("it writes at any time")
	}
}

// Once it is decided to take back what awaited its confirmation, an agent that ends in the middle goes on with that at its next
// start, and does not wait again. The reply says why it was taken back.
func TestTakingBackGoesOn(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls()[:5] {
		g.mustCall(t, tx, c.op, c.in)
	}
	if err := tx.Await(t.Context(), committedReply(), g.journal.Within(time.Hour)); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if report := tx.TakeBack(over, &pb.ScriptError{Kind: "cancelled", Message: "why"}); !report.Halted {
		t.Fatalf("%+v", report)
	}
	if err := errors.Join(tx.Close(t.Context(), committedReply()), g.journal.Close()); err != nil {
		t.Fatal(err)
	}
	next := newGuest(t, p, nil)
	list, err := next.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Tx != nil {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, p.files)
	if e := list[0].Entry.Reply.GetError(); e.GetKind() != "cancelled" || e.Message != "why" {
		t.Error(e)
	}
	if next.journal.Awaiting() != nil {
		t.Error("it still awaits")
	}
}

// At early boot what awaits its confirmation is taken back if another boot left it, and else left alone.
func TestAwaitAtEarlyBoot(t *testing.T) {
	for boot, back := range map[string]bool{"boot": false, "another": true} {
		p := newTestDirs(t)
		before := mustPopulate(t, p)
		abandonTx(t, p, nil, func(g *guest, tx *Tx) {
			g.mustCall(t, tx, sampleCalls()[0].op, sampleCalls()[0].in)
			if err := tx.Await(t.Context(), committedReply(), g.journal.Within(time.Hour)); err != nil {
				t.Fatal(err)
			}
		})
		g := newGuest(t, p, func(c *Config) { c.BootID = func() string { return boot } })
		list, err := g.journal.Recover(t.Context(), func(string) bool { return true })
		if err != nil || len(list) != 1 || list[0].Tx != nil || list[0].Report.Halted == back {
			t.Fatalf("%s: %+v, %v", boot, list, err)
		}
		if differences(before, mustDescribeTree(t, p.files)) == "" != back {
			t.Errorf("%s: taken back: %v", boot, !back)
		}
	}
}

// At early boot files are restored at once, as far as they are newer than the newest operation that needs a running guest:
// what is older may be what that operation undoes by. The rest is left until the agent starts, however often early boot is
// repeated.
func TestEarlyBoot(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	var ran int
	run := func(c *Config) {
		c.Run = func(context.Context, string, proto.Message) (bool, error) { ran++; return false, nil }
	}
	var between map[string]string
	abandonTx(t, p, run, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/app.d", Recursive: true})
		between = mustDescribeTree(t, p.files)
		if err := tx.Undo(t.Context(), "unit", &pb.PathArgs{}); err != nil {
			t.Fatal(err)
		}
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/app.d/one", Parents: true, Content: []byte("x")})
	})
	for range 2 * maxAttempts {
		g := newGuest(t, p, run)
		list, err := g.journal.Recover(t.Context(), func(op string) bool { return op == "unit" })
		if err != nil || len(list) != 1 || !list[0].Report.Halted || list[0].Err != nil {
			t.Fatalf("%+v, %v", list, err)
		}
		checkTree(t, between, p.files)
		if _, err := g.journal.Begin(t.Context(), Header{}); !errors.Is(err, fault.ErrBusy) {
			t.Errorf("begun in between: %v", err)
		}
		if err := g.journal.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if ran != 0 {
		t.Errorf("ran %d times too early", ran)
	}
	g := newGuest(t, p, run)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Entry == nil || ran != 1 {
		t.Fatalf("%+v, %v, ran %d", list, err, ran)
	}
	checkTree(t, before, p.files)
}

// A transaction whose recovery is interrupted without progress too often is quarantined, and the agent works on.
func TestAttempts(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	abandonTx(t, p, nil, func(g *guest, tx *Tx) {
		for _, c := range sampleCalls() {
			g.mustCall(t, tx, c.op, c.in)
		}
	})
	for range maxAttempts {
		dieInRecovery(t, p, 0)
	}
	g := newGuest(t, p, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list[0].Entry.GetPhase() != "quarantined" || list[0].Err == nil || len(list[0].Entry.Reply.NotUndone) == 0 {
		t.Errorf("%+v", list[0])
	}
	g.begin(t)
}

// dieInRecovery runs a recovery that dies after a number of restoring actions.
func dieInRecovery(t *testing.T, p testDirs, restored int) {
	t.Helper()
	g, err := openGuest(p, func(c *Config) {
		c.Step = func(name string) error {
			if strings.HasPrefix(name, "restore.") && name != "restore.syncall" {
				if restored--; restored < 0 {
					panic(name)
				}
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Fatal("it did not restore anything")
		}
		_ = g.close()
	}()
	_, _ = g.journal.Recover(t.Context(), nil)
}

// A recovery that is stopped again and again ends if each one makes progress; one that is cancelled before it begins does
// not count.
func TestRecoveryWithProgress(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	abandonTx(t, p, nil, func(g *guest, tx *Tx) {
		for _, c := range sampleCalls() {
			g.mustCall(t, tx, c.op, c.in)
		}
	})
	for n := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		stop := func(name string) error {
			if strings.HasPrefix(name, "restore.") {
				cancel()
			}
			return nil
		}
		g, err := openGuest(p, func(c *Config) { c.Step = stop })
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			cancel()
		}
		list, _ := g.journal.Recover(ctx, nil)
		cancel()
		_ = g.close()
		if len(list) != 1 || list[0].Report.Halted {
			continue
		}
		if r := list[0]; n <= 2*maxAttempts || r.Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(r.Entry.Reply.Changes) == 0 {
			t.Errorf("after %d starts: %+v", n, r)
		}
		checkTree(t, before, p.files)
		return
	}
	t.Error("it has no end")
}

// What a rollback could not undo is reported although that rollback was interrupted later.
func TestFailureSurvivesInterruption(t *testing.T) {
	for name, c := range map[string]struct {
		announce func(tx *Tx) error
		status   pb.ScriptStatus
		named    string
	}{
		"irreversible": {func(tx *Tx) error {
			return tx.Irreversible(t.Context(), &pb.Change{Op: "exec.run", Target: "rm it", Action: "ran"})
		}, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "rm it"},
		"an inverse that fails": {func(tx *Tx) error {
			return tx.Undo(t.Context(), "file.chmod", &pb.ChmodArgs{Path: "/nowhere/at/all", Mode: "0600"})
		}, pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, "/nowhere/at/all"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestDirs(t)
			before := mustPopulate(t, p)
			abandonTx(t, p, nil, func(g *guest, tx *Tx) {
				g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/etc/made"})
				if err := c.announce(tx); err != nil {
					t.Fatal(err)
				}
			})
			dieInRecovery(t, p, 0)
			g := newGuest(t, p, nil)
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			reply := list[0].Entry.Reply
			if reply.Status != c.status || len(reply.NotUndone) != 1 || !strings.Contains(reply.NotUndone[0].Op+reply.NotUndone[0].Target, c.named) {
				t.Error(reply)
			}
			checkTree(t, before, p.files)
		})
	}
}

// A rollback after a crash reports the undeclared changes of a command, also after an interrupted rollback. It does not
// report what others changed after the command was checked, nor changes in a directory that is writable for all.
func TestUndeclaredChanges(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(t *testing.T, g *guest, tx *Tx, etc string)
		status pb.ScriptStatus
		named  string
	}{
		"killed during the command": {func(t *testing.T, _ *guest, _ *Tx, etc string) { changeDir(t, etc) }, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL,
			"modified /etc/app.d\ndeleted /etc/link\ncreated /etc/new"},
		"killed after the check": {func(t *testing.T, _ *guest, tx *Tx, etc string) {
			changeDir(t, etc)
			if list, err := tx.UndeclaredChanges(t.Context(), "exec.run"); err != nil || len(list) != 3 || list[0].Op != "exec.run" {
				t.Fatal(list, err)
			}
		}, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "created /etc/new\ndeleted /etc/link\nmodified /etc/app.d"},
		"killed later": {func(t *testing.T, g *guest, tx *Tx, etc string) {
			if list, err := tx.UndeclaredChanges(t.Context(), "exec.run"); err != nil || len(list) > 0 {
				t.Fatal(list, err)
			}
			g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/etc/made"})
			changeDir(t, etc)
		}, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
		"where all may write": {func(t *testing.T, _ *guest, tx *Tx, etc string) {
			open := filepath.Join(etc, "app.d")
			err := os.Chmod(open, 0o1777)
			if err == nil {
				_, err = tx.BeforeTouch(t.Context(), "/etc/app.d/one")
			}
			if err = errors.Join(err, os.Mkdir(filepath.Join(open, "theirs"), 0o700)); err != nil {
				t.Fatal(err)
			}
		}, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
	} {
		for restored := -1; restored < 8; restored++ {
			t.Run(fmt.Sprintf("%s, %d restored", name, restored), func(t *testing.T) {
				p := newTestDirs(t)
				mustPopulate(t, p)
				etc := filepath.Join(p.files, "etc")
				if err := os.Chmod(etc, 0o755); err != nil {
					t.Fatal(err)
				}
				abandonTx(t, p, nil, func(g *guest, tx *Tx) {
					g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/etc/first"}) // so that another step is left to interrupt
					if _, err := tx.BeforeTouch(t.Context(), "/etc/small", "/etc/none/deep"); err != nil {
						t.Fatal(err)
					}
					in := func(name string) string { return filepath.Join(etc, name) }
					if err := errors.Join(os.WriteFile(in("none"), []byte("changed"), 0o600), os.Rename(in("none"), in("small")), os.Mkdir(in("none"), 0o700)); err != nil {
						t.Fatal(err)
					}
					c.do(t, g, tx, etc)
				})
				if restored >= 0 {
					dieInRecovery(t, p, restored)
				}
				g := newGuest(t, p, nil)
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				reply := list[0].Entry.Reply
				var named []string
				for _, change := range reply.NotUndone {
					named = append(named, change.Action+" "+change.Target)
				}
				if reply.Status != c.status || strings.Join(named, "\n") != c.named {
					t.Errorf("%s\n%s", reply.Status, strings.Join(named, "\n"))
				}
				if content, err := os.ReadFile(filepath.Join(etc, "small")); err != nil || string(content) != "small\n" {
					t.Errorf("%q, %v", content, err)
				}
				for _, gone := range []string{"none", "first", "made"} {
					if _, err := os.Lstat(filepath.Join(etc, gone)); !errors.Is(err, fs.ErrNotExist) {
						t.Error(gone, err)
					}
				}
			})
		}
	}
}

// changeDir makes, removes and replaces something in a directory.
func changeDir(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(in("new"), nil, 0o600), os.Remove(in("link")), os.RemoveAll(in("app.d")), os.Symlink("two", in("app.d"))); err != nil {
		t.Fatal(err)
	}
}

// A rollback whose context ended leaves the rest to the next recovery.
func TestHaltedRollback(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if report := tx.Rollback(over); !report.Halted || report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.Fatalf("%+v", report)
	}
	if err := tx.Close(t.Context(), committedReply()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.journal.Lock(t.Context()); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("the writer of a journal with a halted rollback: %v", err)
	}
	if _, err := g.journal.Begin(t.Context(), Header{}); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("begun: %v", err)
	}
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkTree(t, before, p.files)
	g.begin(t)
}

// A cloned machine starts without stored replies, but its open transaction is rolled back.
func TestClonedMachine(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	abandonTx(t, p, nil, func(g *guest, tx *Tx) {
		if err := errors.Join(tx.Commit(t.Context(), committedReply()), tx.Close(t.Context(), nil)); err != nil {
			t.Fatal(err)
		}
		g.mustCall(t, g.begin(t), "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("x")})
	})
	g := newGuest(t, p, func(c *Config) { c.MachineID = func() string { return "clone" } })
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkTree(t, before, p.files)
	if list, _, err := g.journal.List("", 10, anyPort); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// Replies are stored up to Expiry and Entries, and listed in pages.
func TestStore(t *testing.T) {
	p := newTestDirs(t)
	g := newGuest(t, p, func(c *Config) { c.Entries = 5 })
	var ids []string
	for i := range 8 {
		tx, err := g.journal.Begin(t.Context(), Header{Port: "p" + string(rune('0'+i)), MessageID: "m" + string(rune('0'+i)), Key: "k" + string(rune('0'+i)), Fingerprint: []byte{byte(i)}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append([]string{tx.ID()}, ids...)
		if err := errors.Join(tx.Commit(t.Context(), committedReply()), tx.Close(t.Context(), nil)); err != nil {
			t.Fatal(err)
		}
		for then := time.Now().UnixMilli(); time.Now().UnixMilli() == then; { // names sort by the millisecond
			continue
		}
	}
	first, next, err := g.journal.List("", 3, anyPort)
	if err != nil || len(first) != 3 || first[0].TransactionId != ids[0] {
		t.Fatalf("%v, %v", first, err)
	}
	second, next, err := g.journal.List(next, 3, anyPort)
	if err != nil || len(second) != 2 || second[1].TransactionId != ids[4] || next != "" {
		t.Fatalf("%v, %q, %v", second, next, err)
	}
	mine, next, err := g.journal.List("", 1, func(port string) bool { return port == "p5" })
	if err != nil || len(mine) != 1 || mine[0].Port != "p5" || next != "" {
		t.Errorf("of one owner: %v, %q, %v", mine, next, err)
	}
	if e, err := g.journal.Stored(Ref{Key: "k6"}); err != nil || string(e.Begin.Fingerprint) != "\x06" || e.Begin.MessageId != "m6" {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := g.journal.Stored(Ref{Key: "k6", MessageID: "m7"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another request under the key: %v", err)
	}
	if _, err := g.journal.Stored(Ref{Key: "k1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one too many: %v", err)
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, func(c *Config) { c.Expiry = time.Nanosecond })
	if list, _, err := g.journal.List("", 10, anyPort); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if files, err := os.ReadDir(filepath.Join(p.state, "done")); err != nil || len(files) > 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// The log grows beyond its first size.
func TestLogGrows(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for i := range 150 {
		content := []byte(strings.Repeat(string(rune('a'+i%26)), maxInlineFile-i))
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: content})
	}
	if size := tx.log.size; size <= initialSize {
		t.Errorf("%d bytes", size)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	checkTree(t, before, p.files)
}

// A kernel setting gets its value back, also after a Mark, although it has no times and cannot be synced.
func TestKernelSetting(t *testing.T) {
	t.Run("in the last call", func(t *testing.T) { testKernelSetting(t, func(*Tx) {}) })
	t.Run("in an earlier call", func(t *testing.T) { testKernelSetting(t, func(tx *Tx) { tx.Mark() }) })
}

func testKernelSetting(t *testing.T, after func(*Tx)) {
	t.Helper()
	const path = "/proc/self/oom_score_adj"
	was, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("no %s: needs /proc", path)
	}
	p := newTestDirs(t)
	p.files = "/"
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	resolved, err := g.root.Resolve(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Before(t.Context(), resolved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(resolved, []byte("500"), 0); err != nil {
		t.Fatal(err)
	}
	after(tx)
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		if os.Geteuid() != 0 { // only root lowers it
			t.Skip("needs root to lower oom_score_adj")
		}
		t.Fatalf("%+v", report)
	}
	if is, _ := os.ReadFile(path); string(is) != string(was) {
		t.Errorf("was %q, is %q", was, is)
	}
}

// A kernel setting that has no space for its old value, as that of a control group may be, has none later either.
func TestKernelSettingWithoutSpace(t *testing.T) {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", os.Getpid())
	was, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("no %s: needs /proc", path)
	}
	p := newTestDirs(t)
	p.files = "/"
	g := newGuest(t, p, func(c *Config) {
		c.Step = func(name string) error {
			if name == "restore.rewrite" {
				return syscall.ENOSPC
			}
			return nil
		}
	})
	tx := g.begin(t)
	mustDo(t, tx.Before(t.Context(), path))
	mustDo(t, os.WriteFile(path, []byte("500"), 0))
	defer os.WriteFile(path, was, 0)
	tx.Mark()
	if report := tx.Rollback(t.Context()); report.Halted || len(report.NotUndone()) != 1 {
		t.Errorf("%+v", report)
	}
}

// A kernel setting that others set since keeps their value, and one of another boot its own.
func TestKernelSettingOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to lower oom_score_adj")
	}
	for _, test := range []struct {
		name, theirs, want string
		boot               string // of the recovery; empty: it is rolled back at once
		unknown            bool   // what the call left
		conflicts          int
	}{
		{name: "others set it", theirs: "600", want: "600\n", conflicts: 1},
		{name: "recovered", boot: "boot", want: "100\n"},
		{name: "recovered, others set it", boot: "boot", theirs: "600", want: "600\n", conflicts: 1},
		{name: "another boot", boot: "another", theirs: "600", want: "600\n"},
		{name: "another boot that sets the same", boot: "another", want: "100\n"},
		{name: "another boot, killed in the call", boot: "another", unknown: true, theirs: "600", want: "600\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newTestDirs(t)
			p.files = "/"
			path := fmt.Sprintf("/proc/%d/oom_score_adj", os.Getpid())
			set := func(value string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(value), 0); err != nil {
					t.Fatal(err)
				}
			}
			was, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer set(string(was))
			set("100")
			change := func(g *guest, tx *Tx) {
				if err := tx.Before(t.Context(), path); err != nil {
					t.Fatal(err)
				}
				set("500")
				if !test.unknown {
					tx.Mark()
				}
				if err := tx.Before(t.Context(), filepath.Join(p.state, "nothing")); err != nil { // logs what the call left
					t.Fatal(err)
				}
			}
			var report Report
			if test.boot == "" {
				g := newGuest(t, p, nil)
				tx := g.begin(t)
				change(g, tx)
				set(test.theirs)
				report = tx.Rollback(t.Context())
			} else {
				abandonTx(t, p, nil, change)
				if test.theirs != "" {
					set(test.theirs)
				}
				g := newGuest(t, p, func(c *Config) { c.BootID = func() string { return test.boot } })
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				report = list[0].Report
			}
			if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) != test.conflicts {
				t.Errorf("%+v", report)
			}
			if is, _ := os.ReadFile(path); string(is) != test.want {
				t.Errorf("is %q, want %q", is, test.want)
			}
		})
	}
}

// A tree that contains the journal's own directory is refused.
func TestOwnDirectory(t *testing.T) {
	p := newTestDirs(t)
	p.files = filepath.Dir(p.files)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	if err := tx.BeforeTree(t.Context(), "/state"); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("%v", err)
	}
	if tx.Err() != nil {
		t.Error(tx.Err())
	}
}
