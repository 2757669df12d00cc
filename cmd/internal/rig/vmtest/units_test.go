//go:build vm

package vmtest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const webUnit = `printf '[Unit]\nDescription=the test\n[Service]\nExecStart=/bin/sleep 1000\nExecReload=/bin/touch /run/reloaded\n[Install]\nWantedBy=multi-user.target\nAlias=www.service\n' > /etc/systemd/system/web.service && systemctl daemon-reload`

// Services as systemd itself says they are, before and after what a host asks for.
func TestServices(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	vm.Must(t, webUnit)
	is := func() string {
		return vm.Must(t, "set +e; systemctl is-active web; systemctl is-enabled web; ls /run/reloaded 2>/dev/null; true")
	}
	for _, step := range []struct {
		action  pb.ServiceAction
		changed bool
		want    string
	}{
		{pb.ServiceAction_SERVICE_ACTION_START, true, "active\ndisabled"},
		{pb.ServiceAction_SERVICE_ACTION_START, false, "active\ndisabled"},
		{pb.ServiceAction_SERVICE_ACTION_ENABLE, true, "active\nenabled"},
		{pb.ServiceAction_SERVICE_ACTION_ENABLE, false, "active\nenabled"},
		{pb.ServiceAction_SERVICE_ACTION_RESTART, true, "active\nenabled"},
		{pb.ServiceAction_SERVICE_ACTION_RELOAD, true, "active\nenabled\n/run/reloaded"},
		{pb.ServiceAction_SERVICE_ACTION_DISABLE, true, "active\ndisabled\n/run/reloaded"},
		{pb.ServiceAction_SERVICE_ACTION_STOP, true, "inactive\ndisabled\n/run/reloaded"},
		{pb.ServiceAction_SERVICE_ACTION_STATUS, false, "inactive\ndisabled\n/run/reloaded"},
	} {
		before := vm.Must(t, "systemctl show -p InvocationID web")
		reply, err := c.ControlService(limited(t, time.Minute), "web", step.action)
		if err != nil || reply.Changed != step.changed || is() != step.want {
			t.Errorf("%v: %v %v: it is %s", step.action, reply, err, is())
		}
		restarted := step.changed && (step.action == pb.ServiceAction_SERVICE_ACTION_START || step.action == pb.ServiceAction_SERVICE_ACTION_RESTART)
		if after := vm.Must(t, "systemctl show -p InvocationID web"); (after != before) != restarted && step.action != pb.ServiceAction_SERVICE_ACTION_STOP {
			t.Errorf("%v: invocation %s, then %s", step.action, before, after)
		}
	}
	for name, action := range map[string]pb.ServiceAction{"nosuch": pb.ServiceAction_SERVICE_ACTION_STATUS, "web": 77, "-h": pb.ServiceAction_SERVICE_ACTION_START, "a\nb": 0} {
		if reply, err := c.ControlService(limited(t, time.Minute), name, action); err == nil || fault.Code(err) != "not_found" && fault.Code(err) != "invalid" {
			t.Errorf("%q %v: %v %v", name, action, reply, err)
		}
	}

	// What fails in the middle of its links takes back those that it made.
	vm.Must(t, `cd /etc/systemd/system && printf '[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlias=free.service taken.service\n' > half.service && cp half.service taken.service && systemctl daemon-reload`)
	const links = "find /etc/systemd/system -printf '%p %y %l %m %T@\\n' | sort"
	whole := vm.Must(t, links)
	if reply, err := c.ControlService(limited(t, time.Minute), "half", pb.ServiceAction_SERVICE_ACTION_ENABLE); err == nil {
		t.Error(reply)
	}
	if now := vm.Must(t, links); now != whole {
		t.Errorf("after a failure:\n%s\nbefore:\n%s", now, whole)
	}
	vm.Must(t, "rm /etc/systemd/system/half.service /etc/systemd/system/taken.service && systemctl daemon-reload")

	// The list, beside that of systemctl.
	list, err := c.Services(limited(t, time.Minute), &pb.ListServicesRequest{RunningOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, s := range list {
		ours = append(ours, s.Name+".service")
		if s.Name == "quantix-kvm-agent" && (s.Pid == 0 || s.MemoryBytes == 0 || s.MemoryBytes > 1<<31) {
			t.Error(s)
		}
	}
	theirs := strings.Fields(vm.Must(t, "systemctl list-units --type=service --state=running --no-legend --plain | cut -d' ' -f1"))
	slices.Sort(theirs)
	if slices.Sort(ours); !slices.Equal(ours, theirs) {
		t.Errorf("listed are %q, and systemctl says %q", ours, theirs)
	}

	// A changed file with which the unit does not stay up: the old one runs again, and nothing of the script is left.
	vm.Must(t, "systemctl start web; rm -f /run/reloaded")
	old := vm.Must(t, "sha256sum /etc/systemd/system/web.service; stat -c %y /etc/systemd/system/web.service")
	for name, start := range map[string]string{
		"does not stay up": "/bin/sh -c 'echo its last words; exit 3'", "cannot start": "/nowhere/at/all",
	} {
		reply := scripted(t, c, `file.write("/etc/systemd/system/web.service", "[Service]\nExecStart=`+start+`\n")
tx.notify("web", "reload") tx.notify("web.service") tx.on_commit({"touch", "/run/committed"})`)
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(reply.NotUndone) > 0 || strings.HasPrefix(start, "/bin") && !strings.Contains(reply.Error.GetMessage(), "its last words") {
			t.Errorf("%s: %v", name, reply)
		}
		if now := vm.Must(t, "sha256sum /etc/systemd/system/web.service; stat -c %y /etc/systemd/system/web.service"); now != old {
			t.Errorf("%s: %s\nbefore:\n%s", name, now, old)
		}
		got := vm.Must(t, "set +e; systemctl is-active web; ps -o args= -p $(systemctl show --value -p MainPID web); systemctl show --value -p NeedDaemonReload web; ls /run/committed /run/reloaded 2>/dev/null; true")
		if got != "active\n/bin/sleep 1000\nno" {
			t.Errorf("%s: then it is %s", name, got)
		}
	}
	// One that does, once: a restart, and no reload beside it.
	invocations := "journalctl -q -o cat UNIT=web.service | grep -c '^Started'"
	before := vm.Must(t, invocations)
	reply := scripted(t, c, `file.write("/etc/systemd/system/web.service", "[Service]\nExecStart=/bin/sleep 2000\nExecReload=/bin/touch /run/reloaded\n")
tx.notify("web", "reload") tx.notify("web") tx.notify("web", "restart") tx.on_commit({"touch", "/run/committed"})`)
	got := vm.Must(t, "set +e; ps -o args= -p $(systemctl show --value -p MainPID web); ls /run/committed /run/reloaded 2>/dev/null; true")
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || got != "/bin/sleep 2000\n/run/committed" || vm.Must(t, "test $(("+before+"+1)) = $("+invocations+") && echo once") != "once" {
		t.Errorf("%v: then it is %s", reply, got)
	}

	// A dry run predicts what the run does, and does nothing of it.
	const many = `service.enable("web") service.stop("web") service.mask("web")
local ok = pcall(service.start, "web") service.unmask("web") service.start("web") tx.notify("web", "reload-or-restart")
file.write("/etc/systemd/system/fresh.service", "[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n")
service.enable("fresh", {now = true})
local s = service.status("fresh")
return {ok, service.status("web").enabled, s.active, s.enabled}`
	vm.Must(t, webUnit+"; mv /etc/systemd/system/web.service /usr/lib/systemd/system/; systemctl daemon-reload; systemctl start web")
	told, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(many), DryRun: true})
	if state := vm.Must(t, "set +e; systemctl is-enabled web; ls /etc/systemd/system/fresh.service 2>/dev/null; true"); err != nil || state != "disabled" {
		t.Error(told, err, state)
	}
	changes := func(reply *pb.RunScriptResponse) (list []string) {
		for _, c := range reply.Changes {
			list = append(list, c.Op+" "+c.Target+" "+c.Action)
		}
		return list
	}
	reply = scripted(t, c, many)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || !slices.Equal(changes(reply), changes(told)) || !proto.Equal(reply.Result, told.Result) {
		t.Errorf("%v\nforetold:\n%v", reply, told)
	}

	// However many units are enabled, systemd reads its files once, and knows what it read.
	reloads := "journalctl -q -o cat _PID=1 | grep -c '^Reloading'"
	vm.Must(t, "systemctl disable -q fresh && "+webUnit)
	before = vm.Must(t, reloads)
	reply = scripted(t, c, `service.enable("fresh") service.enable("web")`)
	known := vm.Must(t, "systemctl show -p Wants --value multi-user.target | tr ' ' '\n' | grep -cE '^(fresh|web).service$'")
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || known != "2" || vm.Must(t, "echo $(($("+reloads+")-"+before+"))") != "1" {
		t.Errorf("%v: %s are known, %s reloads after %s", reply, known, vm.Must(t, reloads), before)
	}

	// The agent's own unit: the answer comes first.
	was := vm.Must(t, "systemctl show --value -p InvocationID quantix-kvm-agent")
	own, err := c.ControlService(limited(t, time.Minute), "quantix-kvm-agent.service", pb.ServiceAction_SERVICE_ACTION_RESTART)
	if err != nil || !own.Success {
		t.Error(own, err)
	}
	vm.Must(t, "for i in $(seq 100); do test $(systemctl show --value -p InvocationID quantix-kvm-agent) != "+was+" && systemctl is-active quantix-kvm-agent && exit 0; sleep 0.2; done; exit 1")
}

