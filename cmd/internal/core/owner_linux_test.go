package core

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A state directory that others could exchange, or that holds what others made, is refused; our own in /tmp is not.
func TestStateDirectoryIsOurs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("another user's files need root: run as root")
	}
	const other = 12345
	sticky := 0o777 | os.ModeSticky
	for name, c := range map[string]struct {
		prepare func(base, state string) error
		root    string // below base; empty: /
		want    string // empty: fine
	}{
		"ours":           {func(string, string) error { return nil }, "", ""},
		"below a sticky": {func(base, _ string) error { return os.Chmod(base, sticky) }, "", ""},
		"below a writable": {
			func(base, _ string) error { return os.Chmod(base, 0o777) }, "", "can be written by any user",
		},
		"below a group's": {func(base, _ string) error {
			return errors.Join(os.Chown(base, 0, other), os.Chmod(base, 0o775))
		}, "", "written by group 12345"},
		"another's":        {func(_, state string) error { return os.Chown(state, other, other) }, "", "to user 12345"},
		"another's parent": {func(base, _ string) error { return os.Chown(base, other, other) }, "", "to user 12345"},
		"above the root":   {func(base, _ string) error { return os.Chown(base, other, other) }, "state", ""},
		"writable":         {func(_, state string) error { return os.Chmod(state, 0o777) }, "", "written by any user"},
		"another's journal": {
			func(_, state string) error { return plant(state+"/tx/open/a/journal", other) }, "", "not made by this agent",
		},
		"another's key":   {func(_, state string) error { return plant(state+"/key", other) }, "", "not made by this agent"},
		"another's image": {func(_, state string) error { return plant(state+"/tx/open/a/u/1-1", other) }, "", ""},
		"another's link": {func(base, state string) error {
			return errors.Join(os.Chmod(base, sticky), os.Rename(state, state+"2"), os.Symlink(state+"2", state),
				os.Lchown(state, other, other))
		}, "", "to user 12345"},
		"our link": {func(_, state string) error {
			return errors.Join(os.Rename(state, state+"2"), os.Symlink("state2", state))
		}, "", ""},
	} {
		base, err := os.MkdirTemp("/tmp", "owner-") // t.TempDir would have a parent more
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		state, root := filepath.Join(base, "state"), "/"
		if c.root != "" {
			root = filepath.Join(base, c.root)
		}
		if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(state, 0o700), c.prepare(base, state)); err != nil {
			t.Fatal(err)
		}
		err = checkOwners(state, root)
		refused := errors.Is(err, fault.ErrRefused) && strings.Contains(err.Error(), c.want)
		if c.want == "" && err != nil || c.want != "" && !refused {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// plant makes a file of another user.
func plant(path string, uid int) error {
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.Chown(path, uid, uid))
}
