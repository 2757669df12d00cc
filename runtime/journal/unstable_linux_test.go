package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// On a file system whose numbers do not tell an object from others what a user put in the place of root's gets nothing either, and
// the user nothing of root's.
func TestAnotherObjectOnOverlayfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts overlayfs, and changes owners: run as root")
	}
	const user = 1234
	p := newTestDirs(t)
	mustPopulate(t, p)
	layers, home := t.TempDir(), filepath.Join(p.files, "home")
	at := func(name string) string { return filepath.Join(home, name) }
	dirs := func(list ...string) (err error) {
		for _, dir := range list {
			err = errors.Join(err, os.MkdirAll(dir, 0o700))
		}
		return err
	}
	if err := dirs(layers+"/lower", layers+"/upper", layers+"/work", home); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", home, "overlay", 0, "lowerdir="+layers+"/lower,upperdir="+layers+"/upper,workdir="+layers+"/work"); err != nil {
		t.Skip("no overlayfs here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(home, unix.MNT_DETACH) })
	err := dirs(at("theirs"), at("d"))
	err = errors.Join(err, os.WriteFile(at("big"), make([]byte, 2<<20), 0o755), os.Chmod(at("big"), 0o755|os.ModeSetuid),
		os.WriteFile(at("theirs/secret"), nil, 0o600), os.Chown(home, user, user), os.Chown(at("d"), user, user))
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/home/big", Mode: "0755"})
	g.mustCall(t, tx, "file.chown", &pb.ChownArgs{Path: "/home/d", Owner: "0"})
	g.mustCall(t, tx, "file.move", &pb.FromToArgs{From: "/etc/small", To: "/home/small"})
	tx.Mark()
	mine := func(name string) error {
		return errors.Join(os.WriteFile(at(name), []byte("mine"), 0o755), os.Chown(at(name), user, user))
	}
	err = errors.Join(os.Rename(at("big"), at("big.o")), mine("big"), os.Rename(at("d"), at("d.o")), os.Rename(at("theirs"), at("d")))
	if _, gone := os.Lstat(at("small")); gone == nil {
		err = errors.Join(err, os.Rename(at("small"), at("small.o")), mine("small"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED {
		t.Errorf("%+v", report)
	}
	for name, mode := range map[string]os.FileMode{"big": 0o755, "d": os.ModeDir | 0o700} {
		info, err := os.Lstat(at(name))
		if err != nil || info.Mode() != mode {
			t.Error(name, info, err)
		}
	}
	var stat unix.Stat_t
	if err := unix.Lstat(at("d"), &stat); err != nil || stat.Uid != 0 {
		t.Error("root's directory is of user", stat.Uid, err)
	}
	if err := unix.Lstat(at("big"), &stat); err != nil || stat.Uid != user {
		t.Error("a file of the user's is of user", stat.Uid, err)
	}
	if got, err := os.ReadFile(filepath.Join(p.files, "etc/small")); err == nil && string(got) == "mine" {
		t.Error("a file of the user's was moved to the place of root's")
	}
}
