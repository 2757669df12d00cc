package journal

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is a scratch file system with the real file room and a journal.
type guest struct {
	root    *fsys.Root
	room    builtins.Room
	table   *builtins.Table
	journal *Journal
	ran     []string // the operations that the journal ran
}

// testDirs are the directories of a guest: its files and its journal.
type testDirs struct{ files, state string }

func newTestDirs(t testing.TB) testDirs {
	t.Helper()
	dir := t.TempDir()
	p := testDirs{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// openGuest opens a guest, whose journal change may configure. Closing it leaves a transaction open, as a crash does.
func openGuest(p testDirs, change func(*Config)) (*guest, error) {
	root, err := fsys.Open(p.files)
	if err != nil {
		return nil, err
	}
	g := &guest{root: root, room: all.New(all.Config{Files: root, Dir: p.files}).Named("file")}
	g.table = builtins.NewTable(g.room)
	config := Config{
		Dir: p.state, Root: root, Version: "test",
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) (bool, error) {
			g.ran = append(g.ran, op)
			_, err := g.table.Script(op).Call(ctx, &builtins.Call{}, args)
			return false, err
		},
	}
	if change != nil {
		change(&config)
	}
	g.journal, err = Open(config)
	return g, err
}

func (g *guest) close() error {
	err := g.journal.Close()
	_ = g.room.Close()
	_ = g.root.Close()
	return err
}

func newGuest(t testing.TB, p testDirs, change func(*Config)) *guest {
	t.Helper()
	g, err := openGuest(p, change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.close() })
	return g
}

func (g *guest) begin(t testing.TB) *Tx {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tx, err := g.journal.Begin(ctx, Header{MessageID: "m", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// call invokes an operation as a script does: it is undone at once if it fails.
func (g *guest) call(ctx context.Context, tx *Tx, op string, in proto.Message) error {
	mark := tx.Mark()
	_, err := g.table.Script(op).Call(ctx, &builtins.Call{Tx: tx}, in)
	if err != nil {
		if err := tx.Revert(ctx, mark); err != nil {
			return fmt.Errorf("revert: %w", err)
		}
	}
	return err
}

func (g *guest) mustCall(t testing.TB, tx *Tx, op string, in proto.Message) {
	t.Helper()
	if err := g.call(t.Context(), tx, op, in); err != nil {
		t.Fatal(err)
	}
}

// describeTree describes all that is below a directory, with everything that must be restored: kind, mode, owner, content,
// target, attributes, times in ns, device numbers, and which names are of one file.
func describeTree(dir string) (map[string]string, error) {
	all, names := map[string]string{}, map[uint64][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		text := fmt.Sprintf("mode %o owner %d:%d time %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d bytes %x", len(data), sha256.Sum256(data))
			names[st.Ino] = append(names[st.Ino], rel)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" device %d", st.Rdev)
		}
		all[rel] = text + attributes(path)
		return nil
	})
	for _, list := range names {
		for _, name := range list {
			all[name] += fmt.Sprintf(" names %s", strings.Join(list, ","))
		}
	}
	return all, err
}

func attributes(path string) string {
	buffer := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil || n == 0 {
		return ""
	}
	list := strings.Split(strings.TrimRight(string(buffer[:n]), "\x00"), "\x00")
	slices.Sort(list)
	text := ""
	for _, name := range list {
		value := make([]byte, 4096)
		n, _ := unix.Lgetxattr(path, name, value)
		text += fmt.Sprintf(" %s=%x", name, value[:max(n, 0)])
	}
	return text
}

func mustDescribeTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	p, err := describeTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// differences describes how two results of describeTree differ; "" if they do not.
func differences(want, got map[string]string) string {
	var list []string
	for name, w := range want {
		if g, ok := got[name]; !ok {
			list = append(list, name+" is missing: "+w)
		} else if g != w {
			list = append(list, name+"\n  was "+w+"\n  is  "+g)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			list = append(list, name+" is new: "+g)
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

func checkTree(t testing.TB, want map[string]string, dir string) {
	t.Helper()
	if d := differences(want, mustDescribeTree(t, dir)); d != "" {
		t.Fatalf("not as it was:\n%s", d)
	}
}

// populate makes a tree with one of everything. All times are old, so that none is right by chance.
func populate(dir string) error {
	steps := []error{
		os.MkdirAll(filepath.Join(dir, "etc/app.d/deep/er"), 0o755),
		os.WriteFile(filepath.Join(dir, "etc/small"), []byte("small\n"), 0o640),
		os.WriteFile(filepath.Join(dir, "etc/large"), largeContent('a'), 0o600),
		os.WriteFile(filepath.Join(dir, "etc/empty"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "etc/two"), []byte("two names"), 0o644),
		os.Link(filepath.Join(dir, "etc/two"), filepath.Join(dir, "etc/app.d/also-two")),
		os.Symlink("small", filepath.Join(dir, "etc/link")),
		os.WriteFile(filepath.Join(dir, "etc/app.d/one"), []byte("1"), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/app.d/deep/er/file"), []byte("deep"), 0o444),
		unix.Mkfifo(filepath.Join(dir, "etc/app.d/fifo"), 0o620),
		os.WriteFile(filepath.Join(dir, "etc/program"), []byte("#!/bin/sh\n"), 0o644),
		os.Chmod(filepath.Join(dir, "etc/program"), 0o4755),
	}
	for _, err := range steps {
		if err != nil {
			return err
		}
	}
	_ = unix.Setxattr(filepath.Join(dir, "etc/small"), "user.note", []byte{0, 1, 2}, 0) // where the file system can
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(dir, "etc/small"), 1234, 4321); err != nil {
			return err
		}
		if err := unix.Mknod(filepath.Join(dir, "etc/app.d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			return err
		}
	}
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	slices.Reverse(paths)
	for i, path := range paths {
		when := []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9 + int64(i), Nsec: 123456789 + int64(i)}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, when, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return err
}

func largeContent(c byte) []byte {
	data := make([]byte, 3*maxInlineFile)
	for i := range data {
		data[i] = c + byte(i%7)
	}
	return data
}

// call is one call of a scripted transaction.
type call struct {
	op string
	in proto.Message
}

// sampleCalls returns the calls of a transaction that uses everything.
func sampleCalls() []call {
	return []call{
		{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("changed\n")}},
		{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: largeContent('k'), Backup: true}},
		{"file.write", &pb.WriteFileArgs{Path: "/etc/new/er/file", Content: []byte("new"), Parents: true}},
		{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("both names"), Inplace: true}},
		{"file.append", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("again\n")}},
		{"file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0700"}},
		{"file.symlink", &pb.SymlinkArgs{Path: "/etc/link", Target: "large"}},
		{"file.symlink", &pb.SymlinkArgs{Path: "/etc/link2", Target: "large"}},
		{"file.remove", &pb.RemoveArgs{Path: "/etc/app.d", Recursive: true}},
		{"file.mkdir", &pb.MkdirArgs{Path: "/etc/app.d"}},
		{"file.write", &pb.WriteFileArgs{Path: "/etc/app.d/one", Content: []byte("another")}},
		{"file.remove", &pb.RemoveArgs{Path: "/etc/empty"}},
		{"file.copy", &pb.FromToArgs{From: "/etc/large", To: "/etc/new/copy"}},
		{"file.remove", &pb.RemoveArgs{Path: "/etc/new/er", Recursive: true}},
	}
}

// committedReply returns the reply of a script that succeeded.
func committedReply() *pb.RunScriptResponse {
	return &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
}

// sweep selects how much the exhaustive tests try.
var sweep = flag.String("sweep", "", "full: every pair of places to be killed at, and many random transactions; else a sample")

// sample bounds the tries of a usual run: ten, and then as many as fit in a second.
type sample struct {
	tried int
	until time.Time
}

func newSample() *sample { return &sample{until: time.Now().Add(time.Second)} }

// exhausted counts a try, and reports whether it was one too many.
func (s *sample) exhausted() bool {
	s.tried++
	return *sweep != "full" && s.tried > 10 && time.Now().After(s.until)
}

// newMemoryDirs returns directories in memory, where a sync costs nothing: a killed process loses no unsynced data.
func newMemoryDirs(t *testing.T) testDirs {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "quantix-journal-")
	if err != nil {
		t.Fatal(err)
	}
	p := testDirs{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	return p
}

// awaitCleaning waits until what the last transaction left is cleaned up.
func (g *guest) awaitCleaning(t testing.TB) {
	t.Helper()
	if err := g.journal.acquireWriter(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	g.journal.writer <- struct{}{}
}

// withoutTimes removes the times from a result of describeTree: those of new objects differ from run to run.
func withoutTimes(tree map[string]string) map[string]string {
	bare := map[string]string{}
	for name, text := range tree {
		head, tail, _ := strings.Cut(text, " time ")
		_, tail, _ = strings.Cut(tail, " ")
		bare[name] = head + tail
	}
	return bare
}
