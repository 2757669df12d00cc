package lua

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// machine is one script and its interpreter.
type machine struct {
	L       *glua.LState
	agent   *client
	start   *pb.RunnerStart
	stopper *stopper
	// sources are what was compiled, by the names with which the messages of errors begin.
	sources map[string]*compiled
	guard   *glua.LFunction
	// declaring is set while the top level of a declared script runs, which must not call builtins.
	declaring      bool
	declared       *glua.LTable
	declaredAt     position
	modules        map[string]glua.LValue
	loading        []string // modules that are being loaded, outermost first
	readOnlyTables map[*glua.LTable]*glua.LTable
	displayIDs     map[glua.LValue]int
	plainYAMLOf    map[*glua.LTable]*plainYAML
	listMetatable  *glua.LTable // the metatable of json.array
	null           *glua.LUserData
	errorMetatable *glua.LTable // the metatable of error tables
}

// position is a line of a script.
type position struct {
	script string
	line   int
}

// Sizes of the interpreter: nested calls, unless the agent sets another depth, and values on its stack, which grows when
// needed.
const defaultDepth, initialStack, maxStackPerCall, stackGrowth = 1024, 1024, 64, 1024

func newMachine(start *pb.RunnerStart, w *client, stop *stopper) *machine {
	m := &machine{
		agent: w, start: start, stopper: stop,
		L: glua.NewState(glua.Options{
			SkipOpenLibs: true, CallStackSize: stop.depth,
			RegistrySize: initialStack, RegistryMaxSize: max(initialStack, maxStackPerCall*stop.depth), RegistryGrowStep: stackGrowth,
		}),
		sources:        map[string]*compiled{},
		modules:        map[string]glua.LValue{},
		readOnlyTables: map[*glua.LTable]*glua.LTable{},
		displayIDs:     map[glua.LValue]int{},
		plainYAMLOf:    map[*glua.LTable]*plainYAML{},
	}
	m.guard = m.function(func(L *glua.LState) int {
		L.Panic = m.panicked
		L.Call(L.GetTop()-1, glua.MultRet)
		return L.GetTop()
	})
	stop.position = m.currentPosition
	m.L.SetContext(stop)
	m.openLibraries()
	return m
}

// execute runs a script and returns the runner's last message.
func execute(start *pb.RunnerStart, w *client, stop *stopper) *pb.RunnerDone {
	if start.GetDescribeAll() {
		return describeAll(start, w, stop)
	}
	m := newMachine(start, w, stop)
	done, err := m.run()
	if err != nil {
		return &pb.RunnerDone{Error: m.failure(err)}
	}
	return done
}

// describeAll reads the declaration of each module, in an interpreter of its own.
func describeAll(start *pb.RunnerStart, w *client, stop *stopper) *pb.RunnerDone {
	all := &pb.RunnerDone{Descriptions: map[string]*pb.RunnerDescription{}}
	for name, source := range start.GetModules() {
		one := &pb.RunnerStart{
			Name: name, Source: source, Describe: true, Functions: start.GetFunctions(), Unsupported: start.GetUnsupported(),
		}
		done := execute(one, w, stop)
		if stop.stopped() {
			return done // the others were not read
		}
		all.Descriptions[name] = &pb.RunnerDescription{Declaration: done.GetDeclaration(), Error: done.GetError()}
	}
	return all
}

func (m *machine) run() (*pb.RunnerDone, error) {
	main, declares, err := m.compile(m.start.GetName(), m.start.GetSource())
	if err != nil {
		return nil, err
	}
	if m.start.GetCheck() {
		return m.check(main, declares)
	}
	if declares {
		return m.runDeclared(main)
	}
	if m.start.GetDescribe() {
		return &pb.RunnerDone{}, nil
	}
	params, err := m.fromTable(m.start.GetParams())
	if err != nil {
		return nil, err
	}
	m.L.SetGlobal("params", m.readOnly("params", params))
	return m.callMain(main)
}

// callMain calls the function that is the script and returns its result.
func (m *machine) callMain(main *glua.LFunction, args ...glua.LValue) (*pb.RunnerDone, error) {
	value, err := m.callProtected(main, args...)
	if err != nil {
		return nil, err
	}
	result, err := m.toValue(value)
	if err != nil {
		return nil, &failure{kind: "result", message: "result" + err.Error(), at: position{script: m.start.GetName()}}
	}
	return &pb.RunnerDone{Result: result}, nil
}

