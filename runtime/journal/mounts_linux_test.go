package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// mountedGuest is a guest with a mount point /srv, whose file system is a directory outside.
type mountedGuest struct {
	testDirs
	point, disk string
}

func newMountedGuest(t *testing.T) *mountedGuest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	p := newTestDirs(t)
	m := &mountedGuest{p, filepath.Join(p.files, "srv"), t.TempDir()}
	if err := errors.Join(os.Mkdir(m.point, 0o755), populate(m.disk)); err != nil {
		t.Fatal(err)
	}
	m.mount(t, m.disk)
	return m
}

func (m *mountedGuest) mount(t *testing.T, disk string) {
	t.Helper()
	if err := unix.Mount(disk, m.point, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(m.point, unix.MNT_DETACH) })
}

func (m *mountedGuest) unmount(t *testing.T) {
	t.Helper()
	if err := unix.Unmount(m.point, 0); err != nil {
		t.Fatal(err)
	}
}

// callsAt returns the sample transaction on another directory than the root.
func callsAt(dir string) []call {
	list := sampleCalls()
	for _, c := range list {
		m := c.in.ProtoReflect()
		for _, name := range []string{"path", "from", "to"} {
			if f := m.Descriptor().Fields().ByName(protoreflect.Name(name)); f != nil && m.Get(f).String() != "" {
				m.Set(f, protoreflect.ValueOfString(dir+m.Get(f).String()))
			}
		}
	}
	return list
}

// A recovery waits as long as the file system of a step is not mounted where it was, whatever is there instead. It changes
// nothing meanwhile, says what it waits for, and is never given up.
func TestRecoveryWaitsForMount(t *testing.T) {
	for name, instead := range map[string]func(t *testing.T, m *mountedGuest){
		"nothing mounted":     func(*testing.T, *mountedGuest) {},
		"no mount point":      func(t *testing.T, m *mountedGuest) { mustDo(t, os.Remove(m.point)) },
		"another file system": func(t *testing.T, m *mountedGuest) { m.mount(t, t.TempDir()) },
		"a tmpfs":             func(t *testing.T, m *mountedGuest) { mustDo(t, unix.Mount("any", m.point, "tmpfs", 0, "")) },
		"hidden by a mount":   func(t *testing.T, m *mountedGuest) { m.mount(t, m.disk); m.mount(t, t.TempDir()) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMountedGuest(t)
			before := mustDescribeTree(t, m.disk)
			abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
				for _, c := range callsAt("/srv") {
					g.mustCall(t, tx, c.op, c.in)
				}
			})
			after := mustDescribeTree(t, m.disk)
			m.unmount(t)
			instead(t, m)
			there := mustDescribeTree(t, m.files)
			g := newGuest(t, m.testDirs, nil)
			for range maxAttempts + 1 {
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Report.Waiting, "/srv (") {
					t.Fatalf("%+v, %v", list, err)
				}
			}
			if _, err := g.journal.Begin(t.Context(), Header{}); !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), "waiting for /srv") {
				t.Errorf("begun: %v", err)
			}
			if _, owned := g.journal.Owns("/srv/etc/small"); !owned {
				t.Error("others may change what is still to be restored")
			}
			checkTree(t, there, m.files)
			checkTree(t, after, m.disk)
			for unix.Unmount(m.point, 0) == nil {
			}
			mustDo(t, os.MkdirAll(m.point, 0o755))
			m.mount(t, m.disk)
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Fatalf("%+v, %v", list, err)
			}
			checkTree(t, before, m.disk)
			g.begin(t)
		})
	}
}

