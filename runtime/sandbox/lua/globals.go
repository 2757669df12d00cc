package lua

import (
	"fmt"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// removedGlobals are the functions of the base library that read files, compile code, or show the interpreter itself.
var removedGlobals = [...]string{
	"dofile", "load", "loadfile", "loadstring", "module", "getfenv", "setfenv", "newproxy", "_printregs",
	"_GOPHER_LUA_VERSION",
}

// openLibraries defines the globals of a script.
func (m *machine) openLibraries() {
	m.L.Push(m.L.NewFunction(glua.OpenBase))
	m.L.Push(glua.LString(glua.BaseLibName))
	m.L.Call(1, 0)
	for _, name := range removedGlobals {
		m.L.SetGlobal(name, glua.LNil)
	}
	m.openBase()
	m.openStrings()
	m.openTables()
	m.openMath()
	m.openJSON()
	m.openYAML()
	m.openErrors()
	m.openLog()
	m.openBuiltins()
	m.openUnsupported()
	m.L.SetGlobal("secrets", m.secrets())
	m.L.SetGlobal("script", m.function(m.script))
	m.L.SetGlobal("random", m.function(m.random))
	m.L.SetGlobal("require", m.function(m.require))
}

// function returns a Lua function.
func (m *machine) function(f func(L *glua.LState) int) *glua.LFunction { return m.L.NewFunction(f) }

// library puts functions into a global table, which is made where it is missing.
func (m *machine) library(name string, functions map[string]glua.LGFunction) *glua.LTable {
	t, ok := m.L.GetGlobal(name).(*glua.LTable)
	if !ok {
		t = m.L.NewTable()
		m.L.SetGlobal(name, t)
	}
	for name, f := range functions {
		t.RawSetString(name, m.L.NewFunction(f))
	}
	return t
}

func (m *machine) openBase() {
	for name, f := range map[string]func(args) int{
		"assert": assert, "error": raiseValue, "getmetatable": getmetatable, "next": next, "pcall": pcall, "rawequal": rawequal,
		"rawget": rawget, "rawset": rawset, "setmetatable": setmetatable, "tonumber": tonumber, "tostring": tostring,
		"type": typeOf, "xpcall": xpcall,
	} {
		m.L.SetGlobal(name, m.function(m.wrap(name, f)))
	}
	m.L.SetGlobal("collectgarbage", m.function(func(L *glua.LState) int { L.Push(glua.LNumber(0)); return 1 }))
	m.L.SetGlobal("print", m.function(func(*glua.LState) int { m.logLine("info", m.joinArguments(1, "\t")); return 0 }))
	step := m.function(func(L *glua.LState) int {
		i := L.CheckInt(2) + 1
		value := rawGet(L.CheckTable(1), i)
		if value == glua.LNil {
			return 0
		}
		L.Push(glua.LNumber(i))
		L.Push(value)
		return 2
	})
	m.openIterator("ipairs", step, glua.LNumber(0))
	m.openIterator("pairs", m.L.GetGlobal("next"), glua.LNil)
}

// openIterator defines pairs or ipairs.
func (m *machine) openIterator(name string, step, first glua.LValue) {
	m.L.SetGlobal(name, m.function(m.wrap(name, func(a args) int {
		t := a.table(1)
		a.L.Push(step)
		a.L.Push(t)
		a.L.Push(first)
		return 3
	})))
}

// assert raises what it is given, if that is no text: an error that pcall returned stays the same.
func assert(a args) int {
	if a.value(1); glua.LVAsBool(a.L.Get(1)) {
		return a.L.GetTop()
	}
	message := a.L.Get(2)
	if message == glua.LNil {
		message = glua.LString("assertion failed!")
	}
	return a.throw(message, 1)
}

// raiseValue is error.
func raiseValue(a args) int { return a.throw(a.L.Get(1), a.optInt(2, 1)) }

// throw raises a value, a text or number with the position of the function at a level, 0 being none. It does not return.
func (a args) throw(v glua.LValue, level int) int {
	if text, ok := toText(v); ok && level > 0 {
		v = glua.LString(text)
	}
	a.L.Error(v, level)
	return 0
}

func getmetatable(a args) int {
	a.L.Push(a.L.GetMetatable(a.value(1)))
	return 1
}

func rawequal(a args) int {
	a.L.Push(glua.LBool(a.value(1) == a.value(2)))
	return 1
}

func rawget(a args) int {
	a.L.Push(a.m.backing(a.table(1)).RawGet(a.value(2)))
	return 1
}

func rawset(a args) int {
	a.L.RawSet(a.writableTable(1), a.value(2), a.value(3))
	a.L.SetTop(1)
	return 1
}

func typeOf(a args) int {
	a.L.Push(glua.LString(a.value(1).Type().String()))
	return 1
}

func tostring(a args) int {
	a.L.Push(a.m.tostringValue(a.value(1)))
	return 1
}

// setmetatable accepts tables only: a script must not change what strings and numbers do.
func setmetatable(a args) int {
	t := a.table(1)
	meta := a.L.Get(2)
	if _, ok := meta.(*glua.LTable); !ok && (meta != glua.LNil || a.L.GetTop() < 2) {
		a.typeError(2, "nil or table")
	}
	if old, ok := t.Metatable.(*glua.LTable); ok && old.RawGetString("__metatable") != glua.LNil {
		a.L.RaiseError("cannot change a protected metatable")
	}
	t.Metatable = meta
	a.L.SetTop(1)
	return 1
}

// next iterates over what a read-only table shows; such a table is empty itself.
func next(a args) int {
	key, value := a.m.backing(a.table(1)).Next(a.L.Get(2))
	a.L.Push(key)
	if key == glua.LNil {
		return 1
	}
	a.L.Push(value)
	return 2
}

// readOnly returns a table that shows t and cannot be written to. Tables within t can be changed.
func (m *machine) readOnly(name string, t *glua.LTable) *glua.LTable {
	front, meta := m.L.NewTable(), m.L.NewTable()
	meta.RawSetString("__index", t)
	meta.RawSetString("__newindex", m.function(func(L *glua.LState) int {
		L.RaiseError("%s cannot be changed", name)
		return 0
	}))
	meta.RawSetString("__len", m.function(func(L *glua.LState) int { L.Push(glua.LNumber(listLength(t))); return 1 }))
	meta.RawSetString("__metatable", glua.LFalse)
	front.Metatable = meta
	m.readOnlyTables[front] = t
	return front
}

// backing returns the table that a read-only table shows; another table is its own.
func (m *machine) backing(t *glua.LTable) *glua.LTable {
	if real := m.readOnlyTables[t]; real != nil {
		return real
	}
	return t
}

func (m *machine) secrets() *glua.LTable {
	t := m.L.NewTable()
	for name, value := range m.start.GetSecrets() {
		t.RawSetString(name, glua.LString(value))
	}
	return m.readOnly("secrets", t)
}

// tostring returns the text of a value, as tostring makes it, and never shows an address. What a metamethod returns must be
// a text, or a number.
func (m *machine) tostring(v glua.LValue) string {
	text, ok := toText(m.tostringValue(v))
	if !ok {
		m.L.RaiseError("'__tostring' must return a string")
	}
	return text
}

// tostringValue returns what tostring returns: of a value with a metamethod whatever that does.
func (m *machine) tostringValue(v glua.LValue) glua.LValue {
	if t, ok := v.(*glua.LTable); ok && t.Metatable == m.errorMetatable {
		return glua.LString(m.errorText(t))
	}
	f, ok := m.L.GetMetaField(v, "__tostring").(*glua.LFunction)
	if !ok {
		return glua.LString(m.rawTostring(v))
	}
	m.L.Push(f)
	m.L.Push(v)
	m.L.Call(1, 1)
	defer m.L.Pop(1)
	return m.L.Get(-1)
}

// uncaughtText returns the text of an error that was not caught. Where its __tostring fails too, that is the raw text.
func (m *machine) uncaughtText(v glua.LValue) (text string) {
	f := m.L.NewFunction(func(L *glua.LState) int {
		text = m.tostring(L.Get(1))
		return 0
	})
	m.L.Push(f)
	m.L.Push(v)
	if m.protect(1, 0) != nil {
		return m.rawTostring(v)
	}
	return text
}

// rawTostring returns a value as text without metatables. Tables, functions and the like are numbered in the order in
// which they are first shown, so that the same run prints the same.
func (m *machine) rawTostring(v glua.LValue) string {
	switch v := v.(type) {
	case glua.LString:
		return string(v)
	case glua.LNumber:
		return numeral.Text(float64(v))
	case glua.LBool, *glua.LNilType:
		return v.String()
	}
	id := m.displayIDs[v]
	if id == 0 {
		id = len(m.displayIDs) + 1
		m.displayIDs[v] = id
	}
	return fmt.Sprintf("%s: %d", v.Type(), id)
}

// joinArguments returns the arguments of the running function, from first on, as text.
func (m *machine) joinArguments(first int, separator string) string {
	var parts []string
	for i := first; i <= m.L.GetTop(); i++ {
		parts = append(parts, m.tostring(m.L.Get(i)))
	}
	return strings.Join(parts, separator)
}

// openErrors makes the metatable of error tables: they can be printed and concatenated.
func (m *machine) openErrors() {
	m.errorMetatable = m.L.NewTable()
	m.errorMetatable.RawSetString("__tostring", m.function(func(L *glua.LState) int {
		L.Push(glua.LString(m.tostring(L.CheckAny(1))))
		return 1
	}))
	m.errorMetatable.RawSetString("__concat", m.function(func(L *glua.LState) int {
		L.Push(glua.LString(m.tostring(L.CheckAny(1)) + m.tostring(L.CheckAny(2))))
		return 1
	}))
	m.errorMetatable.RawSetString("__metatable", glua.LFalse)
}

// maxLogLine is how much is kept of one line of the log, in bytes.
const maxLogLine = 16 << 10

func (m *machine) logLine(level, line string) {
	if m.agent == nil || m.start.GetDescribe() {
		return
	}
	if len(line) > maxLogLine {
		line = fmt.Sprintf("%s… (%d bytes more)", line[:maxLogLine], len(line)-maxLogLine)
	}
	m.agent.notify(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Log{Log: &pb.RunnerLog{Level: level, Message: []byte(line)}}})
}

