//go:build vm

package vmtest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// With a real systemd: a file system is mounted by its UUID, and again at the next boot; where the power is cut in the middle
// of the script that mounts it, all is as before, and so it is where the script fails.
func TestMountWithSystemd(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	ctx := limited(t, 10*time.Minute)
	vm.Must(t, "truncate -s 16M /var/tmp/image && mkfs.ext4 -q -U 11111111-2222-3333-4444-555555555555 /var/tmp/image")
	look := "cat /etc/fstab; find /srv -printf '%p %y %m %U %T@\\n' | sort; grep -o ' /srv[^ ]* ' /proc/self/mountinfo || true; " +
		"systemctl is-active srv-data.mount || true"
	before := vm.Must(t, look)
	const work = `
		host.mount{source = "/var/tmp/image", target = "/srv/data", fstype = "ext4", options = "loop,nofail"}
		file.write("/srv/data/made", "x\n")
		file.write("/srv/beside", "y\n")
	`
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	run := func(source string) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source)})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if r := run(work + `error("no")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	if now := vm.Must(t, look); now != before {
		t.Errorf("rolled back to\n%s\nfrom\n%s", now, before)
	}
	if got := vm.Must(t, "systemctl cat srv-data.mount 2>&1 | grep -c SourcePath || true"); got != "0" {
		t.Error("systemd still knows the unit")
	}
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.WithoutCancel(ctx), c, &pb.RunScriptRequest{Source: []byte(work + "while true do end")})
	}()
	eventually(t, vm, "the script is at its end", "test -e /srv/beside && echo y")
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := vm.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	c = dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the recovery is done", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
	if r := run("return 1"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if now := vm.Must(t, look); now != before {
		t.Errorf("recovered to\n%s\nfrom\n%s", now, before)
	}
	if r := run(work); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if r := run(`return host.mount{source = "/var/tmp/image", target = "/srv/data", fstype = "ext4", options = "loop,nofail"}`); len(r.Changes) > 0 {
		t.Error("not the same a second time", r)
	}
	if got := vm.Must(t, "systemctl is-active srv-data.mount; systemctl cat srv-data.mount | grep -c What="); got != "active\n1" {
		t.Errorf("%q", got)
	}
	c.Close()
	if err := vm.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if got := vm.Must(t, "cat /srv/data/made"); got != "x" {
		t.Errorf("after a boot it is %q", got)
	}
	c = dial(t, vm, vmtest.AgentPort, client.Options{})
	if r := run(`return host.unmount("/srv/data")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if got := vm.Must(t, "cat /etc/fstab; grep -o ' /srv[^ ]* ' /proc/self/mountinfo || true"); strings.Contains(got, "/srv") {
		t.Errorf("%q", got)
	}
}
