package lua

import (
	"crypto/rand"
	"encoding/binary"
	"math"
	mathrand "math/rand/v2"
	"strings"

	glua "github.com/yuin/gopher-lua"
)

// openTables replaces table.concat, which would put every element on the interpreter's stack.
func (m *machine) openTables() {
	m.library("table", map[string]glua.LGFunction{"concat": m.concat})
}

func (m *machine) concat(L *glua.LState) int {
	t := m.backing(L.CheckTable(1))
	separator, first := L.OptString(2, ""), L.OptInt(3, 1)
	last := L.OptInt(4, t.Len())
	var out strings.Builder
	for i := first; i <= last; i++ {
		v := t.RawGetInt(i)
		switch v.(type) {
		case glua.LString, glua.LNumber:
			out.WriteString(m.plain(v))
		default:
			L.RaiseError("invalid value (%s) at index %d in table for 'concat'", v.Type(), i)
		}
		if i < last {
			out.WriteString(separator)
		}
	}
	L.Push(glua.LString(out.String()))
	return 1
}

// openMath replaces the random numbers, whose generator was the whole process's, by one of this run.
func (m *machine) openMath() {
	var seed [16]byte
	rand.Read(seed[:]) //nolint:errcheck // never fails
	random := mathrand.New(mathrand.NewPCG(binary.LittleEndian.Uint64(seed[:8]), binary.LittleEndian.Uint64(seed[8:])))
	m.library("math", map[string]glua.LGFunction{
		"randomseed": func(L *glua.LState) int {
			random = mathrand.New(mathrand.NewPCG(math.Float64bits(float64(L.CheckNumber(1))), 0))
			return 0
		},
		"random": func(L *glua.LState) int {
			low, high := 1.0, 0.0
			switch L.GetTop() {
			case 0:
				L.Push(glua.LNumber(random.Float64()))
				return 1
			case 1:
				high = float64(L.CheckInt64(1))
			default:
				low, high = float64(L.CheckInt64(1)), float64(L.CheckInt64(2))
			}
			if low > high || high-low >= 1<<53 {
				L.ArgError(min(L.GetTop(), 2), "interval is empty")
			}
			L.Push(glua.LNumber(low + float64(random.Int64N(int64(high-low)+1))))
			return 1
		},
	})
}
