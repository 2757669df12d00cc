//go:build vm

package vmtest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What awaits its confirmation keeps its deadline when the agent is killed and the guest's clock is set a year ahead. A
// shutdown that a host asks for waits for it. A boot of the guest takes it back before the network starts, and late
// confirmations are told so.
func TestConfirmAcrossReboot(t *testing.T) {
	const (
		within = 30 * 60 // seconds
		source = `file.write("/etc/systemd/network/99-confirm.network", "[Match]\nName=none0\n") file.write("/etc/confirmed", "new\n")`
	)
	vm := machine(t, vmtest.Options{})
	status := func() *pb.GetStatusResponse {
		t.Helper()
		c := dial(t, vm, vmtest.AgentPort, client.Options{})
		defer c.Close()
		s, err := client.Call[*pb.GetStatusResponse](limited(t, time.Minute), c, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	reply, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(source), ConfirmSeconds: proto.Uint32(within)})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM {
		t.Fatal(reply, err)
	}
	began := time.Now()
	c.Close()
	vm.Must(t, "date -s '+1 year' && systemctl kill -s KILL quantix-kvm-agent")
	var open *pb.TransactionInfo
	for limit := limited(t, time.Minute); open == nil; {
		if open = status().Journal.GetOpen(); limit.Err() != nil {
			t.Fatalf("it is not open any more\n%s", vm.Diagnosis())
		}
	}
	left := time.Duration(open.ConfirmRemainingMs) * time.Millisecond
	if gone := within*time.Second - left; open.TransactionId != reply.TransactionId || open.Phase != "awaiting_confirm" || gone < 0 || gone > time.Since(began)+30*time.Second {
		t.Errorf("%v, %v after %v", open, gone, time.Since(began))
	}
	before := bootID(t, vm)
	vm.Must(t, "test -e /etc/confirmed")
	if pending := shutdown(t, vm, &pb.ShutdownRequest{Type: reboot}).Pending; !strings.Contains(pending.GetWaitingFor(), "awaits a confirmation") {
		t.Error(pending)
	}
	time.Sleep(3 * time.Second)
	if got := bootID(t, vm); got != before {
		t.Fatal("it did not wait")
	}
	shutdown(t, vm, &pb.ShutdownRequest{Cancel: true})
	vm.Must(t, "systemctl --no-block reboot") // by somebody who does not ask the agent
	rebooted(t, vm, before)
	vm.Must(t, "test ! -e /etc/confirmed && test ! -e /etc/systemd/network/99-confirm.network")
	if log := vm.Must(t, "journalctl -b -u 'quantix-kvm*' --no-pager"); !strings.Contains(log, "transaction "+reply.TransactionId+": rolled_back") {
		t.Errorf("the early recovery did not do it:\n%s", log)
	}
	d := dial(t, vm, vmtest.AgentPort, client.Options{})
	late, err := d.Confirm(limited(t, time.Minute), &pb.ConfirmRequest{TransactionId: reply.TransactionId, Action: pb.ConfirmAction_CONFIRM_ACTION_CONFIRM})
	if err != nil || late.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(late.Error.GetMessage(), "booted again before the confirmation") {
		t.Error(late, err)
	}
	waitInGuest(t, vm, d)
}

// waitInGuest waits for what systemd does: the end of the boot, and units that start, work once, fail, or are installed later.
func waitInGuest(t *testing.T, vm *vmtest.VM, c *client.Client) {
	unit := func(name string) *pb.WaitRequest {
		return &pb.WaitRequest{Condition: &pb.WaitRequest_Unit{Unit: &pb.WaitUnit{Name: name}}, TimeoutSeconds: 120}
	}
	ready, err := c.Wait(limited(t, 3*time.Minute), &pb.WaitRequest{Condition: &pb.WaitRequest_Ready{Ready: &pb.WaitReady{}}})
	if err != nil || ready.State != "running" && ready.State != "degraded" {
		t.Error(ready, err)
	}
	if state := strings.TrimSpace(vm.Must(t, "systemctl is-system-running || true")); state != ready.GetState() {
		t.Errorf("the system is %s, and not %v", state, ready)
	}
	if found, err := c.Wait(limited(t, time.Minute), unit("quantix-kvm-agent")); err != nil || found.State != "active" {
		t.Error(found, err)
	}
	write := func(name, service string) string {
		return "printf '[Service]\\n" + service + "\\n' > /run/systemd/system/" + name + ".service; systemctl daemon-reload"
	}
	vm.Must(t, write("w-once", "Type=oneshot\\nExecStart=/bin/sleep 1"))
	vm.Must(t, write("w-fails", "Type=oneshot\\nExecStart=/bin/sh -c \"sleep 1; exit 3\""))
	for _, test := range []struct{ name, begin, state, fails string }{
		{"w-once", "systemctl start --no-block w-once", "inactive", ""},
		{"w-fails", "systemctl start --no-block w-fails", "", "exit-code"},
		{"w-later", write("w-later", "ExecStart=/bin/sleep infinity") + "; sleep 1; systemctl start w-later", "active", ""},
	} {
		type answer struct {
			found *pb.WaitResponse
			err   error
		}
		done := make(chan answer, 1)
		go func() {
			found, err := c.Wait(limited(t, 3*time.Minute), unit(test.name))
			done <- answer{found, err}
		}()
		select {
		case a := <-done:
			t.Errorf("%s: it does not wait: %v, %v", test.name, a.found, a.err)
			continue
		case <-time.After(time.Second):
		}
		vm.Must(t, test.begin)
		a := <-done
		if test.fails == "" && (a.err != nil || a.found.State != test.state) ||
			test.fails != "" && (!errors.Is(a.err, fault.ErrOutput) || !strings.Contains(a.err.Error(), test.fails)) {
			t.Errorf("%s: %v, %v", test.name, a.found, a.err)
		}
	}
	none := unit("w-none")
	none.TimeoutSeconds = 1
	if _, err := c.Wait(limited(t, time.Minute), none); fault.Code(err) != "timeout" {
		t.Error(err)
	}
}