// A rollback waits as long as the file system of a step is read-only, and goes on once it is not: it was the kernel that made it so,
// where that found a fault. Who gives it up is told what was not restored.
func TestRollbackWaitsForReadOnlyMount(t *testing.T) {
	for _, abandoned := range []bool{false, true} {
		m := newMountedGuest(t)
		before := mustDescribeTree(t, m.disk)
		g := newGuest(t, m.testDirs, nil)
		tx := g.begin(t)
		for _, c := range callsAt("/srv") {
			g.mustCall(t, tx, c.op, c.in)
		}
		after := mustDescribeTree(t, m.disk)
		m.setReadOnly(t, unix.MS_RDONLY)
		report := tx.Rollback(t.Context())
		if !report.Halted || !strings.HasPrefix(report.Waiting, "/srv (") || !strings.HasSuffix(report.Waiting, ", which is read-only") {
			t.Fatalf("%+v", report)
		}
		mustDo(t, tx.Close(t.Context(), nil))
		log := func() string {
			content, err := os.ReadFile(filepath.Join(m.state, "open", tx.ID(), "journal"))
			mustDo(t, err)
			return string(content)
		}
		written := log()
		for range 2 * maxAttempts {
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Report.Waiting != report.Waiting {
				t.Fatalf("%+v, %v", list, err)
			}
		}
		checkTree(t, after, m.disk)
		if log() != written {
			t.Error("it writes to its log as often as it is asked")
		}
		if abandoned {
			mustDo(t, g.journal.Abandon(t.Context(), tx.ID(), func(string) bool { return true }))
			g.begin(t)
			m.setReadOnly(t, 0)
			continue
		}
		m.setReadOnly(t, 0)
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%+v, %v", list, err)
		}
		checkTree(t, before, m.disk)
		g.begin(t)
	}
}

// A rollback that finds no space, since others have filled the disk, waits until they have freed some, also over restarts.
func TestRollbackWaitsForSpace(t *testing.T) {
	for _, abandoned := range []bool{false, true} {
		m := newMountedGuest(t)
		m.unmount(t)
		if err := unix.Mount("small", m.point, "tmpfs", 0, "size=24m"); err != nil {
			t.Skipf("cannot mount here (run as root of the machine): %v", err)
		}
		at := func(name string) string { return filepath.Join(m.point, name) }
		large := bytes.Repeat([]byte("before\n"), 1<<20)
		mustDo(t, os.WriteFile(at("large"), large, 0o640))
		mustDo(t, os.WriteFile(at("older"), []byte("before"), 0o640))
		before := mustDescribeTree(t, m.point)
		g := newGuest(t, m.testDirs, nil)
		tx := g.begin(t)
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/older", Content: []byte("after")})
		mustDo(t, tx.Before(t.Context(), "/srv/large")) // a command's
		mustDo(t, os.Remove(at("large")))
		tx.Mark()
		fillDisk(t, at("ballast"))
		report := tx.Rollback(t.Context())
		if !report.Halted || !strings.HasPrefix(report.Waiting, "/srv (tmpfs") || !strings.HasSuffix(report.Waiting, ", which has no space left") {
			t.Fatalf("%+v", report)
		}
		mustDo(t, tx.Close(t.Context(), nil))
		if content, err := os.ReadFile(at("older")); string(content) != "after" {
			t.Errorf("an older step was undone before: %q, %v", content, err)
		}
		log := func() string {
			content, err := os.ReadFile(filepath.Join(m.state, "open", tx.ID(), "journal"))
			mustDo(t, err)
			return string(content)
		}
		waits := func() {
			t.Helper()
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Report.Waiting != report.Waiting {
				t.Fatalf("%+v, %v", list, err)
			}
		}
		for range maxAttempts + 1 { // restarts
			mustDo(t, g.close())
			g = newGuest(t, m.testDirs, nil)
			waits()
		}
		written := log()
		for range 2 * maxAttempts {
			waits()
		}
		if log() != written {
			t.Error("it writes to its log as often as it is asked")
		}
		mustDo(t, os.Truncate(at("ballast"), 20<<20)) // too little
		waits()
		if _, err := os.Lstat(at("large")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a part of what has no space: %v", err)
		}
		if abandoned {
			mustDo(t, g.journal.Abandon(t.Context(), tx.ID(), func(string) bool { return true }))
			if content, err := os.ReadFile(at("older")); string(content) != "before" {
				t.Errorf("an older step is not undone where it was given up: %q, %v", content, err)
			}
			g.begin(t)
			continue
		}
		mustDo(t, os.Remove(at("ballast")))
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%+v, %v", list, err)
		}
		checkTree(t, before, m.point)
		g.begin(t)
	}
}

