package lua

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// lua51Suite are the files of the Lua 5.1 test suite (R. Ierusalimschy, MIT), as they come with the interpreter's module,
// of what a script has. Those of files, coroutines, the debugger, the collector and of C are left out.
var lua51Suite = []string{
	"calls", "closure", "code", "constructs", "events", "literals", "locals", "math", "nextvar", "pm", "sort", "strings", "vararg",
}

// lua51Prelude gives the files what they use of the libraries that a script does not have.
const lua51Prelude = `
os = {clock = function() return 0 end, setlocale = function() return nil end, time = function() return 0 end}
io = {stderr = {write = function() end}, write = function() end}
dofile = nil
`

// TestSuiteOfLua51 runs the suite in the interpreter of a script. The list of differences has the statements of a file that
// fail, most for want of a function; the file is run again without each.
func TestSuiteOfLua51(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yuin/gopher-lua").Output()
	if err != nil {
		t.Skip("needs go and the modules of this one: ", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "_lua5.1-tests")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("the module has come without its tests: ", err)
	}
	var differences []string
	for _, name := range lua51Suite {
		source, err := os.ReadFile(filepath.Join(dir, name+".lua"))
		if err != nil {
			t.Fatal(err)
		}
		left := map[int]bool{}
		for {
			at, why := runLua51(t, name, source, left)
			if why == "" {
				break
			}
			differences = append(differences, why)
			if at < 0 || left[at] {
				break // it is no statement's
			}
			left[at] = true
		}
	}
	holdAgainst(t, "lua51.differences", differences)
}

// runLua51 runs a file without some statements of its top level, by their numbers. It returns the number of the one that
// fails, and where and why; nothing: all are well.
func runLua51(t *testing.T, name string, source []byte, left map[int]bool) (at int, why string) {
	t.Helper()
	m := newMachine(&pb.RunnerStart{Name: name}, nil, newStopper())
	defer m.L.Close()
	m.L.SetGlobal("print", m.function(func(*glua.LState) int { return 0 }))
	m.L.SetGlobal("loadstring", m.function(func(L *glua.LState) int {
		f, _, err := m.compile(L.OptString(2, "loaded"), []byte(L.CheckString(1)))
		if err != nil {
			L.Push(glua.LNil)
			L.Push(glua.LString(err.Error()))
			return 2
		}
		L.Push(f)
		return 1
	}))
	prelude, _, err := m.compile("prelude", []byte(lua51Prelude))
	if err == nil {
		_, err = m.callProtected(prelude)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.sources[name] = &compiled{}
	all, err := parse.Parse(bytes.NewReader(withoutPreamble(source)), name)
	if err != nil {
		t.Fatal(name, err)
	}
	var chunk []ast.Stmt
	for i, stmt := range all {
		if !left[i] {
			chunk = append(chunk, stmt)
		}
	}
	proto, err := compileTree(chunk, name)
	if err == nil {
		_, err = m.callProtected(m.L.NewFunctionFromProto(proto))
	}
	if err == nil {
		return -1, ""
	}
	e := m.failure(err)
	line := int(e.GetLine())
	for frame := range strings.Lines(e.GetTraceback()) { // the outermost is of the file itself
		if rest, ok := strings.CutPrefix(strings.TrimSpace(frame), name+":"); ok {
			fmt.Sscanf(rest, "%d", &line)
		}
	}
	message, _, _ := strings.Cut(e.GetMessage(), "\n")
	at = -1
	for i, stmt := range all {
		if stmt.Line() <= line {
			at = i
		}
	}
	return at, fmt.Sprintf("%s:%d: %s", name, line, message)
}
