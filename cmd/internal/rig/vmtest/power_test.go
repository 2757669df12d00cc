//go:build vm

package vmtest_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// numberFrom returns what a variable of the environment says, for more than what a quick run does.
func numberFrom(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

const (
	poweroff = pb.ShutdownType_SHUTDOWN_TYPE_POWEROFF
	reboot   = pb.ShutdownType_SHUTDOWN_TYPE_REBOOT
)

// shutdown asks for one on a connection of its own, and returns the reply, which must say that it was accepted.
func shutdown(t *testing.T, vm *vmtest.VM, in *pb.ShutdownRequest) *pb.ShutdownResponse {
	t.Helper()
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	reply, err := client.Call[*pb.ShutdownResponse](limited(t, 30*time.Second), c, in)
	if err != nil || !reply.Accepted {
		t.Fatalf("%v: %v %v", in, reply, err)
	}
	return reply
}

func bootID(t *testing.T, vm *vmtest.VM) string {
	t.Helper()
	id, err := vm.BootID(limited(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func rebooted(t *testing.T, vm *vmtest.VM, before string) {
	t.Helper()
	if err := vm.AwaitReboot(limited(t, 3*time.Minute), before); err != nil {
		t.Fatalf("%v\n%s", err, vm.Diagnosis())
	}
}

func poweredOff(t *testing.T, vm *vmtest.VM) {
	t.Helper()
	if err := vm.AwaitPowerOff(limited(t, 3*time.Minute)); err != nil {
		t.Fatalf("%v\n%s", err, vm.Diagnosis())
	}
}

// Each reboot is answered before it happens. VMTEST_REBOOTS says how many; the promise is 20 of 20.
func TestPowerReboots(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	n := numberFrom(t, "VMTEST_REBOOTS", 1)
	for i := range n {
		before := bootID(t, vm)
		began := time.Now()
		reply := shutdown(t, vm, &pb.ShutdownRequest{Type: reboot})
		heard := time.Since(began)
		rebooted(t, vm, before)
		t.Logf("reboot %d of %d: reply after %v, %v; up again after %v", i+1, n, heard, reply.Pending, time.Since(began))
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	if ready, err := c.Ready(limited(t, time.Minute)); err != nil || ready.PendingShutdown != nil || !slices.Contains(ready.Capabilities, "shutdown") {
		t.Error(ready, err)
	}
}

// The guest is up until its time has come, and down soon after. VMTEST_DELAY says how many seconds; at 30 it must be up at 25
// and down at 35.
func TestPowerDelay(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	seconds := numberFrom(t, "VMTEST_DELAY", 6)
	delay := time.Duration(seconds) * time.Second
	began := time.Now()
	shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff, DelaySeconds: uint32(seconds), Message: "maintenance"})
	time.Sleep(time.Until(began.Add(delay * 5 / 6)))
	up, err := vm.Shell(limited(t, time.Minute), "test -e /run/quantix-kvm/shutdown && systemctl -q is-active quantix-kvm-agent")
	if asked := time.Since(began); asked >= delay {
		t.Logf("the machine is too slow: it was asked after %v", asked)
	} else if err != nil || up.ExitCode != 0 {
		t.Error("it is not up any more: ", up, err)
	}
	poweredOff(t, vm)
	took := time.Since(began)
	t.Logf("a delay of %v: off after %v", delay, took)
	if took < delay || seconds == 30 && took > 35*time.Second {
		t.Errorf("a delay of %v: off after %v", delay, took)
	}
}

// What is pending is told, survives a restart and the death of the agent, is replaced and cancelled.
func TestPowerPending(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	before := bootID(t, vm)
	shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff, DelaySeconds: 3600, Message: "first"})
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	ready, err := c.Ready(limited(t, time.Minute))
	if err != nil || ready.PendingShutdown.GetType() != "poweroff" || ready.PendingShutdown.Message != "first" {
		t.Error(ready, err)
	}
	status, err := client.Call[*pb.GetStatusResponse](limited(t, time.Minute), c, &pb.GetStatusRequest{})
	if p := status.GetPendingShutdown(); err != nil || p.GetType() != "poweroff" || p.RemainingMs > 3600e3 || p.RemainingMs < 3000e3 {
		t.Error(status, err)
	}
	c.Close()
	if got := vm.Must(t, "quantix-kvm-agent status"); !strings.Contains(got, "poweroff") {
		t.Errorf("the status in the guest is\n%s", got)
	}
	reply := shutdown(t, vm, &pb.ShutdownRequest{Cancel: true})
	if reply.Replaced.GetType() != "poweroff" || reply.Pending != nil {
		t.Error(reply)
	}
	shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff, DelaySeconds: 10})
	shutdown(t, vm, &pb.ShutdownRequest{Cancel: true})
	time.Sleep(11 * time.Second)
	if got := bootID(t, vm); got != before {
		t.Fatal("a cancelled shutdown was done")
	}
	shutdown(t, vm, &pb.ShutdownRequest{Type: reboot, DelaySeconds: 3600})
	reply = shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff, DelaySeconds: 8})
	if reply.Replaced.GetType() != "reboot" || reply.Pending.GetType() != "poweroff" {
		t.Error(reply)
	}
	vm.Must(t, "kill -KILL "+property(t, vm, "MainPID"))
	poweredOff(t, vm)
}

