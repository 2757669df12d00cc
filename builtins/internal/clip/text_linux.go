package clip

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// decodeText returns text of others as UTF-8: it may be UTF-16 with a byte order mark, as of some browsers, or Latin-1 where
// the type says so.
func decodeText(kind Kind, data []byte, latin1 bool) ([]byte, error) {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	case utf8.Valid(data):
		return data, nil
	case latin1:
		runes := make([]rune, len(data))
		for i, c := range data {
			runes[i] = rune(c)
		}
		return []byte(string(runes)), nil
	default:
		return nil, fault.Invalid("the %s in the clipboard is not UTF-8", kind)
	}
	if len(data)%2 != 0 {
		return nil, fault.Invalid("the %s in the clipboard is neither UTF-8 nor UTF-16", kind)
	}
	units := make([]uint16, len(data)/2-1)
	for i := range units {
		units[i] = order.Uint16(data[2+2*i:])
	}
	return []byte(string(utf16.Decode(units))), nil
}

// encodeLatin1 returns text as Latin-1; false: it has other characters.
func encodeLatin1(text []byte) ([]byte, bool) {
	out := make([]byte, 0, len(text))
	for _, c := range string(text) {
		if c > 0xff {
			return nil, false
		}
		out = append(out, byte(c))
	}
	return out, true
}
