package builtins

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Access is what one request reads, changes and runs. Policies, the needs of scripts, the lock of an open transaction and the
// audit work on it alone. Paths are as the caller wrote them.
type Access struct {
	// Reads are paths whose content, or what stands there, the caller learns; Writes are paths that are changed.
	Reads, Writes []string
	// Trees are those of them that are taken with all that is below.
	Trees []string
	// Siblings are files that are written beside what their paths lead to, links followed.
	Siblings []Sibling
	// Patterns are read as a shell reads *, ? and [a-z] in a path.
	Patterns []string
	// Commands are the programs that would run.
	Commands []Command
	// Helpers are programs of the guest that the operation has do its work, where these bring in code that is not the guest's
	// yet, as a package manager does. Rules on commands are about them as well; a need of the room includes them.
	Helpers []Command
	// Ops is how many operations on files it stands for where that is not one. Optional.
	Ops int
	// Objects are other things of the guest that are read or changed, by kind and name.
	Objects []Object

	// Checked resolves the paths for rules, and then for the operation, so that both act on the same objects. The executor sets
	// it; nil: each rule resolves them for itself.
	Checked *fsys.CheckedPaths
}

// Sibling is a file whose name is that of another one with a suffix, such as a backup.
type Sibling struct{ Path, Suffix string }

// Command is a program that a request would run.
type Command struct {
	// Argv is the program and its arguments.
	Argv []string
	// Paths are the lists of directories, as in PATH, by one of which a program without a slash would be looked for.
	Paths []string
	// Env is what the request puts into the environment, as NAME=VALUE.
	Env []string
	// Dir is where a relative program is looked for; empty: not known.
	Dir string
}

// Object is a thing with a name, such as {unit, nginx.service} or {user, bob}.
type Object struct{ Kind, Name string }

// String returns the object as kind:name.
func (o Object) String() string { return o.Kind + ":" + o.Name }

// maxSubject is the length, in bytes, of the longest command line that Subject returns whole.
const maxSubject = 4 << 10

// Subject returns what a request is about, as people call it: its command, of a very long one the program, else its first
// object, else its first path; empty where it has none of these.
func (a Access) Subject() string {
	switch {
	case len(a.Commands) > 0:
		argv, length := a.Commands[0].Argv, 0
		for _, arg := range argv {
			length += len(arg)
		}
		if length > maxSubject {
			return text.Quote(argv[:1]) + " …"
		}
		return text.Quote(argv)
	case len(a.Objects) > 0:
		return a.Objects[0].String()
	}
	for _, path := range slices.Concat(a.Writes, a.Reads) {
		return path
	}
	return ""
}

// Roles are the fields of a row's request that its Access uses, by what it makes of them. They are not declared: NewTable finds
// them by calling Access with one field set at a time.
type Roles struct {
	// Paths, Commands and Objects are names of fields.
	Paths, Commands, Objects []string
}

// mark is the text that probe puts into a field. It stays one word in a path, a command line and the name of a setting.
const mark = "quantixprobe"

// probe finds the roles of a row's fields: each in turn is the only one that says something.
func probe(op *Op) (roles Roles, err error) {
	fields := op.In.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		in := op.In.ProtoReflect().New()
		switch {
		case field.Kind() != protoreflect.StringKind || field.IsMap():
			continue
		case field.IsList():
			in.Mutable(field).List().Append(protoreflect.ValueOfString(mark))
		default:
			in.Set(field, protoreflect.ValueOfString(mark))
		}
		access, name := op.AccessOf(in.Interface()), string(field.Name())
		if slices.ContainsFunc(access.Trees, marked) && !slices.ContainsFunc(slices.Concat(access.Reads, access.Writes), marked) {
			return roles, fmt.Errorf("the tree %s is neither read nor changed", name)
		}
		if slices.ContainsFunc(slices.Concat(access.Reads, access.Writes, access.Trees, access.Patterns), marked) {
			roles.Paths = append(roles.Paths, name)
		}
		if slices.ContainsFunc(access.Commands, func(c Command) bool { return slices.ContainsFunc(c.Argv, marked) }) {
			roles.Commands = append(roles.Commands, name)
		}
		if slices.ContainsFunc(access.Objects, func(o Object) bool { return marked(o.Name) }) {
			roles.Objects = append(roles.Objects, name)
		}
	}
	return roles, nil
}

func marked(text string) bool { return strings.Contains(text, mark) }

// ReadsPath is the Access of a request that reads what its field path names.
func ReadsPath(in proto.Message) Access { return Access{Reads: pathOf(in)} }

// WritesPath is the Access of a request that changes what its field path names, and does not show what was there.
func WritesPath(in proto.Message) Access { return Access{Writes: pathOf(in)} }

func pathOf(in proto.Message) []string { return []string{in.(interface{ GetPath() string }).GetPath()} }

// Static returns the directory that a pattern of a path certainly is in, and whether it has wildcards above its last element,
// so that it walks through directories that it does not name.
func Static(pattern string) (dir string, deep bool) {
	pattern = fsys.Clean(pattern)
	at := fsys.Wildcard(pattern)
	if at < 0 {
		return pattern, false
	}
	slash := strings.LastIndexByte(pattern[:at], filepath.Separator) // the one that a clean path has
	if dir = pattern[:slash+1]; !fsys.IsAbs(dir) {
		dir = "/" + dir
	}
	return fsys.Clean(dir), strings.ContainsRune(pattern[at:], filepath.Separator)
}
