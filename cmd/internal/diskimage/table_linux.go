package diskimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// sector is the unit of partition tables, in bytes. Images of disks with sectors of 4096 bytes are not read.
const sector = 512

// span is a part of a disk.
type span struct {
	number     int    // of the partition, from 1; 0: the whole disk, which has no partition table
	start, len int64  // in bytes
	uuid       string // of the partition, as PARTUUID= of an fstab has it; "" for the whole disk
}

// partitions returns the partitions of a disk of size bytes. A disk without a partition table is one span, with the number 0.
func partitions(disk io.ReaderAt, size int64) ([]span, error) {
	head := make([]byte, 2*sector)
	if _, err := disk.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	whole := []span{{0, 0, size, ""}}
	if string(head[sector:sector+8]) == "EFI PART" {
		return gpt(disk, head[sector:], size)
	}
	if head[510] != 0x55 || head[511] != 0xaa || identify(io.NewSectionReader(disk, 0, size)).kind != "" {
		return whole, nil // a boot sector of FAT ends in these bytes as well
	}
	list, err := mbr(disk, head, size)
	if err == nil && len(list) == 0 {
		return whole, nil
	}
	return list, err
}

// gpt reads the table of a GUID partition table, whose header is given (UEFI 2.10, section 5.3).
func gpt(disk io.ReaderAt, header []byte, size int64) (list []span, err error) {
	first := binary.LittleEndian.Uint64(header[72:])
	count, each := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if count > 1024 || each < 128 || each > 4096 || first > uint64(size/sector) {
		return nil, errors.New("the GUID partition table is damaged")
	}
	table := make([]byte, int(count)*int(each))
	if _, err := disk.ReadAt(table, int64(first)*sector); err != nil {
		return nil, fmt.Errorf("read the GUID partition table: %w", err)
	}
	for i := range int(count) {
		entry := table[i*int(each):][:each]
		if bytes.Equal(entry[:16], make([]byte, 16)) {
			continue
		}
		from, to := binary.LittleEndian.Uint64(entry[32:]), binary.LittleEndian.Uint64(entry[40:])
		if from > to || to >= uint64(size/sector) {
			return nil, fmt.Errorf("partition %d lies outside of the disk", i+1)
		}
		list = append(list, span{i + 1, int64(from) * sector, int64(to-from+1) * sector, guid(entry[16:32])})
	}
	return list, nil
}

// guid formats a GUID as it is on disk: its first three fields are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

// mbr reads the table of a master boot record, and the chain of logical partitions.
func mbr(disk io.ReaderAt, record []byte, size int64) (list []span, err error) {
	id := binary.LittleEndian.Uint32(record[440:])
	add := func(number int, from, sectors int64) error {
		if from <= 0 || sectors <= 0 || (from+sectors)*sector > size {
			return fmt.Errorf("partition %d lies outside of the disk", number)
		}
		list = append(list, span{number, from * sector, sectors * sector, fmt.Sprintf("%08x-%02x", id, number)})
		return nil
	}
	for i := range 4 {
		kind, from, sectors := mbrEntry(record, i)
		switch kind {
		case 0:
		case 0x05, 0x0f, 0x85:
			if err := logical(disk, from, size, add); err != nil {
				return nil, err
			}
		default:
			if err := add(i+1, from, sectors); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// mbrEntry returns the type of an entry, and where it is, in sectors.
func mbrEntry(record []byte, i int) (kind byte, from, sectors int64) {
	e := record[446+16*i:][:16]
	return e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
}

// logical reads the chain of logical partitions of an extended one that begins at the sector first.
func logical(disk io.ReaderAt, first, size int64, add func(number int, from, sectors int64) error) error {
	at := first
	for number := 5; number < 5+maxLogical; number++ {
		record := make([]byte, sector)
		if at <= 0 || at >= size/sector {
			return errors.New("the chain of logical partitions leads outside of the disk")
		}
		if _, err := disk.ReadAt(record, at*sector); err != nil {
			return fmt.Errorf("read a logical partition: %w", err)
		}
		if kind, from, sectors := mbrEntry(record, 0); kind != 0 {
			if err := add(number, at+from, sectors); err != nil {
				return err
			}
		}
		kind, next, _ := mbrEntry(record, 1)
		if kind == 0 {
			return nil
		}
		at = first + next
	}
	return errors.New("the chain of logical partitions does not end")
}

// maxLogical bounds the chain of logical partitions, which a damaged table makes a circle.
const maxLogical = 60
