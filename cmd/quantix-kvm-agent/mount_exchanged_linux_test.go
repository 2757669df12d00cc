package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A user to whom a directory on the way belongs does not have anything mounted at another place by exchanging it for a link, and
// what is mounted nobody says to be gone.
func TestMountWhereAUserExchangesDirectories(t *testing.T) {
	m := newMountedTree(t)
	home := filepath.Join(m.dir, "home")
	err := errors.Join(os.MkdirAll(home+"/m/t", 0o755), os.MkdirAll(m.dir+"/victim/t", 0o755), os.Symlink("/victim", home+"/x"))
	for _, path := range []string{home, home + "/m", home + "/m/t", home + "/x"} {
		err = errors.Join(err, os.Lchown(path, 12345, 12345))
	}
	if err != nil {
		t.Fatal(err)
	}
	a := m.start(t, t.TempDir())
	const mount = `host.mount({source = "exchanged", target = "/home/m/t", fstype = "tmpfs", options = "size=1m"}) `
	mounted := func() string { return m.shell(t, "grep exchanged /proc/self/mountinfo || true") }
	check := func(what, source string, status pb.ScriptStatus, there bool) {
		t.Helper()
		reply := m.run(t, a, source)
		if reply.Status != status || (mounted() != "") != there || there && !strings.Contains(mounted(), " /home/m/t ") {
			t.Errorf("%s: %v, %s", what, reply, mounted())
		}
	}
	check("taken back", mount+`error("x")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, false)
	check("mounted", mount, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, true)
	check("again", mount, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, true)
	check("unmounted", `host.unmount("/home/m/t")`, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, false)

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(700 * time.Microsecond):
				_ = unix.Renameat2(-1, home+"/m", -1, home+"/x", unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 20 {
		reply := m.run(t, a, mount+`error("x")`)
		seen := mounted()
		if strings.Contains(seen, "/victim") || seen != "" && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("%v, %s", reply, seen)
		}
		if seen != "" { // it was told
			return
		}
	}
}
