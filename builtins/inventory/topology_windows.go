package inventory

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/windows"
)

// topology is how the processors are put together.
type topology struct {
	sockets, cores, threads uint32
	caches                  [4]uint64 // bytes by level
}

// Relations of LOGICAL_PROCESSOR_RELATIONSHIP.
const (
	relationCore    = 0
	relationCache   = 2
	relationPackage = 3
	relationAll     = 0xffff
)

// readTopology asks the kernel; all is 0 where that does not answer.
func readTopology() (t topology) {
	ask := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetLogicalProcessorInformationEx")
	if ask.Find() != nil {
		return t
	}
	size := uint32(16 << 10)
	for range 4 {
		buffer := make([]byte, size)
		ok, _, err := ask.Call(relationAll, uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)))
		if ok != 0 {
			return parseTopology(buffer[:min(int(size), len(buffer))])
		}
		if err != windows.ERROR_INSUFFICIENT_BUFFER {
			return t
		}
	}
	return t
}

// parseTopology reads entries of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX: a relation, the size of the entry, and after it
// PROCESSOR_RELATIONSHIP, with masks of 16 bytes from 24 and their number at 22, or CACHE_RELATIONSHIP.
func parseTopology(list []byte) (t topology) {
	for len(list) >= 8 {
		size := int(binary.LittleEndian.Uint32(list[4:]))
		if size < 8 || size > len(list) {
			return t
		}
		entry := list[8:size]
		switch binary.LittleEndian.Uint32(list) {
		case relationPackage:
			t.sockets++
		case relationCore:
			t.cores++
			t.threads += coreThreads(entry)
		case relationCache:
			// Level, associativity, the size of a line (16 bits), and the size.
			if len(entry) >= 8 && entry[0] < byte(len(t.caches)) {
				t.caches[entry[0]] += uint64(binary.LittleEndian.Uint32(entry[4:]))
			}
		}
		list = list[size:]
	}
	return t
}

func coreThreads(entry []byte) (n uint32) {
	if len(entry) < 24 {
		return 0
	}
	count := binary.LittleEndian.Uint16(entry[22:])
	for masks := entry[24:]; count > 0 && len(masks) >= 16; masks, count = masks[16:], count-1 {
		n += uint32(bits.OnesCount64(binary.LittleEndian.Uint64(masks)))
	}
	return n
}