// A file that had to be written in place, and was not written to its end since the disk was full, is nobody else's.
func TestRollbackGoesOnWithHalfRestoredFile(t *testing.T) {
	m := newMountedGuest(t)
	m.unmount(t)
	if err := unix.Mount("small", m.point, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	at := func(name string) string { return filepath.Join(m.point, name) }
	mustDo(t, os.WriteFile(at("large"), bytes.Repeat([]byte("before\n"), 1<<20), 0o640))
	mustDo(t, os.Truncate(at("large"), 9<<20)) // with a hole: no space is taken for one beforehand
	mustDo(t, os.Link(at("large"), at("linked")))
	before := mustDescribeTree(t, m.point)
	g := newGuest(t, m.testDirs, nil)
	tx := g.begin(t)
	mustDo(t, tx.Before(t.Context(), "/srv/large"))
	mustDo(t, os.WriteFile(at("large"), []byte("after"), 0o640))
	tx.Mark()
	fillDisk(t, at("ballast"))
	mustDo(t, os.Truncate(at("ballast"), 21<<20))
	if report := tx.Rollback(t.Context()); report.Waiting == "" {
		t.Fatalf("%+v", report)
	}
	mustDo(t, tx.Close(t.Context(), nil))
	if info, err := os.Stat(at("large")); err != nil || info.Size() < 1<<20 {
		t.Fatalf("nothing of it was written: %v, %v", info, err)
	}
	mustDo(t, os.Remove(at("ballast")))
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Report.Err != nil || len(list[0].Report.Conflicts()) > 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, m.point)
}

