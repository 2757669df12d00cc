package sandbox_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// agentArg makes this program an agent that has a script running and a standby waiting, until it is killed.
const agentArg = "agent"

func agent() int {
	pool := sandbox.New(sandbox.Config{})
	pool.Run(context.Background(), script("return 1"))
	go pool.Run(context.Background(), script("while true do end"))
	pool.Run(context.Background(), script("return 1"))
	// Threads of the agent come and go; only its own end may end its runners.
	for range 20 {
		done := make(chan struct{})
		go func() { defer close(done); runtime.LockOSThread() }()
		<-done
	}
	fmt.Println("running")
	time.Sleep(5 * time.Minute)
	return 0
}

func TestRunnersDieWithTheirAgent(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", agentArg)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("agent said %q, %v", line, err)
	}
	var runners []int
	waitFor(t, "a busy runner and a standby", func() bool { runners = childrenOf(t, cmd.Process.Pid); return len(runners) == 2 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range runners {
		waitFor(t, "a runner's death", func() bool { return !alive(pid) })
	}
}

// TestStandbysInARow: two runners wait while scripts come one right after the other, and one when they do no more.
func TestStandbysInARow(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	mustRun(t, pool, script("return 1"))
	waitFor(t, "two standbys", func() bool {
		done := make(chan struct{})
		go func() { defer close(done); mustRun(t, pool, script("return 1")) }()
		mustRun(t, pool, script("return 1"))
		<-done
		return len(children(t)) == 2
	})
	waitFor(t, "one standby", func() bool { return len(children(t)) == 1 })
	mustRun(t, pool, script("return 1"))
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestRunnerIsClosedOff(t *testing.T) {
	pool := newPool(t, sandbox.Config{Env: []string{"SECRET=1"}})
	job := hostileJob() // an honest one here
	job.Start.Source = []byte("file.read('/x')")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		for _, pid := range children(t) {
			checkClosedOff(t, pid)
		}
		return nil
	}
	if out := mustRun(t, pool, job); out.Stats.GetCalls() != 1 {
		t.Errorf("the runner was looked at %d times", out.Stats.GetCalls())
	}
}

// ownerOf returns the real user id of a process.
func ownerOf(t *testing.T, pid int) (id uint32) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "\nUid:")
	if _, err := fmt.Sscan(line, &id); err != nil {
		t.Fatal(err)
	}
	return id
}

// A runner that somebody kills did not run out of memory, and no two runners are the same user.
func TestKilledRunnerIsToldAsKilled(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	owners := map[uint32]bool{}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		job := hostileJob()
		job.Start.Source = []byte("file.read('/x')")
		job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
			for _, pid := range children(t) {
				owners[ownerOf(t, pid)] = true
				syscall.Kill(pid, signal)
				waitFor(t, "the end of a runner", func() bool { return !slices.Contains(children(t), pid) })
			}
			return nil
		}
		e := pool.Run(t.Context(), job).Error
		if want := fmt.Sprintf("killed by signal %d", int(signal)); e.GetKind() != "sandbox" || !strings.Contains(e.GetMessage(), want) {
			t.Errorf("%v: %v", signal, e)
		}
	}
	if os.Geteuid() == 0 && len(owners) < 2 {
		t.Errorf("all runners are the same user: %v", owners)
	}
}

// checkClosedOff checks a runner's isolation from outside.
func checkClosedOff(t *testing.T, pid int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
		return
	}
	want := []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
	if os.Geteuid() == 0 {
		id := ownerOf(t, pid)
		if _, err := user.LookupId(fmt.Sprint(id)); err == nil || id == 0 || id == 65534 {
			t.Errorf("the runner's user %d is somebody else's, too", id)
		}
		want = append(want, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", id), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", id),
			"Groups:\t \n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n")
	}
	for _, line := range want {
		if !strings.Contains(string(status), line) {
			t.Errorf("status of the runner lacks %q", line)
		}
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Error(err)
	}
	for _, thread := range threads { // each has these flags for itself
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, thread.Name()))
		if err != nil || !strings.Contains(string(status), want[0]) || !strings.Contains(string(status), want[1]) {
			t.Errorf("thread %s of the runner lacks %q: %v", thread.Name(), want[:2], err)
		}
	}
	if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || strings.TrimSpace(string(score)) != "1000" {
		t.Errorf("oom_score_adj is %q, %v", score, err)
	}
	if group, err := syscall.Getpgid(pid); err != nil || group != pid {
		t.Errorf("process group is %d, %v, want its own, %d", group, err, pid)
	}
	if os.Geteuid() != 0 {
		return // a process that cannot be dumped shows its descriptors to root alone
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Error(err)
		return
	}
	for _, entry := range entries {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, entry.Name()))
		switch {
		case target == "/dev/null", strings.HasPrefix(target, "pipe:"), strings.HasPrefix(target, "socket:"),
			strings.HasPrefix(target, "anon_inode:[event"):
		default:
			t.Errorf("descriptor %s is %s", entry.Name(), target)
		}
	}
}
