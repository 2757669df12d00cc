package lua

import "github.com/yuin/gopher-lua/ast"

// closeAtBreak returns the body of a loop, so that functions made in it keep their variables after a break. The compiler
// leaves those of a block within the body to whatever uses their place next, unless a function uses a variable of the body
// itself: one that never runs does so here. The body is returned as it is where there is no such break, or no function.
func closeAtBreak(body []ast.Stmt, hasFunction bool, loop ast.PositionHolder) []ast.Stmt {
	if !hasFunction || !breaksWithin(body, false) {
		return body
	}
	return append(usedVariable(loop), body...)
}

// closeAtGoto returns do goto label end, in a block in which a function uses a variable. In another block the compiler takes
// all local variables of the function from the functions that use them.
func closeAtGoto(n *ast.GotoStmt) ast.Stmt {
	block := &ast.DoBlockStmt{Stmts: append(usedVariable(n), n)}
	block.SetLine(n.Line())
	block.SetLastLine(n.LastLine())
	return block
}

// usedVariable returns a local variable and a function that uses it and is never made.
func usedVariable(place ast.PositionHolder) []ast.Stmt {
	at := func(node ast.PositionHolder) {
		node.SetLine(place.Line())
		node.SetLastLine(place.Line())
	}
	const name = "(used)"
	variable := &ast.IdentExpr{Value: name}
	result := &ast.ReturnStmt{Exprs: []ast.Expr{variable}}
	f := &ast.FunctionExpr{ParList: &ast.ParList{}, Stmts: []ast.Stmt{result}}
	never := &ast.LocalAssignStmt{Names: []string{"(never)"}, Exprs: []ast.Expr{f}}
	choice := &ast.IfStmt{Condition: comparison(false, place), Then: []ast.Stmt{never}}
	start := &ast.LocalAssignStmt{Names: []string{name}}
	for _, node := range []ast.PositionHolder{variable, result, f, never, choice, start} {
		at(node)
	}
	return []ast.Stmt{start, choice}
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
