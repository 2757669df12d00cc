package inventory

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kernel makes the files of a kernel below a directory: a name that ends in @ is a link.
func kernel(t testing.TB, files map[string]string) machine {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, strings.TrimSuffix(name, "@"))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "@") {
			err = errors.Join(err, os.Symlink(content, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return machine{dir}
}

// Cores, sockets and caches are counted once each, however many processors share them.
func TestProcessors(t *testing.T) {
	files := map[string]string{
		"proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A  Processor\ncpu MHz\t\t: 2000.0\nflags\t\t: fpu sse2\n\n" +
			"processor\t: 1\nvendor_id\t: GenuineIntel\nmodel name\t: A  Processor\ncpu MHz\t\t: 2500.0\nflags\t\t: fpu sse2\n\n",
		"sys/devices/system/cpu/cpufreq/x": "", "sys/devices/system/cpu/online": "0-7",
		"sys/devices/system/cpu/cpu8/online": "0",
	}
	for i, name := range strings.Split("cpu0 cpu1 cpu2 cpu3 cpu4 cpu5 cpu6 cpu7", " ") { // 2 sockets of 2 cores of 2 threads
		dir := "sys/devices/system/cpu/" + name + "/"
		files[dir+"topology/physical_package_id"] = string(rune('0'+i/4)) + "\n"
		files[dir+"topology/core_id"] = string(rune('0'+i/2%2)) + "\n"
		core, socket := []string{"0-1", "2-3", "4-5", "6-7"}[i/2], []string{"0-3", "4-7"}[i/4]
		for index, cache := range [][4]string{{"1", "Data", "32K", core}, {"1", "Instruction", "32K", core}, {"2", "Unified", "1024K", core}, {"3", "Unified", "16M", socket}} {
			at := dir + "cache/index" + string(rune('0'+index)) + "/"
			files[at+"level"], files[at+"type"], files[at+"size"], files[at+"shared_cpu_list"] = cache[0], cache[1], cache[2], cache[3]
		}
	}
	m := kernel(t, files)
	cpu := m.cpu(t.Context(), true, nil)
	if cpu.Sockets != 2 || cpu.Cores != 4 || cpu.Threads != 8 || cpu.Vendor != "GenuineIntel" || !strings.Contains(cpu.Model, "Processor") ||
		cpu.FrequencyMhz != 2500 || strings.Join(cpu.Flags, " ") != "fpu sse2" {
		t.Error(cpu)
	}
	if cpu.L1CacheBytes != 4*64<<10 || cpu.L2CacheBytes != 4<<20 || cpu.L3CacheBytes != 32<<20 {
		t.Error(cpu.L1CacheBytes, cpu.L2CacheBytes, cpu.L3CacheBytes)
	}
	if cpu := m.cpu(t.Context(), false, nil); len(cpu.Flags) > 0 || cpu.L1CacheBytes != 0 || cpu.Cores != 4 {
		t.Error(cpu)
	}
}

// dimm is an SMBIOS structure of a memory module.
func dimm(size uint16, extended uint32, kind byte, speed uint16, texts ...string) []byte {
	area := make([]byte, 0x5c)
	area[0], area[1] = smbios.Memory, byte(len(area))
	binary.LittleEndian.PutUint16(area[0x0c:], size)
	binary.LittleEndian.PutUint32(area[0x1c:], extended)
	area[0x10], area[0x12], area[0x17], area[0x18], area[0x1a] = 1, kind, 2, 3, 9
	binary.LittleEndian.PutUint16(area[0x15:], speed)
	return append(append(area, strings.Join(texts, "\x00")...), 0, 0)
}

func TestMemoryModules(t *testing.T) {
	tables := append(dimm(0x4000, 0, 0x1a, 3200, "DIMM 0", "Maker\xff", " 12 "), dimm(0, 0, 0x1a, 0, "DIMM 1")...)
	tables = append(tables, dimm(0x7fff, 65536, 0x1a, 2666, "DIMM 2")...)
	tables = append(tables, 4, 26, 0, 0)
	tables = append(tables, make([]byte, 20)...)
	tables = append(tables, 0x41, 0, 0, 0, 127, 4, 0, 0, 0, 0)
	m := kernel(t, map[string]string{"sys/firmware/dmi/tables/DMI": string(tables)})
	info := memory(t.Context(), smbios.Read(m.root))
	if info.DimmCount != 2 || info.InstalledBytes != 80<<30 || info.MemoryType != "DDR4" || info.SpeedMhz != 2666 || info.TotalBytes == 0 || info.AvailableBytes > info.TotalBytes {
		t.Error(info)
	}
	if d := info.Modules[0]; d.Locator != "DIMM 0" || d.Manufacturer != `Maker\xff` || d.Serial != "12" || d.PartNumber != "" {
		t.Error(d)
	}
	if n := populatedSockets(smbios.Read(m.root)); n != 1 {
		t.Error(n)
	}
	for cut := range tables { // wherever they end
		memory(t.Context(), smbios.Parse(tables[:cut]))
	}
}

func FuzzSMBIOS(f *testing.F) {
	f.Add(dimm(1, 2, 3, 4, "a", "b"))
	f.Fuzz(func(t *testing.T, tables []byte) {
		if _, err := proto.Marshal(memory(t.Context(), smbios.Parse(tables))); err != nil {
			t.Error(err)
		}
	})
}

// Disks are listed whether they are mounted, formatted, partitioned or not; what is in memory or of a file is not.
func TestDisks(t *testing.T) {
	const at = "sys/devices/pci0000:00/0000:00:05.0/"
	files := map[string]string{
		at + "virtio1/block/vda/size": "4096", at + "virtio1/block/vda/serial": "disk-1\n", at + "virtio1/block/vda/queue/rotational": "1",
		at + "virtio1/block/vda/dev": "254:0", at + "virtio1/block/vda/vda1/partition": "1", at + "virtio1/block/vda/vda1/size": "1024",
		at + "virtio1/block/vda/vda1/dev": "254:1", at + "virtio1/block/vda/vda10/partition": "10", at + "virtio1/block/vda/vda10/size": "8",
		at + "virtio1/block/vda/vda2/partition": "2", at + "virtio1/block/vda/vda2/size": "2048", at + "virtio1/block/vda/vda2/dev": "254:2",
		at + "virtio2/block/vdb/size": "2048", at + "virtio2/block/vdb/dev": "254:16",
		at + "virtio3/block/vdc/size": "2048", at + "virtio3/block/vdc/dev": "254:32",
		"sys/devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda/size":             "8",
		"sys/devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda/queue/rotational": "1",
		"sys/devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda/device/model":     "WDC  WD10  \n",
		"sys/devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda/device/vpd_pg80":  "\x00\x80\x00\x08 WD-123 ",
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/size":                                   "8",
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/queue/rotational":                       "0",
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/device/model":                           "Fast",
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/device/serial":                          "S1",
		"sys/devices/pci0000:00/ata2/host1/target1:0:0/1:0:0:0/block/sr0/size":             "0",
		"sys/devices/virtual/block/loop0/size":                                             "100", "sys/devices/virtual/block/zram0/size": "100",
		"sys/devices/virtual/block/dm-0/size": "1024", "sys/devices/virtual/block/dm-0/dm/name": "vg-root", "sys/devices/virtual/block/dm-0/dm/uuid": "LVM-abc",
		"sys/devices/virtual/block/dm-0/dev": "253:0",
		"run/udev/data/b254:1":               "S:disk\nE:ID_FS_TYPE=vfat\nE:ID_FS_LABEL_ENC=EFI\\x20part\n",
		"run/udev/data/b254:32":              "E:ID_FS_TYPE=xfs\n",
		"dev/vda2":                           "", "dev/dm-0": "", "dev/mapper/vg-root@": "../dm-0",
		"sys/dev/block/254:2@": "../../devices/pci0000:00/0000:00:05.0/virtio1/block/vda/vda2",
		"proc/self/mountinfo": "22 1 254:2 / / rw - ext4 /dev/vda2 rw\n23 22 254:2 /sub /mnt rw - ext4 /dev/vda2 rw\n24 22 0:40 /@ /data\\040x rw - btrfs /dev/mapper/vg-root rw\n" +
			"25 22 0:5 / /proc rw - proc proc rw\n",
	}
	for name, place := range map[string]string{
		"vda": "pci0000:00/0000:00:05.0/virtio1/block/vda", "vda1": "pci0000:00/0000:00:05.0/virtio1/block/vda/vda1",
		"vda2": "pci0000:00/0000:00:05.0/virtio1/block/vda/vda2", "vda10": "pci0000:00/0000:00:05.0/virtio1/block/vda/vda10",
		"vdb": "pci0000:00/0000:00:05.0/virtio2/block/vdb", "vdc": "pci0000:00/0000:00:05.0/virtio3/block/vdc",
		"sda": "pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda", "sr0": "pci0000:00/ata2/host1/target1:0:0/1:0:0:0/block/sr0",
		"nvme0n1": "pci0000:00/nvme/nvme0/nvme0n1", "loop0": "virtual/block/loop0", "zram0": "virtual/block/zram0", "dm-0": "virtual/block/dm-0",
	} {
		files["sys/class/block/"+name+"@"] = "../../devices/" + place
	}
	m := kernel(t, files)
	usage := []facts.Disk{{Mount: "/", Device: "/dev/vda2", Used: 77}, {Mount: "/data x", Device: "/dev/mapper/vg-root", Used: 88}}
	var got []string
	for _, d := range m.blockDevices(usage, true) {
		line := strings.Join([]string{d.Device, d.Model, d.Serial, d.DiskType, d.Interface, map[bool]string{true: "virtual"}[d.IsVirtual]}, "|")
		for _, p := range d.Partitions {
			line += " " + strings.Join([]string{p.Device, p.MountPoint, p.Filesystem, p.Label}, "|")
			if p.MountPoint == "/" && (p.UsedBytes != 77 || p.SizeBytes != 1<<20) || p.MountPoint == "/data x" && p.UsedBytes != 88 {
				t.Error(p)
			}
		}
		got = append(got, line)
	}
	want := []string{
		"/dev/mapper/vg-root|||LVM||virtual /dev/mapper/vg-root|/data x|btrfs|",
		"/dev/nvme0n1|Fast|S1|SSD|nvme|",
		"/dev/sda|WDC WD10|WD-123|HDD|sata|",
		"/dev/vda||disk-1|Unknown|virtio|virtual /dev/vda1||vfat|EFI part /dev/vda2|/|ext4| /dev/vda10|||",
		"/dev/vdb|||Unknown|virtio|virtual",
		"/dev/vdc|||Unknown|virtio|virtual /dev/vdc||xfs|",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, d := range m.blockDevices(usage, false) {
		if len(d.Partitions) > 0 {
			t.Error(d)
		}
	}
}

// A graphics adapter has its whole address, and a name that does not begin with it; one that no list names has its numbers.
func TestGraphics(t *testing.T) {
	files := map[string]string{
		"sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n", "sys/bus/pci/devices/0000:00:02.0/vendor": "0x1234\n",
		"sys/bus/pci/devices/0000:00:02.0/device":              "0x1111\n",
		"sys/bus/pci/devices/0000:00:02.0/resource":            "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n0x0 0x0 0x0\n",
		"sys/bus/pci/devices/0000:00:02.0/driver@":             "../../../../bus/pci/drivers/bochs-drm",
		"sys/bus/pci/devices/0001:0a:00.0/class":               "0x030200",
		"sys/bus/pci/devices/0001:0a:00.0/vendor":              "0x10de",
		"sys/bus/pci/devices/0001:0a:00.0/device":              "0xffff",
		"sys/bus/pci/devices/0000:00:03.0/class":               "0x020000",
		"usr/share/misc/pci.ids":                               "# x\n10dd  Other\n\t1111  Wrong\n10de  NVIDIA Corporation\n\t0001  One\n\t\tffff 0001  no\n1234  QEMU\n\t1111  Standard VGA\nffff  Illegal\n",
		"sys/bus/pci/devices/0001:0a:00.0/mem_info_vram_total": "8589934592\n",
	}
	gpus := kernel(t, files).gpus()
	if len(gpus) != 2 {
		t.Fatal(gpus)
	}
	if g := gpus[0]; g.PciAddress != "0000:00:02.0" || g.Name != "Standard VGA" || g.Vendor != "QEMU" || g.VramBytes != 16<<20 || g.Driver != "bochs-drm" {
		t.Error(g)
	}
	if g := gpus[1]; g.PciAddress != "0001:0a:00.0" || g.Name != "10de:ffff" || g.Vendor != "NVIDIA Corporation" || g.VramBytes != 8<<30 {
		t.Error(g)
	}
}

// Adapters are what their kind and driver say, whatever their name.
func TestAdapters(t *testing.T) {
	m := kernel(t, map[string]string{
		"sys/class/net/lolan0/type": "1\n", "sys/class/net/lolan0/speed": "10000\n",
		"sys/class/net/lolan0/device@":                        "../../../devices/pci0000:00/0000:00:03.0",
		"sys/devices/pci0000:00/0000:00:03.0/driver@":         "../../../bus/pci/drivers/e1000e",
		"sys/class/net/ens4/type":                             "1\n",
		"sys/class/net/ens4/speed":                            "-1\n",
		"sys/class/net/ens4/device@":                          "../../../devices/pci0000:00/0000:00:04.0/virtio0",
		"sys/devices/pci0000:00/0000:00:04.0/virtio0/driver@": "../../../../bus/virtio/drivers/virtio_net",
		"sys/class/net/br0/type":                              "1\n",
		"sys/class/net/wlan0/type":                            "1\n",
		"sys/class/net/wlan0/wireless/x":                      "",
	})
	links := []facts.Link{{Name: "lo", Loopback: true}, {Name: "lolan0", MAC: "52:54:00:00:00:01"}, {Name: "ens4"}, {Name: "br0", Kind: "bridge"}, {Name: "wlan0"}}
	var got []string
	for _, a := range m.adapters(links, true) {
		got = append(got, strings.Join([]string{a.Name, a.AdapterType, a.Driver, a.PciAddress, map[bool]string{true: "virtual"}[a.IsVirtual]}, "|"))
		if (a.Name == "lolan0") != (a.SpeedMbps == 10000) || a.Name != "lolan0" && a.SpeedMbps != 0 {
			t.Error(a)
		}
	}
	if want := "lolan0|ethernet|e1000e|0000:00:03.0| ens4|ethernet|virtio_net|0000:00:04.0|virtual br0|bridge|||virtual wlan0|wifi|||virtual"; strings.Join(got, " ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, " "), want)
	}
	if a := m.adapters(links, false)[0]; a.Driver != "" || a.PciAddress != "" || a.SpeedMbps != 0 || a.MacAddress == "" {
		t.Error(a)
	}
}

// The system: its names without a question to a name server.
func TestSystem(t *testing.T) {
	for _, c := range []struct {
		files         map[string]string
		build, domain string
	}{
		{map[string]string{"etc/os-release": "NAME=Arch\nBUILD_ID=rolling\n", "etc/hostname": "h.example.org"}, "rolling", "example.org"},
		{map[string]string{"etc/os-release": "NAME=Debian\n", "etc/debian_version": "12.5\n", "etc/hostname": "h", "etc/hosts": "127.0.1.1 h.lan h # h.no\n"}, "12.5", "lan"},
		{map[string]string{"etc/hostname": "h", "proc/sys/kernel/domainname": "nis\n"}, "", "nis"},
		{map[string]string{"etc/hostname": "h", "proc/sys/kernel/domainname": "(none)\n", "etc/hosts": "1.2.3.4 hh.lan\n"}, "", ""},
		{nil, "", ""},
	} {
		if c.files == nil {
			c.files = map[string]string{"x": ""}
		}
		c.files["proc/stat"] = "cpu 1\nbtime 1700000000\n"
		os := kernel(t, c.files).system(t.Context())
		if os.Build != c.build || os.Domain != c.domain || os.Kernel == "" || os.LastBoot.GetSeconds() != 1700000000 {
			t.Error(os)
		}
	}
}

// Where the kernel tells nothing at all, nothing is told, and nothing fails.
func TestNothingToRead(t *testing.T) {
	m := machine{filepath.Join(t.TempDir(), "none")}
	if cpu := m.cpu(t.Context(), true, smbios.Read(m.root)); cpu.Threads != 0 || cpu.Sockets != 0 {
		t.Error(cpu)
	}
	if len(m.blockDevices(nil, true))+len(m.gpus()) > 0 || !proto.Equal(m.bios(), &pb.BiosInfo{}) {
		t.Error("something was read")
	}
	m.system(t.Context())
}

// This machine: what the kernel says elsewhere.
func TestHardwareOfThisMachine(t *testing.T) {
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	out, err := New(&guest.Guest{Files: root, Live: true}).hardware(t.Context(), nil, &pb.GetHardwareInfoRequest{IncludeCpuDetails: true, IncludeDiskDetails: true, IncludeNetworkDetails: true})
	if err != nil || !out.Success {
		t.Fatal(err)
	}
	if _, err := proto.Marshal(out); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if cpu := out.Hardware.Cpu; int(cpu.Threads) != strings.Count("\n"+string(content), "\nprocessor\t") || len(cpu.Flags) == 0 || cpu.Cores == 0 || cpu.Cores > cpu.Threads {
		t.Error(cpu)
	}
}
