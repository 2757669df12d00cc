package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Who may write to a directory puts another object at the path of one that a transaction changed: a rollback gives that neither
// the mode, nor the content, nor the place of the one that was kept.
func TestAnotherObjectGetsNothing(t *testing.T) {
	const large = 2 << 20 // of which the content is not kept where its mode changes
	for _, test := range []struct {
		name  string
		calls []call
		swap  func(at func(string) string) error
		path  string // where the other object was put
		fails bool
	}{
		{
			name: "a file of the same content", path: "program",
			calls: []call{{"file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0700"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Remove(at("program")), os.WriteFile(at("program"), []byte("#!/bin/sh\n"), 0o700))
			},
		}, {
			name: "a fifo", path: "app.d/fifo",
			calls: []call{{"file.chmod", &pb.ChmodArgs{Path: "/etc/app.d/fifo", Mode: "0640"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Remove(at("app.d/fifo")), unix.Mkfifo(at("app.d/fifo"), 0o640))
			},
		}, {
			name: "a directory", path: "app.d/deep", fails: true,
			calls: []call{{"file.chmod", &pb.ChmodArgs{Path: "/etc/app.d/deep", Mode: "0711"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Rename(at("app.d/deep"), at("app.d/gone")), os.Mkdir(at("app.d/deep"), 0o700))
			},
		}, {
			name: "a large file", path: "app.d/huge", fails: true,
			calls: []call{{"file.chmod", &pb.ChmodArgs{Path: "/etc/app.d/huge", Mode: "0711"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Remove(at("app.d/huge")), os.WriteFile(at("app.d/huge"), nil, 0o700))
			},
		}, {
			name: "what a file was moved to", path: "moved", fails: true,
			calls: []call{{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/moved"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Remove(at("moved")), os.WriteFile(at("moved"), []byte("theirs"), 0o700))
			},
		}, {
			name: "what a directory was moved to", path: "moved", fails: true,
			calls: []call{{"file.move", &pb.FromToArgs{From: "/etc/app.d", To: "/etc/moved"}}},
			swap: func(at func(string) string) error {
				return errors.Join(os.Rename(at("moved"), at("gone")), os.Mkdir(at("moved"), 0o700))
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newTestDirs(t)
			mustPopulate(t, p)
			at := func(name string) string { return filepath.Join(p.files, "etc", name) }
			if err := os.WriteFile(at("app.d/huge"), make([]byte, large), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, dir := range []string{".", "app.d"} {
				if err := os.Chmod(at(dir), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			for _, c := range test.calls {
				g.mustCall(t, tx, c.op, c.in)
			}
			tx.Mark()
			if err := test.swap(at); err != nil {
				t.Fatal(err)
			}
			theirs, err := os.OpenFile(at(test.path), os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			before, err := fsys.StatFile(theirs)
			if err != nil {
				t.Fatal(err)
			}
			report := tx.Rollback(t.Context())
			if failed := report.Status() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED; failed != test.fails {
				t.Errorf("%+v", report)
			}
			after, err := fsys.StatFile(theirs)
			if err != nil || after.Mode != before.Mode || after.Size != before.Size || after.Mtime != before.Mtime {
				t.Errorf("theirs was %+v and is %+v, %v", before, after, err)
			}
			place, err := os.Lstat(at(test.path))
			own, _ := theirs.Stat()
			if same := err == nil && os.SameFile(place, own); same != test.fails {
				t.Errorf("theirs is at the path: %v", same)
			}
		})
	}
}

// A file that was moved, and then saved anew where none but root can, is moved back: it is nobody else's.
func TestWhatWasSavedAnewIsMovedBack(t *testing.T) {
	for _, test := range []struct {
		name string
		save string // the path of the file that is saved anew
		want string // what small holds afterwards
	}{
		{"at the new place", "moved", "anew"},
		{"at the former place, after it was moved back", "small", "anew"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newTestDirs(t)
			mustPopulate(t, p)
			at := func(name string) string { return filepath.Join(p.files, "etc", name) }
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			g.mustCall(t, tx, "file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/moved"})
			tx.Mark()
			err := errors.Join(os.Remove(at("moved")), os.WriteFile(at("beside"), []byte("anew"), 0o600), os.Rename(at("beside"), at(test.save)))
			if err != nil {
				t.Fatal(err)
			}
			if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Errorf("%+v", report)
			}
			if got, err := os.ReadFile(at("small")); err != nil || string(got) != test.want {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := os.Lstat(at("moved")); !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
}

// The rights that an append gave are gone after a rollback, also of who opened the file meanwhile.
func TestWhoOpenedWhatIsCutBackDoesNotWriteIt(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	path := filepath.Join(p.files, "etc/huge")
	content := append(make([]byte, 2<<20), "end"...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/etc/huge", Content: []byte("more"), Mode: "0666"})
	tx.Mark()
	theirs, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	if _, err := theirs.WriteAt([]byte("theirs"), 0); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	info, _ := os.Stat(path)
	if err != nil || !bytes.Equal(got, content) || info.Mode() != 0o600 {
		t.Error(len(got), info.Mode(), err)
	}
}

// A number that is given again does not make another object the one that was kept.
func TestNumberIsGivenAgain(t *testing.T) {
	is := fsys.Meta{Kind: fsys.File, Ino: 7, Born: fsys.Time{Sec: 2}}
	for born, same := range map[int64]bool{0: true, 1: false, 2: true} {
		r := &restorer{is: is, was: fsys.Meta{Kind: fsys.File, Ino: 7, Born: fsys.Time{Sec: born}}}
		if r.kept() != same {
			t.Error(born, !same)
		}
	}
	stored := fromState(toState(is))
	if !stored.SameInode(is) || stored.Born != is.Born {
		t.Error(stored)
	}
}

// What a rollback makes anew is the object of older steps, also in the rollback that goes on after one that was interrupted.
func TestOlderStepsKnowWhatWasMadeAnew(t *testing.T) {
	for _, test := range []struct {
		name  string
		calls []call
	}{
		{"attributes of a large file", []call{
			{"file.chmod", &pb.ChmodArgs{Path: "/etc/huge", Mode: "0711"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/huge", Content: []byte("short")}},
		}},
		{"a file that was moved", []call{
			{"file.chmod", &pb.ChmodArgs{Path: "/etc/huge", Mode: "0711"}},
			{"file.move", &pb.FromToArgs{From: "/etc/huge", To: "/etc/new"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("short")}},
		}},
		{"a file in a directory that was moved", []call{
			{"file.chmod", &pb.ChmodArgs{Path: "/etc/app.d/huge", Mode: "0711"}},
			{"file.move", &pb.FromToArgs{From: "/etc/app.d", To: "/etc/new"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/new/huge", Content: []byte("short")}},
		}},
		{"a name that is used again", []call{
			{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/small.old"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("1")}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("2")}},
		}},
		{"two moves, and a name that is used again", []call{
			{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/b"}},
			{"file.move", &pb.FromToArgs{From: "/etc/b", To: "/etc/c"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/b", Content: []byte("1")}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/b", Content: []byte("2")}},
		}},
		{"a large file that is removed and written", []call{
			{"file.chmod", &pb.ChmodArgs{Path: "/etc/huge", Mode: "0711"}},
			{"file.remove", &pb.RemoveArgs{Path: "/etc/huge"}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/huge", Content: []byte("1")}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/huge", Content: []byte("2")}},
		}},
		{"a call that was taken back", []call{
			{"revert", nil},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("1")}},
			{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/x"}},
		}},
		{"a directory that was made anew", []call{
			{"file.chmod", &pb.ChmodArgs{Path: "/etc/app.d", Mode: "0700"}},
			{"remake", nil},
		}},
	} {
		for _, interrupted := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				p := newTestDirs(t)
				mustPopulate(t, p)
				for _, dir := range []string{"", "app.d"} { // so that an object is told from another one by what it is
					if err := os.Chmod(filepath.Join(p.files, "etc", dir), 0o777); err != nil {
						t.Fatal(err)
					}
				}
				for _, name := range []string{"huge", "app.d/huge"} {
					if err := os.WriteFile(filepath.Join(p.files, "etc", name), make([]byte, 2<<20), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				before := mustDescribeTree(t, p.files)
				change := func(g *guest, tx *Tx) {
					for _, c := range test.calls {
						if c.op == "revert" {
							mark := tx.Mark()
							for range 2 {
								g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte(rand.Text())})
							}
							if err := tx.Revert(t.Context(), mark); err != nil {
								t.Fatal(err)
							}
							continue
						}
						if c.op != "remake" {
							g.mustCall(t, tx, c.op, c.in)
							continue
						}
						if err := tx.BeforeTree(t.Context(), "/etc/app.d"); err != nil {
							t.Fatal(err)
						}
						dir := filepath.Join(p.files, "etc/app.d")
						if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o711)); err != nil {
							t.Fatal(err)
						}
					}
					tx.Mark()
				}
				if interrupted {
					abandonTx(t, p, nil, change)
					recoverInPieces(t, p)
				} else {
					g := newGuest(t, p, nil)
					tx := g.begin(t)
					change(g, tx)
					if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
						t.Errorf("%+v", report)
					}
				}
				checkTree(t, before, p.files)
			})
		}
	}
}

// However many objects a rollback makes anew, older steps know them.
func TestManyAreMadeAnew(t *testing.T) {
	const files = 1100
	for _, interrupted := range []bool{false, true} {
		p := newMemoryDirs(t)
		dir := filepath.Join(p.files, "etc")
		var err error
		for i := range files {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600))
		}
		if err = errors.Join(err, os.Chmod(dir, 0o777)); err != nil { // so that an object is told from another one by what it is
			t.Fatal(err)
		}
		before := mustDescribeTree(t, p.files)
		change := func(g *guest, tx *Tx) {
			for i := range files {
				from, to := fmt.Sprint("/etc/", i), fmt.Sprint("/etc/moved-", i)
				g.mustCall(t, tx, "file.move", &pb.FromToArgs{From: from, To: to})
				g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: to, Content: []byte("new")})
			}
			tx.Mark()
		}
		if interrupted {
			abandonTx(t, p, nil, change)
			for _, actions := range []int{files, 100 * files} {
				recoverPart(t, p, actions)
			}
		} else {
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			change(g, tx)
			if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Error(report.Hint(), len(report.NotUndone()))
			}
		}
		checkTree(t, before, p.files)
	}
}

// recoverInPieces recovers a journal by recoveries of which each is stopped at the first object that it restores.
func recoverInPieces(t *testing.T, p testDirs) {
	t.Helper()
	for range 50 {
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
		list, _ := g.journal.Recover(ctx, nil)
		cancel()
		_ = g.close()
		if len(list) == 1 && !list[0].Report.Halted {
			if got := list[0].Entry.GetReply().GetStatus(); got != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Errorf("%v %+v", got, list[0].Report)
			}
			return
		}
	}
	t.Error("it has no end")
}
