package scriptreport

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// JSON returns a value as compact JSON, a message with every field.
func JSON(v any) (json.RawMessage, error) {
	if m, ok := v.(proto.Message); ok {
		return messageJSON(m)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// messageJSON returns a message as compact JSON, with every field under its own name. Unlike protojson it writes 64-bit numbers
// as numbers and the modes of files as octal text, which is how people and other tools write them.
func messageJSON(m proto.Message) (json.RawMessage, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var b bytes.Buffer
	err = copyValue(&b, d, fieldsOf(m.ProtoReflect().Descriptor()), nil)
	return b.Bytes(), err
}

// fieldsOf are the fields of a message; nil for one that protojson writes in a form of its own, such as a Timestamp or a
// Struct.
func fieldsOf(m protoreflect.MessageDescriptor) protoreflect.FieldDescriptors {
	if m == nil || m.FullName().Parent() == "google.protobuf" {
		return nil
	}
	return m.Fields()
}

// copyValue copies one value. fields are those of the message that it is, and field is what it is the value of; nil: not known.
func copyValue(
	to *bytes.Buffer, from *json.Decoder, fields protoreflect.FieldDescriptors, field protoreflect.FieldDescriptor,
) error {
	token, err := from.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return copyObject(to, from, fields, field)
	case json.Delim('['):
		return copyElements(to, from, ']', func() error { return copyValue(to, from, fields, field) })
	}
	to.Write(scalarJSON(token, field))
	return nil
}

// copyObject copies a message, or a map.
func copyObject(
	to *bytes.Buffer, from *json.Decoder, fields protoreflect.FieldDescriptors, field protoreflect.FieldDescriptor,
) error {
	return copyElements(to, from, '}', func() error {
		key, err := from.Token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		to.Write(scalarJSON(name, nil))
		to.WriteByte(':')
		var of protoreflect.FieldDescriptor
		switch {
		case field != nil && field.IsMap():
			of = field.MapValue()
		case fields != nil:
			of = fields.ByName(protoreflect.Name(name))
		}
		var inside protoreflect.FieldDescriptors
		if of != nil && !of.IsMap() {
			inside = fieldsOf(of.Message())
		}
		return copyValue(to, from, inside, of)
	})
}

// copyElements copies what is in an object or a list, by one, up to its end.
func copyElements(to *bytes.Buffer, from *json.Decoder, end json.Delim, one func() error) error {
	to.WriteByte(map[json.Delim]byte{'}': '{', ']': '['}[end])
	for first := true; from.More(); first = false {
		if !first {
			to.WriteByte(',')
		}
		if err := one(); err != nil {
			return err
		}
	}
	to.WriteByte(byte(end))
	_, err := from.Token()
	return err
}

// scalarJSON writes what is neither an object nor a list.
func scalarJSON(token json.Token, field protoreflect.FieldDescriptor) []byte {
	if field != nil && !field.IsMap() {
		switch text, isText := token.(string); field.Kind() {
		case protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Sint64Kind, protoreflect.Fixed64Kind,
			protoreflect.Sfixed64Kind:
			if isText {
				return []byte(text)
			}
		case protoreflect.Uint32Kind:
			var mode uint32
			if number, ok := token.(json.Number); ok && field.Name() == "mode" {
				if _, err := fmt.Sscan(number.String(), &mode); err == nil {
					return fmt.Appendf(nil, `"%04o"`, mode&0o7777)
				}
			}
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(token) // a token can be encoded
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}
