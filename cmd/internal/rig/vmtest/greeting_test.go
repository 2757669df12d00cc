//go:build vm

package vmtest_test

import (
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
)

// The greeting says which machine this is, so that a host can tell whose socket it found.
func TestGreetingTellsWhichMachineItIs(t *testing.T) {
	const uuid = "5f0c7c1e-90ba-4a53-8d0c-6b9d3a1b7e42"
	vm := vmtest.Start(t, vmtest.Options{Fresh: true, QEMUArgs: []string{"-uuid", uuid}})
	startAgent(t, vm)
	ready, err := dial(t, vm, vmtest.AgentPort, client.Options{}).Ready(limited(t, time.Minute))
	if err != nil || ready.ProductUuid != uuid || ready.ProductUuid != vm.Must(t, "cat /sys/class/dmi/id/product_uuid") || ready.MachineId != vm.Must(t, "cat /etc/machine-id") {
		t.Error(ready, err)
	}
}

// A name server that never answers holds nobody up: a name that is asked for would take twelve minutes.
func TestGreetingWithADeadNameServer(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "rm -f /etc/resolv.conf; printf 'nameserver 192.0.2.1\noptions timeout:150 attempts:5\n' > /etc/resolv.conf")
	vm.Must(t, "sed -i '/guest/d' /etc/hosts; systemctl restart quantix-kvm-agent")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	if _, err := c.Ready(limited(t, time.Minute)); err != nil {
		t.Error(err)
	}
	if err := c.AskTelemetry(limited(t, time.Minute)); err != nil {
		t.Error(err)
	}
}
