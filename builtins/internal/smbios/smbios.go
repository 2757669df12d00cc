// Package smbios reads the tables in which the firmware describes the machine (DMTF DSP0134).
//
//	/sys/firmware/dmi/tables, GetSystemFirmwareTable ─► Read ─► []Structure
//
// Not here: what most of the structures mean.
package smbios

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

// The kinds of structures that are read.
const (
	BIOS      = 0
	System    = 1
	Processor = 4
	OEM       = 11
	Memory    = 17
	end       = 127
)

const (
	maxTables = 1 << 20 // bytes; a machine has some KiB
	maxText   = 1024    // bytes of a text
)

// Structure is one structure: its formatted area, with the header, and its strings.
type Structure struct {
	Kind    byte
	Area    []byte
	Strings [][]byte
}

// Parse splits tables into structures: a formatted area whose length its second byte says, then strings, each with a NUL
// behind it, and one more NUL. It ends where the tables make no sense.
func Parse(tables []byte) (list []Structure) {
	for len(tables) >= 4 {
		length := int(tables[1])
		if length < 4 || length > len(tables) {
			return list
		}
		s := Structure{Kind: tables[0], Area: tables[:length]}
		stop := bytes.Index(tables[length:], []byte{0, 0})
		if stop < 0 {
			return list
		}
		if stop > 0 {
			s.Strings = bytes.Split(tables[length:length+stop], []byte{0})
		}
		list = append(list, s)
		if s.Kind == end {
			return list
		}
		tables = tables[length+stop+2:]
	}
	return list
}

// Byte returns the number at an offset; 0 where the structure is shorter.
func (s Structure) Byte(at int) byte {
	if at >= len(s.Area) {
		return 0
	}
	return s.Area[at]
}

// Word returns the number of 16 bits at an offset; 0 where the structure is shorter.
func (s Structure) Word(at int) uint16 {
	if at+2 > len(s.Area) {
		return 0
	}
	return binary.LittleEndian.Uint16(s.Area[at:])
}

// Double returns the number of 32 bits at an offset; 0 where the structure is shorter.
func (s Structure) Double(at int) uint32 {
	if at+4 > len(s.Area) {
		return 0
	}
	return binary.LittleEndian.Uint32(s.Area[at:])
}

// Text returns the string whose number, from 1, is at an offset; empty where there is none.
func (s Structure) Text(at int) string {
	n := int(s.Byte(at))
	if n == 0 || n > len(s.Strings) {
		return ""
	}
	clean, _ := text.ToValidUTF8Max(string(bytes.TrimSpace(s.Strings[n-1])), maxText)
	return clean
}

// UUID returns the one that a structure has at an offset, as the Linux kernel writes it since SMBIOS 2.6: the first three
// fields have their lowest byte first. Empty: it has none, or one that says that there is none.
func (s Structure) UUID(at int) string {
	if at+16 > len(s.Area) {
		return ""
	}
	u := s.Area[at : at+16]
	if bytes.Count(u, []byte{0}) == 16 || bytes.Count(u, []byte{0xff}) == 16 {
		return ""
	}
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", binary.LittleEndian.Uint32(u), binary.LittleEndian.Uint16(u[4:]),
		binary.LittleEndian.Uint16(u[6:]), u[8:10], u[10:])
}
