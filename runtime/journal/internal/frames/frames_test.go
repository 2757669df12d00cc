package frames

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

func file(name string, payloads ...string) []byte {
	chain := NewChain(name)
	var data []byte
	for _, p := range payloads {
		data = chain.Append(data, []byte(p))
	}
	return append(data, make([]byte, 100)...)
}

func TestRead(t *testing.T) {
	data := file("a", "one", "two two", "three three three")
	payloads, chain, end, err := Read("a", data)
	if err != nil || len(payloads) != 3 || string(payloads[1]) != "two two" || end != len(data)-100 {
		t.Fatalf("%q, end %d of %d, %v", payloads, end, len(data), err)
	}
	more := append(chain.Append(bytes.Clone(data[:end]), []byte("four")), 0, 0)
	if payloads, _, _, err := Read("a", more); err != nil || len(payloads) != 4 {
		t.Errorf("after one more: %q, %v", payloads, err)
	}
}

// Whatever is cut off or spoilt at the end of a file, what was before it is read.
func TestTornTail(t *testing.T) {
	whole := file("a", "one", "two two", "three three three")
	_, _, end, _ := Read("a", whole)
	last := end - HeaderSize - len("three three three")
	for n := last; n < end; n++ {
		cut := append(bytes.Clone(whole[:n]), make([]byte, 300)...)
		spoilt := bytes.Clone(whole)
		spoilt[n] ^= 0x20
		for name, data := range map[string][]byte{"cut": cut, "spoilt": spoilt} {
			if payloads, _, at, err := Read("a", data); err != nil || len(payloads) != 2 || at != last {
				t.Fatalf("%s at %d: %d payloads to %d, %v", name, n, len(payloads), at, err)
			}
		}
	}
}

// Any change of a byte before the last record is found.
func TestDamage(t *testing.T) {
	whole := file("a", "one", "two two", "three three three")
	for n := range len(whole) - 100 - HeaderSize - len("three three three") {
		data := bytes.Clone(whole)
		data[n] ^= 1
		if payloads, _, _, err := Read("a", data); !errors.Is(err, ErrDamaged) || len(payloads) > 1 {
			t.Fatalf("byte %d: %q, %v", n, payloads, err)
		}
	}
}

// Records of another file, or in another order, are no records.
func TestForeign(t *testing.T) {
	if payloads, _, _, err := Read("b", file("a", "one", "two")); len(payloads) != 0 || err != nil {
		t.Errorf("of another file: %q, %v", payloads, err)
	}
	data := file("a", "one", "two")
	first := HeaderSize + len("one")
	swapped := append(append(bytes.Clone(data[first:2*first]), data[:first]...), make([]byte, 50)...)
	if payloads, _, _, err := Read("a", swapped); len(payloads) != 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("swapped: %q, %v", payloads, err)
	}
}

// What is read is what was appended, for any payloads; and reading never fails in any other way than by saying so.
func FuzzRead(f *testing.F) {
	f.Add([]byte("one"), []byte("two"), uint16(5))
	f.Fuzz(func(t *testing.T, a, b []byte, spoil uint16) {
		if len(a) == 0 || len(b) == 0 {
			return
		}
		data := file("x", string(a), string(b))
		payloads, _, _, err := Read("x", data)
		if err != nil || fmt.Sprintf("%x", payloads) != fmt.Sprintf("%x", [][]byte{a, b}) {
			t.Fatalf("%x %v", payloads, err)
		}
		at := int(spoil) % len(data)
		data[at] ^= 0x55
		payloads, _, _, _ = Read("x", data)
		for i, p := range payloads {
			if want := [][]byte{a, b}[i]; !bytes.Equal(p, want) {
				t.Fatalf("spoilt at %d: %x for %x", at, p, want)
			}
		}
	})
}
