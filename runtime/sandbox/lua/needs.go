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

// use is one call of a builtin, or a mention of it that is not a call.
type use struct {
	name         string
	line, column int
	// own are the objects that needs of the function's room are limited to; commands are what a function of another room than
	// that of commands runs; named are the objects of a room that the function asks for something, and namedRoom that room.
	own, commands, named objects
	namedRoom            string
}

// objects are what a call acts on, as far as its text shows it: paths, programs or names.
type objects struct {
	shown []string
	vague bool // there may be others
}

// room returns the room of the function.
func (u *use) room() string { return roomOf(u.name) }

func roomOf(function string) string { room, _, _ := strings.Cut(function, "."); return room }

func (c *checker) isRoom(name string) bool {
	return slices.ContainsFunc(c.m.start.GetFunctions(), func(f *pb.RunnerFunction) bool { return strings.HasPrefix(f.GetName(), name+".") })
}

// scope returns what a need of a room can be limited to.
func (c *checker) scope(room string) pb.NeedScope {
	for _, f := range c.m.start.GetFunctions() {
		if roomOf(f.GetName()) == room && f.GetScope() != pb.NeedScope_NEED_SCOPE_NONE {
			return f.GetScope()
		}
	}
	return pb.NeedScope_NEED_SCOPE_NONE
}

// commandRoom returns the room whose needs are limited to programs; empty where there is none.
func (c *checker) commandRoom() string {
	for _, f := range c.m.start.GetFunctions() {
		if f.GetScope() == pb.NeedScope_NEED_SCOPE_COMMANDS {
			return roomOf(f.GetName())
		}
	}
	return ""
}

// addMention notes that a function, or with a name that ends in a dot a whole room, is used in another way than by a call: it
// may then be called with anything.
func (c *checker) addMention(name string, line, column int) {
	u := use{name: name, line: line, column: column, own: objects{vague: true}}
	for _, f := range c.m.start.GetFunctions() {
		if f.GetName() == name || strings.HasSuffix(name, ".") && strings.HasPrefix(f.GetName(), name) {
			u.commands.vague = u.commands.vague || len(f.GetCommands()) > 0
			if f.GetNamesRoom() != "" {
				u.named.vague, u.namedRoom = true, f.GetNamesRoom()
			}
		}
	}
	c.uses = append(c.uses, u)
}

// addCall notes a call with what its arguments show.
func (c *checker) addCall(f *pb.RunnerFunction, args []ast.Expr, line, column int) {
	u := use{name: f.GetName(), line: line, column: column, namedRoom: f.GetNamesRoom()}
	scope := c.scope(u.room())
	for i, arg := range args {
		if i < len(f.GetArgs()) {
			u.addArgument(f, scope, f.GetArgs()[i], arg)
		} else {
			u.addOptions(f, scope, arg)
		}
	}
	c.uses = append(c.uses, u)
}

// addOptions notes what the table of options shows.
func (u *use) addOptions(f *pb.RunnerFunction, scope pb.NeedScope, arg ast.Expr) {
	t, ok := arg.(*ast.TableExpr)
	if !ok {
		u.own.vague = true
		u.commands.vague = u.commands.vague || slices.ContainsFunc(f.GetOptions(), func(option string) bool { return slices.Contains(f.GetCommands(), option) })
		return
	}
	for _, field := range t.Fields {
		if key, ok := field.Key.(*ast.StringExpr); ok {
			u.addArgument(f, scope, key.Value, field.Value)
		}
	}
}

// addArgument notes an argument or option where it is a command, or an object of the kind that the room's needs are limited
// to.
func (u *use) addArgument(f *pb.RunnerFunction, scope pb.NeedScope, name string, arg ast.Expr) {
	switch {
	case slices.Contains(f.GetCommands(), name) && scope == pb.NeedScope_NEED_SCOPE_COMMANDS:
		u.own.addCommand(arg)
	case slices.Contains(f.GetCommands(), name):
		u.commands.addCommand(arg)
	case slices.Contains(f.GetPaths(), name) && scope == pb.NeedScope_NEED_SCOPE_PATHS:
		u.own.addPath(arg)
	case slices.Contains(f.GetNames(), name) && f.GetNamesRoom() != "":
		u.named.addNames(arg)
	case slices.Contains(f.GetNames(), name) && scope == pb.NeedScope_NEED_SCOPE_NAMES:
		u.own.addNames(arg)
	}
}

// addCommand notes the program of a list that is written out. A text is a line of shell, which may run anything.
func (o *objects) addCommand(arg ast.Expr) {
	if list, ok := arg.(*ast.TableExpr); ok && len(list.Fields) > 0 && list.Fields[0].Key == nil {
		if program, ok := list.Fields[0].Value.(*ast.StringExpr); ok && program.Value != "" {
			o.shown = append(o.shown, program.Value)
			return
		}
	}
	o.vague = true
}

// addPath notes a path that is written out. A pattern may match anything below its directory.
func (o *objects) addPath(arg ast.Expr) {
	if text, ok := arg.(*ast.StringExpr); ok && path.IsAbs(text.Value) && !strings.ContainsAny(text.Value, "*?[") {
		o.shown = append(o.shown, path.Clean(text.Value))
		return
	}
	o.vague = true
}

