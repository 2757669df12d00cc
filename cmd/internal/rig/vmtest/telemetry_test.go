//go:build vm

package vmtest_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// news is what a host is told without asking.
type news struct {
	reports chan *pb.TelemetryReport
	events  chan *pb.ErrorEvent
	leave   func() error
}

// listenTo connects to the agent of a machine, and returns what it says from now on.
func listenTo(t *testing.T, vm *vmtest.VM) *news {
	n := &news{reports: make(chan *pb.TelemetryReport, 1000), events: make(chan *pb.ErrorEvent, 1000)}
	n.leave = dial(t, vm, vmtest.AgentPort, client.Options{Event: func(_ string, event proto.Message) {
		switch event := event.(type) {
		case *pb.TelemetryReport:
			n.reports <- event
		case *pb.ErrorEvent:
			n.events <- event
		}
	}}).Close
	time.Sleep(2 * time.Second) // the reports of a new session
	return n
}

// await returns the first report that is as it shall be.
func (n *news) await(t *testing.T, what string, right func(*pb.TelemetryReport) bool) *pb.TelemetryReport {
	t.Helper()
	for {
		select {
		case report := <-n.reports:
			if right(report) {
				return report
			}
		case <-time.After(time.Minute):
			t.Fatal("not told of", what)
		}
	}
}

// kill returns the next event of a process that the kernel killed.
func (n *news) kill(t *testing.T) *pb.ErrorEvent {
	t.Helper()
	for {
		select {
		case event := <-n.events:
			if event.Code == "oom_kill" {
				return event
			}
		case <-time.After(time.Minute):
			t.Fatal("not told of a kill")
		}
	}
}

// within checks a report against the moment of a change, in seconds since boot, by the guest's own clock. A report has whole
// ones.
func within(t *testing.T, what string, report *pb.TelemetryReport, moment string) {
	t.Helper()
	at, err := strconv.ParseFloat(strings.Fields(moment)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: changed at %.2f s, told at %d s", what, at, report.UptimeSeconds)
	if float64(report.UptimeSeconds) > at+10 { // two, and what an emulated guest takes
		t.Errorf("%s: changed at %f s, told at %d s", what, at, report.UptimeSeconds)
	}
}

// A host hears at once of an address, a link and a disk, in a period of a day.
func TestTelemetryOfChanges(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "echo 'telemetry_interval_secs: 86400' >> /etc/quantix-kvm/agent.yaml")
	startAgent(t, vm)
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	n := listenTo(t, vm)
	links := strings.Fields(vm.Must(t, "ls /sys/class/net"))
	slices.Sort(links)
	spare := links[1] // lo is after ens3 and ens4
	find := func(r *pb.TelemetryReport, name string) *pb.InterfaceInfo {
		for _, i := range r.Interfaces {
			if i.Name == name {
				return i
			}
		}
		return nil
	}
	for _, step := range []struct {
		line  string
		right func(*pb.TelemetryReport) bool
	}{
		{"ip addr add 192.0.2.7/24 dev " + spare, func(r *pb.TelemetryReport) bool {
			i := find(r, spare)
			return slices.Contains(i.GetIpv4Addresses(), "192.0.2.7") && i.GetKind() == "physical"
		}},
		{"ip link set " + spare + " up", func(r *pb.TelemetryReport) bool {
			return find(r, spare).GetState() == pb.InterfaceState_INTERFACE_STATE_UP
		}},
		{"ip link set " + spare + " down", func(r *pb.TelemetryReport) bool {
			return find(r, spare).GetState() == pb.InterfaceState_INTERFACE_STATE_DOWN
		}},
		{"mkdir /mnt/image; truncate -s 16M /var/tmp/image; mkfs.ext4 -q /var/tmp/image; mount -o loop /var/tmp/image /mnt/image", func(r *pb.TelemetryReport) bool {
			return slices.ContainsFunc(r.Disks, func(d *pb.DiskUsage) bool {
				return d.MountPoint == "/mnt/image" && d.InodesTotal > 0 && d.InodesUsed > 0 && d.InodesUsed < d.InodesTotal
			})
		}},
		{"umount /mnt/image", func(r *pb.TelemetryReport) bool {
			return !slices.ContainsFunc(r.Disks, func(d *pb.DiskUsage) bool { return d.MountPoint == "/mnt/image" })
		}},
	} {
		moment := vm.Must(t, step.line+"; cat /proc/uptime")
		within(t, step.line, n.await(t, step.line, step.right), moment)
	}
	hotplug(t, vm, n, find)
	report := n.await(t, "the last change", func(*pb.TelemetryReport) bool { return true })
	if p := report.Pressure; p == nil || p.Cpu.SomeTotalUs == 0 {
		t.Error("no pressure", p)
	}
	if report.Container != nil {
		t.Error("a machine is taken for", report.Container)
	}
}

