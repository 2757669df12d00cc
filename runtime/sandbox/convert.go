package sandbox

import (
	"errors"
	"fmt"
	"math"
	"sort"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// FromStruct returns the table of parameters for a script, sorted by name. The error names the value that cannot be
// one.
func FromStruct(s *structpb.Struct) (*pb.LuaTable, error) {
	return fromFields(s.GetFields(), 1, "params")
}

// FromValue returns the Lua value whose result form is v: the inverse of ToValue.
func FromValue(v *structpb.Value) (*pb.LuaValue, error) { return fromValue(v, 1, "result") }

// isInexact reports whether a number is a whole one that would be written with digits alone, of which not all may have come:
// it is beyond 2^53.
func isInexact(f float64) bool { return math.Abs(f) > 1<<53 && math.Abs(f) < 1e21 }

func fromFields(fields map[string]*structpb.Value, depth int, path string) (*pb.LuaTable, error) {
	t := &pb.LuaTable{}
	for name, value := range fields {
		v, err := fromValue(value, depth, path+"."+name)
		if err != nil {
			return nil, err
		}
		t.Fields = append(t.Fields, &pb.LuaField{Key: []byte(name), Value: v})
	}
	sort.Slice(t.Fields, func(i, j int) bool { return string(t.Fields[i].Key) < string(t.Fields[j].Key) })
	return t, nil
}

func fromValue(value *structpb.Value, depth int, path string) (*pb.LuaValue, error) {
	if depth > framing.MaxNesting {
		return nil, fault.Invalid("%s: nested deeper than %d", path, framing.MaxNesting)
	}
	switch v := value.GetKind().(type) {
	case *structpb.Value_BoolValue:
		return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: v.BoolValue}}, nil
	case *structpb.Value_NumberValue:
		if math.IsNaN(v.NumberValue) || math.IsInf(v.NumberValue, 0) {
			return nil, fault.Invalid("%s: %v is not a number to work with", path, v.NumberValue)
		}
		if isInexact(v.NumberValue) {
			return nil, fault.Invalid("%s is a whole number beyond 2^53, which is not exact; give it as text", path)
		}
		return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: v.NumberValue}}, nil
	case *structpb.Value_StringValue:
		return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(v.StringValue)}}, nil
	case *structpb.Value_StructValue:
		t, err := fromFields(v.StructValue.GetFields(), depth+1, path)
		return luaTable(t), err
	case *structpb.Value_ListValue:
		t := &pb.LuaTable{List: true}
		for i, element := range v.ListValue.GetValues() {
			e, err := fromValue(element, depth+1, fmt.Sprintf("%s[%d]", path, i+1))
			if err != nil {
				return nil, err
			}
			t.Array = append(t.Array, e)
		}
		return luaTable(t), nil
	}
	return &pb.LuaValue{}, nil // null
}

// ToValue returns the result of a script as the host gets it. The error is meant for kind "result" and says what cannot
// be represented: text that is not UTF-8, numbers that JSON does not have or that are whole and beyond 2^53, a table
// that is both list and map, and nesting beyond 32.
func ToValue(v *pb.LuaValue) (*structpb.Value, error) { return toValue(v, 0, "result") }

// ToStruct returns a table with string keys as a Struct, such as the params of a declaration.
func ToStruct(t *pb.LuaTable) (*structpb.Struct, error) {
	if len(t.GetArray()) > 0 {
		return nil, errors.New("a list has no names")
	}
	v, err := toTable(&pb.LuaTable{Fields: t.GetFields()}, 1, "table")
	return v.GetStructValue(), err
}

func toValue(v *pb.LuaValue, depth int, path string) (*structpb.Value, error) {
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return structpb.NewBoolValue(v.Boolean), nil
	case *pb.LuaValue_Number:
		f := v.Number
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("%s is %v, which is no number for others", path, f)
		}
		if isInexact(f) {
			return nil, fmt.Errorf("%s is a whole number beyond 2^53, which is not exact; give it as text", path)
		}
		return structpb.NewNumberValue(f), nil
	case *pb.LuaValue_String_:
		if !utf8.Valid(v.String_) {
			return nil, fmt.Errorf("%s is not UTF-8 text; base64.encode it", path)
		}
		return structpb.NewStringValue(string(v.String_)), nil
	case *pb.LuaValue_Table:
		if depth == framing.MaxNesting {
			return nil, fmt.Errorf("%s: nested deeper than %d", path, framing.MaxNesting)
		}
		return toTable(v.Table, depth+1, path)
	}
	return structpb.NewNullValue(), nil
}

// toTable converts a table. An empty one is {} unless json.array made it.
func toTable(t *pb.LuaTable, depth int, path string) (*structpb.Value, error) {
	if len(t.GetFields()) == 0 && (len(t.GetArray()) > 0 || t.GetList()) {
		list := &structpb.ListValue{}
		for i, element := range t.GetArray() {
			value, err := toValue(element, depth, fmt.Sprintf("%s[%d]", path, i+1))
			if err != nil {
				return nil, err
			}
			list.Values = append(list.Values, value)
		}
		return structpb.NewListValue(list), nil
	}
	if len(t.GetArray()) > 0 {
		return nil, fmt.Errorf("%s is a list and has names (%s), and can only be one of them",
			path, text.ToValidUTF8(string(t.GetFields()[0].GetKey())))
	}
	fields := map[string]*structpb.Value{}
	for _, f := range t.GetFields() {
		name := string(f.GetKey())
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("%s has the key %q, which is not UTF-8 text", path, name)
		}
		value, err := toValue(f.GetValue(), depth, path+"."+name)
		if err != nil {
			return nil, err
		}
		fields[name] = value
	}
	return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
}

// ErrorReply returns the reply to a call that failed. The script can catch what is in it.
func ErrorReply(err error) *pb.RunnerReply {
	e := &pb.RunnerError{Code: fault.Code(err), Message: err.Error()}
	var f *fault.Error
	if errors.As(err, &f) {
		e.Op, e.Object, e.Hint = f.Op, f.Object, f.Hint
		if error(f) == err { // not wrapped: the cause alone, since the script prints the rest before it
			e.Message = f.Err.Error()
		}
	}
	for _, field := range []*string{&e.Op, &e.Object, &e.Hint, &e.Message} {
		*field = text.ToValidUTF8(*field)
	}
	return &pb.RunnerReply{Error: e}
}
