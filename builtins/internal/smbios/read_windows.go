package smbios

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/windows"
)

// provider is that of SMBIOS tables, RSMB.
const provider = 'R'<<24 | 'S'<<16 | 'M'<<8 | 'B'

// header is what RawSMBIOSData has ahead of the tables: four bytes of versions, and the length of the tables.
const header = 8

// Read returns the tables of the running machine; none where Windows has none.
func Read(string) []Structure {
	read := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetSystemFirmwareTable")
	if read.Find() != nil {
		return nil
	}
	for buffer := make([]byte, 64<<10); len(buffer) <= maxTables+header; {
		n, _, _ := read.Call(provider, 0, uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)))
		switch {
		case n < header:
			return nil
		case int(n) <= len(buffer):
			size := binary.LittleEndian.Uint32(buffer[4:])
			return Parse(buffer[header:min(int(n), header+int(min(size, maxTables)))])
		}
		buffer = make([]byte, n)
	}
	return nil
}
