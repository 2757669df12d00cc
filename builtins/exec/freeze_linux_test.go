package exec

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"context"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestFrozenBy(t *testing.T) {
	for text, want := range map[string]string{
		"fsfreeze --freeze /":                          "/ true alone",
		"fsfreeze --unfreeze /":                        "/ false alone",
		"/usr/sbin/fsfreeze -f '/mnt/a b'":             "/mnt/a b true alone",
		"sync; fsfreeze -f /data && sleep 1":           "/data true",
		"fsfreeze -f /data; snap; fsfreeze -u /data":   "/data false",
		"echo notfsfreeze -f /":                        "",
		"exec fsfreeze -f /":                           "/ true alone",
		"cat /usr/share/man/man8/fsfreeze.8.gz -f /x ": "",
	} {
		paths, alone := frozenBy(text)
		got := ""
		for path, frozen := range paths {
			got = path + map[bool]string{true: " true", false: " false"}[frozen]
			if alone {
				got += " alone"
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// newFreezableDisk mounts a file system that may be frozen, and returns its mount point.
func newFreezableDisk(t *testing.T, table *table) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	point := filepath.Join(dir, "m")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	made := native(t, table, &pb.ExecuteRequest{WaitForExit: true, Command: "truncate -s 32M " + image + " && mkfs.ext4 -q " + image + " && mount -o loop " + image + " " + point})
	if made.ExitCode != 0 {
		t.Skipf("needs a loop device and mkfs.ext4: %v", made)
	}
	t.Cleanup(func() {
		if target, err := openThawTarget(point); err == nil {
			target.thaw()
			target.close()
		}
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return point
}

// canWrite reports whether a file can be created within a short time.
func canWrite(t *testing.T, table *table, point string) bool {
	t.Helper()
	reply := native(t, table, &pb.ExecuteRequest{WaitForExit: true, Command: "timeout -s KILL 10 touch " + point + "/x & sleep 0.3; kill -0 $! 2>/dev/null && exit 9; wait $!"})
	return reply.ExitCode == 0
}

// A freeze without a thaw ends at the limit, and the host is told.
func TestFreezeLimit(t *testing.T) {
	var mu sync.Mutex
	var words []string
	_, table := room(t, Config{FreezeLimit: 2 * time.Second, Thawed: func(w string) {
		mu.Lock()
		defer mu.Unlock()
		words = append(words, w)
	}})
	point := newFreezableDisk(t, table)
	told := make(chan *pb.ErrorEvent, 1)
	in := &pb.ExecuteRequest{Command: "fsfreeze --freeze " + point, WaitForExit: true}
	out, err := table.Invoke(context.Background(), &builtins.Call{Event: func(m proto.Message) bool {
		told <- m.(*pb.ErrorEvent)
		return true
	}}, table.Native(in), in)
	if err != nil || out.(*pb.ExecuteResponse).ExitCode != 0 {
		t.Fatalf("%v, %v", out, err)
	}
	select {
	case event := <-told:
		if event.Code != "thawed" || !strings.Contains(event.Message, point) {
			t.Errorf("%v", event)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is thawed")
	}
	if !canWrite(t, table, point) {
		t.Error("it is still frozen")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(words) != 1 {
		t.Errorf("the log has %q", words)
	}
}

// The freeze file of a killed agent lets the next one thaw.
func TestThawLeft(t *testing.T) {
	note := filepath.Join(t.TempDir(), "frozen")
	r, table := room(t, Config{FreezeLimit: time.Hour, FreezeFile: note})
	point := newFreezableDisk(t, table)
	if reply := native(t, table, &pb.ExecuteRequest{Command: "fsfreeze --freeze " + point, WaitForExit: true}); reply.ExitCode != 0 {
		t.Fatal(reply)
	}
	r.freezes.mu.Lock()
	for _, d := range r.freezes.armed { // as if the agent were killed
		d.timer.Stop()
		d.target.close()
	}
	clear(r.freezes.armed)
	r.freezes.mu.Unlock()
	if words := ThawLeft(note); len(words) != 1 || !strings.Contains(words[0], point) {
		t.Errorf("%q", words)
	}
	if !canWrite(t, table, point) {
		t.Error("it is still frozen")
	}
	if words := ThawLeft(note); len(words) != 0 {
		t.Errorf("told twice: %q", words)
	}
}

// A thaw stops the timer, which would else end the next freeze early; and an agent that stops thaws.
func TestThawDisarms(t *testing.T) {
	r, table := room(t, Config{FreezeLimit: time.Hour})
	point := newFreezableDisk(t, table)
	run := func(command string) {
		t.Helper()
		if reply := native(t, table, &pb.ExecuteRequest{Command: command, WaitForExit: true}); reply.ExitCode != 0 {
			t.Fatalf("%s: %v", command, reply)
		}
	}
	armed := func() int { r.freezes.mu.Lock(); defer r.freezes.mu.Unlock(); return len(r.freezes.armed) }
	run("fsfreeze --freeze " + point)
	if armed() != 1 {
		t.Error("a freeze is not watched")
	}
	if reply := native(t, table, &pb.ExecuteRequest{Command: "fsfreeze --freeze " + point, WaitForExit: true}); reply.ExitCode == 0 {
		t.Error("it freezes twice")
	}
	if armed() != 1 {
		t.Error("a freeze that failed disarmed the one that did not")
	}
	run("fsfreeze --unfreeze " + point)
	if armed() != 0 {
		t.Error("a thaw does not disarm")
	}
	run("fsfreeze --freeze " + point)
	if err := r.release(); err != nil {
		t.Fatal(err)
	}
	target, err := openThawTarget(point)
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	if thawed, err := target.thaw(); thawed || err != nil {
		t.Errorf("after the agent it is still frozen: %v, %v", thawed, err)
	}
}
