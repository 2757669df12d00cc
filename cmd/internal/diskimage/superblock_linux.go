package diskimage

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// volume is what lies in a span of the disk.
type volume struct {
	span
	kind        string // as mount(2) has it; "" where it is none that can be mounted
	uuid, label string
	dirty       string // what says that it was not unmounted; "" where it was, and where that is not known: XFS, btrfs
	foreign     string // what it is, where this package cannot mount it
	logical     string // of LVM: its group and its name, with a slash between
}

// headLength is how much of a volume is read: the superblock of btrfs is the last one, at 64 KiB.
const headLength = 68 << 10

// identify says what lies in a volume by its superblock.
func identify(r io.ReaderAt) (v volume) {
	b := make([]byte, headLength)
	if n, _ := r.ReadAt(b, 0); n < 4096 {
		return v
	}
	le16, le32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	switch {
	case le16(b[0x438:]) == 0xef53: // the superblock of ext2, 3 and 4, at 1024
		v.kind, v.uuid, v.label = "ext4", uuid(b[0x468:]), text(b[0x478:0x488])
		switch state := le16(b[0x43a:]); {
		case le32(b[0x460:])&4 != 0:
			v.dirty = "its journal is not empty"
		case state&2 != 0:
			v.dirty = "it has errors"
		case state&1 == 0:
			v.dirty = "it is marked as in use"
		}
	case string(b[:4]) == "XFSB":
		v.kind, v.uuid, v.label = "xfs", uuid(b[32:]), text(b[108:120])
	case string(b[0x10040:0x10048]) == "_BHRfS_M":
		v.kind, v.uuid, v.label = "btrfs", uuid(b[0x10020:]), text(b[0x1012b:0x1022b])
	case string(b[82:87]) == "FAT32":
		v.kind, v.uuid, v.label = "vfat", serial(b[0x43:]), text(b[0x47:0x52])
		if b[0x41]&1 != 0 {
			v.dirty = "it is marked as in use"
		}
	case string(b[54:58]) == "FAT1":
		v.kind, v.uuid, v.label = "vfat", serial(b[0x27:]), text(b[0x2b:0x36])
		if b[0x25]&1 != 0 {
			v.dirty = "it is marked as in use"
		}
	case labelAt(b) >= 0:
		v.foreign = foreignLVM
	case string(b[:6]) == "LUKS\xba\xbe":
		v.foreign = foreignLUKS
	case le32(b[4096:]) == raidMagic, le32(b) == raidMagic: // of version 1.2 and 1.1
		v.foreign = foreignRAID
	}
	return v
}

// What cannot be mounted here, in words.
const (
	foreignLVM  = "a physical volume of LVM"
	foreignRAID = "a part of a RAID"
	foreignLUKS = "encrypted by LUKS"
)

// unsupported returns why a volume cannot be used, and what else can be done.
func (v volume) unsupported() string {
	how := map[string]string{foreignRAID: "assemble it by mdadm, ", foreignLUKS: "open it by cryptsetup, "}[v.foreign]
	if how == "" {
		return v.foreign + ", which is not supported"
	}
	return v.foreign + ", which is not supported: " + how + "mount it and give --root"
}

// raidMagic is how the superblock of md begins.
const raidMagic = 0xa92b4efc

// raidAtEnd reports whether a volume of that many bytes has a superblock of md at its end, as versions 1.0 and 0.90 have it:
// what is at its beginning then looks like a file system of its own, and would differ from its mirror if it were written.
func raidAtEnd(r io.ReaderAt, size int64) bool {
	b, le32 := make([]byte, 12), binary.LittleEndian.Uint32
	for version, at := range [2]int64{size&^(64<<10-1) - 64<<10, (size/sector - 16) &^ 7 * sector} {
		if at <= 0 {
			continue
		}
		_, err := r.ReadAt(b, at)
		if err == nil && le32(b) == raidMagic && le32(b[4:]) == uint32(version) && (version == 1 || le32(b[8:]) == 90) {
			return true
		}
	}
	return false
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func serial(b []byte) string { return fmt.Sprintf("%02X%02X-%02X%02X", b[3], b[2], b[1], b[0]) }

// text is a string that is padded with zeros or blanks.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.TrimRight(s, " ")
}

// String names the volume for people.
func (v volume) String() string {
	if v.logical != "" {
		return "volume " + v.logical
	}
	if v.number == 0 {
		return "the disk"
	}
	return "partition " + itoa(v.number)
}

// look says what lies in the span of a volume.
func look(disk io.ReaderAt, v volume) volume {
	r := io.NewSectionReader(disk, v.start, v.len)
	found := identify(r)
	found.span, found.logical = v.span, v.logical
	if raidAtEnd(r, v.len) {
		found.kind, found.foreign = "", foreignRAID
	}
	return found
}

// volumes says what is on a disk of size bytes.
func volumes(disk io.ReaderAt, size int64) (list []volume, err error) {
	spans, err := partitions(disk, size)
	for _, s := range spans {
		list = append(list, look(disk, volume{span: s}))
	}
	list = logicalVolumes(disk, list)
	for n, v := range list {
		if v.logical != "" && v.foreign == "" {
			list[n] = look(disk, v)
			if list[n].foreign == foreignLVM {
				list[n].foreign += " within LVM"
			}
		}
	}
	return list, err
}
