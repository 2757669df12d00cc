//go:build vm

package vmtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The greeting says which machine this is, so that a host can tell whose socket it found, and when its first-boot scripts have
// run. They come from the image, by the firmware and on a disk; SMBIOS has a parameter.
func TestGreetingTellsWhichMachineItIs(t *testing.T) {
	const uuid = "5f0c7c1e-90ba-4a53-8d0c-6b9d3a1b7e42"
	dir := t.TempDir()
	script, disk := filepath.Join(dir, "site.lua"), filepath.Join(dir, "disk")
	must(t, os.WriteFile(script, []byte(`file.write("/etc/first-boot", params.word .. "\n")`), 0o644))
	must(t, os.MkdirAll(filepath.Join(dir, "tree/firstboot.d"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "tree/firstboot.d/30-disk.lua"), []byte(`file.append("/etc/first-boot", "by disk\n")`), 0o644))
	if out, err := exec.Command("mke2fs", "-q", "-L", "QUANTIX", "-t", "ext4", "-E", "root_owner=0:0", "-d", filepath.Join(dir, "tree"), disk, "2M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	vm := vmtest.Start(t, vmtest.Options{Fresh: true, QEMUArgs: []string{
		"-uuid", uuid, "-fw_cfg", "name=opt/org.quantix/firstboot.d/20-site.lua,file=" + script,
		"-smbios", "type=11,value=org.quantix.firstboot:20-site.word=by firmware",
		"-drive", "file=" + disk + ",format=raw,if=none,id=first", "-device", "virtio-blk-pci,drive=first,addr=0x1e",
	}})
	vm.Must(t, `mkdir -p /etc/quantix-kvm/firstboot.d && printf %s 'file.append("/etc/first-boot", "by image\n")' > /etc/quantix-kvm/firstboot.d/25-image.lua`)
	startAgent(t, vm)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	ready, err := c.Ready(limited(t, time.Minute))
	if err != nil || ready.ProductUuid != uuid || ready.ProductUuid != vm.Must(t, "cat /sys/class/dmi/id/product_uuid") || ready.MachineId != vm.Must(t, "cat /etc/machine-id") {
		t.Error(ready, err)
	}
	for ctx := limited(t, time.Minute); ; time.Sleep(100 * time.Millisecond) {
		status, err := client.Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
		if err != nil || status.FirstBoot.GetState() == pb.FirstBootState_FIRST_BOOT_STATE_FAILED {
			t.Fatal(status.GetFirstBoot(), err)
		}
		if status.FirstBoot.GetState() == pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED {
			break
		}
	}
	if got := vm.Must(t, "cat /etc/first-boot"); got != "by firmware\nby image\nby disk" {
		t.Errorf("%q", got)
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
