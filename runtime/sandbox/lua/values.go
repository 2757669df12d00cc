package lua

import (
	"fmt"
	"math"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// toValue encodes a Lua value for the agent. It reads tables without their metatables. The text of an error begins with
// the path to what is wrong, such as ".users[3]: a function cannot leave the script".
func (m *machine) toValue(v glua.LValue) (*pb.LuaValue, error) {
	left := framing.MaxFromRunner - 64 // for the message around it
	return m.encodeValue(v, 0, &left)
}

func (m *machine) encodeValue(v glua.LValue, depth int, left *int) (*pb.LuaValue, error) {
	if *left--; *left < 0 {
		return nil, fmt.Errorf(": more than %d values", framing.MaxFromRunner)
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
		if depth == framing.MaxNesting {
			return nil, fmt.Errorf(": tables nested deeper than %d, or within themselves", framing.MaxNesting)
		}
		t, err := m.encodeTable(m.backing(v), depth+1, left)
		return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: t}}, err
	}
	if v == m.null {
		return &pb.LuaValue{}, nil
	}
	return nil, fmt.Errorf(": a %s cannot leave the script", v.Type())
}

// encodeTable keeps the order of insertion, so that the same script sends the same message.
func (m *machine) encodeTable(t *glua.LTable, depth int, left *int) (*pb.LuaTable, error) {
	out := &pb.LuaTable{List: t.Metatable == m.listMetatable}
	size := 0
	for k, v := t.Next(glua.LNil); k != glua.LNil; k, v = t.Next(k) {
		switch k := k.(type) {
		case glua.LString:
			if *left--; *left < 0 {
				return nil, fmt.Errorf(": more than %d values", framing.MaxFromRunner)
			}
			value, err := m.encodeValue(v, depth, left)
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
		v := rawGet(t, i)
		if v == glua.LNil {
			return nil, fmt.Errorf("[%d]: missing, and later ones are there: a list has no holes", i)
		}
		value, err := m.encodeValue(v, depth, left)
		if err != nil {
			return nil, fmt.Errorf("[%d]%w", i, err)
		}
		out.Array = append(out.Array, value)
	}
	return out, nil
}

// fromValue decodes a value from the agent.
func (m *machine) fromValue(v *pb.LuaValue) (glua.LValue, error) { return m.decodeValue(v, 0) }

// fromTable decodes a table from the agent; nil is an empty one.
func (m *machine) fromTable(t *pb.LuaTable) (*glua.LTable, error) { return m.decodeTable(t, 1) }

func (m *machine) decodeValue(v *pb.LuaValue, depth int) (glua.LValue, error) {
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return glua.LBool(v.Boolean), nil
	case *pb.LuaValue_Number:
		return glua.LNumber(v.Number), nil
	case *pb.LuaValue_String_:
		return glua.LString(v.String_), nil
	case *pb.LuaValue_Table:
		return m.decodeTable(v.Table, depth+1)
	}
	return glua.LNil, nil
}

// decodeTable decodes a nil in a list as json.null, so that the others keep their indexes; a nil in a field is no
// field.
func (m *machine) decodeTable(t *pb.LuaTable, depth int) (*glua.LTable, error) {
	if depth > framing.MaxNesting {
		return nil, fmt.Errorf("tables nested deeper than %d", framing.MaxNesting)
	}
	out := m.L.CreateTable(len(t.GetArray()), len(t.GetFields()))
	for i, v := range t.GetArray() {
		value, err := m.decodeValue(v, depth)
		if err != nil {
			return nil, err
		}
		if value == glua.LNil {
			value = m.null
		}
		out.RawSetInt(i+1, value)
	}
	for _, f := range t.GetFields() {
		value, err := m.decodeValue(f.GetValue(), depth)
		if err != nil {
			return nil, err
		}
		out.RawSetString(string(f.GetKey()), value)
	}
	if t.GetList() && len(t.GetArray()) == 0 {
		out.Metatable = m.listMetatable
	}
	return out, nil
}
