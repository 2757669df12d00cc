package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// Known answers: the check value of the polynomial's catalogue, and RFC 3720, B.4.
func TestKnownSums(t *testing.T) {
	ascending := make([]byte, 32)
	for i := range ascending {
		ascending[i] = byte(i)
	}
	for _, c := range []struct {
		data []byte
		want uint32
	}{
		{nil, 0}, {[]byte("123456789"), 0xe3069283}, {make([]byte, 32), 0x8a9136aa}, {ascending, 0x46dd794e},
	} {
		for name, sum := range map[string]Sum{"tables": newTables().sum, "standard": Standard(), "chosen": New()} {
			if got := sum(c.data); got != c.want {
				t.Errorf("%s of %x is %08x, want %08x", name, c.data, got, c.want)
			}
		}
	}
}

func TestTablesAgreeWithTheStandardLibrary(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	tables, table := newTables(), crc32.MakeTable(crc32.Castagnoli)
	data := make([]byte, 400)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for from := range 17 {
		for to := from; to <= len(data); to++ {
			if got, want := tables.sum(data[from:to]), crc32.Checksum(data[from:to], table); got != want {
				t.Fatalf("data[%d:%d]: %08x, want %08x", from, to, got, want)
			}
		}
	}
}

func BenchmarkSum(b *testing.B) {
	data := make([]byte, 31000)
	for name, sum := range map[string]Sum{"tables": newTables().sum, "standard": Standard()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				sum(data)
			}
		})
	}
}
