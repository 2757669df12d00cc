package sandbox_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// nothingArg makes this program one that ends at once.
	nothingArg = "nothing"
	// echoArg makes it one that says again what it hears.
	echoArg = "echo"
)

// BenchmarkRun is a trivial script, in turns with a bare fork and exec of the same program: warm, where the standby waits
// for it, and cold, where there is none.
func BenchmarkRun(b *testing.B) {
	b.Run("warm", func(b *testing.B) {
		pool := newPool(b, sandbox.Config{})
		mustRun(b, pool, script(`return 1`))
		benchmarkWithExec(b, func() time.Duration {
			waitFor(b, "a sealed standby", func() bool { return sealedStandby(b) != 0 })
			began := time.Now()
			mustRun(b, pool, script(`return 1`))
			return time.Since(began)
		})
	})
	b.Run("cold", func(b *testing.B) {
		benchmarkWithExec(b, func() time.Duration {
			pool := sandbox.New(sandbox.Config{})
			began := time.Now()
			mustRun(b, pool, script(`return 1`))
			took := time.Since(began)
			pool.Close()
			return took
		})
	})
}

// BenchmarkTenInARow is ten trivial scripts one right after the other, in turns with ten for each of which the standby waits.
func BenchmarkTenInARow(b *testing.B) {
	pool := newPool(b, sandbox.Config{})
	mustRun(b, pool, script(`return 1`))
	run := func() time.Duration {
		began := time.Now()
		mustRun(b, pool, script(`return 1`))
		return time.Since(began)
	}
	warm := func() { waitFor(b, "a sealed standby", func() bool { return sealedStandby(b) != 0 }) }
	var row, warms time.Duration
	for b.Loop() {
		warm()
		for range 10 {
			row += run()
		}
		for range 10 {
			warm()
			warms += run()
		}
	}
	b.ReportMetric(0, "ns/op") // waiting is in it
	b.ReportMetric(float64(row.Microseconds())/float64(b.N), "µs/ten")
	b.ReportMetric(float64(row)/float64(warms), "times-warm")
}

// benchmarkWithExec measures runs, and bare starts of the program, in turns.
func benchmarkWithExec(b *testing.B, run func() time.Duration) {
	var runs, execs time.Duration
	for b.Loop() {
		runs += run()
		began := time.Now()
		if err := exec.Command("/proc/self/exe", nothingArg).Run(); err != nil {
			b.Fatal(err)
		}
		execs += time.Since(began)
	}
	b.ReportMetric(0, "ns/op") // waiting is in it
	b.ReportMetric(float64(runs.Microseconds())/float64(b.N), "µs/run")
	b.ReportMetric(float64(execs.Microseconds())/float64(b.N), "µs/exec")
	b.ReportMetric(float64(runs)/float64(execs), "times-exec")
}

// sealedStandby returns the pid of the standby once it is sealed; 0: it is not yet.
func sealedStandby(b *testing.B) int {
	pids := children(b)
	if len(pids) != 1 {
		return 0
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if strings.Contains(string(status), "Seccomp:\t2") && strings.Contains(string(status), "State:\tS") {
		return pids[0]
	}
	return 0
}

// BenchmarkCall is a builtin that does nothing, compared with 64 bytes that go to another process and back over a socketpair.
func BenchmarkCall(b *testing.B) {
	const calls = 10_000
	pool := newPool(b, sandbox.Config{Limits: sandbox.Limits{Calls: 1 << 30}})
	job := script(fmt.Sprintf(`for i = 1, %d do file.read("/x") end`, calls))
	job.Start.Functions = functions("file.read")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return &pb.RunnerReply{} }
	conn := startEcho(b)
	message := make([]byte, 64)
	var called, echoed time.Duration
	for b.Loop() {
		began := time.Now()
		mustRun(b, pool, job)
		called += time.Since(began)
		began = time.Now()
		for range calls {
			if _, err := conn.Write(message); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(conn, message); err != nil {
				b.Fatal(err)
			}
		}
		echoed += time.Since(began)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(called.Nanoseconds())/float64(b.N)/calls/1e3, "µs/call")
	b.ReportMetric(float64(echoed.Nanoseconds())/float64(b.N)/calls/1e3, "µs/echo")
	b.ReportMetric(float64(called)/float64(echoed), "times-echo")
}

// startEcho starts the other process, whose end is a plain descriptor as a runner's is.
func startEcho(b *testing.B) *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		b.Fatal(err)
	}
	conn, theirs := os.NewFile(uintptr(fds[0]), "echo"), os.NewFile(uintptr(fds[1]), "ours")
	cmd := exec.Command("/proc/self/exe", echoArg)
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	theirs.Close()
	b.Cleanup(func() { conn.Close(); cmd.Wait() })
	return conn
}

func echo() int {
	message := make([]byte, 64)
	for {
		n, err := unix.Read(3, message)
		if err != nil || n == 0 {
			return 0
		}
		if _, err := unix.Write(3, message[:n]); err != nil {
			return 0
		}
	}
}

// BenchmarkStandbyMemory reports the private memory of a standby of the agent's own program: that of a test has more.
func BenchmarkStandbyMemory(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: a sealed process shows its memory to nobody else")
	}
	program := filepath.Join(b.TempDir(), "agent")
	build := exec.Command("go", "build", "-o", program, "../../cmd/quantix-kvm-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, text)
	}
	for _, dir := range []string{filepath.Dir(program), filepath.Dir(filepath.Dir(program))} { // runners are another user
		if err := os.Chmod(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	pool := newPool(b, sandbox.Config{Path: program})
	mustRun(b, pool, script(`return 1`))
	pid := 0
	waitFor(b, "a sealed standby", func() bool { pid = sealedStandby(b); return pid != 0 })
	var sum float64
	for b.Loop() {
		sum += privateKiB(b, pid)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(sum/float64(b.N), "KiB-private")
}

func privateKiB(b *testing.B, pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		// Not Private_Dirty: pages of a program that was just built and is not on disk yet count there, too.
		if fields := strings.Fields(line); fields[0] == "Anonymous:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib
		}
	}
	b.Fatal("no Anonymous")
	return 0
}

// otherMain is the main function of the programs that this one can be on this system alone.
func otherMain(arg string) {
	switch arg {
	case nothingArg:
		os.Exit(0)
	case echoArg:
		os.Exit(echo())
	case agentArg:
		os.Exit(agent())
	}
}
