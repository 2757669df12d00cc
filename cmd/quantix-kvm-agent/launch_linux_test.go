package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What another user put before the agent in PATH, or may change there, is not run, and that is said.
func TestLaunchRunsWhatIsRootsAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files to another user")
	}
	for name, c := range map[string]struct {
		change func(other string) error
		words  string
	}{
		"another user's": {func(other string) error { return os.Chown(other, 12345, 0) }, "agent is of user 12345"},
		"all may write":  {func(other string) error { return os.Chmod(other, 0o757) }, "agent may be written by others"},
		"a group may write": {func(other string) error {
			return errors.Join(os.Chown(other, 0, 12345), os.Chmod(other, 0o775))
		}, "agent may be written by others"},
		"a directory of another user": {func(other string) error {
			return os.Chown(filepath.Dir(other), 12345, 0)
		}, "is of user 12345"},
		"a directory of all": {func(other string) error {
			return os.Chmod(filepath.Dir(other), 0o777)
		}, "may be written by others"},
		"a link of another user": {func(other string) error {
			there := filepath.Join(filepath.Dir(other), "there")
			return errors.Join(os.Rename(other, there), os.Symlink(there, other), os.Lchown(other, 12345, 0))
		}, "agent is of user 12345"},
		"a link to another user's": {func(other string) error {
			dir, err := os.MkdirTemp(filepath.Dir(filepath.Dir(other)), "theirs")
			there := filepath.Join(dir, "there")
			return errors.Join(err, os.Rename(other, there), os.Symlink(there, other), os.Chown(dir, 12345, 0))
		}, "is of user 12345"},
		"a link in another user's directory, to root's": {func(other string) error {
			top := filepath.Dir(filepath.Dir(other))
			theirs, there := filepath.Join(top, "bob"), filepath.Join(top, "there")
			return errors.Join(os.Mkdir(theirs, 0o755), os.Rename(other, there), os.Symlink(there, filepath.Join(theirs, "l")),
				os.Symlink("../bob/l", other), os.Chown(theirs, 12345, 0))
		}, "bob is of user 12345"},
		"root's, in a directory of root's group": {func(other string) error { return os.Chmod(filepath.Dir(other), 0o775) }, ""},
		"root's, in a sticky one of all": {func(other string) error {
			return os.Chmod(filepath.Dir(other), 0o777|os.ModeSticky)
		}, ""},
	} {
		l, other, became := launching(t)
		program(t, other, "x")
		if err := c.change(other); err != nil {
			t.Fatal(err)
		}
		err := l.launch()
		if c.words == "" {
			if len(*became) != 1 {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if len(*became) != 0 || err == nil || !strings.Contains(err.Error(), c.words) ||
			!strings.Contains(err.Error(), other+" is not run") {
			t.Errorf("%s: %q, %v", name, *became, err)
		}
	}
}
