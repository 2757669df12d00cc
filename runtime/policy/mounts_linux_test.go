package policy

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A bind mount of a part of a forbidden tree, of a single file in it, or into it, is no way around; nor is one of the agent's
// own state.
func TestBindMountsAreNoWayAround(t *testing.T) {
	dir, err := filepath.EvalSymlinks(tree(t))
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"etc/keys/deep": "srv/part \u3000dir", "etc/shadow": "srv/file", "srv/data": "etc/keys/in", "srv/kept": "var/state", "tmp": "srv/free",
	} {
		from, to = filepath.Join(dir, from), filepath.Join(dir, to)
		if filepath.Base(to) == "file" {
			err = os.WriteFile(to, nil, 0o600)
		} else {
			err = errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(to, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			t.Skip("mounts need root: run as root:", err)
		}
		t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
	}
	for _, below := range []bool{false, true} { // the tree as the root of a guest, and as a part of this machine
		k, prefix := newKit(t, dir, denied), ""
		k.guest.Dir, k.guest.State = dir, "/var/state"
		if below {
			prefix = dir
			k = newKit(t, "/", "  deny_file_read_paths: ["+dir+"/etc/shadow, "+dir+"/etc/keys]\n")
			k.guest.State = dir + "/var/state"
		}
		for _, path := range []string{
			"/srv/part \u3000dir/key", "/srv/part \u3000dir", "/srv/part \u3000dir/not/yet", "/srv/file", "/srv/data/x", "/srv/data", "/srv/kept/tx/a", "/var/state/x",
		} {
			k.refused("deny_file_read_paths", "file.read", &pb.PathArgs{Path: prefix + path})
			k.refused("deny_file_read_paths", "", &pb.FileStatRequest{Path: prefix + path})
			k.refused("deny_file_read_paths", "file.copy", &pb.FromToArgs{From: prefix + path, To: prefix + "/tmp/z"})
		}
		k.refused("deny_file_read_paths", "file.move", &pb.FromToArgs{From: prefix + "/srv", To: prefix + "/tmp/z"}) // and all below
		k.fine("file.read", &pb.PathArgs{Path: prefix + "/srv/free/y"})
		k.fine("file.read", &pb.PathArgs{Path: prefix + "/srv/open"})
	}
}
