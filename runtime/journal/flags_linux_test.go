package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const appendOnly, immutable, noDump = 0x20, 0x10, 0x40

// setInodeFlags sets flags of chattr, and takes them off at the end of the test. Where that cannot be the test is skipped.
func setInodeFlags(t *testing.T, path string, flags int) {
	t.Helper()
	set := func(flags int) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		now, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		const all = appendOnly | immutable | noDump
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(now)&^all|flags)
	}
	if err := set(flags); err != nil {
		t.Skip("needs root and a file system with the flags of chattr, such as ext4: ", err)
	}
	t.Cleanup(func() { _ = set(0) })
}

func inodeFlags(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	return int(flags) & (appendOnly | immutable | noDump)
}

// TestFlagsAreRestored: what the flags of chattr allow is done and undone, they are as before afterwards, and what they
// forbid is not done.
func TestFlagsAreRestored(t *testing.T) {
	for name, c := range map[string]struct {
		flags   int
		size    int // of the file
		op      string
		in      func(path string) *pb.WriteFileArgs
		refused bool
	}{
		"a line behind an append-only file":       {flags: appendOnly, size: 10, op: "file.append"},
		"a line behind a large append-only file":  {flags: appendOnly | noDump, size: 4 << 20, op: "file.append"},
		"in place":                                {flags: appendOnly, size: 10, op: "file.append", in: func(p string) *pb.WriteFileArgs { return &pb.WriteFileArgs{Path: p, Inplace: true} }},
		"a backup of an append-only file":         {flags: appendOnly, size: 10, op: "file.append", in: func(p string) *pb.WriteFileArgs { return &pb.WriteFileArgs{Path: p, Backup: true} }},
		"an append-only file with another mode":   {flags: appendOnly, size: 10, op: "file.append", in: func(p string) *pb.WriteFileArgs { return &pb.WriteFileArgs{Path: p, Mode: "0600"} }, refused: true},
		"an append-only file written anew":        {flags: appendOnly, size: 10, op: "file.write", refused: true},
		"an immutable file written anew":          {flags: immutable, size: 10, op: "file.write", refused: true},
		"a line behind an immutable file":         {flags: immutable, size: 10, op: "file.append", refused: true},
		"a file that no dump has, replaced":       {flags: noDump, size: 10, op: "file.write"},
		"a large file that no dump has, replaced": {flags: noDump, size: 4 << 20, op: "file.write"},
	} {
		for _, recovery := range []bool{false, true} {
			p := newTestDirs(t)
			path := filepath.Join(p.files, "f")
			old := bytes.Repeat([]byte("x"), c.size)
			if err := os.WriteFile(path, old, 0o640); err != nil {
				t.Fatal(err)
			}
			setInodeFlags(t, path, c.flags)
			before := mustDescribeTree(t, p.files)
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			in := &pb.WriteFileArgs{Path: "/f"}
			if c.in != nil {
				in = c.in("/f")
			}
			in.Content = []byte("new\n")
			if err := g.call(t.Context(), tx, c.op, in); (err != nil) != c.refused {
				t.Errorf("%s: %v", name, err)
			}
			want := []byte("new\n")
			if c.op == "file.append" {
				want = append(bytes.Clone(old), want...)
			}
			if c.refused {
				want = old
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the file has %d bytes, %v; want %d", name, len(got), err, len(want))
			}
			if got := inodeFlags(t, path); got != c.flags {
				t.Errorf("%s: the flags are %#x afterwards, want %#x", name, got, c.flags)
			}
			tx.Mark()
			g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/later"}) // so that all of it is on disk
			if recovery {
				if err := g.close(); err != nil {
					t.Fatal(err)
				}
				g = newGuest(t, p, nil)
				if list, err := g.journal.Recover(t.Context(), nil); err != nil || len(list) != 1 || len(list[0].Report.Conflicts()) > 0 {
					t.Fatal(name, list, err)
				}
			} else if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) > 0 {
				t.Errorf("%s: %+v", name, report)
			}
			if d := differences(before, mustDescribeTree(t, p.files)); d != "" {
				t.Errorf("%s, recovery %v: %s", name, recovery, d)
			}
			if got := inodeFlags(t, path); got != c.flags {
				t.Errorf("%s: the flags are %#x after the rollback, want %#x", name, got, c.flags)
			}
			setInodeFlags(t, path, 0)
			_ = g.close()
		}
	}
}

// A flag that a command gives to the directory of what it declared is named, as a mode is.
func TestFlagsOfADirectoryThatACommandChanges(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	etc := filepath.Join(p.files, "etc")
	if err := os.Chmod(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	if _, err := tx.BeforeTouch(t.Context(), "/etc/small"); err != nil {
		t.Fatal(err)
	}
	setInodeFlags(t, etc, noDump)
	list, err := tx.UndeclaredChanges(t.Context(), "exec.run")
	if err != nil || len(list) != 1 || list[0].Target != "/etc" || list[0].Action != "modified" {
		t.Error(list, err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL {
		t.Errorf("%+v", report)
	}
}
