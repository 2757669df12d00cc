package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestCommit(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	after := mustDescribeTree(t, p.files)
	if err := tx.Commit(t.Context(), committedReply()); err != nil {
		t.Fatal(err)
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkTree(t, after, p.files)
	entry, err := g.journal.Stored(Ref{Key: "k"})
	if err != nil || entry.Reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatalf("%v, %v", entry, err)
	}
	g.awaitCleaning(t)
	for _, dir := range []string{"open", "kept"} {
		if left, err := os.ReadDir(filepath.Join(p.state, dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(p.state, "spare")); err != nil || len(data) < initialSize || string(data) != string(make([]byte, len(data))) {
		t.Errorf("the spare journal has %d bytes, or is not zero: %v", len(data), err)
	}
}

func TestRollback(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g := newGuest(t, p, nil)
	for n := 0; n <= len(sampleCalls()); n++ {
		tx := g.begin(t)
		for _, c := range sampleCalls()[:n] {
			g.mustCall(t, tx, c.op, c.in)
		}
		report := tx.Rollback(t.Context())
		if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) > 0 {
			t.Fatalf("after %d calls: %+v", n, report)
		}
		checkTree(t, before, p.files)
		if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
			t.Fatal(err)
		}
	}
}

// A transaction that nobody ended is rolled back by the next start.
func TestRecover(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g, err := openGuest(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	if err := g.close(); err != nil { // as if the agent died: nothing is ended
		t.Fatal(err)
	}
	g = newGuest(t, p, nil)
	if _, err := g.journal.Begin(t.Context(), Header{}); !errors.Is(err, fault.ErrBusy) {
		t.Fatalf("begun before the recovery: %v", err)
	}
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, p.files)
	reply := list[0].Entry.GetReply()
	if reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.GetError().GetKind() != "interrupted" {
		t.Errorf("%v", list[0])
	}
	if entry, err := g.journal.Stored(Ref{MessageID: "m"}); err != nil || entry.Reply.Error.GetKind() != "interrupted" {
		t.Errorf("%v, %v", entry, err)
	}
	if list, err := g.journal.Recover(t.Context(), nil); err != nil || len(list) > 0 {
		t.Errorf("again: %+v, %v", list, err)
	}
	g.begin(t)
}

// A call that failed is undone at once; what went before stays.
func TestRevert(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		now := mustDescribeTree(t, p.files)
		mark := tx.Mark()
		g.mustCall(t, tx, c.op, c.in)
		if err := tx.Revert(t.Context(), mark); err != nil {
			t.Fatalf("%s: %v", c.op, err)
		}
		checkTree(t, now, p.files)
		g.mustCall(t, tx, c.op, c.in)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	checkTree(t, before, p.files)
}

func TestOneWriter(t *testing.T) {
	p := newTestDirs(t)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.journal.Begin(ctx, Header{}); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("a second transaction: %v", err)
	}
	if _, err := openGuest(p, nil); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("a second process: %v", err)
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g.begin(t)
}

// The kernel frees the memory of a killed agent before its lock: the next one waits.
func TestTheLockOfADyingAgentIsWaitedFor(t *testing.T) {
	p := newTestDirs(t)
	if err := os.MkdirAll(p.state, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := lockFile(filepath.Join(p.state, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = lock.Close() })
	newGuest(t, p, nil)
}

func TestOwns(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("x")})
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/app.d", Recursive: true})
	for path, want := range map[string]bool{"/etc/small": true, "/etc": true, "/": true, "/etc/large": false, "/etc/app.d": true, "/etc/app.d/x": true, "/etc/smaller": false} {
		if id, owned := g.journal.Owns(path); owned != want || owned && id != tx.ID() {
			t.Errorf("%s: %v by %s", path, owned, id)
		}
	}
	_ = tx.Close(t.Context(), nil)
	if _, owned := g.journal.Owns("/etc/small"); owned {
		t.Error("owned after the end")
	}
	if _, err := g.journal.Stored(Ref{Key: "k"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored without a reply: %v", err)
	}
}

// A tree is kept and restored however deep it is, up to a bound that is found before the work is done.
func TestDeepTrees(t *testing.T) {
	for _, depth := range []int{maxDepth, maxDepth + 1, 2500} {
		p := newTestDirs(t)
		g := newGuest(t, p, nil)
		top, err := os.Open(p.files)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(top.Fd())
		for range depth { // one by one: the path of all is longer than a path may be
			if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
				t.Fatal(err)
			}
			next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if fd != int(top.Fd()) {
				unix.Close(fd)
			}
			fd = next
		}
		unix.Close(fd)
		top.Close()
		tx := g.begin(t)
		err = tx.BeforeTree(t.Context(), "/d")
		if depth > maxDepth {
			if !errors.Is(err, fault.ErrTooLarge) {
				t.Error(depth, err)
			}
		} else {
			leaf := filepath.Join(p.files, strings.Repeat("d/", depth))
			if err := errors.Join(err, os.WriteFile(filepath.Join(leaf, "new"), nil, 0o644), os.Chmod(leaf, 0o700)); err != nil {
				t.Fatal(err)
			}
			if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Error(report)
			}
			if entries, err := os.ReadDir(leaf); err != nil || len(entries) > 0 {
				t.Error(entries, err)
			}
			if info, err := os.Stat(leaf); err != nil || info.Mode().Perm() != 0o755 {
				t.Error(info, err)
			}
			continue
		}
		if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Error(report)
		}
	}
}