// What is free is not all that matters, and may have become so much just before it was asked for.
func TestRollbackTriesAgainWithSpaceAsBefore(t *testing.T) {
	m := newMountedGuest(t)
	m.unmount(t)
	if err := unix.Mount("small", m.point, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	path := filepath.Join(m.point, "file")
	full := true
	g := newGuest(t, m.testDirs, func(c *Config) {
		c.Step = func(name string) error {
			if full && strings.HasPrefix(name, "restore.") {
				return syscall.ENOSPC
			}
			return nil
		}
	})
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/file", Content: []byte("after")})
	if report := tx.Rollback(t.Context()); report.Waiting == "" {
		t.Fatalf("%+v", report)
	}
	mustDo(t, tx.Close(t.Context(), nil))
	full = false
	for _, again := range []bool{false, true} {
		if again {
			u := g.journal.unfinished[tx.ID()]
			u.obstacle.met = u.obstacle.met.Add(-fullFor)
			g.journal.unfinished[tx.ID()] = u
		}
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 || list[0].Report.Halted == again {
			t.Fatalf("%v: %+v, %v", again, list, err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A step that found its file system read-only has nothing to wait for.
func TestNothingToRestoreOnReadOnlyMount(t *testing.T) {
	m := newMountedGuest(t)
	m.setReadOnly(t, unix.MS_RDONLY)
	g := newGuest(t, m.testDirs, nil)
	tx := g.begin(t)
	err := g.call(t.Context(), tx, "file.write", &pb.WriteFileArgs{Path: "/srv/etc/small", Content: []byte("new")})
	if !errors.Is(err, unix.EROFS) {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Err != nil || report.Halted {
		t.Errorf("%+v", report)
	}
	mustDo(t, tx.Close(t.Context(), nil))
}

func (m *mountedGuest) setReadOnly(t *testing.T, flag uintptr) {
	t.Helper()
	mustDo(t, unix.Mount("", m.point, "", unix.MS_BIND|unix.MS_REMOUNT|flag, ""))
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What was changed in a directory before something was mounted on it is not restored into that.
func TestRecoveryWaitsForUnmount(t *testing.T) {
	m := newMountedGuest(t)
	m.unmount(t)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/new", Content: []byte("x")})
	})
	m.mount(t, m.disk)
	g := newGuest(t, m.testDirs, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Report.Waiting, "/ (") || !strings.Contains(list[0].Report.Waiting, "which /srv (") {
		t.Fatalf("%+v, %v", list, err)
	}
	m.unmount(t)
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(m.point, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A rollback waits as well when the file system goes while the script runs, and a later recovery ends it with the script's own
// error. Newer steps on other file systems are undone at once, older ones are not.
func TestRollbackWaitsForMount(t *testing.T) {
	m := newMountedGuest(t)
	before := mustDescribeTree(t, m.disk)
	g := newGuest(t, m.testDirs, nil)
	tx := g.begin(t)
	for _, path := range []string{"/older", "/srv/new", "/newer"} {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: path, Content: []byte("x")})
	}
	tx.Mark()
	m.unmount(t)
	report := tx.Rollback(t.Context())
	if !report.Halted || report.Waiting == "" || report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.Fatalf("%+v", report)
	}
	mustDo(t, tx.Close(t.Context(), &pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "runtime", Message: "mine"}}))
	<-g.journal.Unrecovered()
	_, older := os.Stat(filepath.Join(m.files, "older"))
	_, newer := os.Stat(filepath.Join(m.files, "newer"))
	if older != nil || !errors.Is(newer, os.ErrNotExist) {
		t.Errorf("older: %v, newer: %v", older, newer)
	}
	m.mount(t, m.disk)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetError().GetMessage() != "mine" {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, m.disk)
}

// What others change while a rollback waits is kept as a conflict, also when another agent ends it.
func TestOthersChangeWhileRollbackWaits(t *testing.T) {
	m := newMountedGuest(t)
	small := filepath.Join(m.disk, "etc", "small")
	g := newGuest(t, m.testDirs, nil)
	tx := g.begin(t)
	for _, path := range []string{"/srv/etc/small", "/newer"} {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: path, Content: []byte("x")})
		tx.Mark()
	}
	m.unmount(t)
	if report := tx.Rollback(t.Context()); report.Waiting == "" {
		t.Fatalf("%+v", report)
	}
	mustDo(t, tx.Close(t.Context(), &pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "runtime", Message: "mine"}}))
	<-g.journal.Unrecovered()
	mustDo(t, g.close())
	mustDo(t, os.WriteFile(small, []byte("theirs"), 0o640))
	m.mount(t, m.disk)
	g = newGuest(t, m.testDirs, nil)
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(small); string(data) != "small\n" {
		t.Errorf("restored: %q, %v", data, err)
	}
	kept, _ := filepath.Glob(small + ".quantix-conflict-*")
	if len(kept) != 1 {
		t.Fatalf("conflicts: %v", kept)
	}
	if data, err := os.ReadFile(kept[0]); string(data) != "theirs" {
		t.Errorf("kept: %q, %v", data, err)
	}
}

// A rollback that waits for a file system that never comes back can be given up by name: all else is undone, and others begin.
func TestAbandon(t *testing.T) {
	m := newMountedGuest(t)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/older", Content: []byte("x")})
		g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/srv/etc/app.d", Recursive: true})
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/etc/small", Content: []byte("x")})
	})
	after := mustDescribeTree(t, m.disk)
	m.unmount(t)
	g := newGuest(t, m.testDirs, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Report.Waiting == "" {
		t.Fatalf("%+v, %v", list, err)
	}
	id := list[0].ID
	if err := g.journal.RemoveKept(t.Context(), id, anyPort); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without being told to: %v", err)
	}
	if err := g.journal.Abandon(t.Context(), id, func(string) bool { return false }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of another port: %v", err)
	}
	mustDo(t, g.journal.Abandon(t.Context(), id, anyPort))
	if _, err := os.Stat(filepath.Join(m.files, "older")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("older: %v", err)
	}
	checkTree(t, after, m.disk)
	entry, err := g.journal.Stored(Ref{ID: id})
	if err != nil || entry.Reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED || len(entry.Reply.NotUndone) != 2 ||
		!strings.Contains(entry.Reply.NotUndone[0].Target, "it was on /srv (") {
		t.Errorf("%v, %v", entry, err)
	}
	if kept := g.journal.Kept(); len(kept) > 0 {
		t.Errorf("kept: %v", kept)
	}
	g.begin(t)
}

