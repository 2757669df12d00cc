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
	L     *glua.LState
	wire  *wire
	start *pb.RunnerStart
	stop  *stopper
	// chunks are the names of what was compiled, which begin the messages of errors.
	chunks map[string]bool
	// declaring: the top level of a declared script runs, which may not do anything.
	declaring  bool
	declared   *glua.LTable
	declaredAt place
	modules    map[string]glua.LValue
	loading    []string // modules that are being loaded, outermost first
	real       map[*glua.LTable]*glua.LTable
	ids        map[glua.LValue]int
	lists      *glua.LTable // the metatable of json.array
	null       *glua.LUserData
	errors     *glua.LTable // the metatable of error tables
}

// place is a line of a script.
type place struct {
	script string
	line   int
}

// Sizes of the interpreter: calls in one another unless the agent says otherwise, and values on its stack, which grows with
// need.
const usualDepth, stackFirst, stackEachCall, stackStep = 1024, 1024, 64, 1024

func newMachine(start *pb.RunnerStart, w *wire, stop *stopper) *machine {
	m := &machine{
		wire: w, start: start, stop: stop,
		L: glua.NewState(glua.Options{
			SkipOpenLibs: true, CallStackSize: stop.depth,
			RegistrySize: stackFirst, RegistryMaxSize: max(stackFirst, stackEachCall*stop.depth), RegistryGrowStep: stackStep,
		}),
		chunks:  map[string]bool{},
		modules: map[string]glua.LValue{},
		real:    map[*glua.LTable]*glua.LTable{},
		ids:     map[glua.LValue]int{},
	}
	stop.locate = m.here
	m.L.SetContext(stop)
	m.open()
	return m
}

// execute runs a script and gives its last word.
func execute(start *pb.RunnerStart, w *wire, stop *stopper) *pb.RunnerDone {
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
func describeAll(start *pb.RunnerStart, w *wire, stop *stopper) *pb.RunnerDone {
	all := &pb.RunnerDone{Descriptions: map[string]*pb.RunnerDescription{}}
	for name, source := range start.GetModules() {
		one := &pb.RunnerStart{
			Name: name, Source: source, Describe: true, Functions: start.GetFunctions(), Unsupported: start.GetUnsupported(),
		}
		done := execute(one, w, stop)
		if stop.over() {
			return done // and nothing is known of the others
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
		return m.checked(main, declares)
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
	return m.finish(main)
}

// finish calls the function that is the script and takes its result.
func (m *machine) finish(main *glua.LFunction, args ...glua.LValue) (*pb.RunnerDone, error) {
	value, err := m.protected(main, args...)
	if err != nil {
		return nil, err
	}
	result, err := m.toValue(value)
	if err != nil {
		return nil, &failure{kind: "result", message: "result" + err.Error(), at: place{script: m.start.GetName()}}
	}
	return &pb.RunnerDone{Result: result}, nil
}

// protected calls a function and gives its first result.
func (m *machine) protected(f *glua.LFunction, args ...glua.LValue) (glua.LValue, error) {
	if err := m.L.CallByParam(glua.P{Fn: f, NRet: 1, Protect: true}, args...); err != nil {
		return nil, err
	}
	value := m.L.Get(-1)
	m.L.Pop(1)
	return value, nil
}

// compile makes a function of source, and says whether it declares itself: whether its last statement is
// return script {…}.
func (m *machine) compile(name string, source []byte) (f *glua.LFunction, declares bool, err error) {
	m.chunks[name] = true
	if bytes.IndexByte(source, 0) >= 0 || bytes.HasPrefix(source, []byte("\x1b")) {
		return nil, false, &failure{kind: "syntax", message: "a script is text, and this is not", at: place{name, 1}}
	}
	source = plainSource(source)
	chunk, err := parse.Parse(bytes.NewReader(source), name)
	if err != nil {
		return nil, false, syntaxError(err, name, source)
	}
	proto, err := glua.Compile(chunk, name)
	if err != nil {
		return nil, false, syntaxError(err, name, source)
	}
	return m.L.NewFunctionFromProto(proto), declaresItself(chunk), nil
}

// plainSource is source without what editors and shells put before it.
func plainSource(source []byte) []byte {
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

// syntaxError says where and near what the parser gave up.
func syntaxError(err error, name string, source []byte) error {
	f := &failure{kind: "syntax", message: strings.TrimSpace(err.Error()), at: place{script: name}}
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

// here is the line that runs now: that of the innermost function that is Lua.
func (m *machine) here() place {
	for level := 0; ; level++ {
		frame, ok := m.L.GetStack(level)
		if !ok {
			return place{script: m.start.GetName()}
		}
		if _, err := m.L.GetInfo("Sl", frame, nil); err == nil && frame.CurrentLine > 0 && frame.Source != "" {
			return place{frame.Source, frame.CurrentLine}
		}
	}
}
