//go:build vm

package vmtest_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
)

// settled is how long after its start an agent has given back what only the start needed, in an emulated guest too.
const settled = 6 * time.Second

// BenchmarkService measures what the running service costs: its processor time over a minute with a host and telemetry
// every 5 s, and without a host, beside that of a Go program that waits; and its memory at rest beside the same program made
// of the same libraries. Under emulation the times are 10 to 30 times those of real hardware.
func BenchmarkService(b *testing.B) {
	vm := machine(b, vmtest.Options{})
	startAgent(b, vm)
	agent := property(b, vm, "MainPID")
	idle := startIdle(b, vm)
	pss := func(pid string) float64 {
		return number(b, vm, "awk '/^Pss:/ {print $2}' /proc/"+pid+"/smaps_rollup")
	}
	time.Sleep(settled)
	b.Run("pss-at-rest", func(b *testing.B) {
		var ours, bare float64
		for b.Loop() {
			ours, bare = pss(agent), pss(idle)
		}
		b.ReportMetric(ours, "ours-KiB")
		b.ReportMetric(bare, "bare-KiB")
		b.ReportMetric(ours/bare, "x")
		b.ReportMetric(0, "ns/op")
	})
	const minute = time.Minute
	over := func(b *testing.B) {
		var ours, bare float64
		for b.Loop() {
			a, i := processorTime(b, vm, agent), processorTime(b, vm, idle)
			time.Sleep(minute) // what is measured
			ours, bare = processorTime(b, vm, agent)-a, processorTime(b, vm, idle)-i
		}
		b.ReportMetric(ours, "ours-ms/min")
		b.ReportMetric(bare, "bare-ms/min")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("cpu-without-a-host", over)
	c := dial(b, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	b.Run("cpu-with-telemetry-every-5s", over)
	b.Run("pss-after-a-host", func(b *testing.B) {
		var ours float64
		for b.Loop() {
			ours = pss(agent)
		}
		b.ReportMetric(ours, "ours-KiB")
		b.ReportMetric(0, "ns/op")
	})
}

// startIdle builds the program that waits, puts it into a machine and starts it there; it gives its process number.
func startIdle(b *testing.B, vm *vmtest.VM) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "idle")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../idle")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(b, vm.Put(ctx, path, "/usr/local/bin/idle", 0o755))
	vm.Must(b, "systemd-run --quiet --unit=idle /usr/local/bin/idle")
	return vm.Must(b, "systemctl show -P MainPID idle")
}

// processorTime is what a process has used, in milliseconds; schedstat counts nanoseconds.
func processorTime(b *testing.B, vm *vmtest.VM, pid string) float64 {
	b.Helper()
	return number(b, vm, "cat /proc/"+pid+"/task/*/schedstat | awk '{sum += $1} END {print sum / 1e6}'")
}

func number(b *testing.B, vm *vmtest.VM, line string) (n float64) {
	b.Helper()
	text := strings.TrimSpace(vm.Must(b, line))
	if _, err := fmt.Sscan(text, &n); err != nil {
		b.Fatalf("%s: %q", line, text)
	}
	return n
}
