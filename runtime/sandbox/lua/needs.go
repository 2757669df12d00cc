package lua

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/yuin/gopher-lua/ast"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// use is one call of a builtin, or another way to it.
type use struct {
	name         string
	line, column int
	// paths and programs are those that the text shows; vague: there are others, or it is no call.
	paths, programs []string
	vague           bool
}

func (u *use) room() string { room, _, _ := strings.Cut(u.name, "."); return room }

func (c *checker) isRoom(name string) bool {
	for _, f := range c.m.start.GetFunctions() {
		if strings.HasPrefix(f.GetName(), name+".") {
			return true
		}
	}
	return false
}

// used notes a call with what its arguments show.
func (c *checker) used(f *pb.RunnerFunction, args []ast.Expr, line, column int) {
	u := use{name: f.GetName(), line: line, column: column}
	for i, arg := range args {
		if i < len(f.GetArgs()) {
			u.shows(f, f.GetArgs()[i], arg)
		} else {
			u.options(f, arg)
		}
	}
	c.uses = append(c.uses, u)
}

// options looks at what stands in the place of options.
func (u *use) options(f *pb.RunnerFunction, arg ast.Expr) {
	t, ok := arg.(*ast.TableExpr)
	if !ok {
		u.vague = true
		return
	}
	for _, field := range t.Fields {
		if key, ok := field.Key.(*ast.StringExpr); ok {
			u.shows(f, key.Value, field.Value)
		}
	}
}

// shows takes an argument or option, where it is a path or a command. What touches names needs nothing.
func (u *use) shows(f *pb.RunnerFunction, name string, arg ast.Expr) {
	switch {
	case slices.Contains(f.GetCommands(), name):
		if program := firstOf(arg); program != "" && f.GetName() != "exec.sh" {
			u.programs = append(u.programs, program)
		} else {
			u.vague = true
		}
	case slices.Contains(f.GetPaths(), name) && u.room() == "file":
		if text, ok := arg.(*ast.StringExpr); ok && path.IsAbs(text.Value) && !strings.ContainsAny(text.Value, "*?[") {
			u.paths = append(u.paths, path.Clean(text.Value))
		} else {
			u.vague = true
		}
	}
}

// firstOf is the first element of a list that is written out; empty where that is no text.
func firstOf(e ast.Expr) string {
	if t, ok := e.(*ast.TableExpr); ok && len(t.Fields) > 0 && t.Fields[0].Key == nil {
		if text, ok := t.Fields[0].Value.(*ast.StringExpr); ok {
			return text.Value
		}
	}
	return ""
}

// need is one word of needs.
type need struct{ text, room, object string }

func (n need) covers(name string) bool {
	switch {
	case n.object == "":
		return true
	case n.room == "exec":
		return path.Base(n.object) == path.Base(name)
	case strings.HasSuffix(n.object, "/"):
		return name == path.Clean(n.object) || strings.HasPrefix(name, n.object)
	}
	return name == path.Clean(n.object)
}

// needed holds what a script declares to need against what its text calls. Whether links lead elsewhere is known only in
// the guest.
func (c *checker) needed(words []string, chunk []ast.Stmt) {
	if len(words) == 0 {
		return // it may call all
	}
	var needs []need
	for _, text := range words {
		room, object, _ := strings.Cut(text, ":")
		needs = append(needs, need{text, room, object})
	}
	for _, u := range c.uses {
		c.lacks(u, needs)
	}
	for _, n := range needs {
		if !c.isRoom(n.room) && !slices.ContainsFunc(c.m.start.GetUnsupported(), func(u string) bool { return u == n.room }) {
			c.noRoom(n, c.lineOfNeed(chunk, n.text))
			continue
		}
		if c.requires {
			continue // modules call, too
		}
		if !slices.ContainsFunc(c.uses, func(u use) bool { return n.serves(u) }) {
			line := c.lineOfNeed(chunk, n.text)
			c.find(line, c.words.column("need", line, n.text), "nothing here needs %q", n.text)
		}
	}
}

func (c *checker) noRoom(n need, line int) {
	var rooms []string
	for _, f := range c.m.start.GetFunctions() {
		room, _, _ := strings.Cut(f.GetName(), ".")
		rooms = append(rooms, room)
	}
	text := fmt.Sprintf("there is no room %q", n.room)
	if other := suggest.Word(n.room, append(rooms, c.m.start.GetUnsupported()...)); other != "" {
		text += fmt.Sprintf(", did you mean %s?", other)
	}
	c.find(line, c.words.column("need", line, n.text), "%s", text)
}

// lacks finds what a call needs and is not declared.
func (c *checker) lacks(u use, needs []need) {
	has := func(room, name string) bool {
		return slices.ContainsFunc(needs, func(n need) bool { return n.room == room && (name == "" || n.covers(name)) })
	}
	missing := ""
	if !has(u.room(), "") {
		missing = u.room()
	}
	for _, program := range u.programs {
		if missing == "" && !has("exec", program) {
			missing = "exec:" + program
		}
	}
	for _, name := range u.paths {
		if missing == "" && !has("file", name) {
			missing = "file:" + name
		}
	}
	if missing != "" {
		c.find(u.line, u.column, "%s needs %q, which is not declared", strings.TrimSuffix(u.name, "."), missing)
	}
}

// serves says whether a call may be what a need is there for.
func (n need) serves(u use) bool {
	commands := n.room == "exec" && len(u.programs) > 0
	switch {
	case u.room() != n.room && !commands:
		return false
	case n.object == "" || u.vague:
		return true
	case n.room == "file":
		return slices.ContainsFunc(u.paths, n.covers)
	}
	return slices.ContainsFunc(u.programs, n.covers)
}

// lineOfNeed is where a need is declared, or else the declaration.
func (c *checker) lineOfNeed(chunk []ast.Stmt, text string) int {
	end, _ := chunk[len(chunk)-1].(*ast.ReturnStmt)
	if end == nil || len(end.Exprs) != 1 {
		return c.m.declaredAt.line
	}
	call, _ := end.Exprs[0].(*ast.FuncCallExpr)
	if call == nil || len(call.Args) != 1 {
		return c.m.declaredAt.line
	}
	declaration, _ := call.Args[0].(*ast.TableExpr)
	if declaration == nil {
		return c.m.declaredAt.line
	}
	for _, field := range declaration.Fields {
		key, _ := field.Key.(*ast.StringExpr)
		list, _ := field.Value.(*ast.TableExpr)
		if key == nil || key.Value != "needs" || list == nil {
			continue
		}
		for _, f := range list.Fields {
			if word, ok := f.Value.(*ast.StringExpr); ok && word.Value == text {
				return word.Line()
			}
		}
	}
	return c.m.declaredAt.line
}
