package lua

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// openBuiltins makes a table of functions for each room in the start message.
func (m *machine) openBuiltins() {
	for _, f := range m.start.GetFunctions() {
		room, name, ok := strings.Cut(f.GetName(), ".")
		if !ok {
			m.L.SetGlobal(room, m.builtin(f.GetName()))
			continue
		}
		m.roomTable(room).RawSetString(name, m.builtin(f.GetName()))
	}
}

// roomTable returns the table of a room, and makes it where it is missing. To read a function that it does not have is
// an error with a hint.
func (m *machine) roomTable(name string) *glua.LTable {
	if t, ok := m.L.GetGlobal(name).(*glua.LTable); ok {
		return t
	}
	t, meta := m.L.NewTable(), m.L.NewTable()
	meta.RawSetString("__index", m.function(func(L *glua.LState) int {
		wanted := m.rawTostring(L.Get(2))
		message := fmt.Sprintf("%s has no function %s", name, wanted)
		if other := suggest.Closest(wanted, functionNames(t)); other != "" {
			message += fmt.Sprintf(", did you mean %s?", other)
		}
		L.RaiseError("%s", message)
		return 0
	}))
	meta.RawSetString("__metatable", glua.LFalse)
	t.Metatable = meta
	m.L.SetGlobal(name, t)
	return t
}

func functionNames(t *glua.LTable) []string {
	var names []string
	t.ForEach(func(k, _ glua.LValue) { names = append(names, k.String()) })
	sort.Strings(names)
	return names
}

// openUnsupported defines what this agent does not have, so that a call of it says so: a whole room, which may also be
// a function, or one function of a room.
func (m *machine) openUnsupported() {
	raise := func(name string) {
		m.refuseWhileDeclaring(name)
		e := m.newError(&pb.RunnerError{Op: name, Code: "unsupported", Message: "this agent does not have it"})
		e.RawSetString("kind", glua.LString("unsupported"))
		m.L.Error(e, 1)
	}
	for _, name := range m.start.GetUnsupported() {
		if room, function, ok := strings.Cut(name, "."); ok {
			m.roomTable(room).RawSetString(function, m.function(func(*glua.LState) int { raise(name); return 0 }))
			continue
		}
		if m.L.GetGlobal(name) != glua.LNil {
			continue
		}
		t, meta := m.L.NewTable(), m.L.NewTable()
		meta.RawSetString("__index", m.function(func(L *glua.LState) int {
			function := name + "." + m.rawTostring(L.Get(2))
			L.Push(m.function(func(*glua.LState) int { raise(function); return 0 }))
			return 1
		}))
		meta.RawSetString("__call", m.function(func(*glua.LState) int { raise(name); return 0 }))
		meta.RawSetString("__metatable", glua.LFalse)
		t.Metatable = meta
		m.L.SetGlobal(name, t)
	}
}

// refuseWhileDeclaring raises an error while the top level of a declared script runs: that is only to read its
// declaration.
func (m *machine) refuseWhileDeclaring(name string) {
	if m.declaring {
		m.raise(&pb.RunnerError{
			Op: name, Code: "refused", Message: "not at the top level of a declared script",
			Hint: "move it into the script's run function",
		})
	}
}

// builtin returns a function that calls an operation of the agent.
func (m *machine) builtin(name string) *glua.LFunction {
	return m.function(func(L *glua.LState) int {
		m.refuseWhileDeclaring(name)
		at := m.currentPosition()
		call := &pb.RunnerCall{Name: name, Script: toValidText(at.script), Line: uint32(max(at.line, 0))}
		last := L.GetTop()
		for last > 0 && L.Get(last) == glua.LNil {
			last--
		}
		for i := 1; i <= last; i++ {
			arg, err := m.toValue(L.Get(i))
			if err != nil {
				m.raiseError(name, "invalid", fmt.Sprintf("argument %d%v", i, err))
			}
			call.Args = append(call.Args, arg)
		}
		reply, err := m.agent.call(call)
		if err != nil {
			m.raiseError(name, "too_large", err.Error())
		}
		if reply.GetError() != nil {
			m.raise(reply.GetError())
		}
		value, err := m.fromValue(reply.GetValue())
		if err != nil {
			m.raiseError(name, "internal", err.Error())
		}
		L.Push(value)
		return 1
	})
}

// standardLibraries are the libraries of Lua 5.1 that a script has. A module of the same name goes first.
var standardLibraries = map[string]bool{"string": true, "table": true, "math": true}

// require(name) returns a module's value. Modules come with the run; each is loaded once.
func (m *machine) require(L *glua.LState) int {
	name := L.CheckString(1)
	if value, ok := m.modules[name]; ok {
		L.Push(value)
		return 1
	}
	for i, loading := range m.loading {
		if loading == name {
			m.raiseError("require", "loop", strings.Join(append(m.loading[i:], name), " needs "))
		}
	}
	source, ok := m.start.GetModules()[name]
	if library, isTable := m.L.GetGlobal(name).(*glua.LTable); !ok && isTable && standardLibraries[name] {
		L.Push(library)
		return 1
	}
	if !ok {
		m.raiseError("require", "not_found", fmt.Sprintf("there is no module %s: modules are bundled or sent with the script", name))
	}
	f, _, err := m.compile(name+".lua", source)
	if err != nil {
		m.raiseFailure(err)
	}
	m.loading = append(m.loading, name)
	depth := len(m.loading)
	defer func() { m.loading = m.loading[:depth-1] }()
	L.Push(f)
	L.Push(glua.LString(name))
	L.Call(1, 1)
	value := L.Get(-1)
	if value == glua.LNil {
		value = glua.LTrue
	}
	m.modules[name] = value
	L.Push(value)
	return 1
}

// raiseFailure raises a Go error within Lua; a module that does not parse is reported at its own line.
func (m *machine) raiseFailure(err error) {
	var f *failure
	if errors.As(err, &f) {
		m.L.Error(glua.LString(fmt.Sprintf("%s:%d: %s", f.at.script, f.at.line, f.message)), 0)
	}
	m.L.RaiseError("%s", err.Error())
}
