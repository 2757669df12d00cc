package lua

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxFindings is how many findings of one script are reported.
const maxFindings = 100

// check reports the faults of a script that parses: those that its text shows, and for a declared one those of its
// declaration.
func (m *machine) check(main *glua.LFunction, declares bool) (*pb.RunnerDone, error) {
	done := &pb.RunnerDone{}
	chunk, err := parse.Parse(bytes.NewReader(withoutPreamble(m.start.GetSource())), m.start.GetName())
	if err != nil {
		return nil, syntaxError(err, m.start.GetName(), m.start.GetSource())
	}
	c := m.analyze(chunk)
	if declares {
		m.start.Describe = true
		described, err := m.runDeclared(main)
		if err != nil && m.stopper.stopped() {
			return nil, err
		}
		if err != nil {
			f := m.failure(err)
			column := int(f.GetColumn())
			if column == 0 && f.GetKind() == "syntax" {
				column = c.columns.column("script", int(f.GetLine()), "script")
			}
			c.report(int(f.GetLine()), column, "%s", f.GetMessage())
		}
		done.Declaration = described.GetDeclaration()
		c.checkNeeds(done.Declaration.GetNeeds(), chunk)
	}
	sort.SliceStable(c.found, func(i, j int) bool {
		a, b := c.found[i], c.found[j]
		return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
	})
	done.Findings = c.found[:min(len(c.found), maxFindings)]
	return done, nil
}

// analyze walks the syntax tree of a script.
func (m *machine) analyze(chunk []ast.Stmt) *checker {
	c := &checker{m: m, functions: map[string]*pb.RunnerFunction{}, assigned: map[string]bool{"params": true},
		columns: newColumnIndex(withoutPreamble(m.start.GetSource()), m.start.GetName())}
	for _, f := range m.start.GetFunctions() {
		c.functions[f.GetName()] = f
	}
	c.block(chunk, &scope{})
	for _, read := range c.reads { // known only now: a function may read what is assigned after it
		if !c.assigned[read.name] {
			c.reportUnknown(read)
		}
	}
	return c
}

// checker walks the syntax tree of a script and collects findings.
type checker struct {
	m              *machine
	functions      map[string]*pb.RunnerFunction
	assigned       map[string]bool // globals that the script itself makes
	reads          []globalRead
	columns        *columnIndex
	uses           []use
	requires       bool             // the script uses require
	calledFunction *ast.AttrGetExpr // the function of the call that is being checked
	found          []*pb.RunnerFinding
}

// globalRead is a use of a name that is no local variable.
type globalRead struct {
	name         string
	line, column int
}

// scope holds the local variables of a block.
type scope struct {
	outer *scope
	names map[string]bool
}

func (s *scope) inner(names ...string) *scope {
	inner := &scope{outer: s}
	inner.add(names...)
	return inner
}

func (s *scope) add(names ...string) {
	if s.names == nil {
		s.names = map[string]bool{}
	}
	for _, name := range names {
		s.names[name] = true
	}
}

func (s *scope) has(name string) bool {
	for ; s != nil; s = s.outer {
		if s.names[name] {
			return true
		}
	}
	return false
}

func (c *checker) report(line, column int, format string, args ...any) {
	c.found = append(c.found, &pb.RunnerFinding{Line: uint32(max(line, 0)), Column: uint32(column), Message: toValidText(fmt.Sprintf(format, args...))})
}

func (c *checker) reportUnknown(r globalRead) {
	text := fmt.Sprintf("%s is not known", r.name)
	var names []string
	c.m.L.G.Global.ForEach(func(k, _ glua.LValue) { names = append(names, k.String()) })
	sort.Strings(names)
	if other := suggest.Closest(r.name, names); other != "" {
		text += fmt.Sprintf(", did you mean %s?", other)
	}
	c.report(r.line, r.column, "%s", text)
}

func (c *checker) block(list []ast.Stmt, s *scope) {
	for _, stmt := range list {
		c.stmt(stmt, s)
	}
}

func (c *checker) stmt(stmt ast.Stmt, s *scope) {
	switch n := stmt.(type) {
	case *ast.AssignStmt:
		c.exprs(n.Rhs, s)
		for _, left := range n.Lhs {
			c.assign(left, s)
		}
	case *ast.LocalAssignStmt:
		if isLocalFunction(n) {
			s.add(n.Names...)
		}
		c.exprs(n.Exprs, s)
		s.add(n.Names...)
	case *ast.FuncCallStmt:
		c.expr(n.Expr, s)
	case *ast.DoBlockStmt:
		c.block(n.Stmts, s.inner())
	case *ast.WhileStmt:
		c.expr(n.Condition, s)
		c.block(n.Stmts, s.inner())
	case *ast.RepeatStmt:
		inner := s.inner()
		c.block(n.Stmts, inner)
		c.expr(n.Condition, inner)
	case *ast.IfStmt:
		c.expr(n.Condition, s)
		c.block(n.Then, s.inner())
		c.block(n.Else, s.inner())
	case *ast.NumberForStmt:
		c.exprs([]ast.Expr{n.Init, n.Limit, n.Step}, s)
		c.block(n.Stmts, s.inner(n.Name))
	case *ast.GenericForStmt:
		c.exprs(n.Exprs, s)
		c.block(n.Stmts, s.inner(n.Names...))
	case *ast.FuncDefStmt:
		c.funcDef(n, s)
	case *ast.ReturnStmt:
		c.exprs(n.Exprs, s)
	}
}

