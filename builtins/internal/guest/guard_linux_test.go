package guest_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What is the agent's own is refused by a mount of a part of it as well.
func TestGuardOfMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts directories: run as root")
	}
	dir := t.TempDir()
	for _, name := range []string{"/var/state/tx/done", "/var/other", "/srv/part", "/srv/whole", "/srv/above", "/srv/beside"} {
		if err := os.MkdirAll(dir+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for at, what := range map[string]string{"part": "/var/state/tx", "whole": "/var/state", "above": "/var", "beside": "/var/other"} {
		if err := unix.Mount(dir+what, dir+"/srv/"+at, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("cannot mount here (run as root of the machine): %v", err)
		}
		defer unix.Unmount(dir+"/srv/"+at, unix.MNT_DETACH)
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	g := &guest.Guest{Files: root, Live: true, Protected: []string{dir + "/var/state"}}
	for path, want := range map[string]bool{
		"/var/state": false, "/var/state/tx/x": false, "/srv/part": false, "/srv/part/done": false, "/srv/part/new/er": false,
		"/srv/whole/tx": false, "/srv/above/state/x": false, "/srv/above/other/x": true, "/srv/beside/x": true, "/var/other/x": true,
		"/srv/x": true,
	} {
		if err := g.Guard(dir+path, false); (err == nil) != want || err != nil && !errors.Is(err, fault.ErrRefused) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
