//go:build vm

package vmtest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A machine that image-cleanup was run in, and that was then switched off, boots as another one: with an ID, host keys and an
// agent's key of its own, and with its SSH server.
func TestACleanedMachineBootsAsAnotherOne(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, "systemctl enable --quiet --now ssh")
	ctx := limited(t, 8*time.Minute)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	const identity = "sha256sum /etc/machine-id /etc/ssh/ssh_host_*_key /var/lib/quantix-kvm/key"
	before := strings.Fields(vm.Must(t, identity))
	if len(before) < 8 {
		t.Fatal(before)
	}
	reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Name: "image-cleanup"})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(reply, err)
	}
	vm.Must(t, "! test -s /etc/machine-id && ! ls /etc/ssh/ssh_host_* && ! test -e /var/lib/systemd/random-seed && sync")
	c.Close()
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := vm.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	served(t, vm).Close()
	eventually(t, vm, "the SSH server runs", "systemctl is-active --quiet ssh && echo y")
	after := strings.Fields(vm.Must(t, identity))
	if len(after) != len(before) {
		t.Fatalf("%q became %q", before, after)
	}
	for i, word := range after {
		if isPath := i%2 == 1; isPath != (word == before[i]) {
			t.Errorf("%q became %q", before, after)
			break
		}
	}
}
