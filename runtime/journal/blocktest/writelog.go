package blocktest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The format of a write log: a super block in the first sector, then for each entry a sector with its header, followed by
// the data. From the kernel's documentation, admin-guide/device-mapper/log-writes, and drivers/md/dm-log-writes.c, where
// the fields are little endian.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
	flagMark    = 1 << 3

	superSize     = 8 + 8 + 8 + 4
	entryHeadSize = 8 + 8 + 8 + 8
)

// entry is one request that a device completed.
type entry struct {
	flush   bool // all entries before it are durable
	durable bool // it is durable itself
	discard bool // the content of the range is lost; data is nil
	offset  int64
	length  int64
	data    []byte
}

// super is the super block of a log.
type super struct {
	entries uint64
	sector  int64
}

var errNoLog = errors.New("no write log")

func parseSuper(data []byte) (super, error) {
	if len(data) < superSize {
		return super{}, errNoLog
	}
	le := binary.LittleEndian
	if le.Uint64(data) != logMagic || le.Uint64(data[8:]) != logVersion {
		return super{}, errNoLog
	}
	s := super{entries: le.Uint64(data[16:]), sector: int64(le.Uint32(data[24:]))}
	if s.sector < 512 || s.sector > 64<<10 || s.sector&(s.sector-1) != 0 {
		return super{}, fmt.Errorf("%w: sectors of %d bytes", errNoLog, s.sector)
	}
	return s, nil
}

// parseLog reads a whole log. The entries share its memory.
func parseLog(log []byte) ([]entry, error) {
	s, err := parseSuper(log)
	if err != nil {
		return nil, err
	}
	var list []entry
	at := s.sector
	for n := range s.entries {
		e, next, err := parseEntry(log, at, s.sector)
		if err != nil {
			return nil, fmt.Errorf("entry %d of %d at %d: %w", n, s.entries, at, err)
		}
		list = append(list, e)
		at = next
	}
	return list, nil
}

var errTorn = errors.New("the log ends in it")

func parseEntry(log []byte, at, sector int64) (e entry, next int64, err error) {
	size := int64(len(log))
	if at > size-entryHeadSize {
		return entry{}, 0, errTorn
	}
	le, head := binary.LittleEndian, log[at:]
	first, count, flags := le.Uint64(head), le.Uint64(head[8:]), le.Uint64(head[16:])
	if first > 1<<40 || count > 1<<32 || flags >= flagMark<<2 {
		return entry{}, 0, fmt.Errorf("sector %d, %d sectors, flags %x cannot be", first, count, flags)
	}
	e = entry{
		flush: flags&flagFlush != 0, durable: flags&flagFUA != 0, discard: flags&flagDiscard != 0,
		offset: int64(first) * sector, length: int64(count) * sector,
	}
	next = at + sector
	if flags&flagMark != 0 {
		e.length = 0
		return e, next + (int64(le.Uint64(head[24:]))+sector-1)/sector*sector, nil
	}
	if e.discard || e.length == 0 {
		return e, next, nil
	}
	if e.length > size || next > size-e.length {
		return entry{}, 0, errTorn
	}
	e.data = log[next : next+e.length]
	return e, next + e.length, nil
}

// durablePrefixes returns for each number of entries how many of the first are durable: those before the last flush.
func durablePrefixes(entries []entry) []int {
	durable := make([]int, len(entries)+1)
	for n, e := range entries {
		durable[n+1] = durable[n]
		if e.flush {
			durable[n+1] = n // the entry's own data is written after the flush
			if e.length == 0 {
				durable[n+1] = n + 1
			}
		}
	}
	return durable
}
