package builtins

import (
	"fmt"
	"maps"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Table is all operations of an agent. It does not change once it is made.
type Table struct {
	ops    []Op
	native map[protoreflect.FullName]*Op
	script map[string]*Op
	scopes map[string]Scope
}

// NewTable holds the rows of rooms together. It panics where a row contradicts its messages, stands twice, is another
// room's, or has an inverse that is not there: that is a programmer's mistake, and start-up is the time for it.
func NewTable(rooms ...Room) *Table { return newTable(nil, nil, rooms) }

func newTable(ops []Op, scopes map[string]Scope, rooms []Room) *Table {
	t := &Table{ops: slices.Clone(ops), native: map[protoreflect.FullName]*Op{}, script: map[string]*Op{}, scopes: map[string]Scope{}}
	maps.Copy(t.scopes, scopes)
	for _, room := range rooms {
		if _, twice := t.scopes[room.Name]; twice {
			panic("room " + room.Name + " stands twice")
		}
		for i := range room.Ops {
			if op := &room.Ops[i]; op.Room() != "" && op.Room() != room.Name {
				panic("operation " + op.Name + ": it is not of the room " + room.Name)
			}
		}
		t.scopes[room.Name] = room.Scope
		t.ops = append(t.ops, room.Ops...)
	}
	sort.SliceStable(t.ops, func(i, j int) bool { return t.ops[i].Name < t.ops[j].Name })
	for i := range t.ops {
		op := &t.ops[i]
		if err := op.complete(); err != nil {
			panic("operation " + op.Name + ": " + err.Error())
		}
		t.add(op)
	}
	for i := range t.ops {
		if inverse := t.ops[i].Inverse; inverse != "" && t.script[inverse] == nil {
			panic(fmt.Sprintf("operation %s: its inverse %s is not there", t.ops[i].Name, inverse))
		}
	}
	return t
}

func (t *Table) add(op *Op) {
	if t.script[op.Name] != nil || op.Script == nil && t.Native(op.In) != nil {
		panic("operation " + op.Name + " stands twice")
	}
	if op.Script != nil {
		t.script[op.Name] = op
	} else {
		t.native[op.In.ProtoReflect().Descriptor().FullName()] = op
	}
}

// WithRoom returns a table with the rows of one more room.
func (t *Table) WithRoom(room Room) *Table { return newTable(t.ops, t.scopes, []Room{room}) }

// Ops are all rows by name. The slice is the table's own.
func (t *Table) Ops() []Op { return t.ops }

// Native returns the row for a request; nil where nothing serves it.
func (t *Table) Native(in proto.Message) *Op {
	return t.native[in.ProtoReflect().Descriptor().FullName()]
}

// Script returns the row for a name in Lua; nil where there is none. Internal rows are among them.
func (t *Table) Script(name string) *Op { return t.script[name] }

// Functions are the rows that scripts can call, by name.
func (t *Table) Functions() []*Op {
	var list []*Op
	for i := range t.ops {
		if op := &t.ops[i]; op.Script != nil && !op.Internal {
			list = append(list, op)
		}
	}
	return list
}

// Scopes are the rooms that scripts see, by name, and what a need can limit each to.
func (t *Table) Scopes() map[string]Scope {
	scopes := map[string]Scope{}
	for _, op := range t.Functions() {
		scopes[op.Room()] = t.scopes[op.Room()]
	}
	return scopes
}

// Capabilities are what the native rows announce, but for those that denied says are denied and those that are not available at
// present, each once, sorted.
func (t *Table) Capabilities(denied func(*Op) bool) []string {
	var list []string
	for i := range t.ops {
		if op := &t.ops[i]; op.Capability != "" && !denied(op) && (op.Available == nil || op.Available()) {
			list = append(list, op.Capability)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
