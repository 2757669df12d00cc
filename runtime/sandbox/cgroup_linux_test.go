package sandbox_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"context"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// layer returns a layer of this machine.
func layer(t *testing.T, name string) sandbox.Layer {
	t.Helper()
	for _, l := range sandbox.Layers() {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no layer %q in %v", name, sandbox.Layers())
	return sandbox.Layer{}
}

// TestMemoryOfACgroup: each runner has a group of its own with a limit, which kills one that all other layers let through;
// the group goes with it.
func TestMemoryOfACgroup(t *testing.T) {
	if l := layer(t, "memory of a cgroup"); l.Missing != "" {
		t.Skipf("needs cgroup v2 with the memory controller, and root: %s", l.Missing)
	}
	pool := newPool(t, sandbox.Config{})
	var dirs []string
	job := hostileJob()
	job.Start.Source = []byte("file.read('/x')")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		for _, pid := range children(t) {
			dirs = append(dirs, groupOf(t, pid))
		}
		return nil
	}
	mustRun(t, pool, job)
	if len(dirs) != 1 || !strings.Contains(dirs[0], "quantix-kvm-agent-scripts/") {
		t.Fatalf("the runner is in %q", dirs)
	}
	if _, err := os.Stat("/sys/fs/cgroup" + dirs[0]); !os.IsNotExist(err) {
		t.Errorf("its group is still there: %v", err)
	}
	greedy := hostilePool(t, "greedy", sandbox.Limits{Memory: 16 << 20})
	e := mustFail(t, greedy, hostileJob(), "memory", "used up its memory")
	if e.GetLimit() != "script.memory_limit_bytes=16777216" {
		t.Errorf("error is %v", e)
	}
}

func groupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(string(text), "0::")
	return strings.TrimSpace(path)
}

// TestLayersAreTold: each layer is named, with the reason where it is missing.
func TestLayersAreTold(t *testing.T) {
	for _, name := range []string{"resource limits", "landlock", "seccomp", "user of its own", "memory of a cgroup"} {
		t.Logf("%s: %q", name, layer(t, name).Missing)
	}
	if os.Geteuid() != 0 && (layer(t, "user of its own").Missing == "" || layer(t, "memory of a cgroup").Missing == "") {
		t.Error("an agent that is not root claims what only root can do")
	}
}

// greedy allocates more than the cgroup allows, with the limit of the address space out of the way.
func greedy(*os.File) {
	confine.Seal(confine.Limits{AddressSpace: 4 << 30, CPU: 60})
	for {
		taken = append(taken, make([]byte, 1<<20))
		for last := taken[len(taken)-1]; len(last) > 0; last = last[min(len(last), 4096):] {
			last[0] = 1
		}
	}
}

// taken is what greedy has allocated.
var taken [][]byte
