package inventory

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// OEMStrings returns the strings of the structures that the maker of the machine may put anything into, such as QEMU's
// -smbios type=11,value=…
func OEMStrings() (list []string) {
	for _, s := range smbios.Read("/") {
		if s.Kind != smbios.OEM {
			continue
		}
		for _, value := range s.Strings {
			list = append(list, string(value))
		}
	}
	return list
}

// moduleSize returns the bytes of a memory module; 0: the slot is empty, or it is not known.
func moduleSize(s smbios.Structure) uint64 {
	switch n := s.Word(0x0c); {
	case n == 0xffff:
		return 0
	case n == 0x7fff:
		return uint64(s.Double(0x1c)&0x7fffffff) << 20
	case n&0x8000 != 0:
		return uint64(n&0x7fff) << 10
	default:
		return uint64(n) << 20
	}
}

// moduleSpeed returns the MT/s of a memory module: as it is configured, else as it could be.
func moduleSpeed(s smbios.Structure) uint32 {
	for _, at := range [][2]int{{0x20, 0x58}, {0x15, 0x54}} {
		switch n := s.Word(at[0]); n {
		case 0:
		case 0xffff:
			if n := s.Double(at[1]) & 0x7fffffff; n > 0 {
				return n
			}
		default:
			return uint32(n)
		}
	}
	return 0
}

// memoryTypes are names of the numbers of table 77 of SMBIOS 3.4.
func memoryTypes() map[byte]string {
	return map[byte]string{
		0x03: "DRAM", 0x05: "VRAM", 0x06: "SRAM", 0x07: "RAM", 0x08: "ROM", 0x09: "Flash", 0x0f: "SDRAM", 0x11: "RDRAM",
		0x12: "DDR", 0x13: "DDR2", 0x14: "DDR2 FB-DIMM", 0x18: "DDR3", 0x19: "FBD2", 0x1a: "DDR4", 0x1b: "LPDDR", 0x1c: "LPDDR2",
		0x1d: "LPDDR3", 0x1e: "LPDDR4", 0x1f: "Non-volatile", 0x20: "HBM", 0x21: "HBM2", 0x22: "DDR5", 0x23: "LPDDR5", 0x24: "HBM3",
	}
}

// memory reports the memory: what the kernel has, and the modules of SMBIOS.
func memory(ctx context.Context, tables []smbios.Structure) *pb.MemoryInfo {
	info := &pb.MemoryInfo{}
	if m, err := facts.ReadMemory(ctx); err == nil {
		info.TotalBytes, info.AvailableBytes = m.Total, m.Available
	}
	types := memoryTypes()
	for _, s := range tables {
		if s.Kind != smbios.Memory || s.Word(0x0c) == 0 {
			continue
		}
		module := &pb.MemoryModule{
			Locator: s.Text(0x10), SizeBytes: moduleSize(s), Type: types[s.Byte(0x12)], SpeedMhz: moduleSpeed(s),
			Manufacturer: s.Text(0x17), Serial: s.Text(0x18), PartNumber: s.Text(0x1a),
		}
		info.Modules = append(info.Modules, module)
		info.InstalledBytes += module.SizeBytes
		if info.MemoryType == "" {
			info.MemoryType = module.Type
		}
		if module.SpeedMhz > 0 && (info.SpeedMhz == 0 || module.SpeedMhz < info.SpeedMhz) {
			info.SpeedMhz = module.SpeedMhz
		}
	}
	info.DimmCount = uint32(len(info.Modules))
	return info
}

// populatedSockets counts the processors of SMBIOS whose socket is not empty.
func populatedSockets(tables []smbios.Structure) (n uint32) {
	for _, s := range tables {
		if s.Kind == smbios.Processor && s.Byte(0x18)&0x40 != 0 {
			n++
		}
	}
	return n
}
