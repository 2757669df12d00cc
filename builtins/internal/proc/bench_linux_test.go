package proc

import (
	"context"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// BenchmarkStart is a start of /bin/true by a Runner, beside a bare fork and exec of it, in turns. The medians and the quickest
// of both are compared: the mean of a busy machine says nothing.
func BenchmarkStart(b *testing.B) {
	r := New(Config{Name: "quantix-kvm-bench"})
	defer r.Release()
	var ours, bare []time.Duration
	env := LoginEnv(nil)
	for b.Loop() {
		start := time.Now()
		result, err := r.Run(context.Background(), Spec{Argv: []string{"/bin/true"}, Env: env})
		if err != nil || result.Code != 0 {
			b.Fatal(result, err)
		}
		middle := time.Now()
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
		ours, bare = append(ours, middle.Sub(start)), append(bare, time.Since(middle))
	}
	slices.Sort(ours)
	slices.Sort(bare)
	b.ReportMetric(float64(ours[len(ours)/2].Microseconds()), "µs/run")
	b.ReportMetric(float64(bare[len(bare)/2].Microseconds()), "µs/bare")
	b.ReportMetric(float64(ours[len(ours)/2])/float64(bare[len(bare)/2]), "x-median")
	b.ReportMetric(float64(ours[0])/float64(bare[0]), "x-quickest")
	b.ReportMetric(0, "ns/op")
}
