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

// faultInjector counts the journal's actions on the disk, and makes one of them fail, or all from that one on.
type faultInjector struct {
	count, at int
	all       bool
	err       error
	names     []string
}

func (f *faultInjector) step(name string) error {
	f.count++
	f.names = append(f.names, name)
	if f.err != nil && (f.count == f.at || f.all && f.count > f.at) {
		return f.err
	}
	return nil
}

// Whichever action of the journal fails, once or for good, the transaction is either rolled back, by the rollback or the
// next start, or it was committed and its changes are there; and the failure was reported.
func TestErrors(t *testing.T) {
	for _, all := range []bool{false, true} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
			t.Run(fmt.Sprintf("%v, for good %v", cause, all), func(t *testing.T) {
				f := &faultInjector{}
				runWithFault(t, f)
				steps := f.count
				if steps < 60 {
					t.Fatalf("only %d actions", steps)
				}
				sample := newSample()
				for _, at := range rand.Perm(steps) {
					if sample.exhausted() {
						break
					}
					at++
					f := &faultInjector{at: at, all: all, err: cause}
					runWithFault(t, f)
					if t.Failed() {
						t.Fatalf("with action %d, %s", at, f.names[min(at, len(f.names))-1])
					}
				}
			})
		}
	}
}

func runWithFault(t *testing.T, f *faultInjector) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g, err := openGuest(p, func(c *Config) { c.Step = f.step })
	if err != nil {
		if f.err == nil {
			t.Fatal(err)
		}
		return // it does not start, and has changed nothing
	}
	tx := g.begin(t)
	var failure error
	for _, c := range sampleCalls() {
		if failure = g.call(t.Context(), tx, c.op, c.in); failure != nil {
			break
		}
	}
	if failure == nil {
		failure = tx.Err()
	}
	after := mustDescribeTree(t, p.files)
	reply := committedReply()
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
	now := mustDescribeTree(t, p.files)
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
	g = newGuest(t, p, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	now = mustDescribeTree(t, p.files)
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
	if d := leftovers(now); d != "" {
		t.Errorf("left behind: %s", d)
	}
}

