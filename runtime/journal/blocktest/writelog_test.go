package blocktest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// buildLog writes a log as a device would.
func buildLog(entries []entry, sector int) []byte {
	le := binary.LittleEndian
	log := make([]byte, sector)
	le.PutUint64(log, logMagic)
	le.PutUint64(log[8:], logVersion)
	le.PutUint64(log[16:], uint64(len(entries)))
	le.PutUint32(log[24:], uint32(sector))
	for _, e := range entries {
		head := make([]byte, sector)
		flags := uint64(0)
		for flag, set := range map[uint64]bool{flagFlush: e.flush, flagFUA: e.durable, flagDiscard: e.discard} {
			if set {
				flags |= flag
			}
		}
		le.PutUint64(head, uint64(e.offset)/uint64(sector))
		le.PutUint64(head[8:], uint64(e.length)/uint64(sector))
		le.PutUint64(head[16:], flags)
		log = append(append(log, head...), e.data...)
	}
	return log
}

func filled(size int, with byte) []byte { return bytes.Repeat([]byte{with}, size) }

var sample = []entry{
	{offset: 4096, length: 8192, data: filled(8192, 1)},
	{flush: true},
	{offset: 512, length: 512, data: filled(512, 2), durable: true},
	{offset: 8192, length: 4096, discard: true},
	{offset: 0, length: 512, data: filled(512, 3), flush: true},
}

func TestParseLog(t *testing.T) {
	log := buildLog(sample, 512)
	got, err := parseLog(log)
	if err != nil || !reflect.DeepEqual(got, sample) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseLog(log[:len(log)-1]); err == nil {
		t.Error("a log without its end is read")
	}
	for at := range len(log) { // no damaged byte makes the parser panic
		damaged := bytes.Clone(log)
		damaged[at] ^= 0xff
		_, _ = parseLog(damaged)
	}
}

func TestDurablePrefixes(t *testing.T) {
	if got, want := durablePrefixes(sample), []int{0, 0, 2, 2, 2, 4}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestDiskWrite(t *testing.T) {
	d := newDisk(20000)
	for _, e := range sample {
		d.apply(e)
	}
	before := d.clone()
	d.apply(entry{offset: 100, length: 9000, data: filled(9000, 4)})
	want := make([]byte, 20000)
	copy(want, filled(512, 3))
	copy(want[512:], filled(512, 2))
	copy(want[4096:], filled(4096, 1))
	for _, c := range []struct {
		disk *disk
		want []byte
	}{{before, want}, {d, append(append(want[:100:100], filled(9000, 4)...), want[9100:]...)}} {
		path := filepath.Join(t.TempDir(), "image")
		if err := c.disk.writeTo(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("the image is not as it was written: %v", err)
		}
		if _, err := readDisk(path); err != nil {
			t.Error(err)
		}
	}
	d.write(0, make([]byte, 20000))
	if d.sum != 0 || len(d.blocks) > 0 {
		t.Error("a disk of zeros is not empty")
	}
}

func TestEntryPieces(t *testing.T) {
	d, whole := newDisk(20000), newDisk(20000)
	whole.seed = d.seed
	e := entry{offset: 512, length: 10240, data: filled(10240, 7)}
	pieces := e.pieces()
	for _, p := range pieces {
		d.apply(p)
	}
	whole.apply(e)
	if len(pieces) != 3 || d.sum != whole.sum {
		t.Errorf("%d pieces", len(pieces))
	}
}
