package inventory

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxText bounds a text that is read of the hardware, in bytes.
const maxText = 1024

// busNames are the words of the contract for STORAGE_BUS_TYPE.
var busNames = map[uint32]string{
	1: "scsi", 2: "scsi", 3: "ide", 7: "usb", 8: "raid", 9: "iscsi", 10: "scsi", 11: "sata", 12: "mmc", 13: "mmc", 17: "nvme",
}

// drives lists the disks.
func drives(found []facts.Drive, usage []facts.Disk, details bool) (list []*pb.DiskInfo) {
	volumes := map[facts.Extent]facts.Disk{}
	if details {
		for _, u := range usage {
			if at, ok := facts.VolumeExtent(u.Device); ok {
				volumes[at] = u
			}
		}
	}
	for _, d := range found {
		disk := &pb.DiskInfo{
			Device: d.Path, Model: clean(strings.TrimSpace(d.Vendor + " " + d.Model)), Serial: clean(d.Serial), SizeBytes: d.Size,
			Interface: busNames[d.Bus], DiskType: "Unknown",
		}
		disk.IsVirtual = isVirtualDrive(d)
		if disk.IsVirtual && slices.Contains([]string{"Red Hat", "VirtIO"}, firstWords(d)) {
			disk.Interface = "virtio"
		}
		switch {
		case d.Rotates != nil && !*d.Rotates:
			disk.DiskType = "SSD"
		case d.Rotates != nil && !disk.IsVirtual:
			disk.DiskType = "HDD"
		}
		if details {
			for _, p := range d.Partitions {
				at := facts.Extent{Drive: d.Number, Offset: p.Offset}
				part := &pb.PartitionInfo{Device: fmt.Sprintf(`\\.\Harddisk%dPartition%d`, d.Number, p.Number), SizeBytes: p.Size}
				if v, ok := volumes[at]; ok {
					part.MountPoint, part.Filesystem, part.UsedBytes, part.Label = v.Mount, v.Type, v.Used, volumeLabel(v.Mount)
				}
				disk.Partitions = append(disk.Partitions, part)
			}
		}
		list = append(list, disk)
	}
	return list
}

// firstWords is the maker of a disk as virtio drivers name it.
func firstWords(d facts.Drive) string {
	for _, maker := range []string{"Red Hat", "VirtIO"} {
		if strings.HasPrefix(d.Vendor, maker) || strings.HasPrefix(d.Model, maker) {
			return maker
		}
	}
	return ""
}

// isVirtualDrive reports whether a disk is a hypervisor's.
func isVirtualDrive(d facts.Drive) bool {
	const virtual, fileBacked = 14, 15 // BusTypeVirtual, BusTypeFileBackedVirtual
	if d.Bus == virtual || d.Bus == fileBacked || firstWords(d) != "" {
		return true
	}
	for _, maker := range []string{"QEMU", "VMware", "VBOX", "Msft", "Xen", "Google", "Amazon Elastic"} {
		if strings.HasPrefix(d.Vendor, maker) || strings.HasPrefix(d.Model, maker) {
			return true
		}
	}
	return strings.Contains(d.Model, "Virtual Disk")
}

