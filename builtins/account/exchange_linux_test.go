package account

import (
	"errors"
	"os"
	"slices"
	"strings"
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

// The key of a user comes into a directory that was looked at and found the user's, or nowhere: the user exchanges it for
// root's or a link as soon as it is made or has its mode.
func TestKeysDoNotFollowAnExchange(t *testing.T) {
	other := map[string]func(g *tree) error{
		"a link": func(g *tree) error { return link(g, "../../root/.ssh", "/home/bob/other") },
		"root's directory": func(g *tree) error {
			return os.Mkdir(g.path("/home/bob/other"), 0o755)
		},
		"a directory that others may read": func(g *tree) error {
			return errors.Join(os.Mkdir(g.path("/home/bob/other"), 0o755), os.Chown(g.path("/home/bob/other"), 1000, 1000))
		},
		"a file": func(g *tree) error { return os.WriteFile(g.path("/home/bob/other"), nil, 0o644) },
	}
	for name, put := range other {
		for _, told := range []string{"created", "modified"} {
			t.Run(name+" when it is "+told, func(t *testing.T) {
				g := newTree(t, debian)
				err := errors.Join(os.MkdirAll(g.path("/root/.ssh"), 0o700), put(g))
				if told == "modified" {
					err = errors.Join(err, g.own("/home/bob/.ssh"), os.Chmod(g.path("/home/bob/.ssh"), 0o755))
				}
				if err != nil {
					t.Fatal(err)
				}
				note, exchanges := g.call.Changed, 0
				g.call.Changed = func(c *pb.Change) {
					note(c)
					if c.Target == "/home/bob/.ssh" && c.Action == told {
						exchanges++
						at, to := g.path(c.Target), g.path("/home/bob/other")
						if err := unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE); err != nil {
							t.Error(err)
						}
					}
				}
				_, err = g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}})
				if !errors.Is(err, fault.ErrChanged) || exchanges != 1 {
					t.Errorf("the error after %d exchanges is %v", exchanges, err)
				}
				if after := g.picture(); strings.Contains(after, "authorized_keys") {
					t.Errorf("a key was written:\n%s", after)
				}
				g.owned("/root/.ssh", 0o700, 0, 0)
			})
		}
	}
}
