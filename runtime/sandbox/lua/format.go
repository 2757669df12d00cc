package lua

import (
	"math"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
)

// format is string.format, with the conversions of the Lua manual only: those of Go would show addresses.
func format(a args) int {
	text, arg := a.text(1), 1
	out := builder{m: a.m}
	for {
		before, after, found := strings.Cut(text, "%")
		out.append(before)
		if !found {
			break
		}
		if strings.HasPrefix(after, "%") {
			out.append("%")
			text = after[1:]
			continue
		}
		spec, rest, wrong := numeral.ParseSpec(after)
		if wrong != "" {
			a.L.RaiseError("%s", wrong)
		}
		arg++
		a.convert(&out, spec, arg)
		text = rest
	}
	a.L.Push(out.value())
	return 1
}

// convert formats one argument.
func (a args) convert(out *builder, spec numeral.Spec, arg int) {
	if arg > a.L.GetTop() {
		a.argError(arg, "no value")
	}
	switch spec.Verb {
	case 'd', 'i':
		out.append(spec.Int(a.whole(arg)))
	case 'u', 'x', 'X', 'o':
		f := a.whole(arg)
		if f <= -1<<63-1 || f >= 1<<64 {
			a.argError(arg, "number has no representation of 64 bits")
		}
		out.append(spec.Uint(bits(f)))
	case 'c':
		out.append(spec.Pad(string([]byte{byte(a.int(arg))})))
	case 'e', 'E', 'f', 'g', 'G':
		out.append(spec.Float(a.number(arg)))
	case 'q':
		quote(out, a.text(arg))
	case 's':
		s := a.m.tostring(a.L.Get(arg))
		if spec.Precision >= 0 && spec.Precision < len(s) {
			s = s[:spec.Precision]
		}
		out.append(spec.Pad(s))
	case 0:
		a.L.RaiseError("%s", "invalid option '%' to 'format'")
	default:
		a.L.RaiseError("%s", "invalid option '%"+string(rune(spec.Verb))+"' to 'format'")
	}
}

// whole returns an argument without its fraction. One that is infinite or no number at all is an error.
func (a args) whole(arg int) float64 {
	f := math.Trunc(a.number(arg))
	if math.IsInf(f, 0) || f != f {
		a.argError(arg, "number has no integer representation")
	}
	return f
}

// bits returns a whole number's bits, negative ones in two's complement.
func bits(f float64) uint64 {
	if f >= 1<<63 && f < 1<<64 {
		return uint64(f)
	}
	return uint64(numeral.Int64(f))
}

// quote writes a string as Lua source.
func quote(out *builder, s string) {
	out.grow(len(s) + 2)
	out.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\', '\n':
			out.append(`\` + s[i:i+1])
		case '\r':
			out.append(`\r`)
		case 0:
			out.append(`\000`)
		default:
			out.append(s[i : i+1])
		}
	}
	out.WriteByte('"')
}

// openArithmetic makes arithmetic on strings follow the manual: the interpreter reads "010" as eight. Operands with
// metamethods keep theirs.
func (m *machine) openArithmetic(meta *glua.LTable) {
	for event, compute := range operators {
		meta.RawSetString(event, m.function(func(L *glua.LState) int {
			left, right := L.Get(1), L.Get(2)
			if left == glua.LString(lengthMark) && event == "__mod" {
				L.Push(m.measurable(L, right))
				return 1
			}
			if event == "__unm" { // one operand, which may be the only argument
				right = left
			}
			x, ok := toNumber(left)
			y, also := toNumber(right)
			if ok && also {
				L.Push(glua.LNumber(compute(x, y)))
				return 1
			}
			if f, ok := operandMetamethod(L, event, left, right).(*glua.LFunction); ok {
				L.Push(f)
				L.Push(left)
				L.Push(right)
				L.Call(2, 1)
				return 1
			}
			L.RaiseError("%s", m.failed(1).arithmeticError())
			return 0
		}))
	}
}

// operandMetamethod returns the metamethod of the operand that is not a string.
func operandMetamethod(L *glua.LState, event string, left, right glua.LValue) glua.LValue {
	for _, v := range []glua.LValue{left, right} {
		if v.Type() != glua.LTString {
			if f := L.GetMetaField(v, event); f != glua.LNil {
				return f
			}
		}
	}
	return glua.LNil
}