// addNames notes a name that is written out, or a list of them.
func (o *objects) addNames(arg ast.Expr) {
	switch e := arg.(type) {
	case *ast.StringExpr:
		if e.Value != "" {
			o.shown = append(o.shown, e.Value)
			return
		}
	case *ast.TableExpr:
		for _, f := range e.Fields {
			if f.Key == nil {
				o.addNames(f.Value)
			} else {
				o.vague = true
			}
		}
		return
	}
	o.vague = true
}

// need is one element of needs. object is empty where it is not limited.
type need struct {
	text, room, object string
	scope              pb.NeedScope
}

// covers reports whether the need admits an object of its room.
func (n need) covers(object string) bool {
	if n.object == "" {
		return true
	}
	switch n.scope {
	case pb.NeedScope_NEED_SCOPE_COMMANDS:
		return path.Base(n.object) == path.Base(object)
	case pb.NeedScope_NEED_SCOPE_PATHS:
		return object == path.Clean(n.object) || strings.HasSuffix(n.object, "/") && strings.HasPrefix(object, n.object)
	case pb.NeedScope_NEED_SCOPE_NAMES:
		return n.bare(object) == n.bare(n.object)
	}
	return false
}

// bare returns a name without that of the room after a dot: nginx.service is the service nginx.
func (n need) bare(name string) string { return strings.TrimSuffix(name, "."+n.room) }

// checkNeeds compares what a script declares to need with what its text calls. Whether links lead elsewhere is known only in
// the guest.
func (c *checker) checkNeeds(declared []string, chunk []ast.Stmt) {
	if len(declared) == 0 {
		return // it may call all
	}
	var needs []need
	for _, text := range declared {
		room, object, _ := strings.Cut(text, ":")
		needs = append(needs, need{text, room, object, c.scope(room)})
	}
	for _, u := range c.uses {
		c.checkUse(u, needs)
	}
	for _, n := range needs {
		if !c.isRoom(n.room) && !slices.Contains(c.m.start.GetUnsupported(), n.room) {
			c.reportNoRoom(n, c.lineOfNeed(chunk, n.text))
			continue
		}
		if c.requires {
			continue // modules call, too
		}
		if !slices.ContainsFunc(c.uses, func(u use) bool { return c.isUsed(n, u) }) {
			line := c.lineOfNeed(chunk, n.text)
			c.report(line, c.columns.column("need", line, n.text), "nothing here needs %q", n.text)
		}
	}
}

func (c *checker) reportNoRoom(n need, line int) {
	var rooms []string
	for _, f := range c.m.start.GetFunctions() {
		rooms = append(rooms, roomOf(f.GetName()))
	}
	text := fmt.Sprintf("there is no room %q", n.room)
	if other := suggest.Closest(n.room, append(rooms, c.m.start.GetUnsupported()...)); other != "" {
		text += fmt.Sprintf(", did you mean %s?", other)
	}
	c.report(line, c.columns.column("need", line, n.text), "%s", text)
}

// checkUse reports what a call needs and the script does not declare.
func (c *checker) checkUse(u use, needs []need) {
	if missing := c.missing(u, needs); missing != "" {
		c.report(u.line, u.column, "%s needs %q, which is not declared", strings.TrimSuffix(u.name, "."), missing)
	}
}

// missing returns the first need of a call that no declared one covers.
func (c *checker) missing(u use, needs []need) string {
	room, commandRoom := u.room(), c.commandRoom()
	if !slices.ContainsFunc(needs, func(n need) bool { return n.room == room }) {
		return room
	}
	covered := func(room, object string) bool {
		return slices.ContainsFunc(needs, func(n need) bool { return n.room == room && n.covers(object) })
	}
	for _, object := range u.own.shown {
		if !covered(room, object) {
			return room + ":" + object
		}
	}
	whole := strings.HasSuffix(u.name, ".") // of the room's functions it may use others alone
	if u.namedRoom != "" && !whole && !slices.ContainsFunc(needs, func(n need) bool { return n.room == u.namedRoom }) {
		return u.namedRoom
	}
	for _, object := range u.named.shown {
		if !covered(u.namedRoom, object) {
			return u.namedRoom + ":" + object
		}
	}
	if commandRoom == "" {
		return ""
	}
	for _, program := range u.commands.shown {
		if !covered(commandRoom, program) {
			return commandRoom + ":" + program
		}
	}
	return ""
}

// isUsed reports whether a call may be what a need is declared for.
func (c *checker) isUsed(n need, u use) bool {
	if u.room() == n.room {
		return n.object == "" || u.own.vague || slices.ContainsFunc(u.own.shown, n.covers)
	}
	if u.namedRoom == n.room {
		return n.object == "" || u.named.vague || slices.ContainsFunc(u.named.shown, n.covers)
	}
	return n.scope == pb.NeedScope_NEED_SCOPE_COMMANDS && (u.commands.vague || slices.ContainsFunc(u.commands.shown, n.covers))
}

// lineOfNeed returns the line where a need is declared, or else the declaration.
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
