package lua

import "github.com/yuin/gopher-lua/ast"

// The compiler mistakes where a jump back goes if the first instruction there is a jump itself: such a loop never ends, or
// goes on in the middle of other statements. Code begins with a jump where a constant decides, and at a break. So that
// neither happens, a constant that decides becomes a comparison of numbers, and a break at the beginning of a block is put
// after one.

// truth returns whether an expression is a constant, and what it is as a condition.
func truth(e ast.Expr) (isTrue, isConstant bool) {
	switch e.(type) {
	case *ast.FalseExpr, *ast.NilExpr:
		return false, true
	case *ast.TrueExpr, *ast.NumberExpr, *ast.StringExpr:
		return true, true
	}
	return false, false
}

// comparison returns 0 == 0 or 0 == 1.
func comparison(isTrue bool, at ast.PositionHolder) ast.Expr {
	number := func(text string) ast.Expr {
		n := &ast.NumberExpr{Value: text}
		n.SetLine(at.Line())
		n.SetLastLine(at.LastLine())
		return n
	}
	right := "1"
	if isTrue {
		right = "0"
	}
	e := &ast.RelationalOpExpr{Operator: "==", Lhs: number("0"), Rhs: number(right)}
	e.SetLine(at.Line())
	e.SetLastLine(at.LastLine())
	return e
}

// condition returns an expression that is as true as e, and is no constant.
func condition(e ast.Expr) ast.Expr {
	if isTrue, isConstant := truth(e); isConstant {
		return comparison(isTrue, e)
	}
	return e
}

// decideLate changes a logical expression whose first operand is a constant into one with the same value whose first operand
// is none.
func decideLate(n *ast.LogicalOpExpr) {
	isTrue, isConstant := truth(n.Lhs)
	if !isConstant {
		return
	}
	constant := n.Lhs
	n.Lhs = comparison(isTrue, constant)
	switch {
	case isTrue && n.Operator == "or":
		n.Operator, n.Rhs = "and", constant
	case !isTrue && n.Operator == "and":
		n.Operator, n.Rhs = "or", constant
	}
}

// breakLate returns if 0 == 0 then break end.
func breakLate(n *ast.BreakStmt) ast.Stmt {
	s := &ast.IfStmt{Condition: comparison(true, n), Then: []ast.Stmt{n}}
	s.SetLine(n.Line())
	s.SetLastLine(n.LastLine())
	return s
}
