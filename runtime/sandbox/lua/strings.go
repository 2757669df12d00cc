package lua

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	glua "github.com/yuin/gopher-lua"
)

// maxString is the longest string that one call of string.rep makes, in bytes. Larger ones are mistakes, and would be
// killed without a line.
const maxString = 8 << 20

func (m *machine) openStrings() {
	m.library("string", map[string]glua.LGFunction{"rep": m.rep, "format": m.format})
	if meta, ok := m.L.GetMetatable(glua.LString("")).(*glua.LTable); ok {
		meta.RawSetString("__metatable", glua.LString("locked"))
	}
}

func (m *machine) rep(L *glua.LState) int {
	s, n := L.CheckString(1), float64(L.CheckNumber(2))
	switch {
	case !(n >= 1) || s == "":
		L.Push(glua.LString(""))
	case n*float64(len(s)) > maxString:
		L.RaiseError("string.rep: %.0f bytes, the limit is %d", n*float64(len(s)), maxString)
	default:
		L.Push(glua.LString(strings.Repeat(s, int(n))))
	}
	return 1
}

// format knows the conversions of the Lua manual and no others: those of Go would show addresses.
func (m *machine) format(L *glua.LState) int {
	var out strings.Builder
	text, arg := L.CheckString(1), 1
	for {
		before, after, found := strings.Cut(text, "%")
		out.WriteString(before)
		if !found {
			break
		}
		if strings.HasPrefix(after, "%") {
			out.WriteByte('%')
			text = after[1:]
			continue
		}
		spec := after[:len(after)-len(strings.TrimLeft(after, "-+ #0123456789."))]
		if len(spec) == len(after) || !plausible(spec) {
			L.RaiseError("invalid option '%%%s' to 'format'", cutAt(after, len(spec)+1))
		}
		arg++
		m.convert(&out, spec, after[len(spec)], arg)
		text = after[len(spec)+1:]
	}
	L.Push(glua.LString(out.String()))
	return 1
}

func cutAt(s string, n int) string { return s[:min(n, len(s))] }

// plausible holds a specification against the manual: flags, at most two digits of width, and as many of precision.
func plausible(spec string) bool {
	width, precision, _ := strings.Cut(strings.TrimLeft(spec, "-+ #0"), ".")
	return len(width) <= 2 && len(precision) <= 2 && strings.Trim(width+precision, "0123456789") == ""
}

// convert prints one argument.
func (m *machine) convert(out *strings.Builder, spec string, verb byte, arg int) {
	L := m.L
	switch verb {
	case 'd', 'i', 'u':
		fmt.Fprintf(out, "%"+spec+"d", int64(L.CheckNumber(arg)))
	case 'x', 'X', 'o':
		n := int64(L.CheckNumber(arg))
		fmt.Fprintf(out, "%"+spec+string(verb), uint64(n))
	case 'c':
		pad(out, spec, string([]byte{byte(L.CheckInt(arg))}))
	case 'e', 'E', 'f', 'g', 'G':
		out.WriteString(formatNumber("%"+spec+string(verb), verb, float64(L.CheckNumber(arg))))
	case 'q':
		quote(out, L.CheckString(arg))
	case 's':
		s := m.text(L.CheckAny(arg))
		if _, precision, ok := strings.Cut(spec, "."); ok {
			n, _ := strconv.Atoi(precision)
			s = cutAt(s, n)
		}
		pad(out, spec, s)
	default:
		L.RaiseError("invalid option '%%%s%c' to 'format'", spec, verb)
	}
}

// formatNumber prints as C does, which takes 6 digits where Go takes what is needed.
func formatNumber(spec string, verb byte, f float64) string {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+"))
	}
	if !strings.Contains(spec, ".") {
		spec = spec[:len(spec)-1] + ".6" + string(verb)
	}
	return fmt.Sprintf(spec, f)
}

// pad widens by bytes, where Go would count characters.
func pad(out *strings.Builder, spec, s string) {
	width, _, _ := strings.Cut(strings.TrimLeft(spec, "-+ #0"), ".")
	n, _ := strconv.Atoi(width)
	space := strings.Repeat(" ", max(n-len(s), 0))
	if strings.HasPrefix(spec, "-") {
		out.WriteString(s + space)
	} else {
		out.WriteString(space + s)
	}
}

// quote writes a string as Lua source.
func quote(out *strings.Builder, s string) {
	out.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\', '\n':
			out.WriteByte('\\')
			out.WriteByte(c)
		case '\r':
			out.WriteString(`\r`)
		case 0:
			out.WriteString(`\000`)
		default:
			out.WriteByte(c)
		}
	}
	out.WriteByte('"')
}
