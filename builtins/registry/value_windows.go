package registry

import (
	"bytes"
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// value is one as it is stored.
type value struct {
	kind uint32
	data []byte
}

// types are the types that a script can set.
var types = map[string]uint32{
	"sz": registry.SZ, "expand_sz": registry.EXPAND_SZ, "multi_sz": registry.MULTI_SZ, "dword": registry.DWORD,
	"qword": registry.QWORD, "binary": registry.BINARY,
}

// exact is how far whole numbers of Lua go.
const exact = 1 << 53

// encode stores what a script gives. have is what is there; nil: nothing.
func encode(given *pb.LuaValue, kind string, have *value) (*value, error) {
	if kind != "" {
		number, known := types[strings.TrimPrefix(strings.ToLower(kind), "reg_")]
		if !known {
			return nil, fault.Invalid("type is %.40q, and none of sz, expand_sz, multi_sz, dword, qword and binary", kind)
		}
		return encodeAs(given, number)
	}
	if have != nil && isSettable(have.kind) {
		if v, err := encodeAs(given, have.kind); err == nil {
			return v, nil
		}
	}
	switch given.GetKind().(type) {
	case *pb.LuaValue_String_:
		return encodeAs(given, registry.SZ)
	case *pb.LuaValue_Number:
		return encodeAs(given, registry.DWORD)
	case *pb.LuaValue_Table:
		return encodeAs(given, registry.MULTI_SZ)
	}
	return nil, fault.Invalid("the value is neither a string, a number nor a list")
}

func isSettable(kind uint32) bool {
	for _, known := range types {
		if known == kind {
			return true
		}
	}
	return false
}

func encodeAs(given *pb.LuaValue, kind uint32) (*value, error) {
	switch kind {
	case registry.SZ, registry.EXPAND_SZ:
		text, err := textOf(given)
		if err != nil {
			return nil, err
		}
		return &value{kind, append(utf16Bytes(text), 0, 0)}, nil
	case registry.MULTI_SZ:
		table, ok := given.GetKind().(*pb.LuaValue_Table)
		if !ok || len(table.Table.GetFields()) > 0 {
			return nil, fault.Invalid("the value is no list of strings")
		}
		data := []byte{}
		for i, item := range table.Table.GetArray() {
			text, err := textOf(item)
			if err == nil && text == "" {
				err = fault.Invalid("it is empty, which would end the list")
			}
			if err != nil {
				return nil, fault.On("item "+strconv.Itoa(i+1), err)
			}
			data = append(append(data, utf16Bytes(text)...), 0, 0)
		}
		return &value{kind, append(data, 0, 0)}, nil
	case registry.DWORD:
		n, err := numberOf(given, math.MaxUint32)
		return &value{kind, binary.LittleEndian.AppendUint32(nil, uint32(n))}, err
	case registry.QWORD:
		n, err := numberOf(given, math.MaxUint64)
		return &value{kind, binary.LittleEndian.AppendUint64(nil, n)}, err
	}
	content, ok := given.GetKind().(*pb.LuaValue_String_)
	if !ok {
		return nil, fault.Invalid("the value is no string of bytes")
	}
	return &value{kind, content.String_}, nil
}

func textOf(given *pb.LuaValue) (string, error) {
	text, ok := given.GetKind().(*pb.LuaValue_String_)
	switch {
	case !ok:
		return "", fault.Invalid("the value is no string")
	case !utf8.Valid(text.String_):
		return "", fault.Invalid("the value is not UTF-8 text")
	case strings.ContainsRune(string(text.String_), 0):
		return "", fault.Invalid("the value has a zero byte, which would end it")
	}
	return string(text.String_), nil
}

// numberOf is a whole number up to most, given as one or, as Lua cannot hold all of them exactly, in digits.
func numberOf(given *pb.LuaValue, most uint64) (uint64, error) {
	switch v := given.GetKind().(type) {
	case *pb.LuaValue_Number:
		if v.Number != math.Trunc(v.Number) || v.Number < 0 || v.Number > exact || uint64(v.Number) > most {
			return 0, fault.Invalid("%v is no whole number from 0 to %d", v.Number, min(most, exact))
		}
		return uint64(v.Number), nil
	case *pb.LuaValue_String_:
		n, err := strconv.ParseUint(string(v.String_), 10, 64)
		if err != nil || n > most {
			return 0, fault.Invalid("%.40q is no whole number from 0 to %d", v.String_, most)
		}
		return n, nil
	}
	return 0, fault.Invalid("the value is no number")
}

// decode is a value as scripts have it. What is no valid text comes with replacement characters; raw has the bytes.
func (v *value) decode() (*pb.LuaValue, error) {
	switch {
	case v.kind == registry.SZ || v.kind == registry.EXPAND_SZ:
		text, _, _ := strings.Cut(utf16Text(v.data), "\x00")
		return stringValue([]byte(text)), nil
	case v.kind == registry.MULTI_SZ:
		table := &pb.LuaTable{List: true}
		for text := range strings.SplitSeq(utf16Text(v.data), "\x00") {
			if text == "" {
				break
			}
			table.Array = append(table.Array, stringValue([]byte(text)))
		}
		return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}, nil
	case v.kind == registry.DWORD && len(v.data) == 4:
		return numberValue(float64(binary.LittleEndian.Uint32(v.data))), nil
	case v.kind == registry.QWORD && len(v.data) == 8:
		n := binary.LittleEndian.Uint64(v.data)
		if n > exact {
			return nil, &fault.Error{
				Err:  fault.Wrapf(fault.ErrTooLarge, "%d is beyond 2^53, up to which numbers of Lua are exact", n),
				Hint: "raw = true gives its eight bytes",
			}
		}
		return numberValue(float64(n)), nil
	}
	return stringValue(v.data), nil
}

func stringValue(b []byte) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: b}}
}

func numberValue(n float64) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: n}} }

// same reports whether two values mean the same: a text need not have a zero after it.
func (v *value) same(other *value) bool {
	if v == nil || other == nil || v.kind != other.kind {
		return v == nil && other == nil
	}
	a, b := v.data, other.data
	if v.kind == registry.SZ || v.kind == registry.EXPAND_SZ {
		a, b = bytes.TrimSuffix(a, []byte{0, 0}), bytes.TrimSuffix(b, []byte{0, 0})
	}
	return bytes.Equal(a, b)
}

func utf16Bytes(text string) (b []byte) {
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

func utf16Text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}
