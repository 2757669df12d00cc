package exec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// newHungMount mounts a file system whose server never answers, until revive.
func newHungMount(t *testing.T) (point string, revive func()) {
	t.Helper()
	needRoot(t)
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs FUSE: ", err)
	}
	point = filepath.Join(t.TempDir(), "hung")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd())
	if err := unix.Mount("hung", point, "fuse", 0, options); err != nil {
		device.Close()
		t.Skip("needs FUSE: ", err)
	}
	t.Cleanup(func() { device.Close(); unix.Unmount(point, unix.MNT_DETACH) })
	return point, func() { device.Close() }
}

// What hangs is named by its path and its mount; what does not need it goes on.
func TestHungFileSystemIsNamed(t *testing.T) {
	r, table := room(t, Config{})
	if r.HasRemotes() {
		t.Log("there are others already")
	}
	point, revive := newHungMount(t)
	if !r.HasRemotes() {
		t.Fatal("the mount is not seen")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(point, link); err != nil {
		t.Fatal(err)
	}
	check := func(access builtins.Access) error { return r.CheckRemotes(t.Context(), access) }
	for name, access := range map[string]builtins.Access{
		"a read": {Reads: []string{point + "/x"}}, "a write": {Writes: []string{point + "/x"}},
		"a tree above": {Trees: []string{filepath.Dir(point)}}, "a pattern": {Patterns: []string{filepath.Dir(point) + "/*/x"}},
	} {
		begin := time.Now()
		err := check(access)
		if !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), point) || !strings.Contains(err.Error(), "type fuse") {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: after %v", name, took)
		}
	}
	if err := check(builtins.Access{Reads: []string{link + "/x"}}); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("by a link: %v", err)
	}
	if err := check(builtins.Access{Reads: []string{"/etc/hostname"}, Writes: []string{filepath.Dir(point) + "/other"}}); err != nil {
		t.Errorf("beside it: %v", err)
	}
	reply := native(t, table, &pb.ExecuteRequest{Command: "true", WorkingDirectory: point, WaitForExit: true})
	if reply.ExitCode != -1 || !strings.Contains(reply.Error, point) {
		t.Errorf("a command there: %v", reply)
	}
	c := &calling{table: table, tx: &tx{}}
	in := &pb.RunArgs{Argv: []string{"true"}, Touches: []string{filepath.Dir(point)}}
	if _, err := c.invoke("exec.run", in); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("a command that touches a tree with it: %v", err)
	}
	revive() // its calls fail now, which the operation finds out
	eventually(t, "it is asked again", func() bool { return check(builtins.Access{Reads: []string{point + "/x"}}) == nil })
}
