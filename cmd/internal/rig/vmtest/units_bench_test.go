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

// serviceRoom builds the tests of the room of services and puts them into a machine; it gives the command that runs them there,
// where they may start and stop services.
func serviceRoom(t testing.TB, vm *vmtest.VM) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "service.test")
	build := exec.Command("go", "test", "-c", "-o", program, "../../../../builtins/service")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := vm.Put(limited(t, time.Minute), program, "/var/tmp/service.test", 0o755); err != nil {
		t.Fatal(err)
	}
	return "cd /var/tmp && SERVICE_TEST_SYSTEMD=1 ./service.test "
}

// BenchmarkServices lists 300 services of a guest, in turns with a bare ListUnits over a connection of its own.
func BenchmarkServices(b *testing.B) {
	vm := machine(b, vmtest.Options{})
	run := serviceRoom(b, vm)
	vm.Must(b, `mkdir -p /run/systemd/system && for i in $(seq 300); do printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n' > /run/systemd/system/bench-$i.service; done
systemctl daemon-reload && systemctl start 'bench-'$(seq -s ' bench-' 300)`)
	for b.Loop() {
		out := vm.Must(b, run+"-test.run '^$' -test.bench '^BenchmarkList$' -test.benchtime 50x")
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
