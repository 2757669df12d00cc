package lua

import (
	"fmt"

	"github.com/yuin/gopher-lua/ast"
)

// separateAssignment returns a statement that assigns what the manual says: all expressions are evaluated before anything is
// assigned. The compiler evaluates into local variables at once: a, b = b, a gives both the same value, x = f() and y keeps
// x where f returns nil, and p = (f()) loses the last parameter p. It also loses count of its registers where a target is an
// element of a table. Statements that it compiles as they are written are returned as they are; others become
//
//	do
//		local object, key = table, index
//		local value1, value2 = expression1, expression2
//		variable = value2
//		object[key] = value1
//	end
//
// with names that no script can use.
func separateAssignment(n *ast.AssignStmt) ast.Stmt {
	if assignsAsWritten(n) {
		return n
	}
	block := &ast.DoBlockStmt{}
	places := &ast.LocalAssignStmt{}
	values := &ast.LocalAssignStmt{Exprs: n.Rhs}
	at := func(node ast.PositionHolder) {
		node.SetLine(n.Line())
		node.SetLastLine(n.LastLine())
	}
	variable := func(s *ast.LocalAssignStmt, what string) ast.Expr {
		v := &ast.IdentExpr{Value: fmt.Sprintf("(%s %d)", what, len(s.Names)+1)}
		at(v)
		s.Names = append(s.Names, v.Value)
		return v
	}
	place := func(e ast.Expr) ast.Expr {
		switch e.(type) {
		case *ast.StringExpr, *ast.NumberExpr:
			return e
		}
		places.Exprs = append(places.Exprs, e)
		return variable(places, "place")
	}
	var assignments []ast.Stmt
	for _, left := range n.Lhs {
		if element, ok := left.(*ast.AttrGetExpr); ok {
			element.Object, element.Key = place(element.Object), place(element.Key)
		}
		one := &ast.AssignStmt{Lhs: []ast.Expr{left}, Rhs: []ast.Expr{variable(values, "value")}}
		at(one)
		assignments = append([]ast.Stmt{one}, assignments...) // the last target is assigned first
	}
	if len(places.Names) > 0 {
		at(places)
		block.Stmts = append(block.Stmts, places)
	}
	at(values)
	block.Stmts = append(append(block.Stmts, values), assignments...)
	at(block)
	return block
}

// assignsAsWritten reports whether the compiler assigns what the statement says. It takes the parentheses from a call that
// is the only expression for the only target, where they change nothing but what the compiler does.
func assignsAsWritten(n *ast.AssignStmt) bool {
	variables := 0
	for _, left := range n.Lhs {
		if _, ok := left.(*ast.IdentExpr); ok {
			variables++
		}
	}
	switch {
	case variables == 0:
		return true
	case len(n.Rhs) > 1:
		return false
	case len(n.Lhs) > 1:
		return variables == len(n.Lhs) && severalValues(n.Rhs[0])
	}
	switch e := n.Rhs[0].(type) {
	case *ast.LogicalOpExpr:
		return false
	case *ast.FuncCallExpr:
		e.AdjustRet = false
	case *ast.Comma3Expr:
		e.AdjustRet = false
	}
	return true
}

// severalValues reports whether an expression at the end of a list stands for as many values as there are.
func severalValues(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.FuncCallExpr:
		return !e.AdjustRet
	case *ast.Comma3Expr:
		return !e.AdjustRet
	}
	return false
}
