package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// faulty counts the journal's actions on the disk, and lets one of them, or all from it on, fail.
type faulty struct {
	count, at int
	all       bool
	err       error
	names     []string
}

func (f *faulty) step(name string) error {
	f.count++
	f.names = append(f.names, name)
	if f.err != nil && (f.count == f.at || f.all && f.count > f.at) {
		return f.err
	}
	return nil
}

// Whatever action of the journal's fails, once or for good, the old state comes back, now or by the next start, or the
// new one is there and was promised; and what did not work was said.
func TestErrors(t *testing.T) {
	for _, all := range []bool{false, true} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
			t.Run(fmt.Sprintf("%v, for good %v", cause, all), func(t *testing.T) {
				f := &faulty{}
				faultRun(t, f)
				steps := f.count
				if steps < 60 {
					t.Fatalf("only %d actions", steps)
				}
				sample := newSample()
				for _, at := range rand.Perm(steps) {
					if sample.over() {
						break
					}
					at++
					f := &faulty{at: at, all: all, err: cause}
					faultRun(t, f)
					if t.Failed() {
						t.Fatalf("with action %d, %s", at, f.names[min(at, len(f.names))-1])
					}
				}
			})
		}
	}
}

func faultRun(t *testing.T, f *faulty) {
	p := newPlace(t)
	if err := scene(p.files); err != nil {
		t.Fatal(err)
	}
	before := pictured(t, p.files)
	g, err := start(p, func(c *Config) { c.Step = f.step })
	if err != nil {
		if f.err == nil {
			t.Fatal(err)
		}
		return // it does not start, and has changed nothing
	}
	tx := g.begin(t)
	var failure error
	for _, c := range scripted() {
		if failure = g.call(t.Context(), tx, c.op, c.in); failure != nil {
			break
		}
	}
	if failure == nil {
		failure = tx.Err()
	}
	after := pictured(t, p.files)
	reply := status()
	if failure == nil {
		from := f.count
		failure = tx.Commit(t.Context(), reply)
		if f.err != nil && from < f.at && f.at <= f.count && failure == nil {
			t.Errorf("committed, although %s failed", f.names[f.at-1])
		}
	}
	said := pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	if failure != nil {
		said = tx.Rollback(t.Context()).Status()
		reply.Status = said
	}
	closeErr := tx.Close(t.Context(), reply)
	if f.err == nil && (failure != nil || closeErr != nil) {
		t.Fatal(failure, closeErr)
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	now := pictured(t, p.files)
	switch said {
	case pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
		if d := differences(after, now); d != "" {
			t.Errorf("committed, and not there:\n%s", d)
		}
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		if d := differences(before, now); d != "" {
			t.Errorf("rolled back, and not as it was:\n%s", d)
		}
	}
	// The disk is well again, and the agent is started.
	g = started(t, p, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	now = pictured(t, p.files)
	was, is := differences(before, now), differences(after, now)
	switch {
	case said == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED && is != "":
		t.Errorf("committed, and not there after the next start:\n%s", is)
	case said == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK && was != "":
		t.Errorf("rolled back, and not as it was after the next start:\n%s", was)
	case said == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED && was != "" && is != "":
		kept, err := os.ReadDir(filepath.Join(p.state, "kept"))
		if err != nil || len(kept) == 0 {
			t.Errorf("failed and said so, but nothing is kept: %v\n%s", err, was)
		}
	}
	if d := strays(now); d != "" {
		t.Errorf("left behind: %s", d)
	}
}

// A commit whose record was written, but not surely, does not count once the rollback has begun, wherever that is
// interrupted; and if not even that can be made sure, nothing is touched, and the next start decides.
func TestUnsureCommit(t *testing.T) {
	for _, sure := range []bool{true, false} {
		t.Run(fmt.Sprintf("can be revoked %v", sure), func(t *testing.T) {
			p := newPlace(t)
			before := set(t, p)
			bad := map[string]bool{}
			g, err := start(p, func(c *Config) {
				c.Step = func(name string) error {
					if bad[name] {
						return syscall.EIO
					}
					return nil
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			tx := g.begin(t)
			for _, c := range scripted() {
				g.must(t, tx, c.op, c.in)
			}
			after := pictured(t, p.files)
			bad["log.sync"], bad["doom.write"] = true, !sure
			if err := tx.Commit(t.Context(), status()); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if !sure {
				if report := tx.Rollback(t.Context()); !report.Halted || !errors.Is(report.Err, syscall.EIO) {
					t.Fatalf("%+v", report)
				}
				same(t, after, p.files)
			} else {
				for i := range tx.steps[:len(tx.steps)-2] { // it comes as far as two steps
					tx.steps[i].reverted = true
				}
				if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
					t.Fatalf("%+v", report)
				}
			}
			if err := g.close(); err != nil {
				t.Fatal(err)
			}
			g = started(t, p, nil)
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Err != nil {
				t.Fatalf("%+v, %v", list, err)
			}
			if sure {
				same(t, before, p.files)
			} else {
				same(t, after, p.files) // the record was there after all
			}
		})
	}
}

// A journal that does not take its last record is put aside, durably: the next start must not take anything back again.
// If that fails, too, no transaction begins.
func TestAbortNotWritten(t *testing.T) {
	for _, aside := range []bool{true, false} {
		t.Run(fmt.Sprintf("put aside %v", aside), func(t *testing.T) {
			p := newPlace(t)
			set(t, p)
			bad := map[string]bool{}
			g := started(t, p, func(c *Config) {
				c.Step = func(name string) error {
					if bad[name] {
						return syscall.EIO
					}
					return nil
				}
			})
			tx := g.begin(t)
			g.must(t, tx, scripted()[0].op, scripted()[0].in)
			bad["log.write"], bad["aside.rename"] = true, !aside
			report := tx.Rollback(t.Context())
			if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Fatalf("%+v", report)
			}
			if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); !errors.Is(err, syscall.EIO) {
				t.Errorf("%v", err)
			}
			release, err := g.journal.Lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			release()
			kept, err := os.ReadDir(filepath.Join(p.state, "kept"))
			if err != nil || len(kept) == 1 != aside {
				t.Errorf("kept: %v, %v", kept, err)
			}
			if told := g.journal.Status().Kept; len(told) != len(kept) || aside && told[0] != filepath.Join(p.state, "kept", kept[0].Name()) {
				t.Errorf("told: %v", told)
			}
			for _, dir := range kept {
				if err := os.RemoveAll(filepath.Join(p.state, "kept", dir.Name())); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := g.journal.Begin(t.Context(), Header{}); (err == nil) != aside {
				t.Errorf("begun: %v", err)
			}
			if told := g.journal.Status().Kept; len(told) > 0 {
				t.Errorf("told when it was gone: %v", told)
			}
		})
	}
}

func strays(picture map[string]string) string {
	for name := range picture {
		if strings.Contains(name, ".quantix-") {
			return name
		}
	}
	return ""
}

// With every byte of the disk used, a rollback still works.
func TestFullDisk(t *testing.T) {
	p := mounted(t, "tmpfs", "size=12m")
	if err := scene(p.files); err != nil {
		t.Fatal(err)
	}
	before := pictured(t, p.files)
	g := started(t, p, nil)
	tx := g.begin(t)
	for _, c := range scripted() {
		g.must(t, tx, c.op, c.in)
	}
	// Also a file that a restore must make anew, where now is a short one.
	g.must(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/program", Content: []byte("x")})
	fill(t, filepath.Join(p.files, "..", "ballast"))
	err := g.call(t.Context(), tx, "file.write", &pb.WriteFileArgs{Path: "/etc/another", Content: large('z')})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	same(t, before, p.files)
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
		t.Fatal(err)
	}
}

// A tree that the file system does not move, as overlayfs does not move one of a lower layer, is copied and comes back as well.
func TestTreesThatCannotBeMoved(t *testing.T) {
	p := newPlace(t)
	before := set(t, p)
	g := started(t, p, func(c *Config) {
		c.Step = func(name string) error {
			if name == "take.rename" {
				return syscall.EXDEV
			}
			return nil
		}
	})
	for _, commit := range []bool{false, true} {
		tx := g.begin(t)
		for _, c := range scripted() {
			g.must(t, tx, c.op, c.in)
		}
		if commit {
			if err := tx.Commit(t.Context(), status()); err != nil {
				t.Fatal(err)
			}
		} else if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) > 0 {
			t.Fatalf("%+v", report)
		}
		if err := tx.Close(t.Context(), status()); err != nil {
			t.Fatal(err)
		}
		if !commit {
			same(t, before, p.files)
		}
	}
	for _, gone := range []string{"etc/empty", "etc/new/er", "etc/app.d/deep"} {
		if _, err := os.Lstat(filepath.Join(p.files, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
}

// A file comes back also where its file system has no room for it and for what has its place, and the journal is elsewhere.
func TestNoRoomForTwo(t *testing.T) {
	there, p := mounted(t, "tmpfs", "size=1m"), newPlace(t)
	p.files = there.files
	content := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	if err := os.WriteFile(filepath.Join(p.files, "large"), content, 0o640); err != nil {
		t.Fatal(err)
	}
	before := pictured(t, p.files)
	g := started(t, p, nil)
	tx := g.begin(t)
	g.must(t, tx, "file.append", &pb.WriteFileArgs{Path: "/large", Content: []byte("more"), Inplace: true})
	g.must(t, tx, "file.write", &pb.WriteFileArgs{Path: "/large", Content: []byte("short")})
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	same(t, before, p.files)
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// mounted is a place on a file system of its own.
func mounted(t *testing.T, kind, options string) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("journal-test", dir, kind, 0, options); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	p := place{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// What is on another mount than the journal comes back as well, and nothing is left on that mount.
func TestOtherMount(t *testing.T) {
	there, p := mounted(t, "tmpfs", "size=20m"), newPlace(t)
	p.files = there.files
	if err := scene(p.files); err != nil {
		t.Fatal(err)
	}
	whole := filepath.Dir(p.files)
	before := pictured(t, whole)
	g := started(t, p, nil)
	tx := g.begin(t)
	for _, c := range scripted() {
		g.must(t, tx, c.op, c.in)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	same(t, before, whole)
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	tx = g.begin(t)
	for _, c := range scripted() {
		g.must(t, tx, c.op, c.in)
	}
	if err := errors.Join(tx.Commit(t.Context(), status()), tx.Close(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if d := strays(pictured(t, whole)); d != "" {
		t.Errorf("left behind: %s", d)
	}
}

// Of a journal that is torn at its end nothing is lost that had been begun; one that is damaged in the middle is not
// believed, and nothing is touched.
func TestDamagedJournal(t *testing.T) {
	p := newPlace(t)
	if err := scene(p.files); err != nil {
		t.Fatal(err)
	}
	before := pictured(t, p.files)
	leave := func() (path string, data []byte) {
		g, err := start(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		tx := g.begin(t)
		for _, c := range scripted()[:5] {
			g.must(t, tx, c.op, c.in)
		}
		path = tx.dir("journal")
		if err := g.close(); err != nil {
			t.Fatal(err)
		}
		if data, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		return path, data
	}
	recovered := func() ([]Recovered, *guest) {
		g, err := start(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		list, err := g.journal.Recover(t.Context(), nil)
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list, g
	}

	path, data := leave()
	torn := strings.LastIndexFunc(string(data), func(r rune) bool { return r != 0 }) + 1
	copy(data[torn+8:], "half a record, of which the head did not come to the disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	list, g := recovered()
	if list[0].Err != nil {
		t.Error(list[0].Err)
	}
	same(t, before, p.files)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}

	path, data = leave()
	after := pictured(t, p.files)
	data[torn/2] ^= 0x10
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	list, g = recovered()
	if !errors.Is(list[0].Err, fault.ErrCorrupt) || list[0].Entry.Phase != "quarantined" {
		t.Errorf("%+v", list[0])
	}
	same(t, after, p.files)
	if kept, err := os.ReadDir(filepath.Join(p.state, "kept", list[0].ID)); err != nil || len(kept) == 0 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	entry, err := g.journal.Stored(Ref{ID: list[0].ID})
	if err != nil || entry.Reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.Errorf("%v, %v", entry, err)
	}
	g.begin(t) // the agent works on
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
}
