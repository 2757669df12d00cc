package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// pss is the proportional set size of a process in KiB: what it would free by ending.
func pss(b *testing.B, pid int) (kib float64) {
	b.Helper()
	return rollup(b, pid, "Pss")
}

// rollup is a field of the sums of all mappings of a process in KiB: see smaps_rollup in proc(5).
func rollup(b *testing.B, pid int, field string) (kib float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	fail(b, err)
	_, after, _ := strings.Cut(string(text), "\n"+field+":")
	_, err = fmt.Sscan(after, &kib)
	fail(b, err)
	return kib
}

// BenchmarkIdle: the memory of an agent that has started and serves nobody, beside a program of the same libraries that
// does nothing at all.
func BenchmarkIdle(b *testing.B) {
	program := filepath.Join(b.TempDir(), "idle")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "../internal/rig/idle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for b.Loop() {
		a := agenttest.Start(b, agenttest.Options{Root: b.TempDir(), Args: []string{"--log-level", "error"}})
		empty := exec.Command(program)
		fail(b, empty.Start())
		time.Sleep(startTime + time.Second) // a settled process is what is measured
		b.ReportMetric(pss(b, a.PID()), "agent-pss-KiB")
		b.ReportMetric(pss(b, empty.Process.Pid), "empty-pss-KiB")
		fail(b, empty.Process.Kill())
		_ = empty.Wait()
	}
	b.ReportMetric(0, "ns/op")
}
