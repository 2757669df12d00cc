package lua

import (
	"math"
	"strings"

	glua "github.com/yuin/gopher-lua"
)

// openStrings defines the string library, written from the manual: the interpreter's own takes quadratic time for
// honest work, or prints Go's representation of a value.
func (m *machine) openStrings() {
	t := m.registerFunctions("string", map[string]func(args) int{
		"byte": byteAt, "char": char, "find": find, "format": format, "gmatch": gmatch, "gfind": gmatch, "gsub": gsub,
		"len": length, "lower": lower, "match": match, "rep": rep, "reverse": reverse, "sub": sub, "upper": upper,
	})
	meta := m.L.NewTable()
	meta.RawSetString("__index", t)
	meta.RawSetString("__metatable", glua.LString("locked"))
	m.openArithmetic(meta)
	m.L.SetMetatable(glua.LString(""), meta)
}

// absoluteIndex converts an index that may count from the end, from -1.
func absoluteIndex(i, size int) int {
	if i >= 0 {
		return i
	}
	return max(size+i+1, 0)
}

func length(a args) int {
	a.L.Push(glua.LNumber(len(a.text(1))))
	return 1
}

func sub(a args) int {
	s := a.text(1)
	first := max(absoluteIndex(a.int(2), len(s)), 1)
	last := min(absoluteIndex(a.optInt(3, -1), len(s)), len(s))
	if first > last {
		a.L.Push(glua.LString(""))
	} else {
		a.L.Push(glua.LString(s[first-1 : last]))
	}
	return 1
}

// maxResults is how many values a function returns at most, as in Lua 5.1.
const maxResults = 8000

func byteAt(a args) int {
	s := a.text(1)
	first := absoluteIndex(a.optInt(2, 1), len(s))
	last := min(absoluteIndex(a.optInt(3, first), len(s)), len(s))
	first = max(first, 1)
	if last-first >= maxResults {
		a.L.RaiseError("string slice too long")
	}
	for i := first; i <= last; i++ {
		a.L.Push(glua.LNumber(s[i-1]))
	}
	return max(last-first+1, 0)
}

func char(a args) int {
	text := make([]byte, a.L.GetTop())
	for i := range text {
		n := a.int(i + 1)
		if n < 0 || n > 255 {
			a.argError(i+1, "invalid value")
		}
		text[i] = byte(n)
	}
	a.L.Push(glua.LString(text))
	return 1
}

func rep(a args) int {
	s, n := a.text(1), a.int(2)
	switch {
	case n < 1 || s == "":
		a.L.Push(glua.LString(""))
		return 1
	case n > math.MaxInt/len(s):
		a.m.reserve(math.MaxInt)
	}
	a.m.reserve(n * len(s))
	a.L.Push(glua.LString(strings.Repeat(s, n)))
	return 1
}

func upper(a args) int {
	return mapBytes(a, func(c byte) byte {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		return c
	})
}

func lower(a args) int {
	return mapBytes(a, func(c byte) byte {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	})
}

// mapBytes returns the first argument with each byte changed; bytes that are not ASCII letters mean nothing to Lua.
func mapBytes(a args, change func(byte) byte) int {
	s := a.text(1)
	out := builder{m: a.m}
	out.grow(len(s))
	for i := range len(s) {
		out.WriteByte(change(s[i]))
	}
	a.L.Push(out.value())
	return 1
}

func reverse(a args) int {
	s := a.text(1)
	out := builder{m: a.m}
	out.grow(len(s))
	for i := len(s) - 1; i >= 0; i-- {
		out.WriteByte(s[i])
	}
	a.L.Push(out.value())
	return 1
}
