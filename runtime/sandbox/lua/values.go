package lua

import (
	"fmt"
	"math"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/link"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// toValue makes a message of a Lua value, reading tables as they are, without their metatables. The text of an error
// begins with the path to what is wrong, such as ".users[3]: a function cannot leave the script".
func (m *machine) toValue(v glua.LValue) (*pb.LuaValue, error) {
	left := link.FromRunner - 64 // for what stands around it
	return m.value(v, 0, &left)
}

func (m *machine) value(v glua.LValue, depth int, left *int) (*pb.LuaValue, error) {
	if *left--; *left < 0 {
		return nil, fmt.Errorf(": more than %d values", link.FromRunner)
	}
	switch v := v.(type) {
	case *glua.LNilType:
		return &pb.LuaValue{}, nil
	case glua.LBool:
		return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: bool(v)}}, nil
	case glua.LNumber:
		return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: float64(v)}}, nil
	case glua.LString:
		return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(v)}}, nil
	case *glua.LTable:
		if depth == link.MaxTables {
			return nil, fmt.Errorf(": tables nested deeper than %d, or within themselves", link.MaxTables)
		}
		t, err := m.table(m.backing(v), depth+1, left)
		return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: t}}, err
	}
	if v == m.null {
		return &pb.LuaValue{}, nil
	}
	return nil, fmt.Errorf(": a %s cannot leave the script", v.Type())
}

// table walks in the order of insertion, so that the same script sends the same message.
func (m *machine) table(t *glua.LTable, depth int, left *int) (*pb.LuaTable, error) {
	out := &pb.LuaTable{List: t.Metatable == m.lists}
	size := 0
	for k, v := t.Next(glua.LNil); k != glua.LNil; k, v = t.Next(k) {
		switch k := k.(type) {
		case glua.LString:
			if *left--; *left < 0 {
				return nil, fmt.Errorf(": more than %d values", link.FromRunner)
			}
			value, err := m.value(v, depth, left)
			if err != nil {
				return nil, fmt.Errorf(".%s%w", k, err)
			}
			out.Fields = append(out.Fields, &pb.LuaField{Key: []byte(k), Value: value})
		case glua.LNumber:
			if k < 1 || float64(k) != math.Trunc(float64(k)) {
				return nil, fmt.Errorf("[%v]: keys are strings, or count from 1", float64(k))
			}
			size++
		default:
			return nil, fmt.Errorf(": a %s cannot be a key", k.Type())
		}
	}
	for i := 1; i <= size; i++ {
		v := t.RawGetInt(i)
		if v == glua.LNil {
			return nil, fmt.Errorf("[%d]: missing, and later ones are there: a list has no holes", i)
		}
		value, err := m.value(v, depth, left)
		if err != nil {
			return nil, fmt.Errorf("[%d]%w", i, err)
		}
		out.Array = append(out.Array, value)
	}
	return out, nil
}

// fromValue makes a Lua value of a message.
func (m *machine) fromValue(v *pb.LuaValue) (glua.LValue, error) { return m.lua(v, 0) }

// fromTable makes a table of a message; nil is an empty one.
func (m *machine) fromTable(t *pb.LuaTable) (*glua.LTable, error) { return m.luaTable(t, 1) }

func (m *machine) lua(v *pb.LuaValue, depth int) (glua.LValue, error) {
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return glua.LBool(v.Boolean), nil
	case *pb.LuaValue_Number:
		return glua.LNumber(v.Number), nil
	case *pb.LuaValue_String_:
		return glua.LString(v.String_), nil
	case *pb.LuaValue_Table:
		return m.luaTable(v.Table, depth+1)
	}
	return glua.LNil, nil
}

// luaTable keeps the place of a nil in a list with json.null; a nil in a field is no field.
func (m *machine) luaTable(t *pb.LuaTable, depth int) (*glua.LTable, error) {
	if depth > link.MaxTables {
		return nil, fmt.Errorf("tables nested deeper than %d", link.MaxTables)
	}
	out := m.L.CreateTable(len(t.GetArray()), len(t.GetFields()))
	for i, v := range t.GetArray() {
		value, err := m.lua(v, depth)
		if err != nil {
			return nil, err
		}
		if value == glua.LNil {
			value = m.null
		}
		out.RawSetInt(i+1, value)
	}
	for _, f := range t.GetFields() {
		value, err := m.lua(f.GetValue(), depth)
		if err != nil {
			return nil, err
		}
		out.RawSetString(string(f.GetKey()), value)
	}
	if t.GetList() && len(t.GetArray()) == 0 {
		out.Metatable = m.lists
	}
	return out, nil
}
