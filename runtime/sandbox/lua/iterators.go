package lua

import (
	"fmt"

	"github.com/yuin/gopher-lua/ast"
)

// iteratorFirst returns a generic for that begins as the manual says: with three values, of which missing ones are nil. The
// compiler sees to that only where the list is a call. Of another it leaves what the registers had before, so that
// for k, v in next, t do goes on where another loop has ended; and where the list begins with a call of which more is made,
// as in for word in f().text:gmatch("%a+"), the next value takes the place of the first. Such a list is evaluated before:
//
//	do
//		local iterator1, iterator2, iterator3 = list
//		for names in iterator1, iterator2, iterator3 do … end
//	end
func iteratorFirst(n *ast.GenericForStmt) ast.Stmt {
	if len(n.Exprs) == 1 && severalValues(n.Exprs[0]) && !beginsWithCall(n.Exprs[0]) {
		return n
	}
	values := at(n, &ast.LocalAssignStmt{Exprs: n.Exprs})
	n.Exprs = nil
	for i := range 3 {
		name := fmt.Sprintf("(iterator %d)", i+1)
		values.Names = append(values.Names, name)
		n.Exprs = append(n.Exprs, at(n, &ast.IdentExpr{Value: name}))
	}
	return at(n, &ast.DoBlockStmt{Stmts: []ast.Stmt{values, n}})
}

// beginsWithCall reports whether an expression has a call or ... within it, in front of all else.
func beginsWithCall(e ast.Expr) bool {
	for within := false; ; within = true {
		switch n := e.(type) {
		case *ast.FuncCallExpr:
			if within {
				return true
			}
			e = n.Func
			if e == nil {
				e = n.Receiver
			}
		case *ast.Comma3Expr:
			return within
		case *ast.AttrGetExpr:
			e = n.Object
		case *ast.LogicalOpExpr:
			e = n.Lhs
		case *ast.RelationalOpExpr:
			e = n.Lhs
		case *ast.ArithmeticOpExpr:
			e = n.Lhs
		case *ast.StringConcatOpExpr:
			e = n.Lhs
		case *ast.UnaryMinusOpExpr:
			e = n.Expr
		case *ast.UnaryNotOpExpr:
			e = n.Expr
		case *ast.UnaryLenOpExpr:
			e = n.Expr
		default:
			return false
		}
	}
}

// isLocalFunction reports whether a statement is local function NAME, in which the function sees itself. The parser makes
// the same of local NAME = function, but for the last line.
func isLocalFunction(n *ast.LocalAssignStmt) bool {
	if len(n.Names) != 1 || len(n.Exprs) != 1 {
		return false
	}
	_, ok := n.Exprs[0].(*ast.FunctionExpr)
	return ok && n.LastLine() != 0
}

// outsideItself has the compiler take local NAME = function for what it is: in it, NAME is what it was before.
func outsideItself(n *ast.LocalAssignStmt) {
	if _, ok := n.Exprs[0].(*ast.FunctionExpr); ok && len(n.Names) == 1 && !isLocalFunction(n) {
		n.Exprs = append(n.Exprs, at(n, &ast.NilExpr{}))
	}
}
