package sandbox

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Bind returns the request of a script row, made from the arguments of a call: the fields of the row's signature by
// position, all others from a table of options after them. Numbers are accepted for text. An error has code invalid
// and names the function and the argument.
func Bind(op *builtins.Op, args []*pb.LuaValue) (proto.Message, error) {
	in := op.In.ProtoReflect().New()
	if err := bind(op, in, args); err != nil {
		return nil, &fault.Error{Op: op.Name, Err: err}
	}
	return in.Interface(), nil
}

func bind(op *builtins.Op, in protoreflect.Message, args []*pb.LuaValue) error {
	sig := op.Script
	options := optionNames(op)
	for len(args) > 0 && args[len(args)-1].GetKind() == nil {
		args = args[:len(args)-1]
	}
	for i, name := range sig.Args {
		field := in.Descriptor().Fields().ByName(protoreflect.Name(name))
		what := fmt.Sprintf("argument %d (%s)", i+1, name)
		optional := i >= len(sig.Args)-sig.Optional
		if i >= len(args) || args[i].GetKind() == nil {
			if !optional {
				return fault.Invalid("%s is missing: %s expected", what, kindOf(field))
			}
			continue
		}
		if optional && i == len(args)-1 && len(options) > 0 && isOptions(field, args[i]) {
			return bindOptions(in, args[i].GetTable(), options) // the optional ones were left out
		}
		if err := setField(in, field, args[i], what); err != nil {
			return err
		}
	}
	switch rest := args[min(len(args), len(sig.Args)):]; {
	case len(rest) == 0:
		return nil
	case len(options) == 0 || len(rest) > 1:
		and := ""
		if len(options) > 0 {
			and = " and a table of options"
		}
		return fault.Invalid("takes %d arguments%s, not %d", len(sig.Args), and, len(args))
	case rest[0].GetTable() == nil:
		return fault.Invalid("argument %d must be a table of options, not %s", len(sig.Args)+1, typeOf(rest[0]))
	default:
		return bindOptions(in, rest[0].GetTable(), options)
	}
}

// optionNames returns the fields that are not positional arguments.
func optionNames(op *builtins.Op) []string {
	var names []string
	fields := op.In.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		positional := false
		for _, arg := range op.Script.Args {
			positional = positional || arg == name
		}
		if !positional {
			names = append(names, name)
		}
	}
	return names
}

// isOptions reports whether a value in the position of an optional argument is the table of options after it.
func isOptions(field protoreflect.FieldDescriptor, v *pb.LuaValue) bool {
	return v.GetTable() != nil && !field.IsList() && !field.IsMap() && field.Kind() != protoreflect.MessageKind
}

func bindOptions(in protoreflect.Message, table *pb.LuaTable, options []string) error {
	if len(table.GetArray()) > 0 {
		return fault.Invalid("options have names, and one is given by position")
	}
	for _, f := range table.GetFields() {
		name := string(f.GetKey())
		known := false
		for _, option := range options {
			known = known || option == name
		}
		if !known {
			return unknownName("option", name, options)
		}
		field := in.Descriptor().Fields().ByName(protoreflect.Name(name))
		if err := setField(in, field, f.GetValue(), "option "+name); err != nil {
			return err
		}
	}
	return nil
}

func unknownName(what, name string, known []string) error {
	text := fmt.Sprintf("unknown %s %q", what, text.ToValidUTF8(name))
	if other := suggest.Closest(name, known); other != "" {
		text += fmt.Sprintf(", did you mean %q?", other)
	}
	return fault.Invalid("%s", text)
}

// setField sets a field to a Lua value. A nil leaves it unset.
func setField(m protoreflect.Message, field protoreflect.FieldDescriptor, v *pb.LuaValue, what string) error {
	switch {
	case v.GetKind() == nil:
		return nil
	case field.IsMap():
		return setMap(m, field, v, what)
	case field.IsList():
		return setList(m, field, v, what)
	}
	value, err := scalar(m.NewField, field, v, what)
	if err == nil {
		m.Set(field, value)
	}
	return err
}

func setList(m protoreflect.Message, field protoreflect.FieldDescriptor, v *pb.LuaValue, what string) error {
	table := v.GetTable()
	if table == nil {
		return fault.Invalid("%s must be %s, not %s", what, kindOf(field), typeOf(v))
	}
	if len(table.GetFields()) > 0 {
		return fault.Invalid("%s must be %s, and has the key %q; options go into a table of their own behind it",
			what, kindOf(field), text.ToValidUTF8(string(table.GetFields()[0].GetKey())))
	}
	list := m.Mutable(field).List()
	for i, element := range table.GetArray() {
		value, err := scalar(func(protoreflect.FieldDescriptor) protoreflect.Value { return list.NewElement() },
			field, element, fmt.Sprintf("%s: element %d", what, i+1))
		if err != nil {
			return err
		}
		list.Append(value)
	}
	return nil
}

