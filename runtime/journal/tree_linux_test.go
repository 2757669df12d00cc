package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Who may write to the directories of a tree that a command declared moves a directory of somebody else into it, or in its
// place. A rollback neither removes what is in that, nor gives it what the kept one had; what the command made is removed.
func TestATreeIsNotAnothersDirectory(t *testing.T) {
	for _, test := range []struct {
		name string
		swap func(at func(string) string) error
		left string // where theirs is afterwards, beside its conflict name
	}{
		{"in the place of the tree", func(at func(string) string) error {
			return errors.Join(os.Rename(at("app.d"), at("gone")), os.Rename(at("theirs"), at("app.d")))
		}, "app.d"},
		{"in the place of a directory of it", func(at func(string) string) error {
			return errors.Join(os.Rename(at("app.d/deep"), at("gone")), os.Rename(at("theirs"), at("app.d/deep")))
		}, "app.d/deep"},
		{"in the place of a file", func(at func(string) string) error {
			return errors.Join(os.Remove(at("app.d/one")), os.Rename(at("theirs"), at("app.d/one")))
		}, "app.d/one"},
		{"beside what was there", func(at func(string) string) error {
			return os.Rename(at("theirs"), at("app.d/new"))
		}, "app.d/new"},
		{"below what is new", func(at func(string) string) error {
			return errors.Join(os.Mkdir(at("app.d/new"), 0o755), os.Rename(at("theirs"), at("app.d/new/theirs")))
		}, "app.d/new"},
		{"where nothing was", func(at func(string) string) error {
			return os.Rename(at("theirs"), at("nothing"))
		}, "nothing"},
	} {
		for _, interrupted := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				p := newTestDirs(t)
				mustPopulate(t, p)
				at := func(name string) string { return filepath.Join(p.files, "etc", name) }
				for _, dir := range []string{".", "app.d"} {
					if err := os.Chmod(at(dir), 0o777); err != nil {
						t.Fatal(err)
					}
				}
				before := mustDescribeTree(t, p.files)
				err := errors.Join(os.Mkdir(at("theirs"), 0o700), os.WriteFile(at("theirs/secret"), []byte("secret"), 0o600))
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := os.Stat(at("theirs"))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(200 * time.Millisecond) // what is younger counts as the command's
				change := func(_ *guest, tx *Tx) {
					_, err := tx.BeforeTouch(t.Context(), "/etc/app.d", "/etc/nothing")
					err = errors.Join(err, os.MkdirAll(at("app.d/made/deep"), 0o755), os.WriteFile(at("app.d/made/deep/file"), nil, 0o600),
						os.WriteFile(at("app.d/one"), []byte("changed"), 0o600))
					tx.Mark()
					if err = errors.Join(err, test.swap(at)); err != nil {
						t.Fatal(err)
					}
				}
				if interrupted {
					abandonTx(t, p, nil, change)
					for _, actions := range []int{4, 9, 1000} { // after which it is stopped
						recoverPart(t, p, actions)
					}
				} else {
					g := newGuest(t, p, nil)
					tx := g.begin(t)
					change(g, tx)
					report := tx.Rollback(t.Context())
					if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) == 0 {
						t.Errorf("%+v", report)
					}
				}
				var found int
				err = filepath.WalkDir(p.files, func(path string, d os.DirEntry, err error) error {
					if err != nil || d.Name() != "secret" {
						return err
					}
					found++
					is, err := os.Stat(filepath.Dir(path))
					if err != nil || !os.SameFile(is, theirs) || is.Mode() != theirs.Mode() {
						t.Error(path, is.Mode(), err)
					}
					names, err := os.ReadDir(filepath.Dir(path))
					if err != nil || len(names) != 1 {
						t.Error(names, err)
					}
					return errors.Join(os.RemoveAll(filepath.Dir(path)))
				})
				if err != nil && !errors.Is(err, os.ErrNotExist) || found != 1 {
					t.Errorf("theirs was found %d times, %v", found, err)
				}
				left, err := filepath.Glob(at(test.left + ".quantix*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range append(left, at("gone")) {
					if err := os.RemoveAll(name); err != nil {
						t.Error(err)
					}
				}
				if d := differences(withoutTimes(before), withoutTimes(mustDescribeTree(t, p.files))); d != "" {
					t.Errorf("not as it was:\n%s", d)
				}
			})
		}
	}
}

// recoverPart recovers a journal, and stops after some actions on the files.
func recoverPart(t *testing.T, p testDirs, actions int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, err := openGuest(p, func(c *Config) {
		c.Step = func(name string) error {
			if strings.HasPrefix(name, "restore.") {
				if actions--; actions == 0 {
					cancel()
				}
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.journal.Recover(ctx, nil)
	if err = errors.Join(err, g.close()); err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}
