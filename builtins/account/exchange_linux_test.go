package account

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// exchanged has a user, whose directory /home/app is, give root's directory in it the name of another one as soon as that is
// told of.
func exchanged(t *testing.T, told string) *tree {
	t.Helper()
	g := newTree(t, debian)
	g.put("/home/app/root/secret", "root's")
	if err := errors.Join(os.Chmod(g.path("/home/app/root"), 0o700), os.Chown(g.path("/home/app"), 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	note := g.call.Changed
	g.call.Changed = func(c *pb.Change) {
		note(c)
		if c.Target == told && c.Action == "created" {
			err := unix.Renameat2(unix.AT_FDCWD, g.path(told), unix.AT_FDCWD, g.path("/home/app/root"), unix.RENAME_EXCHANGE)
			if err != nil {
				t.Error(err)
			}
		}
	}
	return g
}

// spared says that root's directory is as it was, at the path that it was given.
func (g *tree) spared(path string) {
	g.t.Helper()
	g.owned(path, 0o700, 0, 0)
	entries, err := os.ReadDir(g.path(path))
	if err != nil || len(entries) != 1 || entries[0].Name() != "secret" {
		g.t.Errorf("root's directory holds %v, %v", entries, err)
	}
}

// Whoever exchanges a new home directory while it is filled gets neither what is in the skeleton into another one, nor that
// one.
func TestExchangedHomeIsNotFilled(t *testing.T) {
	for home, told := range map[string]string{"/home/app/svc": "/home/app/svc", "/home/app/new/svc": "/home/app/new"} {
		t.Run(home, func(t *testing.T) {
			g := exchanged(t, told)
			_, err := g.do("account.create", &pb.AccountCreateArgs{Name: "svc", Home: home})
			if !errors.Is(err, fault.ErrChanged) {
				t.Errorf("the error is %v", err)
			}
			g.spared(told)
		})
	}
}

// A home directory is not moved into what took the place of a directory above the new path.
func TestHomeIsNotMovedElsewhere(t *testing.T) {
	g := exchanged(t, "/home/app/new")
	_, err := g.do("account.modify", &pb.AccountModifyArgs{Name: "bob", Home: "/home/app/new/bob", MoveHome: true})
	if !errors.Is(err, fault.ErrChanged) {
		t.Errorf("the error is %v", err)
	}
	g.spared("/home/app/new")
	g.owned("/home/bob", 0o755, 1000, 1000)
	if slices.ContainsFunc(g.changes, func(c *pb.Change) bool { return c.Target == "/home/bob" }) {
		t.Errorf("the changes are %v", g.changes)
	}
}
