package facts

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/windows"
)

// Control codes of winioctl.h, which need no access to the disk.
const (
	ioctlDriveGeometryEx = 0x000700a0 // IOCTL_DISK_GET_DRIVE_GEOMETRY_EX
	ioctlDriveLayoutEx   = 0x00070050 // IOCTL_DISK_GET_DRIVE_LAYOUT_EX
	ioctlQueryProperty   = 0x002d1400 // IOCTL_STORAGE_QUERY_PROPERTY
	ioctlDiskExtents     = 0x00560000 // IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS

	deviceProperty  = 0 // StorageDeviceProperty
	seekProperty    = 7 // StorageDeviceSeekPenaltyProperty
	maxDrives       = 128
	maxMissing      = 16 // numbers of drives in a row that may be missing
	removableDevice = 11 // RemovableMedia (MEDIA_TYPE)
)

// Drive is a disk as Windows sees it.
type Drive struct {
	Path          string // \\.\PhysicalDrive0
	Number        uint32
	Size          uint64 // bytes
	Vendor, Model string
	Serial        string
	Bus           uint32 // STORAGE_BUS_TYPE
	Removable     bool
	Rotates       *bool // nil: it does not say
	Partitions    []DrivePartition
}

// DrivePartition is a part of a disk, in bytes.
type DrivePartition struct {
	Number       uint32
	Offset, Size uint64
}

// BlockDevices lists the disks.
func BlockDevices() (list []BlockDevice) {
	for _, d := range Drives() {
		list = append(list, BlockDevice{Name: strings.TrimPrefix(d.Path, `\\.\`), Size: d.Size, Removable: d.Removable})
	}
	return list
}

// Drives lists the disks, without those that have no medium.
func Drives() (list []Drive) {
	missing := 0
	for n := range uint32(maxDrives) {
		d, there := readDrive(n)
		if !there {
			if missing++; missing > maxMissing {
				break
			}
			continue
		}
		missing = 0
		if d.Size > 0 {
			list = append(list, d)
		}
	}
	return list
}

func readDrive(n uint32) (d Drive, there bool) {
	d.Number, d.Path = n, fmt.Sprintf(`\\.\PhysicalDrive%d`, n)
	handle, err := openDevice(d.Path)
	if err != nil {
		return d, false
	}
	defer windows.CloseHandle(handle)
	// DISK_GEOMETRY_EX: DISK_GEOMETRY of 24 bytes, with the type of the medium at 8, and the size.
	if geometry := control(handle, ioctlDriveGeometryEx, nil, 256); len(geometry) >= 32 {
		d.Size = binary.LittleEndian.Uint64(geometry[24:])
		d.Removable = binary.LittleEndian.Uint32(geometry[8:]) == removableDevice
	}
	// STORAGE_DEVICE_DESCRIPTOR: RemovableMedia at 10, offsets of vendor, product, revision and serial number from 12, the bus
	// at 28.
	if about := query(handle, deviceProperty, 4096); len(about) >= 32 {
		d.Removable = d.Removable || about[10] != 0
		d.Vendor, d.Model, d.Serial = textAt(about, 12), textAt(about, 16), textAt(about, 24)
		d.Bus = binary.LittleEndian.Uint32(about[28:])
	}
	// DEVICE_SEEK_PENALTY_DESCRIPTOR: whether there is one at 8.
	if seek := query(handle, seekProperty, 64); len(seek) >= 9 {
		rotates := seek[8] != 0
		d.Rotates = &rotates
	}
	d.Partitions = parseLayout(control(handle, ioctlDriveLayoutEx, nil, 64<<10))
	return d, true
}

// parseLayout reads a DRIVE_LAYOUT_INFORMATION_EX: the style, a count, 40 bytes, and entries of 144 bytes with offset, length
// and number from 8.
func parseLayout(layout []byte) (list []DrivePartition) {
	const head, size = 48, 144
	if len(layout) < head {
		return nil
	}
	count := binary.LittleEndian.Uint32(layout[4:])
	for entry := layout[head:]; len(entry) >= size && count > 0; entry, count = entry[size:], count-1 {
		p := DrivePartition{
			Offset: binary.LittleEndian.Uint64(entry[8:]), Size: binary.LittleEndian.Uint64(entry[16:]),
			Number: binary.LittleEndian.Uint32(entry[24:]),
		}
		if p.Number > 0 && p.Size > 0 {
			list = append(list, p)
		}
	}
	return list
}

// Extent is where the first part of a volume lies.
type Extent struct {
	Drive  uint32
	Offset uint64
}

// VolumeExtent returns where the volume of a drive letter, such as C:, lies; false: on no disk of its own.
func VolumeExtent(letter string) (Extent, bool) {
	handle, err := openDevice(`\\.\` + strings.TrimRight(letter, `\`))
	if err != nil {
		return Extent{}, false
	}
	defer windows.CloseHandle(handle)
	// VOLUME_DISK_EXTENTS: a count, and from 8 entries with the disk, and the offset at 8.
	extents := control(handle, ioctlDiskExtents, nil, 4096)
	if len(extents) < 32 || binary.LittleEndian.Uint32(extents) == 0 {
		return Extent{}, false
	}
	return Extent{binary.LittleEndian.Uint32(extents[8:]), binary.LittleEndian.Uint64(extents[16:])}, true
}

// openDevice opens a device to ask it: neither to read nor to write.
func openDevice(path string) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	return windows.CreateFile(name, 0, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, 0, 0)
}

// control asks a device and returns what it answers; nil: an error.
func control(handle windows.Handle, code uint32, in []byte, room int) []byte {
	out := make([]byte, room)
	var from *byte
	if len(in) > 0 {
		from = &in[0]
	}
	var n uint32
	if windows.DeviceIoControl(handle, code, from, uint32(len(in)), &out[0], uint32(room), &n, nil) != nil {
		return nil
	}
	return out[:n]
}

// query asks for a STORAGE_PROPERTY_QUERY.
func query(handle windows.Handle, property uint32, room int) []byte {
	var in [12]byte
	binary.LittleEndian.PutUint32(in[:], property)
	return control(handle, ioctlQueryProperty, in[:], room)
}

// textAt returns the text whose offset is at a place in a descriptor.
func textAt(descriptor []byte, at int) string {
	offset := int(binary.LittleEndian.Uint32(descriptor[at:]))
	if offset <= 0 || offset >= len(descriptor) {
		return ""
	}
	value, _, _ := bytes.Cut(descriptor[offset:], []byte{0})
	return strings.TrimSpace(string(value))
}
