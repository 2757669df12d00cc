//go:build vm

package vmtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
)

// TestSandboxWalls has the sandbox's own tests look at its walls in a guest with systemd, where none may be missing: the
// machine that runs the other tests often has no cgroup v2 with a memory controller.
func TestSandboxWalls(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sandbox.test")
	build := exec.Command("go", "test", "-c", "-o", program, "../../../../runtime/sandbox")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	vm := vmtest.Start(t, vmtest.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := vm.Put(ctx, program, "/usr/local/bin/sandbox.test", 0o755); err != nil {
		t.Fatal(err)
	}
	result, err := vm.Run(ctx, "/usr/local/bin/sandbox.test", "-test.v", "-test.run",
		"^(TestMemoryOfACgroup|TestLayersAreTold|TestSealedProcessCanDoNothing|TestRunnerIsClosedOff|TestRunnersDieWithTheirAgent|TestMemoryNamesLineAndLimit)$")
	if err != nil {
		t.Fatal(err)
	}
	out := string(result.Stdout)
	t.Log(out)
	if result.ExitCode != 0 {
		t.Errorf("exit code %d: %s", result.ExitCode, result.Stderr)
	}
	if strings.Contains(out, "--- SKIP") {
		t.Error("a wall is missing in the guest")
	}
	for _, wall := range []string{"resource limits", "landlock", "seccomp", "user of its own", "memory of a cgroup"} {
		if !strings.Contains(out, wall+`: ""`) {
			t.Errorf("%s: not in the guest", wall)
		}
	}
}