// The tests of package service that need systemd, in a container, where nothing is emulated.
func TestServicesInAContainer(t *testing.T) {
	t.Parallel()
	c := bootContainer(t, containerOptions{})
	c.put(buildServiceTest(t), "/var/tmp/service.test")
	out := c.run("chmod +x /var/tmp/service.test && " + serviceTest + "-test.v -test.run '^TestSystemd$'")
	if !strings.Contains(out, "--- PASS: TestSystemd") {
		t.Error(out)
	}
}

// recovered waits until an agent that serves has taken back all that an interruption left.
func recovered(t *testing.T, c *client.Client) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		status, err := client.Call[*pb.GetStatusResponse](limited(t, 20*time.Second), c, &pb.GetStatusRequest{})
		if err == nil && status.State == pb.AgentState_AGENT_STATE_SERVING {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(status, err)
		}
	}
}

const unitLinks = "find /etc/systemd/system -printf '%p %y %l %m %T@\\n' | grep -v 'app[0-9]*.service y' | sort"

// The guest loses its power while units are enabled, and boots again: all links are there, or none, and nothing beside them.
func TestPowerLossDuringServiceEnable(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, `for i in 1 2 3; do printf '[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target app.target\nAlias=other'$i'.service\n' > /etc/systemd/system/app$i.service; done; systemctl daemon-reload`)
	const script = `for i = 1, 3 do service.enable("app" .. i) end`
	rounds, takenBack := rounds(1), 0
	first := rand.IntN(2)
	for round := range rounds {
		byUnit := (first+round)%2 == 1
		before := vm.Must(t, unitLinks)
		vm.Must(t, "sync")
		c := served(t, vm)
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if byUnit { // as a host does it, unit by unit: each is a transaction
				for i := range 3 {
					_, _ = c.ControlService(ctx, fmt.Sprint("app", i+1), pb.ServiceAction_SERVICE_ACTION_ENABLE)
				}
				answered <- nil
				return
			}
			reply, _ := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(script)})
			answered <- reply
		}()
		time.Sleep(time.Duration(50+rand.IntN(9000)) * time.Millisecond) // into the run
		if err := vm.Kill(); err != nil {
			t.Fatal(err)
		}
		reply := <-answered
		c.Close()
		if err := vm.PowerOn(limited(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		c = served(t, vm)
		recovered(t, c)
		after, committed := vm.Must(t, unitLinks), reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		running := vm.Must(t, "systemctl list-units --no-legend --plain 'app*.service' | grep -c running || true")
		switch {
		case after == before && !committed && running == "0":
			takenBack++
			c.Close()
			continue
		case after == before:
			t.Fatalf("round %d: committed is %v, and %s of the units run", round, committed, running)
		}
		if byUnit { // of each unit all links, or none
			got := vm.Must(t, `for i in 1 2 3; do find /etc/systemd/system -type l -name "app$i.service" -o -type l -name "other$i.service" | wc -l; done | sort -u | tr '\n' ' '`)
			if got = strings.TrimSpace(got); got != "0 3" && got != "3" {
				t.Fatalf("round %d: numbers of links: %s\n%s", round, got, after)
			}
		} else if reply := scripted(t, c, script); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Changes) > 0 {
			t.Fatalf("round %d: neither before nor after: %v\n%s\nbefore:\n%s", round, reply.Changes, after, before)
		}
		if !byUnit {
			if got := vm.Must(t, "systemctl is-enabled app1 app2 app3 | sort -u"); got != "enabled" {
				t.Fatalf("round %d: %s", round, got)
			}
		}
		scripted(t, c, `for i = 1, 3 do service.disable("app" .. i, {now = true}) end`)
		c.Close()
	}
	t.Logf("%d of %d runs were taken back", takenBack, rounds)
}