func (c *checker) funcDef(n *ast.FuncDefStmt, s *scope) {
	if n.Name.Receiver != nil { // function t:f()
		c.expr(n.Name.Receiver, s)
		c.expr(n.Func, s.inner("self"))
		return
	}
	c.assign(n.Name.Func, s)
	c.expr(n.Func, s)
}

// assign notes an assignment to a global. All modules see such a global, also where only the word local was forgotten.
func (c *checker) assign(left ast.Expr, s *scope) {
	ident, ok := left.(*ast.IdentExpr)
	if !ok {
		c.expr(left, s)
		return
	}
	if s.has(ident.Value) {
		return
	}
	column := c.columns.column("assign", ident.Line(), ident.Value)
	if c.m.L.GetGlobal(ident.Value) != glua.LNil {
		c.report(ident.Line(), column, "%s is the language's own, and is replaced here", ident.Value)
	} else if !c.assigned[ident.Value] {
		c.report(ident.Line(), column, "%s becomes a global: is local missing?", ident.Value)
	}
	c.assigned[ident.Value] = true
}

func (c *checker) exprs(list []ast.Expr, s *scope) {
	for _, e := range list {
		c.expr(e, s)
	}
}

func (c *checker) expr(e ast.Expr, s *scope) {
	switch n := e.(type) {
	case *ast.IdentExpr:
		c.ident(n, s)
		if !s.has(n.Value) && c.isRoom(n.Value) { // a room that is passed on may be used for anything
			c.addMention(n.Value+".", n.Line(), 0)
		}
	case *ast.AttrGetExpr:
		c.attr(n, s)
	case *ast.TableExpr:
		for _, f := range n.Fields {
			c.exprs([]ast.Expr{f.Key, f.Value}, s)
		}
	case *ast.FuncCallExpr:
		c.call(n, s)
	case *ast.FunctionExpr:
		inner := s.inner(n.ParList.Names...)
		c.block(n.Stmts, inner)
	case *ast.LogicalOpExpr:
		c.exprs([]ast.Expr{n.Lhs, n.Rhs}, s)
	case *ast.RelationalOpExpr:
		c.exprs([]ast.Expr{n.Lhs, n.Rhs}, s)
	case *ast.StringConcatOpExpr:
		c.exprs([]ast.Expr{n.Lhs, n.Rhs}, s)
	case *ast.ArithmeticOpExpr:
		c.exprs([]ast.Expr{n.Lhs, n.Rhs}, s)
	case *ast.UnaryMinusOpExpr:
		c.expr(n.Expr, s)
	case *ast.UnaryNotOpExpr:
		c.expr(n.Expr, s)
	case *ast.UnaryLenOpExpr:
		c.expr(n.Expr, s)
	}
}

// ident notes the use of a name that is no local variable.
func (c *checker) ident(n *ast.IdentExpr, s *scope) {
	if s.has(n.Value) {
		return
	}
	c.requires = c.requires || n.Value == "require"
	if c.m.L.GetGlobal(n.Value) == glua.LNil {
		c.reads = append(c.reads, globalRead{n.Value, n.Line(), c.columns.column("read", n.Line(), n.Value)})
	}
}

// builtinName returns room.function where an expression is that and no local variable hides the room; else an empty
// string.
func builtinName(e ast.Expr, s *scope) string {
	attr, ok := e.(*ast.AttrGetExpr)
	if !ok {
		return ""
	}
	room, isName := attr.Object.(*ast.IdentExpr)
	key, isText := attr.Key.(*ast.StringExpr)
	if !isName || !isText || s.has(room.Value) {
		return ""
	}
	return room.Value + "." + key.Value
}

