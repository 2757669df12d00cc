//go:build vm

package vmtest_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The inventory is what QEMU was given, and what the guest's own tools say.
func TestInventory(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	ctx := limited(t, time.Minute)
	h, err := c.Hardware(ctx, &pb.GetHardwareInfoRequest{IncludeCpuDetails: true, IncludeDiskDetails: true, IncludeNetworkDetails: true})
	if err != nil {
		t.Fatal(err)
	}
	if h.Memory.InstalledBytes != vmtest.DefaultMemoryMiB<<20 || h.Memory.DimmCount != 1 || h.Memory.MemoryType != "RAM" ||
		h.Memory.TotalBytes > h.Memory.InstalledBytes || h.Memory.TotalBytes < h.Memory.InstalledBytes/2 {
		t.Error("memory:", h.Memory)
	}
	lscpu := func(key string) string {
		return vm.Must(t, "LC_ALL=C lscpu | sed -n 's/^ *"+key+": *//p'")
	}
	cpu := h.Cpu
	sockets, _ := strconv.Atoi(lscpu("Socket(s)"))
	each, _ := strconv.Atoi(lscpu("Core(s) per socket"))
	if strconv.Itoa(int(cpu.Threads)) != vm.Must(t, "nproc") || int(cpu.Sockets) != sockets || int(cpu.Cores) != sockets*each || cpu.Sockets == 0 ||
		cpu.Model != lscpu("Model name") || cpu.Vendor != lscpu("Vendor ID") {
		t.Errorf("%v, and lscpu has %d sockets of %d cores, %q, %q", cpu, sockets, each, lscpu("Model name"), lscpu("Vendor ID"))
	}
	bios := h.Bios // QEMU is given no UUID here, and then has none
	if bios.SystemManufacturer != "QEMU" || bios.SystemUuid != vm.Must(t, "cat /sys/class/dmi/id/product_uuid 2>/dev/null || true") || !strings.Contains(bios.Vendor, "SeaBIOS") {
		t.Error(bios)
	}
	for _, mac := range []string{"52:54:00:12:34:03", "52:54:00:12:34:04"} {
		at := slices.IndexFunc(h.NetworkAdapters, func(a *pb.NetworkAdapterInfo) bool { return a.MacAddress == mac })
		if at < 0 {
			t.Error("no adapter with the address", mac)
			continue
		}
		a := h.NetworkAdapters[at]
		if want := "0000:00:0" + mac[len(mac)-1:] + ".0"; a.PciAddress != want || a.Driver != "virtio_net" || a.AdapterType != "ethernet" || !a.IsVirtual {
			t.Error(a)
		}
	}
	// The disk that the root file system is on: its size by the kernel's own count of blocks, what is used by df.
	at := slices.IndexFunc(h.Disks, func(d *pb.DiskInfo) bool { return d.Device == "/dev/vda" })
	if at < 0 {
		t.Fatal("there is no /dev/vda:", h.Disks)
	}
	disk := h.Disks[at]
	if strconv.FormatUint(disk.SizeBytes, 10) != vm.Must(t, "blockdev --getsize64 /dev/vda") || disk.Interface != "virtio" || !disk.IsVirtual || len(disk.Partitions) == 0 {
		t.Error(disk)
	}
	var used uint64
	fmt.Sscan(vm.Must(t, "df -B1 --output=used / | tail -1"), &used)
	root := slices.IndexFunc(disk.Partitions, func(p *pb.PartitionInfo) bool { return p.MountPoint == "/" })
	if root < 0 || disk.Partitions[root].Filesystem != vm.Must(t, "findmnt -no FSTYPE /") || disk.Partitions[root].UsedBytes>>24 > used>>24+1 || disk.Partitions[root].UsedBytes < used/2 {
		t.Error(disk.Partitions, used)
	}
	if h.Os.Hostname != vm.Must(t, "hostname") || h.Os.Kernel != vm.Must(t, "uname -r") || h.Os.LastBoot == nil {
		t.Error(h.Os)
	}

	software, err := c.Software(ctx, &pb.ListInstalledSoftwareRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range software.Software {
		list = append(list, p.Name+" "+p.Version+" "+p.Architecture)
	}
	query := strings.Split(vm.Must(t, `dpkg-query -W -f '${db:Status-Status} ${Package} ${Version} ${Architecture}\n' | sed -n 's/^installed //p'`), "\n")
	slices.Sort(list)
	slices.Sort(query)
	if !slices.Equal(list, query) || int(software.TotalCount) != len(query) {
		t.Errorf("%d packages, %d by dpkg-query", len(list), len(query))
	}

	can, err := client.Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
	if err != nil || !slices.Contains(can.Capabilities, "hardware_info") || !slices.Contains(can.Capabilities, "software_list") {
		t.Error(can, err)
	}
}

// Packages come and go in a running guest, and a rollback names what it leaves behind.
func TestPackagesInTheGuest(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	if r, err := vm.Shell(limited(t, time.Minute), "command -v apt-get && command -v dpkg-deb"); err != nil || r.ExitCode != 0 {
		t.Skip("needs apt in the guest's image")
	}
	vm.Must(t, `set -e; mkdir -p /var/tmp/repo/b/DEBIAN; cd /var/tmp/repo
		printf 'Package: quantix-tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: x\n' > b/DEBIAN/control
		dpkg-deb -b --root-owner-group b tiny.deb >/dev/null
		{ dpkg-deb -f tiny.deb; echo "Filename: ./tiny.deb"; echo "Size: $(stat -c %s tiny.deb)"; echo "SHA256: $(sha256sum tiny.deb | cut -d' ' -f1)"; } > Packages
		rm -rf /etc/apt/sources.list.d; echo 'deb [trusted=yes] file:/var/tmp/repo ./' > /etc/apt/sources.list; mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial`)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	run := func(source string, dry bool) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](limited(t, 2*time.Minute), c, &pb.RunScriptRequest{Source: []byte(source), DryRun: dry})
		if err != nil && reply == nil {
			t.Fatal(err)
		}
		return reply
	}
	state := "dpkg-query -W -f '${db:Status-Status}' quantix-tiny 2>/dev/null || echo none"
	reply := run(`package.install({"quantix-tiny"}, {refresh = true})
		error("and then something fails")`, false)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || len(reply.NotUndone) != 2 || reply.NotUndone[0].Target != "quantix-tiny" ||
		reply.NotUndone[1].Target != "lists of apt-get" || !strings.HasPrefix(reply.NotUndone[0].Op, "package.install") {
		t.Errorf("%v", reply)
	}
	if got := vm.Must(t, state); got != "installed" {
		t.Error(got)
	}
	reply = run(`return package.remove({"quantix-tiny"})`, true)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN || len(reply.Changes) != 1 || reply.Changes[0].Action != "removed" || vm.Must(t, state) != "installed" {
		t.Errorf("%v", reply)
	}
	reply = run(`return package.remove({"quantix-tiny"}, {purge = true})`, false)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || !reply.Result.GetBoolValue() || vm.Must(t, state) == "installed" {
		t.Errorf("%v", reply)
	}
	if reply = run(`return package.remove({"quantix-tiny"})`, false); len(reply.Changes) != 0 || reply.Result.GetBoolValue() {
		t.Errorf("%v", reply)
	}
}
