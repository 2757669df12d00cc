// Package frames encodes records in a file: one after the other, and zeros after the last one.
//
//	┌─────────┬──────────┬──────────┬─────────┐
//	│ len u32 │ prev u32 │ crc  u32 │ payload │  little endian; crc is CRC-32C of len, prev and payload, begun with a
//	└─────────┴──────────┴──────────┴─────────┘  value made of the file's name; prev is the crc of the record before
//
// A record is valid if its crc is right, and in sequence if its prev is the crc of the record before it. So records of
// another file are never accepted, a missing one is noticed, and a valid record is recognized even after damage: that
// distinguishes a torn tail, which is harmless, from a damaged journal.
//
// Not here: what a record means, and files.
package frames

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"sync"
)

// HeaderSize is the length in bytes of the header before a payload.
const HeaderSize = 12

// MaxPayload is the length in bytes of the longest payload: a whole tree of small files fits in one record.
const MaxPayload = 64 << 20

// castagnoli returns the table of CRC-32C, which is made when it is used first: no start of a runner needs it.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// Chain is the state of the checksum chain at the end of a file.
type Chain struct{ salt, prev uint32 }

// NewChain returns the chain of an empty file of that name.
func NewChain(name string) Chain {
	salt := crc32.Checksum([]byte(name), castagnoli())
	return Chain{salt, salt}
}

// Append appends the next record to buffer and returns the result.
func (c *Chain) Append(buffer, payload []byte) []byte {
	at := len(buffer)
	buffer = append(append(buffer, make([]byte, HeaderSize)...), payload...)
	c.Seal(buffer[at:])
	return buffer
}

// Seal makes the next record of a payload that has HeaderSize bytes of room before it.
func (c *Chain) Seal(record []byte) {
	binary.LittleEndian.PutUint32(record, uint32(len(record)-HeaderSize))
	binary.LittleEndian.PutUint32(record[4:], c.prev)
	c.prev = crc32.Update(crc32.Update(c.salt, castagnoli(), record[:8]), castagnoli(), record[HeaderSize:])
	binary.LittleEndian.PutUint32(record[8:], c.prev)
}

// ErrDamaged is the error for a bad record that valid ones follow.
var ErrDamaged = errors.New("a record is damaged, and valid ones follow it")

// window is how much of a file is held at a time while it is checked, in bytes.
const window = 64 << 10

// Scan calls record for each payload in a file of that name and size, with the offset at which the record begins. A
// payload is valid until record returns. Scan returns the chain to continue with, and where the last record ends. If nonzero
// bytes follow, the tail is torn: a record was not completely written, so the change that it announces had not begun.
func Scan(name string, file io.ReaderAt, size int64, record func(payload []byte, at int64) error) (chain Chain, end int64, err error) {
	chain = NewChain(name)
	var buffer []byte
	for {
		h, ok, err := chain.check(file, end, size)
		if err != nil {
			return chain, end, err
		}
		if !ok || h.prev != chain.prev {
			return chain, end, chain.noneFrom(file, end, size)
		}
		buffer = slices.Grow(buffer[:0], h.size)[:h.size]
		if _, err := file.ReadAt(buffer, end+HeaderSize); err != nil {
			return chain, end, err
		}
		if err := record(buffer, end); err != nil {
			return chain, end, err
		}
		chain.prev = h.crc
		end += HeaderSize + int64(h.size)
	}
}

// noneFrom returns ErrDamaged if a valid record begins anywhere after a place.
func (c *Chain) noneFrom(file io.ReaderAt, from, size int64) error {
	part := make([]byte, window+HeaderSize-1)
	for ; from+HeaderSize <= size; from += window {
		part := part[:min(int64(len(part)), size-from)]
		if _, err := file.ReadAt(part, from); err != nil && err != io.EOF {
			return err
		}
		for i := range len(part) - HeaderSize + 1 {
			at := from + int64(i)
			h, ok := parseHeader(part[i:], size-at)
			if !ok {
				continue
			}
			if ok, err := c.valid(file, at, part[i:i+8], h); ok || err != nil {
				return cmp.Or(err, ErrDamaged)
			}
		}
	}
	return nil
}

// header is what stands before a payload.
type header struct {
	size      int
	prev, crc uint32
}

// parseHeader reports whether a header may stand at a place that many bytes before the end of the file.
func parseHeader(data []byte, left int64) (h header, ok bool) {
	n := binary.LittleEndian.Uint32(data)
	if n == 0 || n > MaxPayload || int64(n) > left-HeaderSize {
		return h, false
	}
	return header{int(n), binary.LittleEndian.Uint32(data[4:]), binary.LittleEndian.Uint32(data[8:])}, true
}

// check reports whether a valid record begins at a place of a file, without looking at its place in the chain.
func (c *Chain) check(file io.ReaderAt, at, size int64) (h header, ok bool, err error) {
	var head [HeaderSize]byte
	if size-at < HeaderSize {
		return h, false, nil
	}
	if _, err := file.ReadAt(head[:], at); err != nil {
		return h, false, err
	}
	if h, ok = parseHeader(head[:], size-at); ok {
		ok, err = c.valid(file, at, head[:8], h)
	}
	return h, ok, err
}

// valid compares the checksum of a record. It holds no more than a window, whatever the length says.
func (c *Chain) valid(file io.ReaderAt, at int64, head []byte, h header) (bool, error) {
	sum := crc32.Update(c.salt, castagnoli(), head)
	part := make([]byte, min(window, h.size))
	for left, from := h.size, at+HeaderSize; left > 0; {
		part = part[:min(len(part), left)]
		if _, err := file.ReadAt(part, from); err != nil {
			return false, err
		}
		sum = crc32.Update(sum, castagnoli(), part)
		left, from = left-len(part), from+int64(len(part))
	}
	return sum == h.crc, nil
}

// ReadAt returns the payload of the record that begins at a place of a file of that size.
func (c *Chain) ReadAt(file io.ReaderAt, at, size int64) ([]byte, error) {
	h, ok, err := c.check(file, at, size)
	if err == nil && !ok {
		err = ErrDamaged
	}
	if err != nil {
		return nil, err
	}
	payload := make([]byte, h.size)
	_, err = file.ReadAt(payload, at+HeaderSize)
	return payload, err
}

// Read returns copies of the payloads of data, the content of a file of that name, and what Scan returns.
func Read(name string, data []byte) (payloads [][]byte, chain Chain, end int, err error) {
	file := bytes.NewReader(data)
	chain, at, err := Scan(name, file, int64(len(data)), func(payload []byte, _ int64) error {
		payloads = append(payloads, bytes.Clone(payload))
		return nil
	})
	return payloads, chain, int(at), err
}

// ReadFirst reads the first payload of the file of that name, and nothing after it. The error is io.ErrUnexpectedEOF
// if there is no valid one.
func ReadFirst(name string, from *io.SectionReader) ([]byte, error) {
	chain := NewChain(name)
	h, ok, err := chain.check(from, 0, from.Size())
	if err == nil && (!ok || h.prev != chain.prev) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	payload := make([]byte, h.size)
	_, err = from.ReadAt(payload, HeaderSize)
	return payload, err
}
