package sandbox_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	// settled is longer than a runner waits before it gives back memory.
	settled = 3 * time.Second
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

// BenchmarkTenInARow is ten trivial scripts one right after the other, from rest, with the agent's own program, in turns with
// ten for each of which a standby waits. The medians of both are compared: the mean of a busy machine says nothing.
func BenchmarkTenInARow(b *testing.B) {
	pool := newPool(b, sandbox.Config{Path: agentProgram(b)})
	run := func() time.Duration {
		began := time.Now()
		mustRun(b, pool, script(`return 1`))
		return time.Since(began)
	}
	run()
	var rows, warms []time.Duration
	for b.Loop() {
		for range 10 {
			waitFor(b, "a single standby", func() bool { return sealedStandby(b) != 0 })
			var row time.Duration
			for range 10 {
				row += run()
			}
			rows = append(rows, row)
			for range 10 {
				waitFor(b, "sealed standbys", func() bool { return sealedStandbys(b) > 0 })
				warms = append(warms, run())
			}
		}
	}
	slices.Sort(rows)
	slices.Sort(warms)
	b.ReportMetric(0, "ns/op") // waiting is in it
	b.ReportMetric(float64(rows[len(rows)/2].Microseconds()), "µs/ten")
	b.ReportMetric(float64(rows[len(rows)/2])/float64(10*warms[len(warms)/2]), "x-median")
}

// BenchmarkRunnerStart is the start of a runner of the agent's own program up to its script's first call, in turns with a
// bare fork and exec of this program, which ends at once. The processor time that the runner used up to then is told beside.
func BenchmarkRunnerStart(b *testing.B) {
	program := agentProgram(b)
	var starts, execs, processor []time.Duration
	for b.Loop() {
		began := time.Now()
		pool := sandbox.New(sandbox.Config{Path: program})
		start := script(`return 1`)
		start.Start.Functions = functions("file.read")
		start.Start.Source = []byte(`file.read("/x")`)
		start.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
			starts = append(starts, time.Since(began))
			processor = append(processor, processorTime(b, children(b)[0]))
			return nil
		}
		mustRun(b, pool, start)
		pool.Close()
		began = time.Now()
		if err := exec.Command("/proc/self/exe", nothingArg).Run(); err != nil {
			b.Fatal(err)
		}
		execs = append(execs, time.Since(began))
	}
	for _, l := range [][]time.Duration{starts, execs, processor} {
		slices.Sort(l)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(starts[0].Microseconds()), "µs-quickest")
	b.ReportMetric(float64(starts[len(starts)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(processor[len(processor)/2].Microseconds()), "µs-processor")
	b.ReportMetric(float64(starts[0])/float64(execs[0]), "x-exec-quickest")
}

// processorTime returns the processor time that a process has used.
func processorTime(b *testing.B, pid int) time.Duration {
	var ts unix.Timespec
	// The id of another process's clock, as the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
	if err := unix.ClockGettime(int32(^uint32(pid))<<3|2, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
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

// sealedStandby returns the pid of the only standby once it is sealed; 0: it is not yet.
func sealedStandby(b *testing.B) int {
	if sealedStandbys(b) == 1 {
		return children(b)[0]
	}
	return 0
}

// sealedStandbys returns how many standbys there are, once they all are sealed; 0: they are not yet.
func sealedStandbys(b *testing.B) int {
	pids := children(b)
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if !strings.Contains(string(status), "Seccomp:\t2") || !strings.Contains(string(status), "State:\tS") {
			return 0
		}
	}
	return len(pids)
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

// agentProgram builds the agent's own program: that of a test is larger, and starts more slowly.
func agentProgram(b *testing.B) string {
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
	return program
}

// BenchmarkStandbyMemory reports the private memory of a standby of the agent's own program: that of a test has more.
func BenchmarkStandbyMemory(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: a sealed process shows its memory to nobody else")
	}
	program := agentProgram(b)
	pool := newPool(b, sandbox.Config{Path: program})
	mustRun(b, pool, script(`return 1`))
	pid := 0
	waitFor(b, "a sealed standby", func() bool { pid = sealedStandby(b); return pid != 0 })
	time.Sleep(settled) // by then it has given back what its start took
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
