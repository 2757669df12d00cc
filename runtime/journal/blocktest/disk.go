package blocktest

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"io"
	"maps"
	"os"
)

// block is the size in bytes of what a disk writes whole or not at all.
const block = 4096

// disk is the content of a device. Missing blocks are zero; present ones are never changed, so that clones share them.
type disk struct {
	size   int64
	blocks map[int64][]byte
	sums   map[int64]uint64
	sum    uint64 // of all blocks, whatever their order
	seed   maphash.Seed
}

// readDisk reads an image.
func readDisk(path string) (*disk, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	d := newDisk(info.Size())
	const part = 1 << 20
	for at := int64(0); at < d.size; at += part {
		data := make([]byte, min(part, d.size-at))
		if _, err := io.ReadFull(io.NewSectionReader(file, at, d.size), data); err != nil {
			return nil, err
		}
		d.write(at, data)
	}
	return d, nil
}

func newDisk(size int64) *disk {
	return &disk{size: size, blocks: map[int64][]byte{}, sums: map[int64]uint64{}, seed: maphash.MakeSeed()}
}

// clone costs as much as the list of its blocks.
func (d *disk) clone() *disk {
	c := *d
	c.blocks, c.sums = maps.Clone(d.blocks), maps.Clone(d.sums)
	return &c
}

var zeros [block]byte

func (d *disk) write(offset int64, data []byte) {
	for len(data) > 0 {
		n, in := offset/block, offset%block
		part := data[:min(int64(len(data)), block-in)]
		whole := part
		if len(part) < block {
			whole = make([]byte, block)
			copy(whole, d.blocks[n])
			copy(whole[in:], part)
		}
		d.put(n, whole)
		offset, data = offset+int64(len(part)), data[len(part):]
	}
}

func (d *disk) put(n int64, data []byte) {
	d.sum ^= d.sums[n]
	if bytes.Equal(data, zeros[:]) {
		delete(d.blocks, n)
		delete(d.sums, n)
		return
	}
	var h maphash.Hash
	h.SetSeed(d.seed)
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) // never fails
	_, _ = h.Write(data)
	d.blocks[n], d.sums[n] = data, h.Sum64()
	d.sum ^= d.sums[n]
}

// apply performs an entry. A discarded range becomes zero.
func (d *disk) apply(e entry) {
	if e.discard {
		e.data = make([]byte, e.length)
	}
	d.write(e.offset, e.data)
}

// pieces splits an entry at the block boundaries, since each block may reach the disk alone.
func (e entry) pieces() []entry {
	if len(e.data) == 0 {
		return []entry{e}
	}
	var list []entry
	for data, at := e.data, e.offset; len(data) > 0; {
		n := min(int64(len(data)), block-at%block)
		list = append(list, entry{offset: at, length: n, data: data[:n]})
		at, data = at+n, data[n:]
	}
	return list
}

// writeTo writes the disk to an image file.
func (d *disk) writeTo(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = file.Truncate(d.size)
	for n, data := range d.blocks {
		if err == nil {
			_, err = file.WriteAt(data[:min(block, d.size-n*block)], n*block)
		}
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}
