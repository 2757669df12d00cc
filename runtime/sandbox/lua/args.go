package lua

import (
	"fmt"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
)

// args are the arguments of one call of a library function, counted from 1. A wrong one ends the call with an error in
// the words of Lua 5.1. An object before a colon counts as the first.
type args struct {
	m    *machine
	L    *glua.LState
	name string // of the function
}

// registerFunctions puts library functions into a global table.
func (m *machine) registerFunctions(library string, functions map[string]func(a args) int) *glua.LTable {
	wrapped := map[string]glua.LGFunction{}
	for name, f := range functions {
		wrapped[name] = m.wrap(name, f)
	}
	return m.library(library, wrapped)
}

func (m *machine) wrap(name string, f func(a args) int) glua.LGFunction {
	return func(L *glua.LState) int { return f(args{m, L, name}) }
}

// argError ends the call: an argument is wrong.
func (a args) argError(i int, why string) {
	a.L.RaiseError("%s", fmt.Sprintf("bad argument #%d to '%s' (%s)", i, a.name, why))
}

// typeError ends the call: an argument is of the wrong type.
func (a args) typeError(i int, what string) {
	got := "no value"
	if i <= a.L.GetTop() {
		got = a.L.Get(i).Type().String()
	}
	a.argError(i, what+" expected, got "+got)
}

func (a args) given(i int) bool { return a.L.Get(i) != glua.LNil }

func (a args) value(i int) glua.LValue {
	if i > a.L.GetTop() {
		a.argError(i, "value expected")
	}
	return a.L.Get(i)
}

func (a args) table(i int) *glua.LTable {
	t, ok := a.L.Get(i).(*glua.LTable)
	if !ok {
		a.typeError(i, "table")
	}
	return t
}

func (a args) function(i int) *glua.LFunction {
	f, ok := a.L.Get(i).(*glua.LFunction)
	if !ok {
		a.typeError(i, "function")
	}
	return f
}

// writableTable returns a table that may be changed.
func (a args) writableTable(i int) *glua.LTable {
	t := a.table(i)
	if a.m.readOnlyTables[t] != nil {
		a.argError(i, "a table that cannot be changed")
	}
	return t
}

func (a args) text(i int) string {
	s, ok := toText(a.L.Get(i))
	if !ok {
		a.typeError(i, "string")
	}
	return s
}

func (a args) optText(i int, missing string) string {
	if !a.given(i) {
		return missing
	}
	return a.text(i)
}

// toText converts what Lua accepts as a string: strings, and numbers as they print.
func toText(v glua.LValue) (string, bool) {
	switch v := v.(type) {
	case glua.LString:
		return string(v), true
	case glua.LNumber:
		return numeral.Text(float64(v)), true
	}
	return "", false
}

func (a args) number(i int) float64 {
	f, ok := toNumber(a.L.Get(i))
	if !ok {
		a.typeError(i, "number")
	}
	return f
}

// toNumber converts what Lua accepts as a number: numbers, and strings that read as one.
func toNumber(v glua.LValue) (float64, bool) {
	switch v := v.(type) {
	case glua.LNumber:
		return float64(v), true
	case glua.LString:
		return numeral.Parse(string(v))
	}
	return 0, false
}

// int returns a number without its fraction.
func (a args) int(i int) int { return int(numeral.Int64(a.number(i))) }

func (a args) optInt(i, missing int) int {
	if !a.given(i) {
		return missing
	}
	return a.int(i)
}
