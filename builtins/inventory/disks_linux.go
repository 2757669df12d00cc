package inventory

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

const (
	blocks     = "sys/class/block"
	sectorSize = 512 // of the file size in sysfs, whatever the device's own is
)

// volume is where a block device is mounted.
type volume struct {
	point, filesystem string
	used              uint64
}

// blockDevices lists whole devices: not partitions, and none in memory, of a file, or without a medium.
func (m machine) blockDevices(usage []facts.Disk, details bool) (list []*pb.DiskInfo) {
	var volumes map[string]volume
	if details {
		volumes = m.volumes(usage)
	}
	for _, name := range m.list(blocks) {
		size := m.number(blocks, name, "size") * sectorSize
		if m.read(blocks, name, "partition") != "" || inMemory(name) || size == 0 {
			continue
		}
		at := m.real(blocks, name)
		udev := m.udev(name)
		disk := &pb.DiskInfo{
			Device: "/dev/" + name, SizeBytes: size, Model: m.diskModel(name, udev), Serial: m.diskSerial(name, udev),
			Interface: diskInterface(at, name),
		}
		disk.IsVirtual = isVirtualDisk(at, disk, m.read(blocks, name, "device/vendor"))
		disk.DiskType = m.diskType(name, disk.IsVirtual)
		if mapped := m.read(blocks, name, "dm/name"); mapped != "" {
			disk.Device = "/dev/mapper/" + mapped
		}
		if details {
			disk.Partitions = m.partitions(name, disk, volumes)
		}
		list = append(list, disk)
	}
	return list
}

// inMemory reports whether a block device is one of memory, of a file, or of a floppy drive, which
// is there without a medium too.
func inMemory(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "fd"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" && strings.Trim(rest, "0123456789") == "" {
			return true
		}
	}
	return false
}

// partitions lists those of a disk, or the disk itself where it has none and holds a file system.
func (m machine) partitions(disk string, info *pb.DiskInfo, volumes map[string]volume) (list []*pb.PartitionInfo) {
	for _, name := range m.list(blocks, disk) {
		if m.read(blocks, disk, name, "partition") != "" {
			list = append(list, m.partition(name, "/dev/"+name, volumes))
		}
	}
	slices.SortFunc(list, func(a, b *pb.PartitionInfo) int { // vda2 before vda10
		if len(a.Device) != len(b.Device) {
			return len(a.Device) - len(b.Device)
		}
		return strings.Compare(a.Device, b.Device)
	})
	if len(list) == 0 {
		if whole := m.partition(disk, info.Device, volumes); whole.Filesystem != "" {
			list = append(list, whole)
		}
	}
	return list
}

func (m machine) partition(name, device string, volumes map[string]volume) *pb.PartitionInfo {
	udev, v := m.udev(name), volumes[name]
	p := &pb.PartitionInfo{
		Device: device, SizeBytes: m.number(blocks, name, "size") * sectorSize, MountPoint: v.point, Filesystem: v.filesystem,
		UsedBytes: v.used, Label: unescapeUdev(udev["ID_FS_LABEL_ENC"]),
	}
	if p.Filesystem == "" {
		p.Filesystem = udev["ID_FS_TYPE"]
	}
	if p.Label == "" {
		p.Label = m.label(name)
	}
	return p
}

// volumes returns what is mounted, by the kernel's name of the device. How full it is is known of what usage lists.
func (m machine) volumes(usage []facts.Disk) map[string]volume {
	all := map[string]volume{}
	content, err := os.ReadFile(m.path("proc/self/mountinfo"))
	if err != nil {
		return all
	}
	byPoint, byName := map[string]uint64{}, map[string]uint64{}
	for _, u := range usage {
		byPoint[u.Mount], byName[m.blockName(u.Device, "")] = u.Used, u.Used
	}
	for line := range strings.Lines(string(content)) {
		fields := fsys.MountFields(line)
		at := slices.Index(fields, "-")
		if at < 6 || len(fields) < at+3 || !strings.HasPrefix(fields[at+2], "/dev/") {
			continue
		}
		source, point := fsys.UnescapeMount(fields[at+2]), fsys.UnescapeMount(fields[4])
		name := m.blockName(source, fields[2])
		if have, ok := all[name]; ok && (point != "/" || have.point == "/") {
			continue // a bind mount, or another subvolume
		}
		v := volume{point: text.EscapePath(point), filesystem: fields[at+1]}
		if used, ok := byPoint[point]; ok {
			v.used = used
		} else {
			v.used = byName[name]
		}
		all[name] = v
	}
	return all
}

// blockName returns the kernel's name of a mounted device: by its number where that is a block device's, and else, as for
// btrfs, by its path, which may be a link.
func (m machine) blockName(source, number string) string {
	if name := m.link("sys/dev/block", number); number != "" && name != "" {
		return name
	}
	if target, err := filepath.EvalSymlinks(m.path(source)); err == nil {
		return filepath.Base(target)
	}
	return filepath.Base(source)
}

