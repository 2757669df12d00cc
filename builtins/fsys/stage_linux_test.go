package fsys_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What was looked at is what is put in place: a file that was changed meanwhile, or exchanged for another, is not.
func TestAStagedFileThatChangesIsNotPutInPlace(t *testing.T) {
	wanted := errors.New("wanted")
	for name, test := range map[string]struct {
		look   func(path string) error
		shown  error
		later  func(path string) error // after it was shown
		commit error
	}{
		"is read":              {look: func(path string) error { _, err := os.ReadFile(path); return err }},
		"is refused":           {look: func(string) error { return wanted }, shown: wanted},
		"is written to":        {look: func(path string) error { return os.WriteFile(path, []byte("bad\n"), 0o600) }, shown: fault.ErrChanged},
		"gets another mode":    {look: func(path string) error { return os.Chmod(path, 0o666) }, shown: fault.ErrChanged},
		"gets a second name":   {look: func(path string) error { return os.Link(path, path+".link") }, shown: fault.ErrChanged},
		"is exchanged":         {look: exchange, shown: fault.ErrChanged},
		"is exchanged and not": {look: func(path string) error { return errors.Join(os.Rename(path, path+"x"), os.Rename(path+"x", path)) }, shown: fault.ErrChanged},
		"is removed":           {look: os.Remove, shown: os.ErrNotExist},
		"is exchanged later":   {look: func(string) error { return nil }, later: exchange, commit: fault.ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			write(t, dir+"/file", "old\n")
			entry := at(t, host(t), dir+"/file")
			staged, err := entry.Stage()
			must(t, err)
			_, err = staged.File.WriteString("new\n")
			must(t, err)
			if err := staged.Show(test.look); !errors.Is(err, test.shown) || (err == nil) != (test.shown == nil) {
				t.Error(err)
			}
			want := "old\n"
			if test.shown != nil {
				must(t, staged.Discard())
			} else {
				if test.later != nil {
					must(t, test.later(staged.Path()))
				}
				if err := staged.Commit(fsys.Attr{}, false); !errors.Is(err, test.commit) || (err == nil) != (test.commit == nil) {
					t.Error(err)
				} else if err == nil {
					want = "new\n"
				}
			}
			if got := content(t, dir+"/file"); got != want {
				t.Errorf("%q", got)
			}
			for _, left := range listing(t, dir) {
				if left != "file" && !strings.HasSuffix(left, ".link") {
					t.Errorf("%s is left", left)
				}
			}
		})
	}
}

// exchange puts another file, with the same content, in the place of one.
func exchange(path string) error {
	other := filepath.Join(filepath.Dir(path), "other")
	return errors.Join(os.WriteFile(other, []byte("new\n"), 0o600), os.Rename(other, path))
}

// A user who owns the directory may give the temporary name to a file of his own: it is not placed, and the error says so.
func TestAStagedFileIsExchangedByTheUserOfItsDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives a directory to another user: run as root")
	}
	dir := scratch(t)
	must(t, os.Chown(dir, 12345, 12345))
	write(t, dir+"/file", "old\n")
	entry := at(t, host(t), dir+"/file")
	for name, end := range map[string]func(*fsys.Staged) error{
		"commit":  func(s *fsys.Staged) error { return s.Commit(fsys.Attr{}, false) },
		"restore": func(s *fsys.Staged) error { return s.Restore(fsys.Meta{Kind: fsys.File, Mode: 0o600}, false) },
	} {
		staged, err := entry.Stage()
		must(t, err)
		_, err = staged.File.WriteString("new\n")
		must(t, err)
		must(t, exchange(staged.Path()))
		if err := end(staged); !errors.Is(err, fault.ErrChanged) || content(t, dir+"/file") != "old\n" {
			t.Errorf("%s: %v, %q", name, err, content(t, dir+"/file"))
		}
	}
	staged, err := entry.Stage()
	must(t, err)
	_, err = staged.File.WriteString("new\n")
	must(t, err)
	if must(t, staged.Commit(fsys.Attr{}, false)); content(t, dir+"/file") != "new\n" {
		t.Error(content(t, dir+"/file"))
	}
}
