//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const megabytes = 64

// BenchmarkGuest measures the agent over virtio-serial in a guest, beside the bare channel and the bare work in the same
// guest and run. "x" is our time as a multiple of the bare one: under emulation only that means anything.
func BenchmarkGuest(b *testing.B) {
	vm := machine(b, vmtest.Options{})
	startAgent(b, vm)
	vm.Must(b, fmt.Sprintf("head -c %dM /dev/zero >/dev/shm/file", megabytes))
	c := dial(b, vm, vmtest.AgentPort, client.Options{})
	ctx := context.Background()
	// The bare channel is measured right before what is held against it: other load on the machine comes and goes.
	bare := func(b *testing.B) vmtest.Figures {
		raw, err := vm.MeasurePort(ctx, vmtest.RawPort, vmtest.Load{RoundTrips: 1000, Bytes: megabytes << 20})
		must(b, err)
		return raw
	}
	b.Run("bare", func(b *testing.B) { benchBare(b, vm) })
	b.Run("qemu-ga", func(b *testing.B) { benchQemuGA(b, vm) })
	b.Run("beside-qemu-ga", func(b *testing.B) { benchBesideQemuGA(b, vm, c) })
	b.Run("ping", func(b *testing.B) {
		raw := bare(b)
		var times []time.Duration
		for i := 0; b.Loop(); i++ {
			for range 300 {
				start := time.Now()
				_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
				must(b, err)
				if i > 0 { // the first ones make an emulated processor translate the code
					times = append(times, time.Since(start))
				}
			}
		}
		if len(times) == 0 {
			return // the benchmark's own first try
		}
		compare(b, vmtest.Summarize(times).Median, raw.RoundTrip.Median)
	})
	b.Run("exec-true", func(b *testing.B) {
		bare := bareExec(b, vm)
		start := time.Now()
		for b.Loop() {
			reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "/bin/true", Args: []string{""}, WaitForExit: true})
			must(b, err)
			if reply.ExitCode != 0 {
				b.Fatal(reply)
			}
		}
		compare(b, time.Since(start)/time.Duration(b.N), bare)
	})
	content := make([]byte, megabytes<<20)
	b.Run("push-64MiB", func(b *testing.B) {
		raw := bare(b)
		b.SetBytes(int64(len(content)))
		start := time.Now()
		for b.Loop() {
			_, err := c.Push(ctx, "/dev/shm/file", bytes.NewReader(content), client.PushOptions{})
			must(b, err)
		}
		compare(b, time.Since(start)/time.Duration(b.N), perMiB(raw.ToGuest))
	})
	b.Run("pull-64MiB", func(b *testing.B) {
		raw := bare(b)
		b.SetBytes(int64(len(content)))
		start := time.Now()
		for b.Loop() {
			_, err := c.Pull(ctx, "/dev/shm/file", io.Discard, client.PullOptions{})
			must(b, err)
		}
		compare(b, time.Since(start)/time.Duration(b.N), perMiB(raw.FromGuest))
	})
	b.Run("push-64MiB-sha256", func(b *testing.B) { benchPushDigest(b, c, content) })
	b.Run("ping-p99-during-pull", func(b *testing.B) { benchPingUnderPull(b, vm, c) })
	b.Run("script-20-writes", func(b *testing.B) {
		var script, native time.Duration
		for run := 0; b.Loop(); run++ {
			text := func(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("run %07d file %02d\n", run, i)), 100) }
			var source bytes.Buffer
			for i := range 20 {
				fmt.Fprintf(&source, "file.write('/var/tmp/s%02d', %q, {mode = '0644'})\n", i, text(i))
			}
			start := time.Now()
			reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: source.Bytes()})
			must(b, err)
			if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
				b.Fatal(reply)
			}
			script += time.Since(start)
			start = time.Now()
			for i := range 20 {
				_, err := client.Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{Path: fmt.Sprintf("/var/tmp/n%02d", i), Data: text(i), Mode: 0o644, Eof: true})
				must(b, err)
			}
			native += time.Since(start)
		}
		compare(b, script/time.Duration(b.N), native/time.Duration(b.N))
	})
}

func must(b testing.TB, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

func compare(b *testing.B, ours, bare time.Duration) {
	b.ReportMetric(float64(ours)/float64(bare), "x")
	b.ReportMetric(float64(ours.Microseconds()), "ours-µs")
	b.ReportMetric(float64(bare.Microseconds()), "raw-µs")
	b.ReportMetric(0, "ns/op")
}

// perMiB is how long a rate in MiB/s takes for the whole transfer.
func perMiB(rate float64) time.Duration {
	return time.Duration(megabytes / rate * float64(time.Second))
}

// bareExec times fork and exec of /bin/true in the guest by a shell loop of its own.
func bareExec(b *testing.B, vm *vmtest.VM) time.Duration {
	b.Helper()
	out := vm.Must(b, `s=$(date +%s%N); i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done; e=$(date +%s%N); echo $(( (e-s)/50 ))`)
	ns, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	must(b, err)
	return time.Duration(ns)
}
