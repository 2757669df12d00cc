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
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is a scratch file system with the real file room and a journal.
type guest struct {
	root    *fsys.Root
	room    *file.Room
	table   *builtins.Table
	journal *Journal
	ran     []string // what operations of the test's own ran
}

// place is where a guest lies: its files and its journal.
type place struct{ files, state string }

func newPlace(t testing.TB) place {
	t.Helper()
	dir := t.TempDir()
	p := place{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// start opens a guest.
func start(p place, change func(*Config)) (*guest, error) {
	root, err := fsys.Open(p.files)
	if err != nil {
		return nil, err
	}
	g := &guest{root: root, room: file.New(root, file.Config{})}
	g.table = builtins.NewTable(g.room.Ops())
	config := Config{
		Dir: p.state, Root: root, Version: "test",
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) error {
			g.ran = append(g.ran, op)
			_, err := g.table.Invoke(ctx, &builtins.Call{}, g.table.Script(op), args)
			return err
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

func started(t testing.TB, p place, change func(*Config)) *guest {
	t.Helper()
	g, err := start(p, change)
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

// call is one call of a script: undone at once if it fails.
func (g *guest) call(ctx context.Context, tx *Tx, op string, in proto.Message) error {
	mark := tx.Mark()
	_, err := g.table.Invoke(ctx, &builtins.Call{Tx: tx}, g.table.Script(op), in)
	if err != nil {
		if err := tx.Revert(ctx, mark); err != nil {
			return fmt.Errorf("revert: %w", err)
		}
	}
	return err
}

func (g *guest) must(t testing.TB, tx *Tx, op string, in proto.Message) {
	t.Helper()
	if err := g.call(t.Context(), tx, op, in); err != nil {
		t.Fatal(err)
	}
}

// picture describes all that is below a directory, with everything that has to come back: kind, mode, owner, content,
// target, attributes, times in ns, device numbers, and which names are of one file.
func picture(dir string) (map[string]string, error) {
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

func pictured(t testing.TB, dir string) map[string]string {
	t.Helper()
	p, err := picture(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// differences tells two pictures apart; "" if they are the same.
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

func same(t testing.TB, want map[string]string, dir string) {
	t.Helper()
	if d := differences(want, pictured(t, dir)); d != "" {
		t.Fatalf("not as it was:\n%s", d)
	}
}

// scene is a tree with one of everything. All times are old, so that nothing has its time by chance.
func scene(dir string) error {
	steps := []error{
		os.MkdirAll(filepath.Join(dir, "etc/app.d/deep/er"), 0o755),
		os.WriteFile(filepath.Join(dir, "etc/small"), []byte("small\n"), 0o640),
		os.WriteFile(filepath.Join(dir, "etc/large"), large('a'), 0o600),
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

func large(c byte) []byte {
	data := make([]byte, 3*inline)
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

// scripted is a transaction that uses everything.
func scripted() []call {
	return []call{
		{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("changed\n")}},
		{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: large('k'), Backup: true}},
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

// status is the reply of a script that did well.
func status() *pb.RunScriptResponse {
	return &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
}

// sweep says how much is tried where there is more than fits in a usual run.
var sweep = flag.String("sweep", "", "full: every pair of places to be killed at, and many random transactions; else a sample")

// sample bounds what is tried where not all is: some, and then as much as fits in a short time.
type sample struct {
	tried int
	until time.Time
}

func newSample() *sample { return &sample{until: time.Now().Add(time.Second)} }

// over counts a try, and says whether it was one too many.
func (s *sample) over() bool {
	s.tried++
	return *sweep != "full" && s.tried > 10 && time.Now().After(s.until)
}

// ram is a new place where a sync costs nothing: to be killed is not to lose power.
func ram(t *testing.T) place {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "quantix-journal-")
	if err != nil {
		t.Fatal(err)
	}
	p := place{filepath.Join(dir, "root"), filepath.Join(dir, "state", "tx")}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, d := range []string{p.files, filepath.Dir(p.state)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := scene(p.files); err != nil {
		t.Fatal(err)
	}
	return p
}