// A guest whose root file system is frozen is shut down.
func TestPowerOffWhileFrozen(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	reply, err := client.Call[*pb.ExecuteResponse](limited(t, time.Minute), c, &pb.ExecuteRequest{Command: "fsfreeze", Args: []string{"-f", "/"}, WaitForExit: true})
	if err != nil || reply.ExitCode != 0 {
		t.Fatal(reply, err)
	}
	c.Close()
	shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff})
	poweredOff(t, vm)
}

// An open transaction ends first, and the reply says what is waited for.
func TestPowerWaitsForATransaction(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	c := dial(t, vm, vmtest.CtlPort, client.Options{})
	ended := make(chan *pb.RunScriptResponse, 1)
	go func() {
		reply, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(`
			file.write("/etc/begun", "1\n")
			exec.run({"sleep", "4"}, {readonly = true})
			file.write("/etc/ended", "1\n")`)})
		t.Log(err)
		ended <- reply
	}()
	eventually(t, vm, "the script", "test -e /etc/begun")
	reply := shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff})
	if !strings.HasPrefix(reply.Pending.GetWaitingFor(), "transaction ") {
		t.Error(reply)
	}
	if script := <-ended; script.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(script)
	}
	poweredOff(t, vm)
}

// A script reboots the guest once, after its commit and its reply, and not where it is rolled back.
func TestPowerInAScript(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	run := func(source string) *pb.RunScriptResponse {
		t.Helper()
		c := dial(t, vm, vmtest.CtlPort, client.Options{})
		defer c.Close()
		reply, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(source)})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	before := bootID(t, vm)
	if reply := run(`power.reboot() error("no")`); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK && reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED {
		t.Error(reply)
	}
	time.Sleep(2 * time.Second)
	if bootID(t, vm) != before {
		t.Fatal("a script that was rolled back rebooted the guest")
	}
	reply := run(`file.write("/etc/kept", "1\n") power.reboot({ message = "new kernel" })`)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.AfterCommit) != 1 || reply.AfterCommit[0].State != pb.ChangeState_CHANGE_STATE_APPLIED {
		t.Error(reply)
	}
	rebooted(t, vm, before)
	after := bootID(t, vm)
	vm.Must(t, "test -e /etc/kept")
	vm.Must(t, "for i in $(seq 100); do quantix-kvm-agent status >/tmp/status && grep -q serving /tmp/status && exit; sleep 0.2; done; cat /tmp/status; exit 1")
	time.Sleep(3 * time.Second)
	if bootID(t, vm) != after {
		t.Error("it was rebooted twice")
	}
}

// Who is logged in on a terminal is told, also without a delay.
func TestPowerTellsUsers(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	c := dial(t, vm, vmtest.CtlPort, client.Options{})
	s, err := c.Stream(limited(t, time.Minute), client.Command{Argv: []string{"login", "-f", "root"}}, client.StreamOptions{
		Stdin: true, Terminal: &pb.Terminal{Rows: 25, Cols: 80, Term: "vt100"},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer close(lines)
		for {
			out, err := s.Next(ctx)
			if err != nil {
				return
			}
			lines <- string(out.Stdout) + string(out.Stderr)
		}
	}()
	seen := ""
	until := func(words string) {
		t.Helper()
		for !strings.Contains(seen, words) {
			select {
			case more, ok := <-lines:
				if !ok {
					t.Fatalf("%q is not shown:\n%s", words, seen)
				}
				seen += more
			case <-time.After(time.Minute):
				t.Fatalf("%q is not shown within a minute:\n%s", words, seen)
			}
		}
	}
	if _, err := s.Write(limited(t, time.Minute), []byte("echo log''ged in\n")); err != nil {
		t.Fatal(err)
	}
	until("logged in")
	eventually(t, vm, "the record of the login", "test -s /run/utmp")
	shutdown(t, vm, &pb.ShutdownRequest{Type: poweroff, Message: "the host needs its memory"})
	until("the host needs its memory")
	until("The system will be powered off now.")
	poweredOff(t, vm)
}
