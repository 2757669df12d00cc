package lua

import (
	"fmt"
	"math"
	"math/big"
	"strconv"

	"github.com/yuin/gopher-lua/ast"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
)

// treeChecker checks the syntax tree of a script before it is compiled. It refuses what the interpreter would compile
// to something else without a word, and makes its numbers those of the Lua manual.
type treeChecker struct {
	name string // of the script
	// loops are the functions that have a loop or a goto, by the line on which they begin.
	loops map[int]bool
	// begins is the line of the function that is being checked, and jumps at least the number of its jump targets.
	begins, jumps int
	// functions is how many functions were seen, and mentioned how often a name was.
	functions int
	mentioned map[string]int
	err       *failure // the first
}

// checkTree checks a script. It returns the functions that have loops, as correct needs them.
func checkTree(chunk []ast.Stmt, name string) (loops map[int]bool, err error) {
	c := &treeChecker{name: name, loops: map[int]bool{}, mentioned: map[string]int{}}
	visitAll(c, chunk)
	if c.err != nil {
		return nil, c.err
	}
	return c.loops, nil
}

func (c *treeChecker) refuse(line int, format string, args ...any) {
	if c.err == nil {
		c.err = &failure{kind: "syntax", message: fmt.Sprintf(format, args...), at: position{c.name, line}}
	}
}

// visitAll checks nodes, and rewrites the statements among them that the compiler would not understand.
func visitAll[T any](c *treeChecker, nodes []T) {
	for i := range nodes {
		c.visit(nodes[i])
		if stmt, ok := any(&nodes[i]).(*ast.Stmt); ok {
			switch n := (*stmt).(type) {
			case *ast.AssignStmt:
				*stmt = separateAssignment(n)
			case *ast.GenericForStmt:
				*stmt = iteratorFirst(n)
			case *ast.GotoStmt:
				*stmt = closeAtGoto(n)
			case *ast.BreakStmt:
				if i == 0 {
					*stmt = breakLate(n)
				}
			}
		}
	}
}

// atOnce refuses a list of more values than a function has registers.
func (c *treeChecker) atOnce(n ast.PositionHolder, count int) {
	if count > maxRegister {
		c.refuse(n.Line(), "%d values at once, the limit is %d", count, maxRegister)
	}
}

// jump counts jump targets.
func (c *treeChecker) jump(n ast.PositionHolder, count int) {
	if c.jumps += count; c.jumps > maxJump {
		c.refuse(n.Line(), "a function has too many conditions, split it")
	}
}

// visit checks a node, which may be nil, and those below it, until something is refused.
func (c *treeChecker) visit(node any) {
	if c.err != nil {
		return
	}
	switch n := node.(type) {
	case *ast.AssignStmt:
		c.atOnce(n, len(n.Lhs))
		c.atOnce(n, len(n.Rhs))
		visitAll(c, n.Lhs)
		visitAll(c, n.Rhs)
	case *ast.LocalAssignStmt:
		c.atOnce(n, len(n.Names))
		c.atOnce(n, len(n.Exprs))
		before := c.mentioned[n.Names[0]]
		visitAll(c, n.Exprs)
		if len(n.Exprs) == 1 && c.mentioned[n.Names[0]] > before {
			outsideItself(n)
		}
	case *ast.FuncCallStmt:
		c.visit(n.Expr)
	case *ast.DoBlockStmt:
		visitAll(c, n.Stmts)
	case *ast.WhileStmt:
		c.loop(n)
		c.visit(n.Condition)
		n.Stmts = c.body(n.Stmts, n)
		if _, endless := n.Condition.(*ast.TrueExpr); !endless {
			n.Condition = condition(n.Condition)
		}
	case *ast.RepeatStmt:
		c.loop(n)
		n.Stmts = c.body(n.Stmts, n)
		c.visit(n.Condition)
		n.Condition = condition(n.Condition)
	case *ast.IfStmt:
		c.jump(n, 3)
		c.visit(n.Condition)
		n.Condition = condition(n.Condition)
		visitAll(c, n.Then)
		visitAll(c, n.Else)
	case *ast.NumberForStmt:
		c.loop(n)
		visitAll(c, []ast.Expr{n.Init, n.Limit, n.Step})
		n.Stmts = c.body(n.Stmts, n)
	case *ast.GenericForStmt:
		c.loop(n)
		c.atOnce(n, len(n.Exprs))
		visitAll(c, n.Exprs)
		n.Stmts = c.body(n.Stmts, n)
	case *ast.GotoStmt:
		c.loop(n)
	case *ast.BreakStmt:
		c.jump(n, 3) // of breakLate
	case *ast.LabelStmt:
		c.jump(n, 1)
	case *ast.FuncDefStmt:
		if n.Name.Func != nil {
			c.visit(n.Name.Func)
		}
		c.visit(n.Name.Receiver)
		c.visit(n.Func)
	case *ast.ReturnStmt:
		c.atOnce(n, len(n.Exprs))
		visitAll(c, n.Exprs)
	default:
		c.visitExpr(node)
	}
}

