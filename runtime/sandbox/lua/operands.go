package lua

import (
	"bytes"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// compiled is what was compiled under one name. An error in it is explained by its syntax tree, which is made when there
// is one: the text is compiled again with numbers of nodes for lines, so that each instruction tells the node that it
// comes from.
type compiled struct {
	text  []byte
	proto *glua.FunctionProto
	// operands are those of the nodes, and positions the numbers of the nodes by instruction.
	operands  *operands
	positions map[*glua.FunctionProto][]int
}

// node returns what an instruction of a function comes from; nil: that is not known.
func (s *compiled) node(p *glua.FunctionProto, pc int) ast.PositionHolder {
	if s.operands == nil {
		s.operands = &operands{names: map[ast.Expr]string{}, objects: map[ast.PositionHolder]bool{}}
		s.positions = map[*glua.FunctionProto][]int{}
		s.explain()
	}
	if at := s.positions[p]; pc < len(at) && at[pc] > 0 && at[pc] <= len(s.operands.nodes) {
		return s.operands.nodes[at[pc]-1]
	}
	return nil
}

// maxExplained is the longest text that is compiled again for the words of an error, in bytes. That counts as time of the script.
const maxExplained = 128 << 10

func (s *compiled) explain() {
	if s.proto == nil || len(s.text) > maxExplained {
		return
	}
	name := s.proto.SourceName
	chunk, err := parse.Parse(bytes.NewReader(s.text), name)
	if err != nil {
		return
	}
	if _, err := checkTree(chunk, name); err != nil {
		return
	}
	s.operands.block(chunk)
	if again, err := glua.Compile(chunk, name); err == nil {
		s.match(s.proto, again)
	}
}

func (s *compiled) match(compiled, again *glua.FunctionProto) {
	s.positions[compiled] = again.DbgSourcePositions
	for i, inner := range compiled.FunctionPrototypes {
		s.match(inner, again.FunctionPrototypes[i])
	}
}

// operands numbers the nodes of a syntax tree, from 1 on, and finds what Lua calls the expressions that have a name, such
// as "local 'x'" and "field 'y'".
type operands struct {
	nodes []ast.PositionHolder
	names map[ast.Expr]string
	// objects are the expressions that a method is defined for: what stores it there has the same number.
	objects map[ast.PositionHolder]bool
	// variables are the local ones that can be seen, the innermost last; depth is how many functions are around.
	variables []localVariable
	depth     int
}

type localVariable struct {
	name  string
	depth int
	means string // of one that stands in for an expression, what that is called
}

func (o *operands) number(n ast.PositionHolder) {
	o.nodes = append(o.nodes, n)
	n.SetLine(len(o.nodes))
	n.SetLastLine(len(o.nodes))
}

func (o *operands) declare(names ...string) {
	for _, name := range names {
		o.variables = append(o.variables, localVariable{name: name, depth: o.depth})
	}
}

// scope ends the variables that are declared in within.
func (o *operands) scope(within func()) {
	outside := len(o.variables)
	within()
	o.variables = o.variables[:outside]
}

func (o *operands) block(list []ast.Stmt) {
	o.scope(func() {
		for _, stmt := range list {
			o.statement(stmt)
		}
	})
}

func (o *operands) statement(stmt ast.Stmt) {
	o.number(stmt)
	switch n := stmt.(type) {
	case *ast.AssignStmt:
		o.all(n.Lhs)
		o.all(n.Rhs)
	case *ast.LocalAssignStmt:
		if len(n.Names) == 1 && len(n.Exprs) == 1 {
			if f, ok := n.Exprs[0].(*ast.FunctionExpr); ok {
				o.declare(n.Names...) // it is local function NAME
				o.expression(f)
				return
			}
		}
		o.all(n.Exprs)
		o.declare(n.Names...)
		for i, name := range n.Names {
			if name[0] == '(' && i < len(n.Exprs) {
				o.variables[len(o.variables)-len(n.Names)+i].means = o.names[n.Exprs[i]]
			}
		}
	case *ast.FuncCallStmt:
		o.expression(n.Expr)
	case *ast.DoBlockStmt:
		o.block(n.Stmts)
	case *ast.WhileStmt:
		o.expression(n.Condition)
		o.block(n.Stmts)
	case *ast.RepeatStmt:
		o.scope(func() {
			for _, stmt := range n.Stmts {
				o.statement(stmt)
			}
			o.expression(n.Condition) // it sees the variables of the body
		})
	case *ast.IfStmt:
		o.expression(n.Condition)
		o.block(n.Then)
		o.block(n.Else)
	case *ast.NumberForStmt:
		o.all([]ast.Expr{n.Init, n.Limit, n.Step})
		o.scope(func() { o.declare(n.Name); o.block(n.Stmts) })
	case *ast.GenericForStmt:
		o.all(n.Exprs)
		o.scope(func() { o.declare(n.Names...); o.block(n.Stmts) })
	case *ast.FuncDefStmt:
		if n.Name.Func != nil {
			o.expression(n.Name.Func)
			o.function(n.Func)
			return
		}
		o.expression(n.Name.Receiver)
		o.objects[n.Name.Receiver] = true
		o.function(n.Func, "self")
	case *ast.ReturnStmt:
		o.all(n.Exprs)
	}
}

func (o *operands) function(f *ast.FunctionExpr, parameters ...string) {
	o.number(f)
	o.depth++
	o.scope(func() {
		o.declare(parameters...)
		o.declare(f.ParList.Names...)
		if f.ParList.HasVargs {
			o.declare("arg")
		}
		o.block(f.Stmts)
	})
	o.depth--
}

func (o *operands) all(list []ast.Expr) {
	for _, e := range list {
		o.expression(e)
	}
}

func (o *operands) expression(e ast.Expr) {
	if e == nil {
		return
	}
	if f, ok := e.(*ast.FunctionExpr); ok {
		o.function(f)
		return
	}
	o.number(e)
	switch n := e.(type) {
	case *ast.IdentExpr:
		o.names[e] = o.variable(n.Value)
	case *ast.AttrGetExpr:
		o.all([]ast.Expr{n.Object, n.Key})
		field := "?"
		if key, ok := n.Key.(*ast.StringExpr); ok {
			field = key.Value
		}
		o.names[e] = "field '" + field + "'"
	case *ast.TableExpr:
		for _, f := range n.Fields {
			o.all([]ast.Expr{f.Key, f.Value})
		}
	case *ast.FuncCallExpr:
		o.all([]ast.Expr{n.Func, n.Receiver})
		o.all(n.Args)
	case *ast.LogicalOpExpr:
		o.all([]ast.Expr{n.Lhs, n.Rhs})
	case *ast.RelationalOpExpr:
		o.all([]ast.Expr{n.Lhs, n.Rhs})
	case *ast.StringConcatOpExpr:
		o.all([]ast.Expr{n.Lhs, n.Rhs})
	case *ast.ArithmeticOpExpr:
		o.all([]ast.Expr{n.Lhs, n.Rhs})
		if mark, ok := n.Lhs.(*ast.StringExpr); ok && mark.Value == lengthMark {
			o.names[e] = o.names[n.Rhs]
		}
	case *ast.UnaryMinusOpExpr:
		o.expression(n.Expr)
	case *ast.UnaryNotOpExpr:
		o.expression(n.Expr)
	case *ast.UnaryLenOpExpr:
		o.expression(n.Expr)
	}
}

// variable returns what Lua calls the variable that a name stands for here.
func (o *operands) variable(name string) string {
	for i := len(o.variables) - 1; i >= 0; i-- {
		switch v := o.variables[i]; {
		case v.name != name:
		case name[0] == '(':
			return v.means
		case v.depth == o.depth:
			return "local '" + name + "'"
		default:
			return "upvalue '" + name + "'"
		}
	}
	return "global '" + name + "'"
}