func volumeLabel(root string) string {
	if !strings.HasSuffix(root, `\`) {
		root += `\`
	}
	path, err := windows.UTF16PtrFromString(root)
	if err != nil {
		return ""
	}
	var label [windows.MAX_PATH + 1]uint16
	if windows.GetVolumeInformation(path, &label[0], uint32(len(label)), nil, nil, nil, nil, 0) != nil {
		return ""
	}
	return clean(windows.UTF16ToString(label[:]))
}

func clean(s string) string {
	s, _ = text.ToValidUTF8Max(s, maxText)
	return s
}

// device is one that is there, of a class.
type device struct {
	description, maker, driver, location string
	key                                  string // of its driver, below that of classes
	bus                                  bool   // it is on a bus of PCI
}

// Classes of devices (devguid.h).
var (
	displayClass = deviceClass(0x4d36e968)
	netClass     = deviceClass(0x4d36e972)
)

// deviceClass is the GUID of one of the classes that have all but their beginning in common.
func deviceClass(begins uint32) windows.GUID {
	return windows.GUID{
		Data1: begins, Data2: 0xe325, Data3: 0x11ce, Data4: [8]byte{0xbf, 0xc1, 0x08, 0x00, 0x2b, 0xe1, 0x03, 0x18},
	}
}

// classKeys is below which key the drivers of classes are.
const classKeys = `SYSTEM\CurrentControlSet\Control\Class\`

// devices lists those of a class that are there now.
func devices(class windows.GUID) (list []device) {
	set, err := windows.SetupDiGetClassDevsEx(&class, "", 0, windows.DIGCF_PRESENT, 0, "")
	if err != nil {
		return nil
	}
	defer set.Close()
	for i := 0; ; i++ {
		data, err := set.EnumDeviceInfo(i)
		if err != nil {
			return list
		}
		property := func(which windows.SPDRP) string {
			value, err := set.DeviceRegistryProperty(data, which)
			if s, ok := value.(string); ok && err == nil {
				return clean(s)
			}
			return ""
		}
		d := device{
			description: property(windows.SPDRP_DEVICEDESC), maker: property(windows.SPDRP_MFG), driver: property(windows.SPDRP_SERVICE),
			key: property(windows.SPDRP_DRIVER),
		}
		if property(windows.SPDRP_ENUMERATOR_NAME) == "PCI" {
			d.bus = true
			d.location = pciAddress(set, data)
		}
		list = append(list, d)
	}
}

// pciAddress is where a device is, as Linux writes it; empty: it is not known.
func pciAddress(set windows.DevInfo, data *windows.DevInfoData) string {
	bus, err := set.DeviceRegistryProperty(data, windows.SPDRP_BUSNUMBER)
	at, other := set.DeviceRegistryProperty(data, windows.SPDRP_ADDRESS)
	number, ok := bus.(uint32)
	address, known := at.(uint32)
	if err != nil || other != nil || !ok || !known {
		return ""
	}
	return fmt.Sprintf("%04x:%02x:%02x.%x", number>>8, number&0xff, address>>16, address&0xffff)
}

// gpus lists the graphics adapters.
func gpus() (list []*pb.GpuInfo) {
	for _, d := range devices(displayClass) {
		g := &pb.GpuInfo{Name: d.description, Vendor: d.maker, Driver: d.driver, PciAddress: d.location}
		if d.key != "" {
			driver := openValues(classKeys + d.key)
			g.DriverVersion, g.VramBytes = driver.text("DriverVersion"), driver.number("HardwareInformation.qwMemorySize")
			driver.close()
		}
		list = append(list, g)
	}
	return list
}

// adapters lists the network interfaces but loopback, by index.
func adapters(links []facts.Link, details bool) (list []*pb.NetworkAdapterInfo) {
	drivers := map[string]device{} // by the GUID of the interface
	if details {
		for _, d := range devices(netClass) {
			driver := openValues(classKeys + d.key)
			drivers[strings.ToUpper(driver.text("NetCfgInstanceId"))] = d
			driver.close()
		}
	}
	for _, l := range links {
		if l.Loopback {
			continue
		}
		row := windows.MibIfRow2{InterfaceIndex: uint32(l.Index)}
		known := windows.GetIfEntry2Ex(windows.MibIfEntryNormal, &row) == nil
		description := windows.UTF16ToString(row.Description[:])
		a := &pb.NetworkAdapterInfo{Name: l.Name, MacAddress: l.MAC, AdapterType: adapterType(l, row.Type),
			IsVirtual: l.Kind != "physical"}
		for _, maker := range []string{"Red Hat", "VirtIO", "QEMU", "vmxnet", "VMware", "Hyper-V", "Xen"} {
			a.IsVirtual = a.IsVirtual || strings.Contains(description, maker)
		}
		if details && known {
			if speed := row.TransmitLinkSpeed; speed != ^uint64(0) {
				a.SpeedMbps = uint32(min(speed/1_000_000, 1<<31))
			}
			d := drivers[row.InterfaceGuid.String()]
			a.Driver, a.PciAddress = d.driver, d.location
		}
		list = append(list, a)
	}
	return list
}

// adapterType is the word of the contract for IFTYPE.
func adapterType(l facts.Link, kind uint32) string {
	switch kind {
	case windows.IF_TYPE_ETHERNET_CSMACD:
		return "ethernet"
	case windows.IF_TYPE_IEEE80211:
		return "wifi"
	}
	return l.Kind
}
