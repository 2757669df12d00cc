package lua

import (
	"fmt"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
)

// args are the arguments of one call of a function of ours, counted from 1. What is wrong with one ends the call with an
// error in the words of Lua 5.1. An object before a colon counts as the first.
type args struct {
	m    *machine
	L    *glua.LState
	name string // of the function
}

// functions puts functions of ours into a global table.
func (m *machine) functions(library string, functions map[string]func(a args) int) *glua.LTable {
	wrapped := map[string]glua.LGFunction{}
	for name, f := range functions {
		wrapped[name] = m.wrapped(name, f)
	}
	return m.library(library, wrapped)
}

func (m *machine) wrapped(name string, f func(a args) int) glua.LGFunction {
	return func(L *glua.LState) int { return f(args{m, L, name}) }
}

// bad ends the call: an argument is not as it must be.
func (a args) bad(i int, why string) {
	a.L.RaiseError("%s", fmt.Sprintf("bad argument #%d to '%s' (%s)", i, a.name, why))
}

func (a args) wanted(i int, what string) {
	got := "no value"
	if i <= a.L.GetTop() {
		got = a.L.Get(i).Type().String()
	}
	a.bad(i, what+" expected, got "+got)
}

func (a args) has(i int) bool { return a.L.Get(i) != glua.LNil }

func (a args) any(i int) glua.LValue {
	if i > a.L.GetTop() {
		a.bad(i, "value expected")
	}
	return a.L.Get(i)
}

func (a args) table(i int) *glua.LTable {
	t, ok := a.L.Get(i).(*glua.LTable)
	if !ok {
		a.wanted(i, "table")
	}
	return t
}

// own is a table that may be changed.
func (a args) own(i int) *glua.LTable {
	t := a.table(i)
	if a.m.real[t] != nil {
		a.bad(i, "a table that cannot be changed")
	}
	return t
}

func (a args) text(i int) string {
	s, ok := textOf(a.L.Get(i))
	if !ok {
		a.wanted(i, "string")
	}
	return s
}

func (a args) textOr(i int, missing string) string {
	if !a.has(i) {
		return missing
	}
	return a.text(i)
}

// textOf is what Lua takes for a string: strings, and numbers as they print.
func textOf(v glua.LValue) (string, bool) {
	switch v := v.(type) {
	case glua.LString:
		return string(v), true
	case glua.LNumber:
		return numeral.Text(float64(v)), true
	}
	return "", false
}

func (a args) number(i int) float64 {
	f, ok := numberOf(a.L.Get(i))
	if !ok {
		a.wanted(i, "number")
	}
	return f
}

// numberOf is what Lua takes for a number: numbers, and strings that read as one.
func numberOf(v glua.LValue) (float64, bool) {
	switch v := v.(type) {
	case glua.LNumber:
		return float64(v), true
	case glua.LString:
		return numeral.Parse(string(v))
	}
	return 0, false
}

// int is a number without its fraction.
func (a args) int(i int) int { return int(numeral.Int64(a.number(i))) }

func (a args) intOr(i, missing int) int {
	if !a.has(i) {
		return missing
	}
	return a.int(i)
}
