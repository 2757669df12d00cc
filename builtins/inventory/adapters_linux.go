package inventory

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

const (
	nets = "sys/class/net"
	pci  = "sys/bus/pci/devices"
)

// adapters lists the network interfaces but loopback, by index.
func (m machine) adapters(links []facts.Link, details bool) (list []*pb.NetworkAdapterInfo) {
	for _, l := range links {
		if l.Loopback {
			continue
		}
		driver := m.link(nets, l.Name, "device/driver")
		a := &pb.NetworkAdapterInfo{
			Name: l.Name, MacAddress: l.MAC, AdapterType: m.adapterType(l),
			IsVirtual: driver == "" || isVirtualDriver(driver),
		}
		if details {
			a.Driver, a.PciAddress = driver, pciAddress(m.real(nets, l.Name, "device"))
			// An interface that is down, or has no speed, says -1 or an error.
			if mbps, err := strconv.ParseUint(m.read(nets, l.Name, "speed"), 10, 32); err == nil && mbps < 1<<32-1 {
				a.SpeedMbps = uint32(mbps)
			}
		}
		list = append(list, a)
	}
	return list
}

// isVirtualDriver reports whether a driver is for a device that only a hypervisor has.
func isVirtualDriver(driver string) bool {
	switch driver {
	case "virtio_net", "vif", "xen_netfront", "hv_netvsc", "vmxnet3":
		return true
	}
	return false
}

// adapterType returns what an interface is: the kernel's kind of what is no hardware, else what the hardware speaks.
func (m machine) adapterType(l facts.Link) string {
	switch {
	case l.Kind != "" && l.Kind != "physical":
		return l.Kind
	case m.list(nets, l.Name, "wireless") != nil || m.link(nets, l.Name, "phy80211") != "":
		return "wifi"
	}
	switch m.read(nets, l.Name, "type") { // ARPHRD_ of <linux/if_arp.h>
	case "1":
		return "ethernet"
	case "32":
		return "infiniband"
	case "801", "802", "803":
		return "wifi"
	case "776", "768", "769", "778":
		return "tunnel"
	}
	return "unknown"
}

// pciAddress returns the last element of a place in sysfs that is a PCI address, such as 0000:00:03.0; empty where there is
// none.
func pciAddress(at string) (address string) {
	for element := range strings.SplitSeq(at, "/") {
		if isPCIAddress(element) {
			address = element
		}
	}
	return address
}

// isPCIAddress reports whether a text is domain:bus:device.function, in hexadecimal.
func isPCIAddress(s string) bool {
	if len(s) < 12 {
		return false
	}
	domain, rest := s[:len(s)-8], s[len(s)-8:]
	if rest[0] != ':' || rest[3] != ':' || rest[6] != '.' {
		return false
	}
	return strings.Trim(domain+rest[1:3]+rest[4:6]+rest[7:], "0123456789abcdef") == ""
}

// gpus lists the PCI devices of the class of display controllers.
func (m machine) gpus() (list []*pb.GpuInfo) {
	for _, address := range m.list(pci) {
		class, err := strconv.ParseUint(m.read(pci, address, "class"), 0, 32)
		if err != nil || class>>16 != 0x03 {
			continue
		}
		vendor := strings.TrimPrefix(m.read(pci, address, "vendor"), "0x")
		device := strings.TrimPrefix(m.read(pci, address, "device"), "0x")
		g := &pb.GpuInfo{
			PciAddress: address, Driver: m.link(pci, address, "driver"), VramBytes: m.vram(address, vendor),
			DriverVersion: m.read(pci, address, "driver/module/version"),
		}
		g.Vendor, g.Name = m.pciNames(vendor, device)
		if g.Vendor == "" {
			g.Vendor = vendor
		}
		if g.Name == "" {
			g.Name = vendor + ":" + device
		}
		list = append(list, g)
	}
	return list
}

// vram returns the memory of a graphics adapter, in bytes: as its driver says, or, of an emulated one, whose first region is
// its memory, the size of that.
func (m machine) vram(address, vendor string) uint64 {
	if total := m.number(pci, address, "mem_info_vram_total"); total > 0 {
		return total
	}
	switch vendor {
	case "1234", "1b36", "15ad": // QEMU's standard adapter, qxl, VMware's
		first, _, _ := strings.Cut(m.read(pci, address, "resource"), "\n")
		var begin, end uint64
		if fields := strings.Fields(first); len(fields) == 3 {
			begin, _ = strconv.ParseUint(fields[0], 0, 64)
			end, _ = strconv.ParseUint(fields[1], 0, 64)
		}
		if end > begin {
			return end - begin + 1
		}
	}
	return 0
}

// pciNames looks the numbers of a vendor and a device up in the list of names that the guest has; empty where they are not in
// it.
func (m machine) pciNames(vendor, device string) (vendorName, deviceName string) {
	for _, path := range []string{"usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids"} {
		file, err := os.Open(m.path(path))
		if err != nil {
			continue
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			line := lines.Text()
			switch {
			case line == "" || line[0] == '#':
			case line[0] != '\t': // a vendor
				if vendorName != "" {
					return vendorName, deviceName
				}
				if name, ok := strings.CutPrefix(line, vendor+"  "); ok {
					vendorName, _ = text.ToValidUTF8Max(name, maxText)
				}
			case vendorName != "":
				if name, ok := strings.CutPrefix(line, "\t"+device+"  "); ok {
					deviceName, _ = text.ToValidUTF8Max(name, maxText)
					return vendorName, deviceName
				}
			}
		}
		return vendorName, deviceName
	}
	return "", ""
}
