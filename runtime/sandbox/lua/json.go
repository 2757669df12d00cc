package lua

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
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
	L.Push(glua.LString(out.String()))
	return 1
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
		out.WriteString(strconv.FormatFloat(v.Number, jsonFormat(v.Number), -1, 64))
	case *pb.LuaValue_String_:
		return writeJSONString(out, v.String_)
	case *pb.LuaValue_Table:
		return writeJSONTable(out, v.Table)
	}
	return nil
}

// jsonFormat returns the format of a number: without an exponent for sizes that people use.
func jsonFormat(f float64) byte {
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		return 'e'
	}
	return 'f'
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
	text := L.CheckString(1)
	if !utf8.ValidString(text) {
		m.raiseError("json.decode", "invalid", "the text is not UTF-8")
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

// exactNumber returns the number of a JSON text. A whole one that no Lua number is equal to is an error, as is one that is
// too large.
func exactNumber(text string) (float64, error) {
	f, err := strconv.ParseFloat(text, 64)
	whole, ok := wholeNumber(strings.TrimPrefix(text, "-"))
	if err != nil || ok && !isExact(whole, math.Abs(f)) {
		return 0, fmt.Errorf("a number in Lua cannot be %s exactly; make it text, with quotes", text)
	}
	return f, nil
}
