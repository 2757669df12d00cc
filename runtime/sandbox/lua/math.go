package lua

import (
	"crypto/rand"
	"encoding/binary"
	"math"
	mathrand "math/rand/v2"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
)

// unaryFunctions take one number and return one.
var unaryFunctions = map[string]func(float64) float64{
	"abs": math.Abs, "acos": math.Acos, "asin": math.Asin, "atan": math.Atan, "ceil": math.Ceil, "cos": math.Cos,
	"cosh": math.Cosh, "exp": math.Exp, "floor": math.Floor, "log": math.Log, "log10": math.Log10, "sin": math.Sin,
	"sinh": math.Sinh, "sqrt": math.Sqrt, "tan": math.Tan, "tanh": math.Tanh,
	"deg": func(f float64) float64 { return f / (math.Pi / 180) },
	"rad": func(f float64) float64 { return f * (math.Pi / 180) },
}

// binaryFunctions take two numbers and return one.
var binaryFunctions = map[string]func(x, y float64) float64{
	"atan2": math.Atan2, "fmod": math.Mod, "mod": math.Mod, "pow": math.Pow,
}

// operators are the arithmetic operators, by the names of their metamethods.
var operators = map[string]func(x, y float64) float64{
	"__add": func(x, y float64) float64 { return x + y },
	"__sub": func(x, y float64) float64 { return x - y },
	"__mul": func(x, y float64) float64 { return x * y },
	"__div": func(x, y float64) float64 { return x / y },
	"__mod": modulo,
	"__pow": math.Pow,
	"__unm": func(x, _ float64) float64 { return -x },
}

// modulo returns a result with the sign of y, as the interpreter does.
func modulo(x, y float64) float64 {
	r := math.Mod(x, y)
	if r*y < 0 {
		r += y
	}
	return r
}

// openMath defines the math library.
func (m *machine) openMath() {
	all := map[string]func(args) int{
		"frexp": frexp, "modf": modf, "max": extreme(func(x, y float64) bool { return y > x }),
		"min":   extreme(func(x, y float64) bool { return y < x }),
		"ldexp": func(a args) int { return a.pushNumbers(math.Ldexp(a.number(1), a.int(2))) },
	}
	for name, f := range unaryFunctions {
		all[name] = func(a args) int { return a.pushNumbers(f(a.number(1))) }
	}
	for name, f := range binaryFunctions {
		all[name] = func(a args) int { return a.pushNumbers(f(a.number(1), a.number(2))) }
	}
	m.addRandom(all)
	t := m.registerFunctions("math", all)
	t.RawSetString("pi", glua.LNumber(math.Pi))
	t.RawSetString("huge", glua.LNumber(math.Inf(1)))
}

func (a args) pushNumbers(numbers ...float64) int {
	for _, f := range numbers {
		a.L.Push(glua.LNumber(f))
	}
	return len(numbers)
}

func frexp(a args) int {
	fraction, exponent := math.Frexp(a.number(1))
	return a.pushNumbers(fraction, float64(exponent))
}

func modf(a args) int {
	f := a.number(1)
	if math.IsInf(f, 0) {
		return a.pushNumbers(f, 0)
	}
	whole, fraction := math.Modf(f)
	return a.pushNumbers(whole, fraction)
}

// extreme returns a function that returns the argument that no other beats.
func extreme(beats func(x, y float64) bool) func(args) int {
	return func(a args) int {
		best := a.number(1)
		for i := 2; i <= a.L.GetTop(); i++ {
			if f := a.number(i); beats(best, f) {
				best = f
			}
		}
		return a.pushNumbers(best)
	}
}

// addRandom adds the random numbers: different in each run, unless the script sets a seed.
func (m *machine) addRandom(all map[string]func(args) int) {
	var seed [16]byte
	rand.Read(seed[:]) //nolint:errcheck // never fails
	random := mathrand.New(mathrand.NewPCG(binary.LittleEndian.Uint64(seed[:8]), binary.LittleEndian.Uint64(seed[8:])))
	all["randomseed"] = func(a args) int {
		random = mathrand.New(mathrand.NewPCG(math.Float64bits(a.number(1)), 0))
		return 0
	}
	all["random"] = func(a args) int {
		low, high, last := 1.0, 0.0, min(a.L.GetTop(), 2)
		switch last {
		case 0:
			return a.pushNumbers(random.Float64())
		case 1:
			high = float64(a.int(1))
		default:
			low, high = float64(a.int(1)), float64(a.int(2))
		}
		if low > high {
			a.argError(last, "interval is empty")
		}
		if high-low >= 1<<53 {
			a.argError(last, "interval is too large")
		}
		return a.pushNumbers(low + float64(random.Int64N(int64(high-low)+1)))
	}
}

// tonumber reads a number, or a whole one to a base.
func tonumber(a args) int {
	base := a.optInt(2, 10)
	if base == 10 {
		if f, ok := toNumber(a.value(1)); ok {
			return a.pushNumbers(f)
		}
		a.L.Push(glua.LNil)
		return 1
	}
	text := a.text(1)
	if base < 2 || base > 36 {
		a.argError(2, "base out of range")
	}
	if f, ok := numeral.ParseBase(text, base); ok {
		return a.pushNumbers(f)
	}
	a.L.Push(glua.LNil)
	return 1
}
