// Package frames encodes records in a file: one after the other, and zeros after the last one.
//
//	┌─────────┬──────────┬──────────┬─────────┐
//	│ len u32 │ prev u32 │ crc  u32 │ payload │  little endian; crc is CRC-32C of len, prev and payload, begun with a
//	└─────────┴──────────┴──────────┴─────────┘  value made of the file's name; prev is the crc of the record before
//
// A record is valid if its crc is right, and in sequence if its prev is the crc of the record before it. So records of
// another file are never accepted, a missing one is noticed, and a valid record is recognized even after damage: that tells
// a torn tail, which is harmless, from a damaged journal.
//
// Not here: what a record means, and files.
package frames

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// HeaderSize is the length in bytes of the header before a payload.
const HeaderSize = 12

// MaxPayload is the length in bytes of the longest payload: a whole tree of small files fits in one record.
const MaxPayload = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Chain is the state of the checksum chain at the end of a file.
type Chain struct{ salt, prev uint32 }

// NewChain returns the chain of an empty file of that name.
func NewChain(name string) Chain {
	salt := crc32.Checksum([]byte(name), castagnoli)
	return Chain{salt, salt}
}

// Append appends the next record to buffer and returns the result.
func (c *Chain) Append(buffer, payload []byte) []byte {
	var head [HeaderSize]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(head[4:], c.prev)
	c.prev = c.sum(head[:8], payload)
	binary.LittleEndian.PutUint32(head[8:], c.prev)
	return append(append(buffer, head[:]...), payload...)
}

func (c *Chain) sum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Update(c.salt, castagnoli, head), castagnoli, payload)
}

// ErrDamaged is the error for a bad record that valid ones follow.
var ErrDamaged = errors.New("a record is damaged, and valid ones follow it")

// Read returns the payloads of data, the content of the file of that name, the chain to continue with, and where the last
// record ends. If nonzero bytes follow, the tail is torn: a record was not completely written, so the change that it
// announces had not begun.
func Read(name string, data []byte) (payloads [][]byte, chain Chain, end int, err error) {
	chain = NewChain(name)
	for {
		payload, crc, ok := chain.at(data[end:])
		if !ok || binary.LittleEndian.Uint32(data[end+4:]) != chain.prev {
			break
		}
		payloads = append(payloads, payload)
		chain.prev = crc
		end += HeaderSize + len(payload)
	}
	for i := end; i+HeaderSize <= len(data); i++ {
		if _, _, ok := chain.at(data[i:]); ok {
			return payloads, chain, end, ErrDamaged
		}
	}
	return payloads, chain, end, nil
}

// at reads the record that data begins with, without checking its place in the chain.
func (c *Chain) at(data []byte) (payload []byte, crc uint32, ok bool) {
	if len(data) < HeaderSize {
		return nil, 0, false
	}
	n := int(binary.LittleEndian.Uint32(data))
	if n == 0 || n > MaxPayload || n > len(data)-HeaderSize {
		return nil, 0, false
	}
	payload = data[HeaderSize : HeaderSize+n]
	crc = binary.LittleEndian.Uint32(data[8:])
	return payload, crc, crc == c.sum(data[:8], payload)
}

// ReadFirst reads the first payload of the file of that name, and nothing behind it. The error is io.ErrUnexpectedEOF
// if there is no valid one.
func ReadFirst(name string, from *io.SectionReader) ([]byte, error) {
	var head [HeaderSize]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	if n == 0 || n > min(MaxPayload, from.Size()-HeaderSize) {
		return nil, io.ErrUnexpectedEOF
	}
	data := make([]byte, HeaderSize+n)
	if _, err := from.ReadAt(data, 0); err != nil {
		return nil, err
	}
	chain := NewChain(name)
	payload, _, ok := chain.at(data)
	if !ok || binary.LittleEndian.Uint32(data[4:]) != chain.prev {
		return nil, io.ErrUnexpectedEOF
	}
	return payload, nil
}
