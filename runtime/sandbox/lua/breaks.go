package lua

import "github.com/yuin/gopher-lua/ast"

// closeAtBreak returns the body of a loop, so that functions made in it keep their variables after a break. The compiler
// leaves those of a block within the body to whatever uses their place next, unless a function uses a variable of the body
// itself: one that never runs does so here. The body is returned as it is where there is no such break, or no function.
func closeAtBreak(body []ast.Stmt, hasFunction bool, loop ast.PositionHolder) []ast.Stmt {
	if !hasFunction || !breaksWithin(body, false) {
		return body
	}
	at := func(node ast.PositionHolder) {
		node.SetLine(loop.Line())
		node.SetLastLine(loop.Line())
	}
	const name = "(loop)"
	variable := &ast.IdentExpr{Value: name}
	result := &ast.ReturnStmt{Exprs: []ast.Expr{variable}}
	f := &ast.FunctionExpr{ParList: &ast.ParList{}, Stmts: []ast.Stmt{result}}
	never := &ast.LocalAssignStmt{Names: []string{"(never)"}, Exprs: []ast.Expr{f}}
	choice := &ast.IfStmt{Condition: comparison(false, loop), Then: []ast.Stmt{never}}
	start := &ast.LocalAssignStmt{Names: []string{name}}
	for _, node := range []ast.PositionHolder{variable, result, f, never, choice, start} {
		at(node)
	}
	return append([]ast.Stmt{start, choice}, body...)
}

// breaksWithin reports whether there is a break out of a loop, in a block within its body.
func breaksWithin(list []ast.Stmt, within bool) bool {
	for _, stmt := range list {
		switch n := stmt.(type) {
		case *ast.BreakStmt:
			if within {
				return true
			}
		case *ast.DoBlockStmt:
			if breaksWithin(n.Stmts, true) {
				return true
			}
		case *ast.IfStmt:
			if breaksWithin(n.Then, true) || breaksWithin(n.Else, true) {
				return true
			}
		}
	}
	return false
}
