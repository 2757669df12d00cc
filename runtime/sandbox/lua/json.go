package lua

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// openJSON defines json.encode, decode, array and null, and base64.
func (m *machine) openJSON() {
	m.listMetatable = m.L.NewTable()
	null, meta := m.L.NewUserData(), m.L.NewTable()
	meta.RawSetString("__tostring", m.function(func(L *glua.LState) int { L.Push(glua.LString("null")); return 1 }))
	meta.RawSetString("__metatable", glua.LFalse)
	null.Metatable = meta
	m.null = null
	m.library("json", map[string]glua.LGFunction{"encode": m.encodeJSON, "decode": m.decodeJSON, "array": m.array}).
		RawSetString("null", null)
	m.library("base64", map[string]glua.LGFunction{
		"encode": func(L *glua.LState) int {
			L.Push(glua.LString(base64.StdEncoding.EncodeToString([]byte(L.CheckString(1)))))
			return 1
		},
		"decode": func(L *glua.LState) int {
			b, err := base64.StdEncoding.DecodeString(L.CheckString(1))
			if err != nil {
				m.raiseError("base64.decode", "invalid", "this is not base64")
			}
			L.Push(glua.LString(b))
			return 1
		},
	})
}

// array(t) marks a table as a list, which cannot be seen from an empty one; without t it makes one.
func (m *machine) array(L *glua.LState) int {
	t := L.OptTable(1, nil)
	if t == nil {
		t = L.NewTable()
	}
	t.Metatable = m.listMetatable
	L.Push(t)
	return 1
}

func (m *machine) encodeJSON(L *glua.LState) int {
	value, err := m.toValue(L.CheckAny(1))
	var out strings.Builder
	if err == nil {
		err = writeJSON(&out, value)
	}
	if err != nil {
		m.raiseError("json.encode", "invalid", "value"+err.Error())
	}
	text := out.String()
	if indent := indentOf(L); err == nil && indent != "" {
		var lines bytes.Buffer
		_ = json.Indent(&lines, []byte(text), "", indent) // what was encoded is JSON
		text = lines.String()
	}
	L.Push(glua.LString(text))
	return 1
}

// maxIndent is how many blanks an indentation may have: nested values have it many times.
const maxIndent = 8

// indentOf returns the blanks of the second argument of json.encode, {indent = 2}; empty: all is in one line.
func indentOf(L *glua.LState) string {
	options := L.OptTable(2, nil)
	if options == nil {
		return ""
	}
	n, ok := options.RawGetString("indent").(glua.LNumber)
	if !ok || n < 1 || n > maxIndent || n != glua.LNumber(int(n)) {
		L.ArgError(2, "indent is not a number from 1 to 8")
	}
	return strings.Repeat(" ", int(n))
}

// writeJSON keeps the order of fields. An empty table is an object unless json.array made it.
func writeJSON(out *strings.Builder, v *pb.LuaValue) error {
	switch v := v.GetKind().(type) {
	case nil:
		out.WriteString("null")
	case *pb.LuaValue_Boolean:
		out.WriteString(strconv.FormatBool(v.Boolean))
	case *pb.LuaValue_Number:
		if math.IsNaN(v.Number) || math.IsInf(v.Number, 0) {
			return fmt.Errorf(": %v has no JSON", v.Number)
		}
		out.WriteString(numberText(v.Number))
	case *pb.LuaValue_String_:
		return writeJSONString(out, v.String_)
	case *pb.LuaValue_Table:
		return writeJSONTable(out, v.Table)
	}
	return nil
}