// A commit record whose sync failed is invalid once the rollback has begun, wherever that is interrupted. If it cannot be
// invalidated durably nothing is restored, and the next start decides by whether the record is there.
func TestUncertainCommit(t *testing.T) {
	for _, sure := range []bool{true, false} {
		t.Run(fmt.Sprintf("can be revoked %v", sure), func(t *testing.T) {
			p := newTestDirs(t)
			before := mustPopulate(t, p)
			bad := map[string]bool{}
			g, err := openGuest(p, func(c *Config) {
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
			for _, c := range sampleCalls() {
				g.mustCall(t, tx, c.op, c.in)
			}
			after := mustDescribeTree(t, p.files)
			bad["log.sync"], bad["abortmark.write"] = true, !sure
			if err := tx.Commit(t.Context(), committedReply()); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if !sure {
				if report := tx.Rollback(t.Context()); !report.Halted || !errors.Is(report.Err, syscall.EIO) {
					t.Fatalf("%+v", report)
				}
				checkTree(t, after, p.files)
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
			g = newGuest(t, p, nil)
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Err != nil {
				t.Fatalf("%+v, %v", list, err)
			}
			if sure {
				checkTree(t, before, p.files)
			} else {
				checkTree(t, after, p.files) // the record was there after all
			}
		})
	}
}

// If the abort record cannot be written the transaction moves to kept, durably: the next start must not roll back again. If
// that fails, too, no transaction begins.
func TestAbortNotWritten(t *testing.T) {
	for _, moved := range []bool{true, false} {
		t.Run(fmt.Sprintf("moved to kept %v", moved), func(t *testing.T) {
			p := newTestDirs(t)
			mustPopulate(t, p)
			bad := map[string]bool{}
			g := newGuest(t, p, func(c *Config) {
				c.Step = func(name string) error {
					if bad[name] {
						return syscall.EIO
					}
					return nil
				}
			})
			tx := g.begin(t)
			g.mustCall(t, tx, sampleCalls()[0].op, sampleCalls()[0].in)
			bad["log.write"], bad["kept.rename"] = true, !moved
			report := tx.Rollback(t.Context())
			if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Fatalf("%+v", report)
			}
			if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); !errors.Is(err, syscall.EIO) {
				t.Errorf("%v", err)
			}
			g.awaitCleaning(t)
			kept, err := os.ReadDir(filepath.Join(p.state, "kept"))
			if err != nil || len(kept) == 1 != moved {
				t.Errorf("kept: %v, %v", kept, err)
			}
			if listed := g.journal.Status().Kept; len(listed) != len(kept) || moved && listed[0] != filepath.Join(p.state, "kept", kept[0].Name()) {
				t.Errorf("Status lists %v", listed)
			}
			for _, dir := range kept {
				if err := os.RemoveAll(filepath.Join(p.state, "kept", dir.Name())); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := g.journal.Begin(t.Context(), Header{}); (err == nil) != moved {
				t.Errorf("begun: %v", err)
			}
			if listed := g.journal.Status().Kept; len(listed) > 0 {
				t.Errorf("Status still lists %v", listed)
			}
		})
	}
}

func leftovers(tree map[string]string) string {
	for name := range tree {
		if strings.Contains(name, ".quantix-") {
			return name
		}
	}
	return ""
}

// With every byte of the disk used, a rollback still works.
func TestFullDisk(t *testing.T) {
	p := newMountedDirs(t, "tmpfs", "size=12m")
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	// Also a file that is restored by a new one, in place of a shorter one.
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/program", Content: []byte("x")})
	fillDisk(t, filepath.Join(p.files, "..", "ballast"))
	err := g.call(t.Context(), tx, "file.write", &pb.WriteFileArgs{Path: "/etc/another", Content: largeContent('z')})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	checkTree(t, before, p.files)
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
		t.Fatal(err)
	}
}

// A tree that the file system does not rename, such as one of a lower layer of overlayfs, is copied instead.
func TestUnmovableTrees(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, func(c *Config) {
		c.Step = func(name string) error {
			if name == "take.rename" {
				return syscall.EXDEV
			}
			return nil
		}
	})
	for _, commit := range []bool{false, true} {
		tx := g.begin(t)
		for _, c := range sampleCalls() {
			g.mustCall(t, tx, c.op, c.in)
		}
		if commit {
			if err := tx.Commit(t.Context(), committedReply()); err != nil {
				t.Fatal(err)
			}
		} else if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) > 0 {
			t.Fatalf("%+v", report)
		}
		if err := tx.Close(t.Context(), committedReply()); err != nil {
			t.Fatal(err)
		}
		if !commit {
			checkTree(t, before, p.files)
		}
	}
	for _, gone := range []string{"etc/empty", "etc/new/er", "etc/app.d/deep"} {
		if _, err := os.Lstat(filepath.Join(p.files, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
}

// A file is restored although its file system has no space for it beside the present one, and the image is on another.
func TestNoSpaceForSecondFile(t *testing.T) {
	there, p := newMountedDirs(t, "tmpfs", "size=1m"), newTestDirs(t)
	p.files = there.files
	content := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	if err := os.WriteFile(filepath.Join(p.files, "large"), content, 0o640); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/large", Content: []byte("more"), Inplace: true})
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/large", Content: []byte("short")})
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	checkTree(t, before, p.files)
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
		t.Fatal(err)
	}
}

// Where others have filled the disk since a file became smaller, a rollback that has no space for it leaves what is there, whole.
func TestFullDiskTearsNoFile(t *testing.T) {
	for _, inplace := range []bool{false, true} {
		there, p := newMountedDirs(t, "tmpfs", "size=4m"), newTestDirs(t)
		p.files = there.files
		file := filepath.Join(p.files, "large")
		if err := os.WriteFile(file, bytes.Repeat([]byte("0123456789abcdef"), 160<<10), 0o640); err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, p, nil)
		tx := g.begin(t)
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/large", Content: []byte("short"), Inplace: inplace})
		tx.Mark()
		fillDisk(t, filepath.Join(p.files, "full"))
		if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
			t.Errorf("%+v", report)
		}
		if got, err := os.ReadFile(file); string(got) != "short" {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := tx.Close(t.Context(), &pb.RunScriptResponse{}); err != nil {
			t.Error(err)
		}
	}
}

// A file with several names of which a command replaced one is a file of its own after a rollback, where no further name could be kept on
// another mount. The report says so.
func TestNamesThatArePartedAreTold(t *testing.T) {
	there, p := newMountedDirs(t, "tmpfs", "size=1m"), newTestDirs(t)
	p.files = there.files
	at := func(name string) string { return filepath.Join(p.files, name) }
	if err := errors.Join(os.WriteFile(at("one"), []byte("text"), 0o640), os.Link(at("one"), at("two"))); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	if _, err := tx.BeforeTouch(t.Context(), "/one"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(at("one")), os.WriteFile(at("one"), []byte("new"), 0o640)); err != nil {
		t.Fatal(err)
	}
	tx.Mark()
	report := tx.Rollback(t.Context())
	told := report.NotUndone()
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || len(told) != 1 || !strings.Contains(told[0].Target, "/one: its other names") {
		t.Errorf("%+v", report)
	}
	if got, err := os.ReadFile(at("one")); string(got) != "text" {
		t.Error(got, err)
	}
}