// Trees that a committed script moved away on a file system are removed once that is mounted.
func TestSpoolWaitsForMount(t *testing.T) {
	m := newMountedGuest(t)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/srv/etc/app.d", Recursive: true})
		mustDo(t, tx.Commit(t.Context(), committedReply()))
	})
	m.unmount(t)
	for _, left := range []int{1, 0} {
		g, err := openGuest(m.testDirs, nil)
		mustDo(t, err)
		_, err = g.journal.Recover(t.Context(), nil)
		mustDo(t, errors.Join(err, g.close()))
		spools, _ := filepath.Glob(filepath.Join(m.disk, ".quantix-tx-*"))
		if len(spools) != left {
			t.Errorf("%d spools", len(spools))
		}
		m.mount(t, m.disk)
	}
}

// What was changed on a file system in memory has ended with the boot: its files are not made anew.
func TestVolatileMountEnds(t *testing.T) {
	m := newMountedGuest(t)
	m.unmount(t)
	mount := func() { mustDo(t, unix.Mount("any", m.point, "tmpfs", 0, "")) }
	mount()
	mustDo(t, os.WriteFile(filepath.Join(m.point, "small"), []byte("x"), 0o600))
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/older", Content: []byte("x")})
		g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/srv/small"})
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/small", Content: []byte("y")})
	})
	m.unmount(t)
	mount()
	g := newGuest(t, m.testDirs, func(c *Config) { c.BootID = func() string { return "another" } })
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v, %v", list, err)
	}
	if names, _ := filepath.Glob(filepath.Join(m.point, "*")); len(names) > 0 {
		t.Error(names)
	}
	if _, err := os.Stat(filepath.Join(m.files, "older")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A journal of an agent that recorded no mounts is recovered at once.
func TestRecordsWithoutMounts(t *testing.T) {
	m := newMountedGuest(t)
	before := mustDescribeTree(t, m.disk)
	id := ""
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		id = tx.ID()
		for _, c := range callsAt("/srv") {
			g.mustCall(t, tx, c.op, c.in)
		}
	})
	path := filepath.Join(m.state, "open", id, "journal")
	data, err := os.ReadFile(path)
	mustDo(t, err)
	payloads, _, _, err := frames.Read(id, data)
	mustDo(t, err)
	chain, rewritten := frames.NewChain(id), []byte(nil)
	for _, payload := range payloads {
		record := &pb.JournalRecord{}
		mustDo(t, proto.Unmarshal(payload, record))
		record.Mounts = nil
		payload, err = proto.Marshal(record)
		mustDo(t, err)
		rewritten = chain.Append(rewritten, payload)
	}
	mustDo(t, os.WriteFile(path, rewritten, 0o600))
	g := newGuest(t, m.testDirs, nil)
	if list, err := g.journal.Recover(t.Context(), nil); err != nil || len(list) != 1 || list[0].Report.Halted {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, m.disk)
}

// A user who mounts a file system over his directory, which root cannot enter, does not hold a rollback up.
func TestMountOfAUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/app.d/deep/er/file", Content: []byte("new")})
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/app.d/one", Content: []byte("new")})
	tx.Mark()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	defer device.Close()
	for _, name := range []string{"etc/app.d/deep", "etc/app.d"} { // the second one hides the first
		point := filepath.Join(p.files, name)
		options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=65534,group_id=65534", device.Fd())
		if err := unix.Mount("users", point, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			t.Skip("no FUSE here: ", err)
		}
		defer unix.Unmount(point, unix.MNT_DETACH)
		if device, err = os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		defer device.Close()
	}
	report := tx.Rollback(t.Context())
	for n := 0; report.Halted && n < 3; n++ { // as the agent does it
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		report = list[0].Report
	}
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(report.Hint(), "a mount on /etc/app.d") {
		t.Errorf("%+v %s", report, report.Hint())
	}
	checkTree(t, before, p.files)
}