// callProtected calls a function and returns its first result.
func (m *machine) callProtected(f *glua.LFunction, args ...glua.LValue) (glua.LValue, error) {
	m.L.Push(f)
	for _, a := range args {
		m.L.Push(a)
	}
	if err := m.protect(len(args), 1); err != nil {
		return nil, err
	}
	value := m.L.Get(-1)
	m.L.Pop(1)
	return value, nil
}

// compile compiles a text. declares is whether the script declares itself: whether its last statement is return script
// {…}.
func (m *machine) compile(name string, text []byte) (f *glua.LFunction, declares bool, err error) {
	m.sources[name] = &compiled{}
	if bytes.IndexByte(text, 0) >= 0 || bytes.HasPrefix(text, []byte("\x1b")) {
		return nil, false, &failure{kind: "syntax", message: "a script is text, and this is not", at: position{name, 1}}
	}
	text = withoutPreamble(text)
	chunk, err := parse.Parse(bytes.NewReader(text), name)
	if err != nil {
		return nil, false, syntaxError(err, name, text)
	}
	proto, err := compileTree(chunk, name)
	if err != nil {
		return nil, false, syntaxError(err, name, text)
	}
	m.sources[name] = &compiled{text: text, proto: proto}
	return m.L.NewFunctionFromProto(proto), declaresItself(chunk), nil
}

// compileTree compiles a syntax tree to what it says, or refuses it.
func compileTree(chunk []ast.Stmt, name string) (proto *glua.FunctionProto, err error) {
	loops, err := checkTree(chunk, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if wrong := recover(); wrong != nil { // the compiler gave up on its own mistake
			proto, err = nil, &failure{kind: "syntax", message: "the script is too large for the interpreter", at: position{script: name}}
		}
	}()
	if proto, err = glua.Compile(chunk, name); err != nil {
		return nil, err
	}
	return proto, correct(proto, loops)
}

// withoutPreamble returns source without a byte order mark and a #! line.
func withoutPreamble(source []byte) []byte {
	source = bytes.TrimPrefix(source, []byte("\xef\xbb\xbf"))
	if bytes.HasPrefix(source, []byte("#!")) { // the end of its line stays, so that lines keep their numbers
		source = source[len(source)-len(bytes.TrimLeftFunc(source, func(r rune) bool { return r != '\n' })):]
	}
	return source
}

func declaresItself(chunk []ast.Stmt) bool {
	if len(chunk) == 0 {
		return false
	}
	last, ok := chunk[len(chunk)-1].(*ast.ReturnStmt)
	if !ok || len(last.Exprs) != 1 {
		return false
	}
	call, ok := last.Exprs[0].(*ast.FuncCallExpr)
	if !ok || call.Receiver != nil || len(call.Args) != 1 {
		return false
	}
	f, ok := call.Func.(*ast.IdentExpr)
	_, table := call.Args[0].(*ast.TableExpr)
	return ok && f.Value == "script" && table
}

// syntaxError returns the position at which the parser gave up, and the token there.
func syntaxError(err error, name string, source []byte) error {
	var own *failure
	if errors.As(err, &own) {
		return own
	}
	f := &failure{kind: "syntax", message: strings.TrimSpace(err.Error()), at: position{script: name}}
	var p *parse.Error
	var c *glua.CompileError
	switch {
	case errors.As(err, &p) && p.Pos.Line == parse.EOF:
		f.at.line = bytes.Count(bytes.TrimRight(source, "\n"), []byte("\n")) + 1
		f.message = "the script ends in the middle of a statement"
	case errors.As(err, &p):
		f.at.line, f.column = p.Pos.Line, p.Pos.Column
		f.message = p.Message
		if token := strings.TrimSpace(p.Token); token != "" {
			f.message = fmt.Sprintf("%s near %q", p.Message, token)
		}
	case errors.As(err, &c):
		f.at.line, f.message = c.Line, c.Message
	}
	return f
}

// currentPosition returns the line that is being run: that of the innermost function that is Lua.
func (m *machine) currentPosition() position {
	for level := 0; ; level++ {
		frame, ok := m.L.GetStack(level)
		if !ok {
			return position{script: m.start.GetName()}
		}
		if _, err := m.L.GetInfo("Sl", frame, nil); err == nil && frame.CurrentLine > 0 && frame.Source != "" {
			return position{frame.Source, frame.CurrentLine}
		}
	}
}
