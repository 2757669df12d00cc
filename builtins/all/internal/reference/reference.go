// Package reference documents what scripts can call, from the same rows and messages that the program runs by.
//
//	rows of all rooms ─────────┐             ┌─► builtins/all/OPS.md               people
//	comments of .proto files ──┼─► function ─┼─► scripts/stubs/quantix.lua         editors (LuaLS)
//	what the runner adds ──────┘             └─► scripts/stubs/quantix.luacheckrc  luacheck
//
// Not here: the check of a call's arguments, which reads the same rows and messages (runtime/sandbox).
package reference

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/trial"
)

// function is one thing that a script can call.
type function struct {
	name, summary string
	detail        string  // the rest of the comment of its message
	args          []field // by position
	options       []field
	result        field // its name is empty: nothing
	notes         []string
}

// field is an argument, an option, or a field of a table.
type field struct {
	name, typ, text string
	optional        bool
}

// class is a table with known fields.
type class struct {
	name, text string
	fields     []field
}

// description is all of it.
type description struct {
	functions   []function
	tests       []function // what a test of a script can call
	classes     []class
	unsupported []string
}

// Files returns the generated files by their paths relative to top, the root of the source tree.
func Files(top string) (map[string][]byte, error) {
	d, err := describe(filepath.Join(top, "wire/pb"))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"builtins/all/OPS.md":              d.markdown(),
		"scripts/stubs/quantix.lua":        d.stubs(),
		"scripts/stubs/quantix.luacheckrc": d.luacheck(),
	}, nil
}

// describe reads the rows, and the comments of their messages from all .proto files of a directory: the compiled descriptors
// have no comments.
func describe(protos string) (*description, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{protos}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	paths, err := filepath.Glob(filepath.Join(protos, "*.proto"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return nil, err
	}
	r := &reader{seen: map[string]bool{}}
	for _, file := range files {
		r.files = append(r.files, file)
	}
	d := &description{unsupported: all.Unsupported}
	if d.functions, err = r.functions(all.New(all.Config{}).List()...); err != nil {
		return nil, err
	}
	if d.tests, err = r.functions(trial.Stage{}.Room()); err != nil {
		return nil, err
	}
	d.classes = r.classes
	return d, nil
}

// functions describes the rows that scripts call, by name.
func (r *reader) functions(rooms ...builtins.Room) (list []function, err error) {
	for _, op := range builtins.NewTable(rooms...).Functions() {
		f, err := r.function(op)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
		list = append(list, f)
	}
	return list, nil
}

// reader finds messages, and collects those that are tables of arguments or results.
type reader struct {
	files   []protoreflect.FileDescriptor
	classes []class
	seen    map[string]bool
}

func (r *reader) message(name protoreflect.Name) (protoreflect.MessageDescriptor, error) {
	for _, file := range r.files {
		if m := file.Messages().ByName(name); m != nil {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no message %s in the .proto files", name)
}

func (r *reader) function(op *builtins.Op) (function, error) {
	f := function{name: op.Name, summary: op.Summary, notes: notes(op)}
	in, err := r.message(op.In.ProtoReflect().Descriptor().Name())
	if err != nil {
		return f, err
	}
	f.detail = detail(op.Name, comment(in))
	positional := map[string]bool{}
	for i, name := range op.Script.Args {
		positional[name] = true
		arg := r.field(in.Fields().ByName(protoreflect.Name(name)))
		arg.optional = i >= len(op.Script.Args)-op.Script.Optional
		f.args = append(f.args, arg)
	}
	for i := range in.Fields().Len() {
		if option := r.field(in.Fields().Get(i)); !positional[option.name] {
			option.optional = true
			f.options = append(f.options, option)
		}
	}
	out, err := r.message(op.Out.ProtoReflect().Descriptor().Name())
	switch {
	case err != nil:
		return f, err
	case op.Script.Result != "":
		f.result = r.field(out.Fields().ByName(protoreflect.Name(op.Script.Result)))
	case out.Name() == "LuaValue":
		f.result = field{name: "value", typ: "any"}
	case out.Fields().Len() > 0:
		f.result = field{name: "result", typ: r.class(out), text: comment(out)}
	}
	return f, nil
}

// detail returns the comment of a message of arguments without the names of the functions that it begins with.
func detail(name, comment string) string {
	if !strings.HasPrefix(comment, room(name)+".") {
		return ""
	}
	for i := range comment {
		if strings.HasPrefix(comment[i:], ": ") || strings.HasPrefix(comment[i:], ". ") {
			return sentence(comment[i+2:])
		}
	}
	return ""
}

func notes(op *builtins.Op) (marks []string) {
	switch {
	case op.Mutates && op.Readonly != nil:
		marks = append(marks, "may change the guest")
	case op.Mutates:
		marks = append(marks, "changes the guest")
	}
	if op.Mutates && !op.Predictable {
		marks = append(marks, "ends a dry run")
	}
	if op.Partial {
		marks = append(marks, "a call that fails is not taken back by itself")
	}
	return marks
}

func (r *reader) field(f protoreflect.FieldDescriptor) field {
	text := comment(f)
	for _, name := range []protoreflect.Name{f.Parent().Name() + "." + f.Name(), f.Name()} {
		if text == "" {
			text = fieldDocs[string(name)]
		}
	}
	return field{name: string(f.Name()), typ: r.typeOf(f), text: text, optional: f.HasOptionalKeyword()}
}

// typeOf names the type of a field as LuaLS writes it.
func (r *reader) typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "table<string, " + r.single(f.MapValue()) + ">"
	case f.IsList():
		return r.single(f) + "[]"
	}
	return r.single(f)
}

func (r *reader) single(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return "boolean"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "string"
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return "number"
	case protoreflect.MessageKind:
		return r.class(f.Message())
	}
	return "integer"
}

// class returns the name of a message's table and keeps its fields, once.
func (r *reader) class(m protoreflect.MessageDescriptor) string {
	name := string(m.Name())
	switch name {
	case "LuaValue":
		return "any"
	case "LuaTable":
		return "table"
	}
	if !r.seen[name] {
		r.seen[name] = true
		c := class{name: name, text: comment(m)}
		for i := range m.Fields().Len() {
			c.fields = append(c.fields, r.field(m.Fields().Get(i)))
		}
		r.classes = append(r.classes, c)
	}
	return name
}

// comment returns the comment before a declaration in its file, in one line.
func comment(d protoreflect.Descriptor) string {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	return strings.Join(strings.Fields(text), " ")
}
