package inventory

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// The structures of SMBIOS (DMTF DSP0134) that are read.
const (
	processorStructure = 4
	oemStructure       = 11
	memoryStructure    = 17
	endStructure       = 127

	maxTables = 1 << 20 // bytes; a machine has some KiB
)

// structure is one SMBIOS structure: its formatted area, with the header, and its strings.
type structure struct {
	kind    byte
	area    []byte
	strings [][]byte
}

// smbios reads the tables that the firmware has left; none where there are none, or others than root may not read them.
func (m machine) smbios() []structure {
	file, err := os.Open(m.path("sys/firmware/dmi/tables/DMI"))
	if err != nil {
		return nil
	}
	defer file.Close()
	tables, err := io.ReadAll(io.LimitReader(file, maxTables))
	if err != nil {
		return nil
	}
	return parseSMBIOS(tables)
}

// OEMStrings returns the strings of the structures that the maker of the machine may put anything into, such as QEMU's
// -smbios type=11,value=…
func OEMStrings() (list []string) {
	for _, s := range (machine{"/"}).smbios() {
		if s.kind != oemStructure {
			continue
		}
		for _, value := range s.strings {
			list = append(list, string(value))
		}
	}
	return list
}

// parseSMBIOS splits tables into structures: a formatted area whose length its second byte says, then strings, each with a NUL
// behind it, and one more NUL. It ends where the tables make no sense.
func parseSMBIOS(tables []byte) (list []structure) {
	for len(tables) >= 4 {
		length := int(tables[1])
		if length < 4 || length > len(tables) {
			return list
		}
		s := structure{kind: tables[0], area: tables[:length]}
		end := bytes.Index(tables[length:], []byte{0, 0})
		if end < 0 {
			return list
		}
		if end > 0 {
			s.strings = bytes.Split(tables[length:length+end], []byte{0})
		}
		list = append(list, s)
		if s.kind == endStructure {
			return list
		}
		tables = tables[length+end+2:]
	}
	return list
}

// byte, word and double return a number at an offset; 0 where the structure is shorter.
func (s structure) byte(at int) byte {
	if at >= len(s.area) {
		return 0
	}
	return s.area[at]
}

func (s structure) word(at int) uint16 {
	if at+2 > len(s.area) {
		return 0
	}
	return binary.LittleEndian.Uint16(s.area[at:])
}

func (s structure) double(at int) uint32 {
	if at+4 > len(s.area) {
		return 0
	}
	return binary.LittleEndian.Uint32(s.area[at:])
}

// text returns the string whose number, from 1, is at an offset; empty where there is none.
func (s structure) text(at int) string {
	n := int(s.byte(at))
	if n == 0 || n > len(s.strings) {
		return ""
	}
	clean, _ := text.ToValidUTF8Max(string(bytes.TrimSpace(s.strings[n-1])), maxText)
	return clean
}

// size returns the bytes of a memory module; 0: the slot is empty, or it is not known.
func (s structure) size() uint64 {
	switch n := s.word(0x0c); {
	case n == 0xffff:
		return 0
	case n == 0x7fff:
		return uint64(s.double(0x1c)&0x7fffffff) << 20
	case n&0x8000 != 0:
		return uint64(n&0x7fff) << 10
	default:
		return uint64(n) << 20
	}
}

// speed returns the MT/s of a memory module: as it is configured, else as it could be.
func (s structure) speed() uint32 {
	for _, at := range [][2]int{{0x20, 0x58}, {0x15, 0x54}} {
		switch n := s.word(at[0]); n {
		case 0:
		case 0xffff:
			if n := s.double(at[1]) & 0x7fffffff; n > 0 {
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

// memory tells of the memory: what the kernel has, and the modules of SMBIOS.
func memory(ctx context.Context, tables []structure) *pb.MemoryInfo {
	info := &pb.MemoryInfo{}
	if m, err := facts.ReadMemory(ctx); err == nil {
		info.TotalBytes, info.AvailableBytes = m.Total, m.Available
	}
	types := memoryTypes()
	for _, s := range tables {
		if s.kind != memoryStructure || s.word(0x0c) == 0 {
			continue
		}
		module := &pb.MemoryModule{
			Locator: s.text(0x10), SizeBytes: s.size(), Type: types[s.byte(0x12)], SpeedMhz: s.speed(),
			Manufacturer: s.text(0x17), Serial: s.text(0x18), PartNumber: s.text(0x1a),
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
func populatedSockets(tables []structure) (n uint32) {
	for _, s := range tables {
		if s.kind == processorStructure && s.byte(0x18)&0x40 != 0 {
			n++
		}
	}
	return n
}
