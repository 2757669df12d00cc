package builtins

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// ErrPolicy is the cause of what a policy or the rights of a script refuse. It is a fault.ErrRefused.
var ErrPolicy = fmt.Errorf("policy: %w", fault.ErrRefused)

// Aspects say which fields of a row's request a policy must look at. Lists are names of fields.
type Aspects struct {
	// Reads are paths whose content, or what stands there, the caller learns; Writes are paths that are changed.
	Reads, Writes []string
	// Trees are those of them that are taken with all that is below.
	Trees []string
	// Patterns are read as a shell reads *, ? and [a-z] in a path.
	Patterns []string
	// Runs are the fields that make up commands.
	Runs []string
	// Free are fields that look like one of these and are none.
	Free []string

	commands func(in proto.Message) []Command
}

// Command is a program that a request would run.
type Command struct {
	// Argv is the program and its arguments.
	Argv []string
	// Paths are the lists of directories, as in PATH, by one of which a program without a slash would be looked for.
	Paths []string
	// Env are the names of what the request puts into the environment.
	Env []string
	// Dir is where a relative program is looked for; empty: not known.
	Dir string
}

// Access is what one request reads, changes and runs. Paths are as the caller wrote them.
type Access struct {
	Reads, Writes, Trees, Patterns []string
	Commands                       []Command
}

// Reads names the fields that are paths which are read.
func (op Op) Reads(fields ...string) Op { op.Aspects.Reads = fields; return op }

// Writes names the fields that are paths which are changed.
func (op Op) Writes(fields ...string) Op { op.Aspects.Writes = fields; return op }

// WholeTree names those paths that are taken with all that is below.
func (op Op) WholeTree(fields ...string) Op { op.Aspects.Trees = fields; return op }

// Matches names the fields that are patterns of paths.
func (op Op) Matches(fields ...string) Op { op.Aspects.Patterns = fields; return op }

// Free names the fields that look like a path or a command and are none to a policy.
func (op Op) Free(fields ...string) Op { op.Aspects.Free = fields; return op }

// Runs names the fields that make up commands, and what puts those together.
func (op Op) Runs(commands func(in proto.Message) []Command, fields ...string) Op {
	op.Aspects.Runs, op.Aspects.commands = fields, commands
	return op
}

// Delegating marks a mutating row that changes nothing but through other rows, each of which is asked about itself.
func (op Op) Delegating() Op { op.Delegates = true; return op }

// Access tells what a request to the row would read, change and run.
func (op *Op) Access(in proto.Message) Access {
	m := in.ProtoReflect()
	a := Access{
		Reads: values(m, op.Aspects.Reads), Writes: values(m, op.Aspects.Writes),
		Trees: values(m, op.Aspects.Trees), Patterns: values(m, op.Aspects.Patterns),
	}
	if field := m.Descriptor().Fields().ByName("backup"); field != nil && field.Kind() == protoreflect.BoolKind && m.Get(field).Bool() {
		for _, p := range slices.Clone(a.Writes) {
			a.Writes = append(a.Writes, p+".bak")
		}
	}
	if op.Aspects.commands != nil {
		a.Commands = op.Aspects.commands(in)
	}
	return a
}

// values are the texts of fields.
func values(m protoreflect.Message, fields []string) []string {
	var list []string
	for _, name := range fields {
		field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if !field.IsList() {
			list = append(list, m.Get(field).String())
			continue
		}
		for i := range m.Get(field).List().Len() {
			list = append(list, m.Get(field).List().Get(i).String())
		}
	}
	return list
}

// telling are the names of fields that no row may leave without a word.
var telling = []string{"path", "from", "to", "target", "pattern", "touches", "argv", "command", "undo"}

// check holds aspects against the request's message.
func (a *Aspects) check(in protoreflect.MessageDescriptor) error {
	said := slices.Concat(a.Reads, a.Writes, a.Patterns, a.Runs, a.Free)
	for _, name := range slices.Concat(said, a.Trees) {
		if field := in.Fields().ByName(protoreflect.Name(name)); field == nil || field.Kind() != protoreflect.StringKind || field.IsMap() {
			return fmt.Errorf("%s has no text %s to look at", in.Name(), name)
		}
	}
	for _, name := range a.Trees {
		if !slices.Contains(a.Reads, name) && !slices.Contains(a.Writes, name) {
			return fmt.Errorf("the tree %s is neither read nor changed", name)
		}
	}
	for i := range in.Fields().Len() {
		field := in.Fields().Get(i)
		name := string(field.Name())
		if field.Kind() == protoreflect.StringKind && slices.Contains(telling, name) && !slices.Contains(said, name) {
			return fmt.Errorf("it is not said what %s means to a policy", name)
		}
	}
	if (a.commands == nil) != (len(a.Runs) == 0) {
		return fmt.Errorf("it is not said how its fields make a command")
	}
	return nil
}

// Static is the directory that a pattern certainly is in, and whether it has wildcards above its last element, so that it
// walks through directories that it does not name.
func Static(pattern string) (dir string, deep bool) {
	pattern = path.Clean(pattern)
	at := strings.IndexAny(pattern, `*?[\`)
	if at < 0 {
		return pattern, false
	}
	slash := strings.LastIndexByte(pattern[:at], '/')
	return path.Join("/", pattern[:slash+1]), strings.Contains(pattern[at:], "/")
}
