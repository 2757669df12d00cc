package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// takeOnOtherMount removes a tree on a mount whose root everybody can write, and returns the path of the spool.
func takeOnOtherMount(t *testing.T, p testDirs, g *guest, tx *Tx) string {
	t.Helper()
	if err := os.Chmod(p.files, 0o777); err != nil {
		t.Fatal(err)
	}
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/app.d", Recursive: true})
	list, err := filepath.Glob(filepath.Join(p.files, ".quantix-tx-*"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return list[0]
}

// newSpoolGuest returns a guest whose files are the root of a mount of their own.
func newSpoolGuest(t *testing.T) (testDirs, *guest) {
	t.Helper()
	there, p := newMountedDirs(t, "tmpfs", "size=20m"), newTestDirs(t)
	p.files = filepath.Dir(there.files)
	if err := populate(p.files); err != nil {
		t.Fatal(err)
	}
	return p, newGuest(t, p, nil)
}

// An object that gets the name of one that is being removed, at the last moment, goes back; the call fails, and the transaction goes on.
func TestAnotherObjectIsNotTaken(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	swap := true
	g := newGuest(t, p, func(c *Config) {
		c.Step = func(name string) error {
			if name != "take.rename" || !swap {
				return nil
			}
			swap = false
			return errors.Join(os.Rename(at("small"), at("genuine")), os.WriteFile(at("small"), []byte("theirs"), 0o600))
		}
	})
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("x")})
	if err := g.call(t.Context(), tx, "file.remove", &pb.RemoveArgs{Path: "/etc/small"}); !errors.Is(err, fault.ErrChanged) {
		t.Error(err)
	}
	if got, err := os.ReadFile(at("small")); string(got) != "theirs" {
		t.Error(string(got), err)
	}
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/small"})
	tx.Mark()
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	if got, err := os.ReadFile(at("small")); string(got) != "theirs" {
		t.Error(string(got), err)
	}
	if _, err := os.Stat(at("new")); err == nil {
		t.Error("what was made before is still there")
	}
}

// A directory that others put in the place of a spool is neither moved back nor removed, and that is told.
// What cannot be removed since its file system is read-only ends the call, and not the transaction.
func TestNothingIsTakenFromAReadOnlyMount(t *testing.T) {
	p, g := newSpoolGuest(t)
	before := mustDescribeTree(t, p.files)
	tx := g.begin(t)
	const readOnly = unix.MS_REMOUNT | unix.MS_RDONLY
	if err := unix.Mount("", p.files, "", readOnly, ""); err != nil {
		t.Fatal(err)
	}
	if err := g.call(t.Context(), tx, "file.remove", &pb.RemoveArgs{Path: "/etc/small"}); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	if err := unix.Mount("", p.files, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("x")})
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/small"})
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	if d := differences(before, mustDescribeTree(t, p.files)); d != "" {
		t.Error(d)
	}
}

func TestSpoolTakenOver(t *testing.T) {
	for _, end := range []string{"rollback", "commit", "recovery"} {
		t.Run(end, func(t *testing.T) {
			p, g := newSpoolGuest(t)
			tx := g.begin(t)
			spool := takeOnOtherMount(t, p, g, tx)
			if strings.Contains(spool, tx.ID()) {
				t.Error("the name can be guessed from the transaction's id")
			}
			g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/small"})
			theirs := filepath.Join(spool, "1")
			err := errors.Join(os.Rename(spool, spool+"-stolen"), os.MkdirAll(theirs, 0o777), os.Chmod(spool, 0o700),
				os.WriteFile(filepath.Join(theirs, "one"), []byte("theirs"), 0o666), os.Chown(theirs, 65534, 65534))
			if err != nil {
				t.Fatal(err)
			}
			var report Report
			switch end {
			case "rollback":
				report = tx.Rollback(t.Context())
			case "commit":
				if err := errors.Join(tx.Commit(t.Context(), committedReply()), tx.Close(t.Context(), nil)); err != nil {
					t.Fatal(err)
				}
			case "recovery":
				if err := g.close(); err != nil {
					t.Fatal(err)
				}
				g = newGuest(t, p, nil)
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				report = list[0].Report
			}
			if failed := report.Status() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED; failed != (end != "commit") {
				t.Errorf("%+v", report)
			}
			g.journal.cleanups.Wait()
			if _, err := os.Stat(filepath.Join(p.files, "etc/app.d")); err == nil {
				t.Error("their tree was moved back")
			}
			if _, err := os.Stat(filepath.Join(theirs, "one")); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(spool+"-stolen", "1/one")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A spool serves all trees of its mount, and is gone with the last one.
func TestSpoolIsRemoved(t *testing.T) {
	for _, commit := range []bool{false, true} {
		p, g := newSpoolGuest(t)
		if err := os.Chmod(p.files, 0o777); err != nil {
			t.Fatal(err)
		}
		before := mustDescribeTree(t, p.files)
		tx := g.begin(t)
		takeOnOtherMount(t, p, g, tx)
		for _, path := range []string{"/etc/small", "/etc/link"} {
			g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: path})
		}
		if commit {
			if err := tx.Commit(t.Context(), committedReply()); err != nil {
				t.Fatal(err)
			}
		} else if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%+v", report)
		}
		if err := tx.Close(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		g.journal.cleanups.Wait()
		if !commit {
			checkTree(t, before, p.files)
		} else if list, _ := filepath.Glob(filepath.Join(p.files, ".quantix-tx-*")); len(list) > 0 {
			t.Error(list)
		}
	}
}

// What is left of a transaction that could not be rolled back is removed by its id, with its spool, and nothing else
// is.
func TestRemoveKept(t *testing.T) {
	p, g := newSpoolGuest(t)
	tx := g.begin(t)
	spool := takeOnOtherMount(t, p, g, tx)
	tree, hidden := filepath.Join(spool, "1"), filepath.Join(spool, "hidden")
	if err := errors.Join(os.Rename(tree, hidden), os.Mkdir(tree, 0o700)); err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.Fatalf("%+v", report)
	}
	if err := errors.Join(tx.Close(t.Context(), nil), os.Remove(tree), os.Rename(hidden, tree)); err != nil {
		t.Fatal(err)
	}
	g.journal.cleanups.Wait()
	if kept := g.journal.Kept(); len(kept) != 1 || kept[0] != tx.ID() {
		t.Fatal(kept)
	}
	for _, id := range []string{"", ".", "..", "../open", "../kept/" + tx.ID(), "0"} {
		if err := g.journal.RemoveKept(t.Context(), id, anyPort); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", id, err)
		}
	}
	others := func(port string) bool { return port == "another" }
	if err := g.journal.RemoveKept(t.Context(), tx.ID(), others); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := g.journal.RemoveKept(t.Context(), tx.ID(), anyPort); err != nil {
		t.Fatal(err)
	}
	if kept := g.journal.Status().Kept; len(kept) > 0 {
		t.Error(kept)
	}
	if _, err := os.Stat(spool); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := g.journal.RemoveKept(t.Context(), tx.ID(), anyPort); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
