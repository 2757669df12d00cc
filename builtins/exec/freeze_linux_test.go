package exec

import (
	"context"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

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
		if target, err := freeze.Open(point); err == nil {
			target.Thaw()
			target.Close()
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
	_, table := room(t, Config{FreezeLimit: time.Hour, Frozen: freeze.New(freeze.Config{Note: note})})
	point := newFreezableDisk(t, table)
	if reply := native(t, table, &pb.ExecuteRequest{Command: "fsfreeze --freeze " + point, WaitForExit: true}); reply.ExitCode != 0 {
		t.Fatal(reply)
	}
	if left := freeze.ThawLeft(note); len(left.Messages) != 0 || canWrite(t, table, point) {
		t.Errorf("another agent is started by mistake, and thaws: %+v", left)
	}
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	copied := note + ".copy" // which nobody has locked, as if the agent were killed
	if err := os.WriteFile(copied, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if left := freeze.ThawLeft(copied); len(left.Messages) != 1 || !strings.Contains(left.Messages[0], point) {
		t.Errorf("%+v", left)
	}
	if !canWrite(t, table, point) {
		t.Error("it is still frozen")
	}
	if left := freeze.ThawLeft(copied); len(left.Messages) != 0 {
		t.Errorf("told twice: %+v", left)
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
	armed := func() int { r.freezes.mu.Lock(); defer r.freezes.mu.Unlock(); return len(r.freezes.known) }
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
	eventually(t, "a thaw disarms", func() bool { return armed() == 0 })
	run("fsfreeze --freeze " + point)
	if err := r.release(); err != nil {
		t.Fatal(err)
	}
	target, err := freeze.Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if thawed, err := target.Thaw(); thawed || err != nil {
		t.Errorf("after the agent it is still frozen: %v, %v", thawed, err)
	}
}

// What counts is that the file system is frozen, and not how the command was spelled, who ran it and which kind it is.
func TestFreezeHoweverSpelled(t *testing.T) {
	r, table := room(t, Config{FreezeLimit: time.Hour, Jobs: filepath.Join(t.TempDir(), "jobs")})
	point := newFreezableDisk(t, table)
	for name, act := range map[string]func(){
		"the option behind the path": func() {
			native(t, table, &pb.ExecuteRequest{Command: "fsfreeze", Args: []string{point, "--freeze"}, WaitForExit: true})
		},
		"a relative path": func() {
			native(t, table, &pb.ExecuteRequest{Command: "cd " + filepath.Dir(point) + "; for m in m; do fsfreeze -f $m; done", WaitForExit: true})
		},
		"a script": func() {
			c := &calling{table: table, tx: &tx{}}
			if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"fsfreeze", "-f", point}, Irreversible: true}); err != nil {
				t.Error(err)
			}
		},
		"a job": func() {
			mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true, Command: "fsfreeze " + point + " -f"})
		},
	} {
		known := func() bool { r.freezes.mu.Lock(); defer r.freezes.mu.Unlock(); return r.freezes.known[point] != nil }
		act()
		eventually(t, name+" is watched", known)
		r.freezes.mu.Lock()
		armed := r.freezes.known[point].timer != nil
		r.freezes.mu.Unlock()
		target, err := freeze.Open(point)
		if err != nil {
			t.Fatal(err)
		}
		if thawed, err := target.Thaw(); !armed || !thawed || err != nil {
			t.Errorf("%s: armed %v, frozen %v, %v", name, armed, thawed, err)
		}
		target.Close()
		eventually(t, name+" is no longer watched", func() bool { return !known() })
	}
}

// What somebody else froze before a command is not thawed by the agent.
func TestFreezeOfSomebodyElse(t *testing.T) {
	r, table := room(t, Config{FreezeLimit: 10 * time.Millisecond})
	point := newFreezableDisk(t, table)
	if out, err := osexec.Command("fsfreeze", "-f", point).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	native(t, table, &pb.ExecuteRequest{Command: "sleep 0.3", WaitForExit: true})
	if err := r.release(); err != nil {
		t.Error(err)
	}
	target, err := freeze.Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if thawed, err := target.Thaw(); !thawed {
		t.Errorf("the agent thawed it, %v", err)
	}
}