// openLog defines log(…), log.warn(…) and the like, and progress.
func (m *machine) openLog() {
	log, meta := m.L.NewTable(), m.L.NewTable()
	for _, level := range []string{"debug", "info", "warn", "error"} {
		log.RawSetString(level, m.function(func(*glua.LState) int { m.logLine(level, m.joinArguments(1, " ")); return 0 }))
	}
	meta.RawSetString("__call", m.function(func(*glua.LState) int { m.logLine("info", m.joinArguments(2, " ")); return 0 }))
	meta.RawSetString("__metatable", glua.LFalse)
	log.Metatable = meta
	m.L.SetGlobal("log", log)
	m.L.SetGlobal("progress", m.function(m.progress))
}

// progress(fraction[, step]) reports progress: fraction is from 0 to 1, or nil where it is not known.
func (m *machine) progress(L *glua.LState) int {
	m.refuseWhileDeclaring("progress")
	step := L.OptString(2, "")
	p := &pb.RunnerProgress{Step: []byte(step[:min(len(step), maxLogLine)])}
	if L.Get(1) != glua.LNil {
		fraction := float64(L.CheckNumber(1))
		if !(fraction >= 0 && fraction <= 1) {
			L.ArgError(1, "a fraction from 0 to 1 expected")
		}
		p.Fraction = &fraction
	}
	m.agent.notify(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Progress{Progress: p}})
	return 0
}