func setMap(m protoreflect.Message, field protoreflect.FieldDescriptor, v *pb.LuaValue, what string) error {
	table := v.GetTable()
	if table == nil || len(table.GetArray()) > 0 {
		return fault.Invalid("%s must be %s, not %s", what, kindOf(field), typeOf(v))
	}
	entries := m.Mutable(field).Map()
	for _, f := range table.GetFields() {
		if !utf8.Valid(f.GetKey()) {
			return fault.Invalid("%s: the key %q is not UTF-8", what, f.GetKey())
		}
		value, err := scalar(func(protoreflect.FieldDescriptor) protoreflect.Value { return entries.NewValue() },
			field.MapValue(), f.GetValue(), fmt.Sprintf("%s: value of %s", what, f.GetKey()))
		if err != nil {
			return err
		}
		entries.Set(protoreflect.ValueOfString(string(f.GetKey())).MapKey(), value)
	}
	return nil
}

// scalar returns a Lua value as a single value of a field's kind. fresh returns an empty message where the field holds
// one.
func scalar(
	fresh func(protoreflect.FieldDescriptor) protoreflect.Value, field protoreflect.FieldDescriptor, v *pb.LuaValue, what string,
) (protoreflect.Value, error) {
	none := protoreflect.Value{}
	wrong := fault.Invalid("%s must be %s, not %s", what, elementOf(field), typeOf(v))
	number, isNumber := v.GetKind().(*pb.LuaValue_Number)
	switch field.Kind() {
	case protoreflect.BoolKind:
		if b, ok := v.GetKind().(*pb.LuaValue_Boolean); ok {
			return protoreflect.ValueOfBool(b.Boolean), nil
		}
	case protoreflect.StringKind, protoreflect.BytesKind:
		text, isText := v.GetKind().(*pb.LuaValue_String_)
		switch {
		case isNumber && isMode(field):
			return none, &fault.Error{
				Err:  fault.Invalid("%s must be octal text, not a number", what),
				Hint: `a number says not in which base it was written: write it with quotes, like "0644"`,
			}
		case isNumber:
			return textValue(field, []byte(numberText(number.Number))), nil
		case isText && field.Kind() == protoreflect.StringKind && !utf8.Valid(text.String_):
			return none, fault.Invalid("%s is not UTF-8", what)
		case isText:
			return textValue(field, text.String_), nil
		}
	case protoreflect.MessageKind:
		return messageValue(fresh(field), v, what)
	default:
		if isNumber {
			return numberValue(field, number.Number, what)
		}
	}
	return none, wrong
}

// isMode reports whether a field holds the permission bits of a file as text, which a number would turn into others: 0640 is
// 640 in Lua and 416 in YAML.
func isMode(field protoreflect.FieldDescriptor) bool {
	name := string(field.Name())
	return field.Kind() == protoreflect.StringKind && (name == "mode" || strings.HasSuffix(name, "_mode"))
}

func textValue(field protoreflect.FieldDescriptor, text []byte) protoreflect.Value {
	if field.Kind() == protoreflect.BytesKind {
		return protoreflect.ValueOfBytes(text)
	}
	return protoreflect.ValueOfString(string(text))
}

// numberText returns a number so that it is the same one when it is read again. One that is whole has all of its digits,
// below 10^21 no exponent.
func numberText(f float64) string {
	switch a := math.Abs(f); {
	case f == 0:
		return "0" // also -0
	case a < 1e21 && f == math.Trunc(f):
		return strconv.FormatFloat(f, 'f', 0, 64)
	case a >= 1e-6 && a < 1e21:
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// numberValue returns a number as a value of a field, within its range. Beyond 2^53 a Lua number is not exact.
func numberValue(field protoreflect.FieldDescriptor, f float64, what string) (protoreflect.Value, error) {
	low, high := 0.0, float64(1<<53)
	switch field.Kind() {
	case protoreflect.DoubleKind:
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return protoreflect.Value{}, fault.Invalid("%s must be a finite number, not %v", what, f)
		}
		return protoreflect.ValueOfFloat64(f), nil
	case protoreflect.Uint32Kind:
		high = math.MaxUint32
	case protoreflect.Int32Kind:
		low, high = math.MinInt32, math.MaxInt32
	case protoreflect.Int64Kind:
		low = -high
	case protoreflect.Uint64Kind:
	default:
		return protoreflect.Value{}, fault.Unsupported("%s is of kind %s, which scripts cannot give", what, field.Kind())
	}
	if !(f >= low && f <= high) || f != math.Trunc(f) {
		return protoreflect.Value{}, fault.Invalid("%s must be a whole number from %.0f to %.0f, not %s", what, low, high, numberText(f))
	}
	switch field.Kind() {
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(f)), nil
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(f)), nil
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(f)), nil
	default:
		return protoreflect.ValueOfUint64(uint64(f)), nil
	}
}

