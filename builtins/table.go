package builtins

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Table is all operations of an agent, and the way to each. It does not change once it is made.
type Table struct {
	ops    []Op
	native map[protoreflect.FullName]*Op
	script map[string]*Op

	// Allow is asked before each operation; an error refuses it. Nil allows everything. Set before use.
	Allow func(ctx context.Context, call *Call, op *Op, in proto.Message) error
	// Denies says that every request to a row over a channel is refused, so that nothing announces it there. Nil: none is. Set
	// before use.
	Denies func(port string, op *Op) bool
	// Audit is told of each operation after it ended, but for Routine ones that succeeded. Nil: nobody asks. Set before use.
	Audit func(call *Call, op *Op, in proto.Message, err error, took time.Duration)
	// Panicked is told of a panic in an operation, which the caller sees as an internal error. Set before use.
	Panicked func(op *Op, value any, stack []byte)
}

// NewTable holds the rows together. It panics where a row contradicts its messages or stands twice: that is a
// programmer's mistake, and start-up is the time for it.
func NewTable(rooms ...[]Op) *Table {
	t := &Table{native: map[protoreflect.FullName]*Op{}, script: map[string]*Op{}}
	for _, rows := range rooms {
		t.ops = append(t.ops, rows...)
	}
	sort.SliceStable(t.ops, func(i, j int) bool { return t.ops[i].Name < t.ops[j].Name })
	for i := range t.ops {
		op := &t.ops[i]
		if err := op.check(); err != nil {
			panic("operation " + op.Name + ": " + err.Error())
		}
		if t.Script(op.Name) != nil || t.Native(op.In) != nil && op.Script == nil {
			panic("operation " + op.Name + " stands twice")
		}
		if op.Script != nil {
			t.script[op.Name] = op
		} else {
			t.native[op.In.ProtoReflect().Descriptor().FullName()] = op
		}
	}
	return t
}

// Ops are all rows by name. The slice is the table's own.
func (t *Table) Ops() []Op { return t.ops }

// Native gives the row for a request; nil where nothing serves it.
func (t *Table) Native(in proto.Message) *Op {
	return t.native[in.ProtoReflect().Descriptor().FullName()]
}

// Script gives the row for a name in Lua; nil where there is none.
func (t *Table) Script(name string) *Op { return t.script[name] }

// Capabilities are what the native rows that are not denied to a channel announce, each once, sorted.
func (t *Table) Capabilities(port string) []string {
	var list []string
	seen := map[string]bool{}
	for i := range t.ops {
		op := &t.ops[i]
		if t.Denies != nil && t.Denies(port, op) {
			continue
		}
		if op.Capability != "" && !seen[op.Capability] {
			seen[op.Capability] = true
			list = append(list, op.Capability)
		}
	}
	sort.Strings(list)
	return list
}

// Invoke runs an operation: the only way to one. A panic in it becomes an internal error, and an error names the
// operation, as in "file.write /etc/motd: read-only file system".
func (t *Table) Invoke(ctx context.Context, call *Call, op *Op, in proto.Message) (out proto.Message, err error) {
	start := time.Now()
	defer func() {
		if value := recover(); value != nil {
			if t.Panicked != nil {
				t.Panicked(op, value, debug.Stack())
			}
			out, err = nil, fault.Wrapf(fault.ErrInternal, "internal error: %v", value)
		}
		err = named(op.Name, err)
		if t.Audit != nil && (err != nil || op.Routine == nil || !op.Routine(in)) {
			t.Audit(call, op, in, err, time.Since(start))
		}
	}()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if t.Allow != nil {
		if err := t.Allow(ctx, call, op, in); err != nil {
			return nil, err
		}
	}
	return op.call(ctx, call, in)
}

// named puts the operation's name on an error that does not have one.
func named(op string, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return &fault.Error{Op: op, Err: err}
	}
	if f.Op != "" {
		return err
	}
	with := *f
	with.Op = op
	if error(f) != err { // words around it stay
		with.Err = fmt.Errorf("%w", err)
		with.Object = ""
	}
	return &with
}

// scriptKind is the kind of a ScriptError for an error of a request that is about scripts.
func scriptKind(err error) string {
	switch code := fault.Code(err); code {
	case "unsupported", "busy", "timeout", "cancelled", "not_found":
		return code
	case "refused", "permission", "stale":
		return "policy"
	case "invalid", "too_large":
		return "params"
	default:
		return "internal"
	}
}

// Rooms are the tables that scripts see: the part of each script row's name before the dot, each once, sorted.
func (t *Table) Rooms() []string {
	seen := map[string]bool{}
	var rooms []string
	for name, op := range t.script {
		if op.Inner {
			continue
		}
		room, _, _ := strings.Cut(name, ".")
		if !seen[room] {
			seen[room] = true
			rooms = append(rooms, room)
		}
	}
	sort.Strings(rooms)
	return rooms
}
