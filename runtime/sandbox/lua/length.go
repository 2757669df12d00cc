package lua

import (
	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
)

// The interpreter keeps the elements of a table below glua.MaxArrayIndex in a list that is as long as the highest index: a
// single element with a high index costs as much as all below it. What is beyond the bound costs what it holds, but the
// interpreter's own length and ipairs do not see it. So the bound is low, and both are this file's.

// listShare is which part of the memory a list takes at most, as long as its elements are kept as one. The limit of 64 MiB
// makes that 1,048,575 elements; one that is longer takes about ten times as much for each element beyond.
const listShare = 4

// boundLists sets the bound for all interpreters of the process by their memory, in bytes.
func boundLists(memory uint64) { glua.MaxArrayIndex = int(min(memory/listShare/valueSize, 1<<26)) }

// listLength returns the length of a table as # means it, of whatever length.
func listLength(t *glua.LTable) int {
	n := t.Len()
	if n < glua.MaxArrayIndex-1 || t.RawGet(glua.LNumber(n+1)) == glua.LNil {
		return n
	}
	low, high := n+1, 2*(n+1)
	for t.RawGet(glua.LNumber(high)) != glua.LNil {
		low, high = high, 2*high
	}
	for high-low > 1 {
		if middle := low + (high-low)/2; t.RawGet(glua.LNumber(middle)) != glua.LNil {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// lengthMark is the left operand of a % whose right one is to be measured, which no script can have meant: it is no number.
const lengthMark = "\x00#"

// measurable returns what the interpreter's # gives the length of a value of: the value, or a table that says how long a
// longer one is.
func (m *machine) measurable(L *glua.LState, v glua.LValue) glua.LValue {
	t, ok := v.(*glua.LTable)
	if !ok || t.Len() < glua.MaxArrayIndex-1 || L.GetMetaField(v, "__len") != glua.LNil {
		return v
	}
	n := glua.LNumber(listLength(t))
	front, meta := L.NewTable(), L.NewTable()
	meta.RawSetString("__len", m.function(func(L *glua.LState) int { L.Push(n); return 1 }))
	front.Metatable = meta
	return front
}

// ofAnyLength changes # of an expression so that it is what listLength says: #(mark % x).
func ofAnyLength(n *ast.UnaryLenOpExpr) {
	switch n.Expr.(type) {
	case *ast.StringExpr, *ast.TableExpr:
	default:
		n.Expr = at(n, &ast.ArithmeticOpExpr{Operator: "%", Lhs: at(n, &ast.StringExpr{Value: lengthMark}), Rhs: n.Expr})
	}
}

func at[E ast.PositionHolder](n ast.PositionHolder, e E) E {
	e.SetLine(n.Line())
	e.SetLastLine(n.LastLine())
	return e
}
