//go:build vm

package vmtest_test

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
)

// serviceTest is the start of a command that runs the test program of package service, which must be in /var/tmp. It starts and
// stops services of the machine.
const serviceTest = "cd /var/tmp && SERVICE_TEST_SYSTEMD=1 ./service.test "

// buildServiceTest builds that program and returns its path on the host.
func buildServiceTest(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "service.test")
	build := exec.Command("go", "test", "-c", "-o", program, "../../../../builtins/service")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// BenchmarkServices lists 300 services of a guest, in turns with a bare ListUnits over a connection of its own.
func BenchmarkServices(b *testing.B) {
	vm := machine(b, vmtest.Options{})
	if err := vm.Put(limited(b, time.Minute), buildServiceTest(b), "/var/tmp/service.test", 0o755); err != nil {
		b.Fatal(err)
	}
	vm.Must(b, `mkdir -p /run/systemd/system && for i in $(seq 300); do printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n' > /run/systemd/system/bench-$i.service; done
systemctl daemon-reload && systemctl start 'bench-'$(seq -s ' bench-' 300)`)
	for b.Loop() {
		out := vm.Must(b, serviceTest+"-test.run '^$' -test.bench '^BenchmarkList$' -test.benchtime 50x")
		fields := strings.Fields(out)
		for i, unit := range fields {
			if unit != "services" && unit != "times-ListUnits" && unit != "µs/ListUnits" {
				continue
			}
			n, err := strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				b.Fatal(out)
			}
			b.ReportMetric(n, unit)
		}
	}
	b.ReportMetric(0, "ns/op")
}