// messageValue fills a message from a table of its fields. LuaValue and LuaTable take the value unchanged.
func messageValue(into protoreflect.Value, v *pb.LuaValue, what string) (protoreflect.Value, error) {
	m := into.Message()
	switch inner := m.Interface().(type) {
	case *pb.LuaValue:
		inner.Kind = v.GetKind()
		return into, nil
	case *pb.LuaTable:
		if v.GetTable() != nil {
			return protoreflect.ValueOfMessage(v.GetTable().ProtoReflect()), nil
		}
	}
	if v.GetTable() == nil || len(v.GetTable().GetArray()) > 0 {
		return protoreflect.Value{}, fault.Invalid("%s must be a table with names, not %s", what, typeOf(v))
	}
	var names []string
	for i := range m.Descriptor().Fields().Len() {
		names = append(names, string(m.Descriptor().Fields().Get(i).Name()))
	}
	for _, f := range v.GetTable().GetFields() {
		field := m.Descriptor().Fields().ByName(protoreflect.Name(f.GetKey()))
		if field == nil {
			return protoreflect.Value{}, fmt.Errorf("%s: %w", what, unknownName("field", string(f.GetKey()), names))
		}
		if err := setField(m, field, f.GetValue(), what+"."+string(f.GetKey())); err != nil {
			return protoreflect.Value{}, err
		}
	}
	return into, nil
}

// kindOf returns what a field accepts, in Lua's words.
func kindOf(field protoreflect.FieldDescriptor) string {
	switch {
	case field.IsMap():
		return "a table of names and values"
	case field.IsList():
		return "a list"
	default:
		return elementOf(field)
	}
}

// elementOf returns what a single value of a field is, in Lua's words.
func elementOf(field protoreflect.FieldDescriptor) string {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return "a boolean"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "a string"
	case protoreflect.MessageKind:
		return "a table"
	default:
		return "a number"
	}
}

// typeOf returns what a value is, in Lua's words.
func typeOf(v *pb.LuaValue) string {
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return "a boolean"
	case *pb.LuaValue_Number:
		return "a number"
	case *pb.LuaValue_String_:
		return "a string"
	case *pb.LuaValue_Table:
		if len(v.Table.GetArray()) > 0 {
			return "a list"
		}
		return "a table"
	}
	return "nil"
}

// Unbind returns the Lua value of a result: the field that the row's signature names, else all of them as a table, or
// nil where the message has none. Every field is present, also an empty one, except optional ones that are not set.
func Unbind(op *builtins.Op, out proto.Message) *pb.LuaValue {
	m := out.ProtoReflect()
	if name := op.Script.Result; name != "" {
		return luaField(m, m.Descriptor().Fields().ByName(protoreflect.Name(name)))
	}
	if m.Descriptor().Fields().Len() == 0 {
		return &pb.LuaValue{}
	}
	return luaMessage(m)
}

func luaMessage(m protoreflect.Message) *pb.LuaValue {
	switch inner := m.Interface().(type) {
	case *pb.LuaValue:
		return inner
	case *pb.LuaTable:
		return luaTable(inner)
	}
	table := &pb.LuaTable{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.HasPresence() && !m.Has(field) {
			continue
		}
		table.Fields = append(table.Fields, &pb.LuaField{Key: []byte(field.Name()), Value: luaField(m, field)})
	}
	return luaTable(table)
}

func luaTable(t *pb.LuaTable) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: t}}
}

func luaField(m protoreflect.Message, field protoreflect.FieldDescriptor) *pb.LuaValue {
	table := &pb.LuaTable{List: field.IsList()}
	switch {
	case field.IsMap():
		m.Get(field).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			table.Fields = append(table.Fields, &pb.LuaField{Key: []byte(k.String()), Value: luaScalar(field.MapValue(), v)})
			return true
		})
		sort.Slice(table.Fields, func(i, j int) bool { return string(table.Fields[i].Key) < string(table.Fields[j].Key) })
		return luaTable(table)
	case field.IsList():
		list := m.Get(field).List()
		for i := range list.Len() {
			table.Array = append(table.Array, luaScalar(field, list.Get(i)))
		}
		return luaTable(table)
	case field.HasPresence() && !m.Has(field):
		return &pb.LuaValue{}
	}
	return luaScalar(field, m.Get(field))
}

func luaScalar(field protoreflect.FieldDescriptor, v protoreflect.Value) *pb.LuaValue {
	number := func(f float64) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: f}} }
	switch field.Kind() {
	case protoreflect.BoolKind:
		return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: v.Bool()}}
	case protoreflect.StringKind:
		return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(v.String())}}
	case protoreflect.BytesKind:
		return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: v.Bytes()}}
	case protoreflect.MessageKind:
		return luaMessage(v.Message())
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return number(v.Float())
	case protoreflect.EnumKind:
		if value := field.Enum().Values().ByNumber(v.Enum()); value != nil {
			return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(strings.ToLower(string(value.Name())))}}
		}
		return number(float64(v.Enum()))
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return number(float64(v.Uint()))
	default:
		return number(float64(v.Int()))
	}
}