// numberText writes a number for a document: without an exponent for sizes that people use, and a whole one with all of
// its digits, since those that the shortest form leaves out become zeros.
func numberText(f float64) string {
	switch a := math.Abs(f); {
	case a != 0 && (a < 1e-6 || a >= 1e21):
		return strconv.FormatFloat(f, 'e', -1, 64)
	case f == math.Trunc(f):
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

func writeJSONString(out *strings.Builder, s []byte) error {
	if !utf8.Valid(s) {
		return fmt.Errorf(": a string is not UTF-8; base64.encode it")
	}
	var line strings.Builder
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(string(s)); err != nil {
		return err
	}
	out.WriteString(strings.TrimSuffix(line.String(), "\n"))
	return nil
}

func writeJSONTable(out *strings.Builder, t *pb.LuaTable) error {
	if len(t.GetArray()) > 0 && len(t.GetFields()) > 0 {
		return fmt.Errorf(": a table is a list or has names, not both (%s)", t.GetFields()[0].GetKey())
	}
	if len(t.GetArray()) > 0 || t.GetList() && len(t.GetFields()) == 0 {
		out.WriteByte('[')
		for i, v := range t.GetArray() {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := writeJSON(out, v); err != nil {
				return fmt.Errorf("[%d]%w", i+1, err)
			}
		}
		out.WriteByte(']')
		return nil
	}
	out.WriteByte('{')
	for i, f := range t.GetFields() {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := writeJSONString(out, f.GetKey()); err != nil {
			return err
		}
		out.WriteByte(':')
		if err := writeJSON(out, f.GetValue()); err != nil {
			return fmt.Errorf(".%s%w", f.GetKey(), err)
		}
	}
	out.WriteByte('}')
	return nil
}

func (m *machine) decodeJSON(L *glua.LState) int {
	text := strings.TrimPrefix(L.CheckString(1), "\ufeff")
	if !utf8.ValidString(text) {
		m.raiseError("json.decode", "invalid", "the text is not UTF-8")
	}
	if at := loneSurrogate(text); at >= 0 {
		m.raiseError("json.decode", "invalid", fmt.Sprintf("byte %d: %s is one half of a character", at, text[at:at+6]))
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	value, err := m.readJSON(decoder, 0)
	if err == nil {
		if _, more := decoder.Token(); more != io.EOF {
			err = fmt.Errorf("something follows the value")
		}
	}
	if err != nil {
		m.raiseError("json.decode", "invalid", fmt.Sprintf("byte %d: %v", decoder.InputOffset(), err))
	}
	L.Push(value)
	return 1
}

// readJSON reads one value token by token, which keeps the order of fields.
func (m *machine) readJSON(d *json.Decoder, depth int) (glua.LValue, error) {
	if depth > 32 {
		return nil, fmt.Errorf("nested deeper than 32")
	}
	token, err := d.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	switch token := token.(type) {
	case nil:
		return m.null, nil
	case bool:
		return glua.LBool(token), nil
	case json.Number:
		f, err := exactNumber(token.String())
		return glua.LNumber(f), err
	case string:
		return glua.LString(token), nil
	}
	t := m.L.NewTable()
	list := token == json.Delim('[')
	for i := 1; d.More(); i++ {
		var key any = i
		if !list {
			if key, err = d.Token(); err != nil {
				return nil, err
			}
		}
		value, err := m.readJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		if name, ok := key.(string); ok {
			t.RawSetString(name, value)
		} else {
			t.RawSetInt(i, value)
		}
	}
	if list && t.Len() == 0 {
		t.Metatable = m.listMetatable
	}
	_, err = d.Token() // the end
	return t, err
}

// loneSurrogate returns where the first \u of a JSON text stands that is one half of a character, without the other half;
// negative: there is none. The decoder would put another character in its place.
func loneSurrogate(text string) int {
	for at := 0; ; {
		next := strings.IndexByte(text[at:], '\\')
		if next < 0 {
			return -1
		}
		at += next
		first := escapedUnit(text[at:])
		switch {
		case first < 0:
			at += 2
		case !utf16.IsSurrogate(first):
			at += 6
		case utf16.DecodeRune(first, escapedUnit(text[at+6:])) == utf8.RuneError:
			return at
		default:
			at += 12
		}
		if at >= len(text) {
			return -1
		}
	}
}

// escapedUnit returns the number after the \u that a text begins with; negative: it does not.
func escapedUnit(text string) rune {
	if len(text) < 6 || text[:2] != `\u` {
		return -1
	}
	unit, err := strconv.ParseUint(text[2:6], 16, 16)
	if err != nil {
		return -1
	}
	return rune(unit)
}

// exactNumber returns the number that decimal digits stand for, with a point and an exponent or without. An error is about
// one that is whole and no Lua number, too large, or so small that it would be zero. Of a fraction the nearest number is
// meant.
func exactNumber(text string) (float64, error) {
	f, err := strconv.ParseFloat(text, 64)
	mantissa, exponent := strings.TrimLeft(text, "+-"), ""
	if at := strings.IndexAny(mantissa, "eE"); at >= 0 {
		mantissa, exponent = mantissa[:at], mantissa[at+1:]
	}
	digits := strings.Trim(mantissa, "0.")
	lost := err != nil || f == 0 && digits != ""
	if !lost && math.Abs(f) >= 1<<53 {
		exact := strconv.FormatFloat(f, 'f', 0, 64)
		if exponent != "" { // a program that writes one leaves out digits that make no other number
			exact = strconv.FormatFloat(f, 'e', -1, 64)
		}
		lost = !sameNumber(text, exact)
	}
	if lost {
		return 0, fmt.Errorf("a number in Lua cannot be %s exactly; make it text, with quotes", text)
	}
	return f, nil
}

// sameNumber reports whether two decimal numbers, which a float64 can hold, are equal.
func sameNumber(a, b string) bool {
	x, ok := new(big.Rat).SetString(a)
	y, also := new(big.Rat).SetString(b)
	return ok && also && x.Cmp(y) == 0
}