// udev returns what udev keeps of a block device; empty where it does not run.
func (m machine) udev(name string) map[string]string {
	properties := map[string]string{}
	number := m.read(blocks, name, "dev")
	if number == "" {
		return properties
	}
	content, err := os.ReadFile(m.path("run/udev/data", "b"+number))
	if err != nil {
		return properties
	}
	for line := range strings.Lines(string(content)) {
		if property, ok := strings.CutPrefix(strings.TrimSpace(line), "E:"); ok {
			if key, value, ok := strings.Cut(property, "="); ok {
				properties[key], _ = text.ToValidUTF8Max(value, maxText)
			}
		}
	}
	return properties
}

// unescapeUdev replaces the \xNN that udev has for what is not plain in a label.
func unescapeUdev(label string) string {
	var b strings.Builder
	for i := 0; i < len(label); i++ {
		if i+3 < len(label) && label[i] == '\\' && label[i+1] == 'x' {
			high, low := strings.IndexByte("0123456789abcdef", label[i+2]), strings.IndexByte("0123456789abcdef", label[i+3])
			if high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low))
				i += 3
				continue
			}
		}
		b.WriteByte(label[i])
	}
	clean, _ := text.ToValidUTF8Max(b.String(), maxText)
	return clean
}

// label returns the label by which a link in /dev/disk/by-label is called.
func (m machine) label(name string) string {
	for _, label := range m.list("dev/disk/by-label") {
		if m.link("dev/disk/by-label", label) == name {
			return unescapeUdev(label)
		}
	}
	return ""
}

// diskModel returns what a disk calls itself. A virtio disk has no name of its own.
func (m machine) diskModel(name string, udev map[string]string) string {
	for _, value := range []string{
		m.read(blocks, name, "device/model"), m.read(blocks, name, "device/name"), unescapeUdev(udev["ID_MODEL_ENC"]),
	} {
		if value = strings.Join(strings.Fields(value), " "); value != "" {
			return value
		}
	}
	return ""
}

// diskSerial returns the serial number of a disk: virtio's, NVMe's, SCSI's from its page of vital data, or what udev has asked
// for.
func (m machine) diskSerial(name string, udev map[string]string) string {
	for _, value := range []string{
		m.read(blocks, name, "serial"), m.read(blocks, name, "device/serial"), m.scsiSerial(name), udev["ID_SERIAL_SHORT"],
	} {
		if value = strings.TrimSpace(value); value != "" {
			return value
		}
	}
	return ""
}

// scsiSerial reads page 0x80 of a SCSI disk: four bytes of header, of which the last two are the length, and the number.
func (m machine) scsiSerial(name string) string {
	page, err := os.ReadFile(m.path(blocks, name, "device/vpd_pg80"))
	if err != nil || len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	length := min(int(page[2])<<8|int(page[3]), len(page)-4)
	clean, _ := text.ToValidUTF8Max(string(page[4:4+length]), maxText)
	return strings.TrimSpace(clean)
}

// diskInterface returns what a disk is connected by, from where it is in sysfs. The last bus on the way counts most: a USB
// stick is a SCSI disk on USB, and a SATA disk a SCSI disk of an ATA port.
func diskInterface(at, name string) string {
	for _, bus := range []struct{ part, name string }{
		{"/usb", "usb"}, {"/nvme", "nvme"}, {"/ata", "sata"}, {"/mmc_host/", "mmc"}, {"/ide", "ide"},
	} {
		if strings.Contains(at, bus.part) {
			return bus.name
		}
	}
	switch {
	case strings.Contains(at, "/virtio") && strings.HasPrefix(name, "vd"):
		return "virtio"
	case strings.Contains(at, "/vbd-"):
		return "xen"
	case strings.Contains(at, "/host") && strings.Contains(at, "/target"):
		return "scsi"
	}
	return ""
}

// isVirtualDisk reports whether a disk is a hypervisor's, or made of others.
func isVirtualDisk(at string, disk *pb.DiskInfo, vendor string) bool {
	if strings.HasPrefix(at, "/sys/devices/virtual/") && disk.Interface != "nvme" { // where multipath hides NVMe's controllers
		return true
	}
	if disk.Interface == "virtio" || disk.Interface == "xen" {
		return true
	}
	for _, maker := range []string{"QEMU", "VMware", "VBOX", "Msft", "Virtual", "Google", "Amazon Elastic"} {
		if strings.HasPrefix(disk.Model, maker) || strings.HasPrefix(vendor, maker) {
			return true
		}
	}
	return strings.Contains(disk.Model, "Virtual Disk") || strings.Contains(at, "/virtio")
}

// diskType returns what a disk is. What a virtual disk says of rotation means nothing, unless it says that there is none.
func (m machine) diskType(name string, virtual bool) string {
	rotational := m.read(blocks, name, "queue/rotational")
	switch {
	case m.read(blocks, name, "dm/name") != "":
		return mappedType(m.read(blocks, name, "dm/uuid"))
	case m.read(blocks, name, "md/level") != "":
		return "RAID"
	case strings.HasPrefix(name, "sr"):
		return "Optical"
	case rotational == "0":
		return "SSD"
	case rotational == "1" && !virtual:
		return "HDD"
	}
	return "Unknown"
}

// mappedType returns what a device of the device mapper is, by what its UUID begins with.
func mappedType(uuid string) string {
	switch maker, _, _ := strings.Cut(uuid, "-"); maker {
	case "LVM":
		return "LVM"
	case "CRYPT":
		return "Crypt"
	case "mpath":
		return "Multipath"
	}
	return "Mapped"
}
