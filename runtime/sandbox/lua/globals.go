package lua

import (
	"fmt"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// withdrawn are the functions of the base library that reach files, compile, or see the interpreter itself.
var withdrawn = [...]string{
	"dofile", "load", "loadfile", "loadstring", "module", "getfenv", "setfenv", "newproxy", "_printregs",
	"_GOPHER_LUA_VERSION",
}

// open gives the script its world.
func (m *machine) open() {
	m.L.Push(m.L.NewFunction(glua.OpenBase))
	m.L.Push(glua.LString(glua.BaseLibName))
	m.L.Call(1, 0)
	for _, name := range withdrawn {
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

// function makes a Lua function of one that needs no interpreter given.
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
	for name, f := range map[string]glua.LGFunction{
		"collectgarbage": func(L *glua.LState) int { L.Push(glua.LNumber(0)); return 1 },
		"setmetatable":   m.wrapped("setmetatable", setmetatable),
		"tonumber":       m.wrapped("tonumber", tonumber),
		"tostring":       m.wrapped("tostring", tostring),
		"next":           m.next,
		"print":          func(L *glua.LState) int { m.logLine("info", m.joined(1, "\t")); return 0 },
	} {
		m.L.SetGlobal(name, m.L.NewFunction(f))
	}
	next := m.L.GetGlobal("next")
	m.L.SetGlobal("pairs", m.function(func(L *glua.LState) int {
		t := L.CheckTable(1)
		L.Push(next)
		L.Push(t)
		L.Push(glua.LNil)
		return 3
	}))
}

func tostring(a args) int {
	a.L.Push(glua.LString(a.m.text(a.any(1))))
	return 1
}

// setmetatable is for tables only: what strings and numbers do is not the script's to change.
func setmetatable(a args) int {
	t := a.table(1)
	meta := a.L.Get(2)
	if _, ok := meta.(*glua.LTable); !ok && (meta != glua.LNil || a.L.GetTop() < 2) {
		a.wanted(2, "nil or table")
	}
	if old, ok := t.Metatable.(*glua.LTable); ok && old.RawGetString("__metatable") != glua.LNil {
		a.L.RaiseError("cannot change a protected metatable")
	}
	t.Metatable = meta
	a.L.SetTop(1)
	return 1
}

// next sees through read-only tables, which are empty themselves.
func (m *machine) next(L *glua.LState) int {
	t := m.backing(L.CheckTable(1))
	var key glua.LValue = glua.LNil
	if L.GetTop() >= 2 {
		key = L.Get(2)
	}
	key, value := t.Next(key)
	L.Push(key)
	if key == glua.LNil {
		return 1
	}
	L.Push(value)
	return 2
}

// readOnly is a table that shows t and cannot be written to. The tables within t are the script's own.
func (m *machine) readOnly(name string, t *glua.LTable) *glua.LTable {
	front, meta := m.L.NewTable(), m.L.NewTable()
	meta.RawSetString("__index", t)
	meta.RawSetString("__newindex", m.function(func(L *glua.LState) int {
		L.RaiseError("%s cannot be changed", name)
		return 0
	}))
	meta.RawSetString("__len", m.function(func(L *glua.LState) int { L.Push(glua.LNumber(t.Len())); return 1 }))
	meta.RawSetString("__metatable", glua.LFalse)
	front.Metatable = meta
	m.real[front] = t
	return front
}

// backing is what a read-only table shows, or the table itself.
func (m *machine) backing(t *glua.LTable) *glua.LTable {
	if real := m.real[t]; real != nil {
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

// text is tostring: a __tostring is asked, and no address is shown.
func (m *machine) text(v glua.LValue) string {
	if t, ok := v.(*glua.LTable); ok && t.Metatable == m.errors {
		return m.errorText(t)
	}
	meta := m.L.GetMetaField(v, "__tostring")
	f, ok := meta.(*glua.LFunction)
	if !ok {
		return m.plain(v)
	}
	m.L.Push(f)
	m.L.Push(v)
	m.L.Call(1, 1)
	defer m.L.Pop(1)
	if s, ok := m.L.Get(-1).(glua.LString); ok {
		return string(s)
	}
	return m.plain(m.L.Get(-1))
}

// lastWords is text for an error that nobody caught: a __tostring that fails is not asked further.
func (m *machine) lastWords(v glua.LValue) (text string) {
	f := m.L.NewFunction(func(L *glua.LState) int {
		text = m.text(L.Get(1))
		return 0
	})
	m.L.Push(f)
	m.L.Push(v)
	if m.L.PCall(1, 0, nil) != nil {
		return m.plain(v)
	}
	return text
}

// plain is text without metatables. Tables, functions and the like are numbered as they are first shown: the same run
// prints the same.
func (m *machine) plain(v glua.LValue) string {
	switch v := v.(type) {
	case glua.LString:
		return string(v)
	case glua.LNumber:
		return numeral.Text(float64(v))
	case glua.LBool, *glua.LNilType:
		return v.String()
	}
	id := m.ids[v]
	if id == 0 {
		id = len(m.ids) + 1
		m.ids[v] = id
	}
	return fmt.Sprintf("%s: %d", v.Type(), id)
}

// joined prints the arguments of the running function from first on.
func (m *machine) joined(first int, separator string) string {
	var parts []string
	for i := first; i <= m.L.GetTop(); i++ {
		parts = append(parts, m.text(m.L.Get(i)))
	}
	return strings.Join(parts, separator)
}

// openErrors makes the metatable of error tables: they print, and join with text.
func (m *machine) openErrors() {
	m.errors = m.L.NewTable()
	m.errors.RawSetString("__tostring", m.function(func(L *glua.LState) int {
		L.Push(glua.LString(m.text(L.CheckAny(1))))
		return 1
	}))
	m.errors.RawSetString("__concat", m.function(func(L *glua.LState) int {
		L.Push(glua.LString(m.text(L.CheckAny(1)) + m.text(L.CheckAny(2))))
		return 1
	}))
	m.errors.RawSetString("__metatable", glua.LFalse)
}

// maxLine is what is kept of one line of the log, in bytes.
const maxLine = 16 << 10

func (m *machine) logLine(level, line string) {
	if m.wire == nil || m.start.GetDescribe() {
		return
	}
	if len(line) > maxLine {
		line = fmt.Sprintf("%s… (%d bytes more)", line[:maxLine], len(line)-maxLine)
	}
	m.wire.tell(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Log{Log: &pb.RunnerLog{Level: level, Message: []byte(line)}}})
}

// openLog makes log(…), log.warn(…) and the like, and progress.
func (m *machine) openLog() {
	log, meta := m.L.NewTable(), m.L.NewTable()
	for _, level := range []string{"debug", "info", "warn", "error"} {
		log.RawSetString(level, m.function(func(*glua.LState) int { m.logLine(level, m.joined(1, " ")); return 0 }))
	}
	meta.RawSetString("__call", m.function(func(*glua.LState) int { m.logLine("info", m.joined(2, " ")); return 0 }))
	meta.RawSetString("__metatable", glua.LFalse)
	log.Metatable = meta
	m.L.SetGlobal("log", log)
	m.L.SetGlobal("progress", m.function(m.progress))
}

// progress(fraction[, step]): how far the script is, from 0 to 1; nil where it cannot tell.
func (m *machine) progress(L *glua.LState) int {
	m.notDeclaring("progress")
	step := L.OptString(2, "")
	p := &pb.RunnerProgress{Step: []byte(step[:min(len(step), maxLine)])}
	if L.Get(1) != glua.LNil {
		fraction := float64(L.CheckNumber(1))
		if !(fraction >= 0 && fraction <= 1) {
			L.ArgError(1, "a fraction from 0 to 1 expected")
		}
		p.Fraction = &fraction
	}
	m.wire.tell(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Progress{Progress: p}})
	return 0
}