// attr checks that room.function exists.
func (c *checker) attr(n *ast.AttrGetExpr, s *scope) {
	name := builtinName(n, s)
	room, function, ok := strings.Cut(name, ".")
	if !ok {
		c.exprs([]ast.Expr{n.Object, n.Key}, s)
		return
	}
	c.ident(n.Object.(*ast.IdentExpr), s)
	column := c.columns.column("attr", n.Line(), room, ".", function)
	if c.functions[name] != nil && c.calledFunction != n {
		c.addMention(name, n.Line(), column)
	}
	if c.functions[name] != nil || c.assigned[room] {
		return
	}
	for _, missing := range c.m.start.GetUnsupported() {
		if missing == room || missing == name {
			c.addMention(name, n.Line(), column)
			c.report(n.Line(), column, "%s: this agent does not have it", name)
			return
		}
	}
	t, ok := c.m.L.GetGlobal(room).(*glua.LTable)
	if !ok || room == "params" || room == "secrets" || room == "_G" || t.RawGetString(function) != glua.LNil {
		return
	}
	text := fmt.Sprintf("%s has no function %s", room, function)
	if other := suggest.Closest(function, functionNames(t)); other != "" {
		text += fmt.Sprintf(", did you mean %s?", other)
	}
	c.report(n.Line(), column, "%s", text)
}

// call checks a call, and the arguments of a builtin as far as the text shows them.
func (c *checker) call(n *ast.FuncCallExpr, s *scope) {
	name, outer := builtinName(n.Func, s), c.calledFunction
	f := c.functions[name]
	column := 0
	if f != nil {
		room, function, _ := strings.Cut(name, ".")
		column = c.columns.column("call", n.Func.Line(), room, ".", function)
		c.calledFunction = n.Func.(*ast.AttrGetExpr)
		c.addCall(f, n.Args, n.Func.Line(), column)
	}
	c.exprs([]ast.Expr{n.Func, n.Receiver}, s)
	c.calledFunction = outer
	c.exprs(n.Args, s)
	if f != nil {
		c.checkArguments(n, f, column)
	}
}

// declarations are the options of a command, of which it has exactly one: what it does to the guest.
var declarations = []string{"readonly", "undo", "touches", "irreversible"}

// checkDeclared finds a command that says nothing of itself, or more than one thing, as far as its text shows.
func (c *checker) checkDeclared(n *ast.FuncCallExpr, name string, column int) {
	if name != "exec.run" && name != "exec.sh" || len(n.Args) == 0 || len(n.Args) > 2 {
		return
	}
	said := 0
	if len(n.Args) == 2 {
		options, ok := n.Args[1].(*ast.TableExpr)
		if !ok {
			return
		}
		for _, f := range options.Fields {
			key, ok := f.Key.(*ast.StringExpr)
			if !ok {
				return // one that is computed
			}
			switch f.Value.(type) {
			case *ast.NilExpr, *ast.FalseExpr:
			default:
				if slices.Contains(declarations, key.Value) {
					said++
				}
			}
		}
	}
	switch {
	case said == 0:
		c.report(n.Line(), column, "%s does not say what the command does to the guest: one of %s",
			name, strings.Join(declarations, ", "))
	case said > 1:
		c.report(n.Line(), column, "%s says more than one of %s", name, strings.Join(declarations, ", "))
	}
}

// checkArguments checks the number of arguments of a call.
func (c *checker) checkArguments(n *ast.FuncCallExpr, f *pb.RunnerFunction, column int) {
	args, most := n.Args, len(f.GetArgs())
	if len(args) > 0 {
		switch args[len(args)-1].(type) {
		case *ast.FuncCallExpr, *ast.Comma3Expr:
			return // their number is not known
		}
	}
	c.checkDeclared(n, f.GetName(), column)
	least := most - int(f.GetOptional())
	if len(f.GetOptions()) > 0 {
		most++
	}
	switch {
	case len(args) < least:
		c.report(n.Line(), column, "%s: argument %d (%s) is missing", f.GetName(), len(args)+1, f.GetArgs()[len(args)])
	case len(args) > most:
		c.report(n.Line(), column, "%s takes at most %d arguments, not %d", f.GetName(), most, len(args))
	case len(args) > least && len(f.GetOptions()) > 0:
		c.checkOptions(n, f, column)
	}
}

// checkOptions checks the last argument, where no positional one belongs: it is a table of options, whose names are known where
// it is written out.
func (c *checker) checkOptions(n *ast.FuncCallExpr, f *pb.RunnerFunction, column int) {
	args := n.Args
	if len(args) <= len(f.GetArgs()) {
		return
	}
	switch args[len(args)-1].(type) {
	case *ast.StringExpr, *ast.NumberExpr, *ast.TrueExpr, *ast.FalseExpr:
		c.report(n.Line(), column, "%s: argument %d must be a table of options", f.GetName(), len(args))
	}
	t, ok := args[len(args)-1].(*ast.TableExpr)
	if !ok {
		return
	}
	for _, field := range t.Fields {
		key, ok := field.Key.(*ast.StringExpr)
		if !ok || contains(f.GetOptions(), key.Value) {
			continue
		}
		text := fmt.Sprintf("%s: unknown option %s", f.GetName(), key.Value)
		if other := suggest.Closest(key.Value, f.GetOptions()); other != "" {
			text += fmt.Sprintf(", did you mean %s?", other)
		}
		c.report(key.Line(), c.columns.column("option", key.Line(), key.Value), "%s", text)
	}
}
