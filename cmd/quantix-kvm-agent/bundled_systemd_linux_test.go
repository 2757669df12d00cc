package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The bundled scripts act on services of a machine that systemd booted: what they say is done is done there, and what fails is
// as it was.
func TestBundledScriptsUnderSystemd(t *testing.T) {
	c := bootContainer(t)
	c.run("systemd-run", "--unit=agent", "/opt/agent", "--device", "unix:/run/a.sock", "--state", "/var/lib/agent-test", "--config", "/none")
	socket := fmt.Sprintf("/proc/%d/root/run/a.sock", c.init)
	within(t, func() bool { _, err := os.Stat(socket); return err == nil })
	host, err := client.Dial(ctxFor(t, 3*time.Minute), socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	run := func(name string, params map[string]any, wantError string) map[string]any {
		t.Helper()
		in, err := structpb.NewStruct(params)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), host, &pb.RunScriptRequest{
			Name: name, Params: in, ConfirmSeconds: new(uint32),
		})
		if err != nil {
			t.Fatal(err)
		}
		if (wantError == "") != (reply.Error == nil) || !strings.Contains(reply.Error.GetMessage(), wantError) {
			t.Fatalf("%s: %v, %v; wanted the error %q", name, reply.Status, reply.Error, wantError)
		}
		if wantError != "" && reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Errorf("%s: %v, %v", name, reply.Status, reply.Error)
		}
		result, _ := reply.Result.AsInterface().(map[string]any)
		return result
	}
	pid := func(unit string) string { return c.run("systemctl", "show", "--value", "-p", "MainPID", unit) }

	was := pid("systemd-journald")
	limits := map[string]any{"max_use": "200M"}
	if got := run("journald-limits", limits, ""); got["activated"] != true || pid("systemd-journald") == was {
		t.Errorf("the journal with new limits: %v, the process is still %s", got, was)
	}
	if got := run("journald-limits", limits, ""); got["changed"] != false {
		t.Errorf("the same limits once more: %v", got)
	}

	timer := map[string]any{"name": "backup", "command": "/bin/true", "on_calendar": "daily", "activate": true}
	if got := run("systemd-timer", timer, ""); got["changed"] != true {
		t.Errorf("a new timer: %v", got)
	}
	c.run("systemctl", "is-active", "backup.timer")
	c.run("systemctl", "is-enabled", "backup.timer")
	if got := run("systemd-timer", timer, ""); got["changed"] != false {
		t.Errorf("the same timer once more: %v", got)
	}
	c.run("systemctl", "stop", "backup.timer")
	if got := run("systemd-timer", timer, ""); got["changed"] != true {
		t.Errorf("a timer that was stopped: %v", got)
	}
	timer["on_calendar"], timer["command"] = "2099-01-01 03:00:00 UTC", "/bin/echo 2"
	run("systemd-timer", timer, "")
	if got := c.run("systemctl", "show", "-p", "TimersCalendar,ActiveState,NeedDaemonReload", "backup.timer"); !strings.Contains(got, "2099-01-01") ||
		!strings.Contains(got, "ActiveState=active") || !strings.Contains(got, "NeedDaemonReload=no") {
		t.Error("the timer at another time:", got)
	}
	if got := c.run("systemctl", "show", "-p", "ExecStart,NeedDaemonReload", "backup.service"); !strings.Contains(got, "echo 2") ||
		!strings.Contains(got, "NeedDaemonReload=no") {
		t.Error("the service with another command:", got)
	}

	// A timer that systemd does not start leaves nothing.
	c.run("sh", "-c", "mkdir -p /run/systemd/system/bad.timer.d && printf '[Unit]\\nAssertPathExists=/none\\n' >/run/systemd/system/bad.timer.d/x.conf")
	timer["name"] = "bad"
	run("systemd-timer", timer, "bad.timer")
	if out, err := c.command("sh", "-c", "ls -d /etc/systemd/system/bad.* /etc/systemd/system/timers.target.wants/bad.timer").Output(); err == nil || len(out) > 0 {
		t.Errorf("it left %s", out)
	}
	if c.try("systemctl", "cat", "bad.timer") == nil {
		t.Error("systemd knows the timer still")
	}

	// A server that runs reads the file again, and one that does not stay up with it has its old one.
	if c.try("sh", "-c", "test -x /usr/sbin/sshd && test -s /etc/ssh/sshd_config") != nil {
		t.Skip("sshd is not installed here")
	}
	c.run("sh", "-c", "mkdir -p /run/sshd && ssh-keygen -A")
	c.run("sh", "-c", `cat >/run/systemd/system/server.service <<'.'
[Service]
ExecStart=/bin/sh -c '! grep -qs "MaxAuthTries 5" /etc/ssh/sshd_config.d/00-hardening.conf && exec sleep infinity'
.
systemctl start server`)
	was = pid("server")
	if got := run("sshd-hardening", map[string]any{"unit": "server.service"}, ""); got["reloaded"] != true || pid("server") == was {
		t.Errorf("a server that runs: %v, the process is still %s", got, was)
	}
	run("sshd-hardening", map[string]any{"unit": "server.service", "max_auth_tries": 5}, "server")
	c.run("systemctl", "is-active", "server")
	if got := c.run("cat", "/etc/ssh/sshd_config.d/00-hardening.conf"); !strings.Contains(got, "MaxAuthTries 3") {
		t.Error("the file of the server that did not stay up:", got)
	}
	if got := run("sshd-hardening", map[string]any{"unit": "none.service", "max_auth_tries": 4}, ""); got["reloaded"] != false || got["note"] == nil {
		t.Errorf("no server runs: %v", got)
	}
}
