package lua

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// recordedPrograms is how many generated programs have their recorded output in testdata, from seed 0 on; comparedPrograms is
// how many more are compared where lua5.1 is there.
const recordedPrograms, comparedPrograms = 600, 1200

const (
	programResults = "testdata/programs.results"
	programEnd     = "\n--END\n"
)

// TestProgramsAsLua51: generated programs say what they said in Debian's lua5.1. go test -update records that again.
func TestProgramsAsLua51(t *testing.T) {
	if *update {
		said := inLua51(t, 0, recordedPrograms)
		if err := os.WriteFile(programResults, []byte(strings.Join(said, programEnd)+programEnd), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	recorded, err := os.ReadFile(programResults)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, 0, strings.Split(strings.TrimSuffix(string(recorded), programEnd), programEnd), recordedPrograms)
}

// TestMoreProgramsAsLua51 asks lua5.1 itself.
func TestMoreProgramsAsLua51(t *testing.T) {
	if _, err := exec.LookPath("lua5.1"); err != nil {
		t.Skip("needs Debian's lua5.1: apt-get install lua5.1")
	}
	compare(t, recordedPrograms, inLua51(t, recordedPrograms, comparedPrograms), comparedPrograms)
}

func compare(t *testing.T, first uint64, want []string, n int) {
	t.Helper()
	if len(want) != n {
		t.Fatalf("there is the output of %d programs, want %d", len(want), n)
	}
	failed := 0
	for i := range want {
		source := writeProgram(first + uint64(i))
		if got := runProgram(source); got != want[i] {
			if failed++; failed < 4 {
				t.Errorf("program %d:\n%s\nsays\n%s\nwant\n%s", first+uint64(i), source, got, want[i])
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d programs say something else", failed, n)
	}
}

// inLua51 returns what programs say in lua5.1.
func inLua51(t *testing.T, first uint64, n int) []string {
	t.Helper()
	var in, out, stderr bytes.Buffer
	for i := range n {
		in.WriteString(writeProgram(first+uint64(i)) + "--END\n")
	}
	cmd := exec.Command("lua5.1", "testdata/programs.lua")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s (apt-get install lua5.1)", err, &stderr)
	}
	return strings.Split(strings.TrimSuffix(out.String(), programEnd), programEnd)
}

// maxSaid ends a program that was to end and does not.
const maxSaid, maxInstructions = 1000, 10_000_000

// runProgram returns what a program says, and the error that ends it.
func runProgram(source string) string {
	stop := &countingStopper{stopper: newStopper()}
	m := newMachine(&pb.RunnerStart{Name: "program"}, nil, stop.stopper)
	defer m.L.Close()
	m.L.SetContext(stop)
	var said []string
	m.L.SetGlobal("say", m.L.NewFunction(func(L *glua.LState) int {
		values := make([]string, L.GetTop())
		for i := range values {
			switch v := L.Get(i + 1).(type) {
			case glua.LNumber:
				values[i] = strconv.FormatFloat(float64(v), 'g', 14, 64)
			case *glua.LTable, *glua.LFunction:
				values[i] = v.Type().String()
			default:
				values[i] = v.String()
			}
		}
		if said = append(said, strings.Join(values, " ")); len(said) == maxSaid {
			stop.stop("test", "the program says too much")
		}
		return 0
	}))
	f, _, err := m.compile("program", []byte(source))
	if err == nil {
		_, err = m.callProtected(f)
	}
	if err != nil {
		said = append(said, "error: "+err.Error())
	}
	return strings.Join(said, "\n")
}

// countingStopper stops a program after so many instructions.
type countingStopper struct {
	*stopper
	instructions int
}

// Done is called before each instruction.
func (s *countingStopper) Done() <-chan struct{} {
	if s.instructions++; s.instructions == maxInstructions {
		s.stop("test", "the program does not end")
	}
	return s.stopper.Done()
}

// TestStatementsAsWritten has what the interpreter's compiler and its pcall made something else of.
func TestStatementsAsWritten(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"local a, b = 1, 2 a, b = b, a say(a, b)", "2 1"},
		{"local a, b = 1, 1 for i = 1, 5 do a, b = b, a + b end say(a, b)", "8 13"},
		{"local a, b, c = 1, 2, 3 a, b, c = c, a, b say(a, b, c)", "3 1 2"},
		{"local a, b = 1, 2 local f = function() a, b = b, a end f() say(a, b)", "2 1"},
		{"local n, t = 7, {} global, t[1] = 5, n say(global, t[1])", "5 7"},
		{"local i, t = 1, {} i, t[i] = i + 1, 20 say(i, t[1], t[2])", "2 20 nil"},
		{"local t, u = {1, 2} u = t t[1], t = 5, {9} say(t[1], u[1])", "9 5"},
		{"local function f() return 5, {9} end local t = {1} local u = t t[1], t = f() say(t[1], u[1])", "9 5"},
		{"local k, t = 'a', {} t[k], k, t.b = 1, 'c', k say(t.a, t.b, t.c, k)", "1 a nil c"},
		{"local t = {1, 2} t[1], t[2] = t[2], t[1] say(t[1], t[2])", "2 1"},
		{"local a, b, c = 1, 2, 3 a, b = c say(a, b)", "3 nil"},
		{"local a, b = 1, 2 a, b = b, a, say('too') say(a, b)", "too\n2 1"},
		{"local function f(...) local a, b, c = 1, 2, 3 a, b, c = b, ... say(a, b, c) end f(7, 8, 9)", "2 7 8"},
		{"local x = 5 local function f() end x = f() and 3 say(x)", "nil"},
		{"local x = 5 local function f() return false end x = f() and x say(x)", "false"},
		{"local x, n = 5 x = tonumber('z') and 3 or n say(x)", "nil"},
		{"local function f(p) p = (tostring(p)) return p end say(f(3))", "3"},
		{"local function f(p) p = tostring(p), 2 return p end say(f(3))", "3"},
		{"local function f(p, ...) p = (...) return p end say(f(3, 4))", "4"},
		{"local n = 1 local f = function() return n end say(pcall(error, 'x', 0)) n = 2 say(f())", "false x\n2"},
		{"local n = 1 local f = function() n = n + 1 end pcall(function() f() error() end) f() say(n)", "3"},
		{"local n = 1 local f = function() return n end pcall(pcall, error, 'x') n = 2 say(f())", "2"},
		{"local n = 1 local f = function() return n end say(pcall(function() local x = nil; x() end) == false) n = 2 say(f())", "true\n2"},
		{"local n, g = 1 pcall(function() local m = 5 g = function() m = m + n return m end error('x') end) n = 2 local a, b, c = 7, 8, 9 say(g(), g())", "7 9"},
		{"local n = 1 local f = function() return n end say(xpcall(function() error('x', 0) end, function(e) return e .. n end)) n = 2 say(f())", "false x1\n2"},
		{"say(xpcall(function() error('x', 0) end, function() error('y', 0) end))", "false y"},
		{"say(type(select(2, pcall(error, 5, 0))), type(select(2, pcall(error, 5))))", "number string"},
		{"say(xpcall(function() return 1, nil, 3 end, say)) say(pcall(function(...) return ... end, 1, nil)) say(pcall(5))", "true 1 nil 3\ntrue 1 nil\nfalse attempt to call a number value"},
		{"local function down(k) local m = k local f = function() m = m + 1 return m end if k > 0 then pcall(down, k - 1) end m = m + 10 say(f(), m) error('e') end pcall(down, 2)", "11 11\n12 12\n13 13"},
		{"for k, v in ipairs({7, 8}) do if false then return 1, 2, 3 end say(v) end", "7\n8"},
		{"local n, s, a = 2, 'z', 'q' for k, v in ipairs({n, 2, n}) do\na = (false and v > (function(x, ...) return x end)(k, #s:sub(-9)))\nend say(a)", "false"},
		{"local n = 0 while true do while true do break end n = n + 1 if n > 3 then break end end say(n)", "4"},
		{"local n = 0 while true do repeat break until true n = n + 1 if n > 3 then break end end say(n)", "4"},
		{"local n = 0 repeat if nil then say(1) elseif true then else say(2) end n = n + 1 until n > 3 say(n)", "4"},
		{"local n = 0 while true do while false do end n = n + 1 if n > 3 then break end end say(n)", "4"},
		{"local n = 0 ::top:: if false then say(1) end n = n + 1 if n < 3 then goto top end say(n)", "3"},
		{"local n = 0 repeat local x = nil and (n + 1) or (n - 1) local y = x n = n + 1 until n > 2 say(n)", "3"},
		{"local f for i = 1, 3 do if i == 2 then local x = i f = function() return x end break end end local a, b, c, d, e, g, h = 7, 7, 7, 7, 7, 7, 7 say(f())", "2"},
		{"local f for k in pairs({1}) do do local x = k f = function() x = x + 1 return x end break end end local a, b, c, d, e, g = 7, 7, 7, 7, 7, 7 say(f(), f())", "2 3"},
		{"local f while true do if true then local x = 1 f = function() return x end break end end local a, b, c = 7, 7, 7 say(f())", "1"},
		{"local f repeat local y = 3 if y then local x = 1 f = function() return x end break end until y local a, b, c = 7, 7, 7 say(f())", "1"},
		{"local n = 1 local f = function() return n end for i = 1, 2 do if i == 1 then goto continue end n = n + 1 ::continue:: end n = n + 5 say(f(), n)", "7 7"},
		{"local n = 1 local f = function() return n end do goto done end ::done:: n = 5 say(f())", "5"},
		{"local t, k = {} k = 0 ::top:: do k = k + 1 local x = k t[k] = function() return x end if k < 3 then goto top end end say(t[1](), t[2](), t[3]())", "1 2 3"},
		{"for k in pairs({1, 2}) do break end while 0 do break end say('end')", "end"},
		{"say(nil and 1, false and 1, 1 and nil, 1 and false, nil or 1, false or nil, 5 or 1, 'x' or 1, true or 1, true and 2)", "nil false nil false 1 nil 5 x true 2"},
		{"say(not nil, not 5, not '', not true, not false, not not nil, 5 and 6 or 7, (nil or 5) and 'q')", "true false false false true false 6 q"},
		{"local function f() return 1, 2 end local a, b = true and f() say(a, b) say((nil or f()))", "1 nil\n1"},
		{"local function f() return {s = 'a b'} end for w in f().s:gmatch('%a') do say(w) end", "a\nb"},
		{"local function f() return function(t) return next, t end end for k, v in f()({7}) do say(k, v) end", "1 7"},
		{"local function f(...) for w in (...).s:gmatch('%a') do say(w) end end f({s = 'a'})", "a"},
		{"local t = {} local function f() return {pairs = ipairs, {4, 5}} end for i, v in f().pairs(f()[1]) do t[i] = function() v = v + 1 return v end if i == 2 then break end end say(t[1](), t[1](), t[2]())", "5 6 6"},
		{"local function f() return {each = ipairs} end for i, v in f().each({4, 5}) do if i == 2 then goto out end say(v) end ::out:: say('end')", "4\nend"},
		{"local t, n = {1, 2}, 0 for k, v in next, t do n = n + v end for k, v in next, t do n = n + v end for k in next, t do n = n + k end say(n)", "9"},
		{"local function T() return {1, 2} end local n = 0 for k in next, T() do n = n + 1 end for k in next, T(), nil, say('extra') do n = n + 1 end say(n)", "extra\n4"},
		{"local function f(s, c) say(s, c) if not c then return 1 end end for x in f do end for x in f do end for x, y in f, 9 do end for x in (f) do end", "nil nil\nnil 1\nnil nil\nnil 1\n9 nil\n9 1\nnil nil\nnil 1"},
		{"f = 5 local f = function() return f end say(f())", "5"},
		{"local f = 6 do local f = function(n) return n and f or 7 end say(f(1), f()) end say(f)", "6 7\n6"},
		{"local function f(n) return n > 0 and f(n - 1) or n end say(f(3))", "0"},
	} {
		if got := runProgram(c.source); got != c.want {
			t.Errorf("%s says %s, want %s", c.source, got, c.want)
		}
	}
}