func (c *treeChecker) visitExpr(node any) {
	switch n := node.(type) {
	case *ast.IdentExpr:
		c.mentioned[n.Value]++
	case *ast.NumberExpr:
		c.number(n)
	case *ast.AttrGetExpr:
		visitAll(c, []ast.Expr{n.Object, n.Key})
	case *ast.TableExpr:
		for _, f := range n.Fields {
			visitAll(c, []ast.Expr{f.Key, f.Value})
			if f.Key != nil {
				oneValue(f.Value)
			}
		}
	case *ast.FuncCallExpr:
		c.atOnce(n, len(n.Args))
		visitAll(c, []ast.Expr{n.Func, n.Receiver})
		visitAll(c, n.Args)
	case *ast.FunctionExpr:
		c.functions++
		begins, jumps := c.begins, c.jumps
		c.begins, c.jumps = n.Line(), 0
		visitAll(c, n.Stmts)
		c.begins, c.jumps = begins, jumps
	case *ast.LogicalOpExpr:
		c.jump(n, 4)
		visitAll(c, []ast.Expr{n.Lhs, n.Rhs})
		decideLate(n)
	case *ast.RelationalOpExpr:
		c.jump(n, 1)
		visitAll(c, []ast.Expr{n.Lhs, n.Rhs})
	case *ast.StringConcatOpExpr:
		count := 2
		for right, ok := n.Rhs.(*ast.StringConcatOpExpr); ok; right, ok = right.Rhs.(*ast.StringConcatOpExpr) {
			count++
		}
		c.atOnce(n, count)
		visitAll(c, []ast.Expr{n.Lhs, n.Rhs})
	case *ast.ArithmeticOpExpr:
		visitAll(c, []ast.Expr{n.Lhs, n.Rhs})
	case *ast.UnaryMinusOpExpr:
		c.visit(n.Expr)
	case *ast.UnaryNotOpExpr:
		c.visit(n.Expr)
		n.Expr = condition(n.Expr)
	case *ast.UnaryLenOpExpr:
		c.visit(n.Expr)
		ofAnyLength(n)
	}
}

// oneValue puts an expression in parentheses. Where a table ends in NAME = f() the compiler takes it for {…, f()}.
func oneValue(e ast.Expr) {
	switch e := e.(type) {
	case *ast.FuncCallExpr:
		e.AdjustRet = true
	case *ast.Comma3Expr:
		e.AdjustRet = true
	}
}

func (c *treeChecker) loop(n ast.PositionHolder) {
	c.loops[c.begins] = true
	c.jump(n, 6) // 3 are of closeAtBreak and closeAtGoto
}

// body checks the body of a loop and returns what is to be compiled.
func (c *treeChecker) body(list []ast.Stmt, loop ast.PositionHolder) []ast.Stmt {
	before := c.functions
	visitAll(c, list)
	return closeAtBreak(list, c.functions > before, loop)
}

// number makes a number in the script what the manual says: the compiler takes 00644 for octal, and what it cannot read
// for nan. A whole number that no Lua number is equal to is refused: the script would work with another one.
func (c *treeChecker) number(n *ast.NumberExpr) {
	f, ok := numeral.Parse(n.Value)
	if !ok {
		c.refuse(n.Line(), "malformed number %s", n.Value)
		return
	}
	if whole, ok := wholeNumber(n.Value); ok && !isExact(whole, f) {
		c.refuse(n.Line(), "a number in Lua cannot be %s exactly; make it text, with quotes", n.Value)
	}
	n.Value = strconv.FormatFloat(f, 'g', -1, 64)
	if math.IsInf(f, 0) {
		n.Value = "inf"
	}
}

// wholeNumber returns the number that digits stand for, decimal or after 0x hexadecimal, with all of them; false: there
// is something else than digits.
func wholeNumber(text string) (*big.Int, bool) {
	digits, base := text, 10
	if len(text) > 2 && text[0] == '0' && text[1]|0x20 == 'x' {
		digits, base = text[2:], 16
	}
	return new(big.Int).SetString(digits, base)
}

// isExact reports whether a number is a whole one, without a difference.
func isExact(whole *big.Int, f float64) bool {
	if math.IsInf(f, 0) || f != f {
		return false
	}
	exact, accuracy := new(big.Float).SetFloat64(f).Int(nil)
	return accuracy == big.Exact && exact.Cmp(whole) == 0
}
