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

// With a real systemd: a file system is mounted by its UUID, and again at the next boot; where the script that mounts another
// one fails, all is as before, and so it is where the power is cut in the middle of it.
func TestMountWithSystemd(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	ctx := limited(t, 10*time.Minute)
	const script = `
		host.mount{source = "/var/tmp/NAME", target = "/srv/NAME", fstype = "ext4", options = "loop,nofail"}
		file.write("/srv/NAME/made", "x\n")
		file.write("/srv/beside-NAME", "y\n")
	`
	kept, lost := strings.ReplaceAll(script, "NAME", "kept"), strings.ReplaceAll(script, "NAME", "lost")
	vm.Must(t, "for i in kept lost; do truncate -s 16M /var/tmp/$i && mkfs.ext4 -q /var/tmp/$i; done")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	run := func(source string) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source)})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if r := run(kept); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if r := run(kept); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(r.Changes) > 0 {
		t.Error("not the same a second time", r)
	}
	const unit = "systemctl is-active srv-kept.mount; systemctl cat srv-kept.mount | grep -c What="
	if got := vm.Must(t, unit); got != "active\n1" {
		t.Errorf("%q", got)
	}

	look := "cat /etc/fstab; find /srv -printf '%p %y %m %U %T@\\n' | sort; grep -o ' /srv[^ ]* ' /proc/self/mountinfo || true; " +
		"systemctl is-active srv-lost.mount || true"
	before := vm.Must(t, look)
	if r := run(lost + `error("no")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	if now := vm.Must(t, look); now != before {
		t.Errorf("rolled back to\n%s\nfrom\n%s", now, before)
	}
	if got := vm.Must(t, "systemctl cat srv-lost.mount 2>&1 | grep -c SourcePath || true"); got != "0" {
		t.Error("systemd still knows the unit")
	}
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.WithoutCancel(ctx), c, &pb.RunScriptRequest{Source: []byte(lost + "while true do end")})
	}()
	eventually(t, vm, "the script is at its end", "test -e /srv/beside-lost && echo y")
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := vm.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	c = dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the recovery is done", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
	if got := vm.Must(t, unit); got != "active\n1" {
		t.Errorf("after a boot: %q", got)
	}
	if now := vm.Must(t, look); now != before {
		t.Errorf("recovered to\n%s\nfrom\n%s", now, before)
	}
	if r := run(`return host.unmount("/srv/kept")`); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if got := vm.Must(t, "cat /etc/fstab; grep -o ' /srv[^ ]* ' /proc/self/mountinfo || true"); strings.Contains(got, "/srv") {
		t.Errorf("%q", got)
	}
}
