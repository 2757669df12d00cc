package journal

import (
	"errors"
	"fmt"
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

// lease takes a write lease on a file, as its owner can.
func lease(t *testing.T, path string) (release func()) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return func() { _ = file.Close() }
}

// Leases on files do not make a rollback fail: a file is replaced, and one with other names is waited for.
func TestLeases(t *testing.T) {
	p := newTestDirs(t)
	before := mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, in := range []*pb.WriteFileArgs{
		{Path: "/etc/small", Content: []byte("ours")}, {Path: "/etc/large", Content: []byte("ours"), Inplace: true},
		{Path: "/etc/empty", Content: []byte("ours")}, {Path: "/etc/two", Content: []byte("ours"), Inplace: true},
		{Path: "/etc/new", Content: []byte("ours")},
	} {
		g.mustCall(t, tx, "file.write", in)
	}
	tx.Mark()
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	if err := os.WriteFile(at("empty"), []byte("theirs, longer"), 0); err != nil { // a conflict with a lease
		t.Fatal(err)
	}
	if err := os.Link(at("large"), filepath.Join(filepath.Dir(p.files), "theirs")); err != nil { // no reason to wait
		t.Fatal(err)
	}
	for _, name := range []string{"small", "large", "empty", "new"} {
		lease(t, at(name))
	}
	time.AfterFunc(300*time.Millisecond, lease(t, at("two")))
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) != 1 {
		t.Fatalf("%+v", report)
	}
	for _, path := range report.Conflicts() {
		if err := os.Remove(filepath.Join(p.files, path)); err != nil {
			t.Error(err)
		}
	}
	now := mustDescribeTree(t, p.files)
	now["etc"], before["etc"] = "", "" // the removal above changed its time
	if d := differences(before, now); d != "" {
		t.Error(d)
	}
}

// Names that a rollback uses for itself may be taken, by what cannot be removed.
func TestNamesAreTaken(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("ours")})
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("ours")})
	tx.Mark()
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	err := errors.Join(os.MkdirAll(at(".quantix-kvm-0.tmp/x"), 0o755),
		os.Remove(at("small")), os.MkdirAll(at("small/x"), 0o755), os.WriteFile(at(".quantix-kvm-1.tmp"), nil, 0o644))
	for _, n := range []string{"", "-2", "-3", "-4", "-5", "-6", "-7", "-8", "-9", "-10"} {
		err = errors.Join(err, os.MkdirAll(at("small"+tx.conflictSuffix()+n+"/x"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	lease(t, at(".quantix-kvm-1.tmp"))
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) != 1 {
		t.Errorf("%+v", report)
	}
	if data, _ := os.ReadFile(at("small")); string(data) != "small\n" {
		t.Errorf("%q", data)
	}
}

// More attributes than are read, which others set, make no rollback fail: those of a file that the step left are named, and
// another file that has its name is kept.
func TestAttributesBeyondABound(t *testing.T) {
	p := newMemoryDirs(t)
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	for _, name := range []string{"/etc/small", "/etc/program", "/etc/empty"} {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: name, Content: []byte("ours")})
	}
	tx.Mark()
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	err := errors.Join(os.WriteFile(at("theirs"), []byte("theirs"), 0o644), os.Rename(at("theirs"), at("program")))
	for _, name := range []string{"small", "program"} {
		for i := range 20 {
			if err := unix.Setxattr(at(name), fmt.Sprintf("user.%d", i), make([]byte, 64<<10), 0); err != nil {
				t.Skipf("no large attributes here: %v", err)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) != 1 ||
		!strings.Contains(report.Hint(), "extended attributes") {
		t.Errorf("%+v: %s", report, report.Hint())
	}
	for name, want := range map[string]string{"small": "small\n", "empty": ""} {
		if data, _ := os.ReadFile(at(name)); string(data) != want {
			t.Errorf("%s is %q", name, data)
		}
		if n, _ := unix.Listxattr(at(name), nil); n > 20 { // a note of the test's own
			t.Errorf("%s has attributes of %d bytes", name, n)
		}
	}
	for _, path := range report.Conflicts() {
		if data, _ := os.ReadFile(filepath.Join(p.files, path)); string(data) != "theirs" {
			t.Errorf("%s is %q", path, data)
		}
	}
}

// What has changed where only root can have done that, or what no attempt makes good, is not tried again and again.
func TestWhatIsTriedAgain(t *testing.T) {
	_, g, _ := userGuest(t, nil)
	p := g.begin(t).newPass()
	settled := settledError{fault.ErrChanged}
	for _, test := range []struct {
		path string
		err  error
		want int
	}{
		{"/etc/small", fault.ErrChanged, rootTries}, {"/home/sub/f", fault.ErrChanged, maxTries}, {"/home/sub/f", settled, 1},
		{"/etc/small", fs.ErrExist, maxTries}, {"/etc/small", fs.ErrPermission, 1},
	} {
		tries := 0
		err := p.retry(t.Context(), test.path, func() error { tries++; return test.err })
		if tries != test.want || !errors.Is(err, test.err) && test.err != error(settled) {
			t.Errorf("%s, %v: %d times, %v", test.path, test.err, tries, err)
		}
	}
}
