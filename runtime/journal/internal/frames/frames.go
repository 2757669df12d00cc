// Package frames is how records lie in a file: one behind the other, and behind the last one zeros.
//
//	┌─────────┬──────────┬──────────┬─────────┐
//	│ len u32 │ prev u32 │ crc  u32 │ payload │  little endian; crc is CRC-32C of len, prev and payload, begun with a
//	└─────────┴──────────┴──────────┴─────────┘  value made of the file's name; prev is the crc of the record before
//
// A record is valid where its crc is right; it belongs where its prev is the crc of the one before it. So records of
// another file are never taken for this one's, none can be missing in the middle, and a valid record is found again
// behind damage: that tells a torn tail, which is no harm, from a journal that must not be believed.
//
// Not here: what a record means, and files.
package frames

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Head is the length of what stands before a payload.
const Head = 12

// Max is the longest payload: a whole tree of small files fits in one record.
const Max = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Chain is where a file of records continues.
type Chain struct{ salt, prev uint32 }

// NewChain begins the file of that name.
func NewChain(name string) Chain {
	salt := crc32.Checksum([]byte(name), castagnoli)
	return Chain{salt, salt}
}

// Append gives the next record behind buffer.
func (c *Chain) Append(buffer, payload []byte) []byte {
	var head [Head]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(head[4:], c.prev)
	c.prev = c.sum(head[:8], payload)
	binary.LittleEndian.PutUint32(head[8:], c.prev)
	return append(append(buffer, head[:]...), payload...)
}

func (c *Chain) sum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Update(c.salt, castagnoli, head), castagnoli, payload)
}

// ErrDamaged is the error for records that are bad although valid ones follow.
var ErrDamaged = errors.New("a record is damaged, and valid ones follow it")

// Read gives the payloads of data, the file of that name, and where the last record ends. Where that is not the end of
// what was written, the tail is torn: not all of a record came to the disk, so nothing had been done yet that it speaks
// of.
func Read(name string, data []byte) (payloads [][]byte, chain Chain, end int, err error) {
	chain = NewChain(name)
	for {
		payload, crc, ok := chain.at(data[end:])
		if !ok || binary.LittleEndian.Uint32(data[end+4:]) != chain.prev {
			break
		}
		payloads = append(payloads, payload)
		chain.prev = crc
		end += Head + len(payload)
	}
	for i := end; i+Head <= len(data); i++ {
		if _, _, ok := chain.at(data[i:]); ok {
			return payloads, chain, end, ErrDamaged
		}
	}
	return payloads, chain, end, nil
}

// at reads the record that data begins with, whatever was before it.
func (c *Chain) at(data []byte) (payload []byte, crc uint32, ok bool) {
	if len(data) < Head {
		return nil, 0, false
	}
	n := int(binary.LittleEndian.Uint32(data))
	if n == 0 || n > Max || n > len(data)-Head {
		return nil, 0, false
	}
	payload = data[Head : Head+n]
	crc = binary.LittleEndian.Uint32(data[8:])
	return payload, crc, crc == c.sum(data[:8], payload)
}

// One reads a file that is a single record.
func One(name string, data []byte) ([]byte, error) {
	payloads, _, _, err := Read(name, data)
	if err == nil && len(payloads) != 1 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return payloads[0], nil
}
