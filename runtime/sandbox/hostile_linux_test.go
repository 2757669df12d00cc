package sandbox_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// countsCPU: the processor time of a runner is known.
func countsCPU() bool { return true }

// hangsUp: a runner can close its connection.
func hangsUp() bool { return true }

// runnerConn is a runner's connection to its agent.
func runnerConn() *os.File { return os.NewFile(3, "agent") }

// hostileActsHere are those of hostileActs that are this system's own.
var hostileActsHere = map[string]func(conn *os.File){
	"greedy":  greedy,
	"open":    whenSealed(func() { os.Open("/etc/passwd") }),
	"write":   whenSealed(func() { os.WriteFile("/tmp/x", nil, 0o600) }),
	"execute": whenSealed(func() { exec.Command("/bin/true").Run() }),
	"fork":    whenSealed(func() { syscall.ForkExec("/proc/self/exe", nil, nil) }),
	"connect": whenSealed(func() { net.Dial("tcp", "127.0.0.1:1") }),
	"signal":  whenSealed(func() { syscall.Kill(os.Getppid(), 0) }),
	"unlimit": whenSealed(func() { syscall.Setrlimit(syscall.RLIMIT_CPU, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}) }),
	"sealed":  whenSealed(func() { os.Stderr.WriteString("all well") }),
	"too hard": func(*os.File) {
		confine.Seal(confine.Limits{AddressSpace: 64 << 20, CPU: 1})
		for n := 1; n > 0; {
			n = n%7 + 1
		}
	},
}

func whenSealed(deed func()) func(*os.File) {
	return func(*os.File) {
		if err := confine.Seal(confine.Limits{AddressSpace: 256 << 20, CPU: 10}); err != nil {
			panic(err)
		}
		deed()
		os.Exit(7)
	}
}

func TestSealedTooHard(t *testing.T) {
	mustFail(t, hostilePool(t, "too hard", sandbox.Limits{Wall: 500 * time.Millisecond}), hostileJob(), "timeout", "")
}

func TestSealedProcessCanDoNothing(t *testing.T) {
	for _, layer := range sandbox.Layers() {
		if layer.Name == "seccomp" && layer.Missing != "" {
			t.Skipf("needs a kernel with seccomp: %s", layer.Missing)
		}
	}
	for _, how := range []string{"open", "write", "execute", "fork", "connect", "signal", "unlimit"} {
		t.Run(how, func(t *testing.T) {
			mustFail(t, hostilePool(t, how, sandbox.Limits{}), hostileJob(), "sandbox", "what no script may do")
		})
	}
	mustFail(t, hostilePool(t, "sealed", sandbox.Limits{}), hostileJob(), "internal", "exit status 7: all well")
}

func TestStandbyThatDiedIsReplaced(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	mustRun(t, pool, script("return 1"))
	for range 3 {
		for _, pid := range children(t) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		mustRun(t, pool, script("return 1"))
	}
	// One that dies on its first run, and did not on its second, would go unnoticed: here all do.
	mustFail(t, hostilePool(t, "short-lived", sandbox.Limits{}), hostileJob(), "internal", "exit status 0")
}

// children returns the processes whose parent is this one.
func children(t testing.TB) []int {
	t.Helper()
	return childrenOf(t, os.Getpid())
}

func childrenOf(t testing.TB, of int) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, entry := range entries {
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue
		}
		var pid, parent int
		var name, state string
		if _, err := fmt.Sscan(string(stat), &pid, &name, &state, &parent); err == nil && parent == of && state != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestNothingIsLeftBehind(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	usage := func() (goroutines, descriptors int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc")
		}
		return runtime.NumGoroutine(), len(fds)
	}
	job := script("file.read('/x') return 1")
	job.Start.Functions = functions("file.read")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return nil }
	for range 10 {
		mustRun(t, pool, job)
	}
	waitFor(t, "the standby", func() bool { return len(children(t)) == 1 })
	goroutines, descriptors := usage()
	runs := 190
	if raced {
		runs = 60
	}
	for range runs {
		mustRun(t, pool, job)
	}
	waitFor(t, "as many goroutines and descriptors as before", func() bool {
		g, d := usage()
		return g <= goroutines && d <= descriptors
	})
	pool.Close()
	if left := children(t); len(left) != 0 {
		t.Errorf("processes left after Close: %v", left)
	}
	if e := pool.Run(t.Context(), job).Error; e.GetKind() != "cancelled" {
		t.Errorf("run after Close gives %v", e)
	}
}

// waitFor polls until ok, or fails.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout waiting for %s", what)
		}
	}
}