// hotplug plugs in a disk and a network card, and unplugs the disk. It leaves one report unread.
func hotplug(t *testing.T, vm *vmtest.VM, n *news, find func(*pb.TelemetryReport, string) *pb.InterfaceInfo) {
	ctx := limited(t, 5*time.Minute)
	before := vm.Must(t, "ls /sys/block /sys/class/net")
	for _, step := range []struct {
		command   string
		arguments map[string]any
	}{
		{"blockdev-add", map[string]any{"driver": "null-co", "node-name": "plugged", "size": 64 << 20, "read-zeroes": true}},
		{"device_add", map[string]any{"driver": "virtio-blk-pci", "drive": "plugged", "id": "plugged", "addr": "10"}},
	} {
		if err := vm.QMP(ctx, step.command, step.arguments, nil); err != nil {
			t.Fatal(step.command, err)
		}
	}
	var disk string
	report := n.await(t, "a disk", func(r *pb.TelemetryReport) bool {
		for _, d := range r.BlockDevices {
			if !slices.Contains(strings.Fields(before), d.Name) && d.SizeBytes == 64<<20 {
				disk = d.Name
			}
		}
		return disk != ""
	})
	seen := func(path string) string { // udev's moment, in microseconds
		return vm.Must(t, "udevadm settle; udevadm info -q property "+path+" | sed -n 's/USEC_INITIALIZED=\\(.*\\)......$/\\1/p'") + ".999"
	}
	within(t, "a disk", report, seen("/sys/block/"+disk))
	for _, step := range []struct {
		command   string
		arguments map[string]any
	}{
		{"netdev_add", map[string]any{"type": "user", "id": "net9", "restrict": true}},
		{"device_add", map[string]any{"driver": "virtio-net-pci", "netdev": "net9", "id": "card", "romfile": "", "mac": "52:54:00:12:34:99", "addr": "11"}},
	} {
		if err := vm.QMP(ctx, step.command, step.arguments, nil); err != nil {
			t.Fatal(step.command, err)
		}
	}
	var card string
	report = n.await(t, "a card", func(r *pb.TelemetryReport) bool {
		for _, i := range r.Interfaces {
			if i.MacAddress == "52:54:00:12:34:99" && i.Kind == "physical" && i.Name != "eth0" { // until udev gives it its name
				card = i.Name
			}
		}
		return card != ""
	})
	within(t, "a card", report, seen("/sys/class/net/"+card))
	if err := vm.QMP(ctx, "device_del", map[string]any{"id": "plugged"}, nil); err != nil {
		t.Fatal(err)
	}
	n.await(t, "a disk that was unplugged", func(r *pb.TelemetryReport) bool {
		return !slices.ContainsFunc(r.BlockDevices, func(d *pb.BlockDevice) bool { return d.Name == disk })
	})
	vm.Must(t, "ip link set lo mtu 65000; ip addr add 192.0.2.9/24 dev "+card)
}

// A host hears which process the kernel killed; without the kernel's log, that one was. What was killed before the agent
// started is not told.
func TestTelemetryOfKills(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "echo 'telemetry_interval_secs: 1' >> /etc/quantix-kvm/agent.yaml")
	eat := func(name string) {
		vm.Must(t, fmt.Sprintf("cp /usr/bin/tail /usr/local/bin/%s; ! systemd-run --quiet --wait --collect -p MemoryMax=16M -p MemorySwapMax=0 /usr/local/bin/%s /dev/zero", name, name))
	}
	eat("early")
	startAgent(t, vm)
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	n := listenTo(t, vm)
	eat("glutton")
	e := n.kill(t)
	if e.Details["name"] != "glutton" || e.Details["pid"] == "" || !strings.Contains(e.Details["cgroup"], "/system.slice/run-") ||
		e.Severity != pb.ErrorSeverity_ERROR_SEVERITY_ERROR || !strings.Contains(e.Message, "(glutton)") {
		t.Error(e)
	}
	n.leave()
	vm.Must(t, "systemctl stop quantix-kvm-agent; mv /dev/kmsg /dev/away; systemctl start quantix-kvm-agent")
	n = listenTo(t, vm)
	eat("secret")
	if e = n.kill(t); e.Details["name"] != "" || e.Details["count"] != "1" {
		t.Error(e)
	}
	vm.Must(t, "mv /dev/away /dev/kmsg")
	time.Sleep(3 * time.Second)
	for len(n.events) > 0 {
		if e := <-n.events; e.Code == "oom_kill" {
			t.Error("told twice", e)
		}
	}
}