// What a command removed is restored although what it made has filled the disk, also where that is removed later, and a directory has to
// be made.
func TestDiskThatACommandFilled(t *testing.T) {
	for _, tree := range []bool{true, false} {
		there, p := newMountedDirs(t, "tmpfs", "size=2m"), newTestDirs(t)
		p.files = there.files
		at := func(name string) string { return filepath.Join(p.files, name) }
		if err := os.MkdirAll(at("d/sub"), 0o750); err != nil {
			t.Fatal(err)
		}
		var names []string
		for i := range 60 {
			name := fmt.Sprintf("d/%d", i)
			names = append(names, name, fmt.Sprintf("d/sub/%d", i))
			for _, name := range names[len(names)-2:] {
				if err := os.WriteFile(at(name), bytes.Repeat([]byte(name), 2000), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := mustDescribeTree(t, p.files)
		g := newGuest(t, p, nil)
		tx := g.begin(t)
		full, err := "d/new", error(nil)
		if tree {
			err = tx.BeforeTree(t.Context(), "/d")
		} else {
			full, names = "full", names[:20]
			paths := []string{"/full"}
			for _, name := range names {
				paths = append(paths, "/"+name)
			}
			err = tx.Before(t.Context(), paths...)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.Remove(at(name)); err != nil {
				t.Fatal(err)
			}
		}
		if tree {
			if err := os.Remove(at("d/sub")); err != nil {
				t.Fatal(err)
			}
		}
		fillDisk(t, at(full))
		tx.Mark()
		if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%+v", report)
		}
		checkTree(t, before, p.files)
		if err := tx.Close(t.Context(), committedReply()); err != nil {
			t.Fatal(err)
		}
	}
}

// A journal whose files somebody has removed is named, and is not taken for the object that is not there.
func TestOwnFilesThatAreGone(t *testing.T) {
	for _, gone := range []string{"open", "open/*/u"} {
		p := newTestDirs(t)
		before := mustPopulate(t, p)
		g := newGuest(t, p, nil)
		tx := g.begin(t)
		if gone != "open" {
			g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/etc/app.d", Mode: "0700"})
		}
		dirs, err := filepath.Glob(filepath.Join(p.state, gone))
		if err != nil || len(dirs) != 1 {
			t.Fatal(dirs, err)
		}
		if err := os.RemoveAll(dirs[0]); err != nil {
			t.Fatal(err)
		}
		err = g.call(t.Context(), tx, "file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: []byte("new")})
		if !errors.Is(err, fault.ErrInternal) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "journal: ") {
			t.Errorf("without %s: %v", gone, err)
		}
		if tx.Err() == nil {
			t.Errorf("without %s the transaction goes on", gone)
		}
		tx.Rollback(t.Context())
		checkTree(t, before, p.files)
		_ = tx.Close(t.Context(), nil)
	}
}

func fillDisk(t *testing.T, path string) {
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

// newMountedDirs returns directories on a file system of their own.
func newMountedDirs(t *testing.T, kind, options string) testDirs {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("journal-test", dir, kind, 0, options); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	p := testDirs{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Objects on another mount than the journal's are restored, and nothing is left on that mount.
func TestOtherMount(t *testing.T) {
	there, p := newMountedDirs(t, "tmpfs", "size=20m"), newTestDirs(t)
	p.files = there.files
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	whole := filepath.Dir(p.files)
	before := mustDescribeTree(t, whole)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v", report)
	}
	checkTree(t, before, whole)
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	tx = g.begin(t)
	for _, c := range sampleCalls() {
		g.mustCall(t, tx, c.op, c.in)
	}
	if err := errors.Join(tx.Commit(t.Context(), committedReply()), tx.Close(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if d := leftovers(mustDescribeTree(t, whole)); d != "" {
		t.Errorf("left behind: %s", d)
	}
}

// A torn tail loses nothing: the step had not begun. Damage in the middle quarantines the transaction, and nothing is changed.
func TestDamagedJournal(t *testing.T) {
	p := newTestDirs(t)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	before := mustDescribeTree(t, p.files)
	leave := func() (path string, data []byte) {
		g, err := openGuest(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		tx := g.begin(t)
		for _, c := range sampleCalls()[:5] {
			g.mustCall(t, tx, c.op, c.in)
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
		g, err := openGuest(p, nil)
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
	checkTree(t, before, p.files)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}

	path, data = leave()
	after := mustDescribeTree(t, p.files)
	data[torn/2] ^= 0x10
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	list, g = recovered()
	if !errors.Is(list[0].Err, fault.ErrCorrupt) || list[0].Entry.Phase != "quarantined" {
		t.Errorf("%+v", list[0])
	}
	checkTree(t, after, p.files)
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
