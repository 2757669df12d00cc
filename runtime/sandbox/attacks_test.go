package sandbox_test

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// attack is a script that tries to break the interpreter.
type attack struct {
	name, source string
	kinds        []string // how it may end; empty: well
}

// Kinds of errors that several attacks end with.
var (
	well       = []string{""}
	wrong      = []string{"runtime"}
	tooDeep    = []string{"depth"}
	tooLong    = []string{"cpu"}
	tooLarge   = []string{"memory"}
	tooMuch    = []string{"memory", "cpu"}                    // whichever is used up first
	unreadable = []string{"syntax", "depth", "memory", "cpu"} // the compiler is as it is
	hardToRead = append([]string{"", "runtime"}, unreadable...)
)

// attacks are scripts that have broken interpreters, by what they attack.
var attacks = map[string][]attack{
	"time": {
		{"loop", `while true do end`, tooLong},
		{"loop in pcall", `while true do pcall(function() while true do end end) end`, tooLong},
		{"loop in an error handler", `xpcall(error, function() while true do end end)`, tooLong},
		{"pcalls in one another", `local function f(n) if n == 0 then while true do end end pcall(f, n - 1) f(n) end f(150)`, []string{"cpu", "depth"}},
		{"sort with a lie", `local t = {} for i = 1, 100000 do t[i] = i % 7 end table.sort(t, function() return true end)`, []string{"cpu", "runtime"}},
		{"sort by a function of ours", `local t = {} for i = 1, 100000 do t[i] = i end while true do table.sort(t, rawequal) end`, tooLong},
		{"sort with a random order", `local t = {} for i = 1, 1000 do t[i] = i end while true do pcall(table.sort, t, function() return math.random() < 0.5 end) end`, tooLong},
		{"insert at the front", `local t = {} while true do table.insert(t, 1, 1) end`, tooMuch},
		{"length of a list with holes", `local t = {} for i = 1, 2000000 do t[i] = 1 end for i = 1, 2000000 do t[i] = nil end while true do t.n = #t end`, tooMuch},
		{"collector", `while true do collectgarbage() end`, tooLong},
		{"counting by strings", `local n = "0" while true do n = n + "1" end`, tooLong},
		{"tostring that loops", `error(setmetatable({}, {__tostring = function() while true do end end}))`, tooLong},
		{"log flood", `while true do log(string.rep("x", 10000)) end`, tooLong},
		{"progress flood", `while true do progress(0.5, string.rep("x", 10000)) end`, tooLong},
	},
	"memory": {
		{"doubling a string", `local s = "x" while true do s = s .. s end`, tooMuch},
		{"growing a table", `local t = {} while true do t[#t + 1] = {} end`, tooMuch},
		{"growing a table in pcall", `local t = {} while true do pcall(function() while true do t[#t + 1] = {} end end) end`, tooMuch},
		{"growing a list of numbers", `local t = {} for i = 1, 1e9 do t[i] = i end`, tooMuch},
		{"keys that come and go", `local t = {} for i = 1, 1e9 do t["k" .. i] = i t["k" .. i] = nil end`, tooMuch},
		{"names of tables", `while true do tostring({}) end`, tooMuch},
		{"functions", `local t = {} while true do t[#t + 1] = function() return t end end`, tooMuch},
		{"long string", `return #string.rep("x", 1e12)`, tooLarge},
		{"long string, 2 GiB", `return #string.rep("x", 2^31)`, tooLarge},
		{"long string of long strings", `local s = string.rep("x", 2^20) return #string.rep(s, 2^50)`, tooLarge},
		{"long strings that are kept", `local t = {} for i = 1, 1e9 do t[i] = string.rep("x", 100000) end`, tooMuch},
		{"sparse store", `local t = {} t[67108863] = 1 return #t`, well},
		{"sparse store within the heap", `local t = {} for i = 1, 16 do t[i] = {} t[i][4000000] = 1 end`, well},
		{"sparse stores below the bound of lists", `local t = {} for i = 1, 16 do t[i] = {} t[i][1000000] = 1 end`, tooMuch},
		{"sparse insert", `for i = 1, 16 do local t = {} table.insert(t, 67108000, 1) end`, []string{"", "cpu", "memory"}},
		{"joining", `local s, t = string.rep("x", 1048576), {} for i = 1, 2000 do t[i] = s end return #table.concat(t)`, tooLarge},
		{"replacement", `return #string.gsub(string.rep("a", 20000), "a", string.rep("b", 20000))`, tooLarge},
		{"replacement by captures", `return #string.gsub(string.rep("a", 20000), "(a+)", string.rep("%1", 20000))`, tooLarge},
		{"format", `local s = string.rep("x", 1e7) return #string.format(string.rep("%s", 100), ` + strings.TrimSuffix(strings.Repeat("s, ", 100), ", ") + `)`, tooLarge},
		{"quoting", `return #string.format("%q", string.rep("\0", 3e7))`, tooLarge},
		{"upper of what is long", `local t = {} for i = 1, 1000 do t[i] = string.upper(string.rep("x", 1e7)) end`, tooLarge},
		{"message", `error(string.rep("x", 2e7))`, []string{"runtime", "memory"}},
		{"result", `return string.rep("x", 2e7)`, []string{"result", "memory"}},
		{"step", `progress(0.5, string.rep("x", 2e7))`, well},
		{"line", `log(string.rep("x", 2e7))`, well},
		{"argument", `return file.read(string.rep("x", 2e7))`, []string{"builtin", "memory"}},
		{"json", `local t = {} for i = 1, 30000 do t[i] = string.rep("x", 1000) end local all = {} while true do all[#all + 1] = json.encode(t) end`, tooMuch},
		{"base64", `local s, t = string.rep("x", 1e7), {} while true do t[#t + 1] = base64.encode(s) end`, tooMuch},
	},
	"recursion": {
		{"plain", `local function f() return 1 + f() end f()`, tooDeep},
		{"by __index", `local t = setmetatable({}, {__index = function(t, k) return t[k] end}) return t.x`, tooDeep},
		{"by __concat", `local t = setmetatable({}, {__concat = function(a, b) return a .. b end}) return t .. t`, tooDeep},
		{"by __eq", `local m = {} m.__eq = function(a, b) return a == b end return setmetatable({}, m) == setmetatable({}, m)`, tooDeep},
		{"by __add", `local t = setmetatable({}, {__add = function(a, b) return a + b end}) return t + "1"`, tooDeep},
		{"by __call", `local t = {} setmetatable(t, {__call = t}) return t()`, []string{"depth", "runtime"}},
		{"by __index, a chain", `local t = {} for i = 1, 100000 do t = setmetatable({}, {__index = t}) end return t.x`, []string{"", "depth", "runtime", "cpu", "memory"}},
		{"by __index, a ring", `local t = {} setmetatable(t, {__index = t}) return t.x`, []string{"depth", "runtime", "cpu"}},
		{"by pcall", `local function f() return pcall(f) end return tostring(f())`, []string{"", "depth", "cpu"}},
		{"by tostring", `local t = setmetatable({}, {}) getmetatable(t).__tostring = function(t) return tostring(t) end return tostring(t)`, tooDeep},
		{"by sort", `local function f() table.sort({1, 2}, f) end f()`, tooDeep},
		{"by gsub", `local function f() string.gsub("x", "x", f) end f()`, tooDeep},
		{"by gsub and a table", `local t = setmetatable({}, {}) getmetatable(t).__index = function() return (string.gsub("x", "x", t)) end string.gsub("x", "x", t)`, tooDeep},
		{"in json", `local t = {} t.t = t return json.encode(t)`, []string{"builtin"}},
		{"in json text", `return json.decode(string.rep("[", 1000000))`, []string{"builtin"}},
		{"in the result", `local t = {} t.t = t return t`, []string{"result"}},
		{"unpack", `return unpack({}, 1, 1e9)`, wrong},
		{"unpack from far below", `return unpack({}, -2^62, 2^62)`, wrong},
		{"bytes", `return string.byte(string.rep("x", 1e7), 1, -1)`, wrong},
	},
	"patterns": {
		{"backtracks", `return string.find(string.rep("a", 40), string.rep("a?", 40) .. string.rep("a", 40) .. "b")`, well},
		{"stars", `return string.find(string.rep("a", 100000), ".*.*.*.*.*.*b")`, well},
		{"dashes", `return string.find(string.rep("a", 100000), ".-.-.-b")`, well},
		{"square of the text", `return string.find(string.rep("a", 2000000), ".-b")`, well},
		{"all of a long text", `return #string.match(string.rep("a", 1500000), ".*")`, well},
		{"a megabyte of matches", `return (select(2, string.gsub(string.rep("a", 1048576), "a", "b")))`, well},
		{"refers back", `return string.find(string.rep("a", 3000), "(a*)(a*)(a*)(a*)%1%2%3%4b")`, tooLong},
		{"refers back, in pcall", `while true do pcall(string.find, string.rep("a", 3000), "(a*)(a*)(a*)(a*)%1%2%3%4b") end`, tooLong},
		{"never balanced", `return string.find(string.rep("(", 2000000), "%b()")`, tooLong},
		{"nested", `return string.find("x", string.rep("(", 5000000))`, []string{"runtime", "memory"}},
		{"long", `return string.find(string.rep("a", 1000000), string.rep("a?", 500000))`, []string{"", "memory", "cpu"}},
		{"a long set", `return string.find("a", "[" .. string.rep("b", 5000000) .. "]")`, []string{"", "memory"}},
		{"endless matches", `while true do for _ in string.gmatch(string.rep("a", 100000), "()") do end end`, tooLong},
	},
	"source": {
		{"brackets", "return " + strings.Repeat("(", 120000) + "1", unreadable},
		{"tables", "return " + strings.Repeat("{", 250000), unreadable},
		{"not", "return " + strings.Repeat("not ", 60000) + "1", hardToRead},
		{"minus", "return " + strings.Repeat("- ", 120000) + "1", hardToRead},
		{"sums", "local x = 1 return x" + strings.Repeat("+x", 120000), hardToRead},
		{"joins", "local x = 1 return x" + strings.Repeat("..x", 80000), hardToRead},
		{"powers", "local x = 1 return x" + strings.Repeat("^x", 120000), hardToRead},
		{"functions", strings.Repeat("return function() ", 14000), unreadable},
		{"blocks", strings.Repeat("do ", 80000), unreadable},
		{"calls", "return print" + strings.Repeat("()", 120000), hardToRead},
		{"fields", "local x = {} return x" + strings.Repeat(".a", 120000), hardToRead},
		{"locals", strings.Repeat("local a ", 30000), hardToRead},
		{"labels", strings.Repeat("::a:: ", 40000), hardToRead},
		{"a long line", "return '" + strings.Repeat("x", 250000) + "'", well},
		{"not text", "\x1bLua\x00\x01", []string{"syntax"}},
	},
	"metatables": {
		{"of strings", `getmetatable("").__index = nil`, wrong},
		{"of strings, set", `setmetatable("", {})`, wrong},
		{"of numbers", `setmetatable(0, {})`, wrong},
		{"of functions", `setmetatable(print, {})`, wrong},
		{"of errors", `local ok, e = pcall(json.decode, "x") setmetatable(e, {})`, wrong},
		{"of rooms", `setmetatable(file, {})`, wrong},
		{"a library that is taken apart", `for _, lib in ipairs({string, table, math}) do for k in pairs(lib) do lib[k] = nil end end tostring = nil return ("x").rep`, well},
		{"a world without names", `local g = _G for k in pairs(g) do g[k] = nil end return 1`, well},
		{"params", `params.x = 1`, wrong},
		{"params by force", `rawset(params, "x", 1) table.insert(params, 1) return 1`, []string{"", "runtime"}},
	},
	"leaks": {
		{"what is withdrawn", `for _, name in ipairs({"os", "io", "debug", "package", "coroutine", "channel", "dofile", "loadfile", "load", "loadstring", "module", "getfenv",
			"setfenv", "newproxy", "_printregs"}) do assert(_G[name] == nil, name) end assert(string.dump == nil)`, well},
		{"Go's conversions", `for _, verb in ipairs({"p", "T", "v", "b", "U", "t", "w", "a"}) do assert(not pcall(string.format, "%" .. verb, json.null), verb) end`, well},
		{"addresses", `assert(tostring({}):match("^table: %d+$") and tostring(print):match("^function: %d+$") and not tostring(json.null):find("0x"))
			assert(not string.format("%s", json.null):find("0x"))`, well},
		{"width", `return string.format("%99999999d", 1)`, wrong},
		{"a file by require", `return require("/etc/passwd")`, []string{"builtin"}},
		{"a room that nobody gave", `return power.reboot()`, wrong},
	},
}

// TestAttacks: each attack ends within its limits, with an error that has a name and a line, and leaves the next run
// untouched.
func TestAttacks(t *testing.T) {
	const mib = 1 << 20
	limits := sandbox.Limits{CPU: 300 * time.Millisecond, Wall: time.Minute}
	short := newPool(t, sandbox.Config{Limits: limits})
	long := short
	if !countsCPU() { // what does not end is then ended by the wall time
		limits.Wall = 5 * time.Second
		short = newPool(t, sandbox.Config{Limits: limits})
	}
	if raced { // what ends by itself takes several times as long
		limits.CPU *= 50
		long = newPool(t, sandbox.Config{Limits: limits})
	}
	slow := 0
	for class, list := range attacks {
		for _, a := range list {
			t.Run(class+"/"+a.name, func(t *testing.T) {
				pool := long
				if slices.Contains(a.kinds, "cpu") {
					pool = short
					if slow++; slow > 5 && !countsCPU() {
						t.Skip("processor time is not counted, and five that took all of the wall time were run")
					}
				}
				out := pool.Run(t.Context(), attackJob(a))
				e := out.Error
				endless := !countsCPU() && slices.Contains(a.kinds, "cpu") && e.GetKind() == "timeout"
				if !slices.Contains(a.kinds, e.GetKind()) && !endless {
					t.Errorf("ended with %v after %v, want one of %q", e, out.Stats, a.kinds)
				}
				if (out.Stats.GetCpuMs() > 3000 || out.Stats.GetPeakMemoryBytes() > 300*mib) && !raced {
					t.Errorf("used %v", out.Stats)
				}
				if e != nil && e.GetScript() != "test.lua" {
					t.Errorf("error is of %q: %v", e.GetScript(), e)
				}
				if e != nil && class != "source" && e.GetKind() != "result" && e.GetLine() == 0 {
					t.Logf("%s has no line: %v, %v", a.name, e, out.Stats)
				}
				if len(e.GetMessage()) > 17<<10 || len(e.GetTraceback()) > 17<<10 {
					t.Errorf("error has a message of %d bytes, a traceback of %d", len(e.GetMessage()), len(e.GetTraceback()))
				}
				if got := mustRun(t, long, script(`return #("x"):rep(3)`)); got.Result.GetNumber() != 3 {
					t.Errorf("the next script gives %v", got.Result)
				}
			})
		}
	}
}

func attackJob(a attack) sandbox.Job {
	job := script(a.source)
	job.Start.Functions = functions("file.read")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return nil }
	return job
}

// TestLimitsAreNamed: each limit that a script meets has its kind, its key of the configuration, and the script's line.
func TestLimitsAreNamed(t *testing.T) {
	limits := sandbox.Limits{CPU: 2 * time.Second, Wall: time.Minute, Memory: 32 << 20, Calls: 5, Source: 1000, Result: 100}
	pool := newPool(t, sandbox.Config{Limits: limits})
	limits.Wall = time.Second
	short := newPool(t, sandbox.Config{Limits: limits})
	for _, c := range []struct {
		source, kind, limit string
		line                uint32
	}{
		{"\n\nwhile true do end", "cpu", "script.cpu_limit_seconds=2", 3},
		{"\n\nstring.find(('a'):rep(3000), '(a*)(a*)(a*)(a*)%1%2%3%4b')", "cpu", "script.cpu_limit_seconds=2", 3},
		{"\n\nfile.stat('/x')", "timeout", "script.timeout_seconds=1", 3},
		{"\n\nreturn #('x'):rep(1e9)", "memory", "script.memory_limit_bytes=33554432", 3},
		{"\nlocal t = {} for i = 1, 1e9 do t[i] = {} end", "memory", "script.memory_limit_bytes=33554432", 2},
		{"\n\nwhile true do file.read('/x') end", "calls", "script.max_calls=5", 3},
		{strings.Repeat("-", 1001), "source", "script.max_source_bytes=1000", 0},
		{"return ('x'):rep(200)", "result", "script.max_result_bytes=100", 0},
		{"return ('x'):rep(6e6)", "result", "script.max_result_bytes=100", 0},
		{"\nlocal function f() return 1 + f() end\nf()", "depth", "script.max_depth=1024", 2},
	} {
		job := script(c.source)
		job.Start.Functions = functions("file.read", "file.stat")
		job.Call = func(ctx context.Context, call *pb.RunnerCall) *pb.RunnerReply {
			if call.GetName() == "file.stat" {
				<-ctx.Done()
			}
			return nil
		}
		on := pool
		if c.kind == "cpu" && !countsCPU() {
			continue
		}
		if c.kind == "timeout" {
			on = short
		}
		inTime(t, func() *pb.ScriptError { return on.Run(t.Context(), job).Error }, func(e *pb.ScriptError) bool {
			right := e.GetKind() == c.kind && e.GetLimit() == c.limit && e.GetScript() == "test.lua" && e.GetLine() == c.line
			if !right {
				t.Logf("%.40q ends with %v, want %s, %s, line %d", c.source, e, c.kind, c.limit, c.line)
			}
			return right
		})
	}
}

// TestDepthIsAsConfigured: calls go as deep as the limit and not deeper, also through pcall.
func TestDepthIsAsConfigured(t *testing.T) {
	for depth, works := range map[int]int{64: 50, 5000: 4900} {
		pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{Depth: depth}})
		plain := `local function f(n) if n == 0 then return 0 end return 1 + f(n - 1) end return f(`
		caught := `local function f(n) if n == 0 then return 0 end local _, m = pcall(f, n - 1) return 1 + m end return f(`
		if got := mustRun(t, pool, script(plain+strconv.Itoa(works)+")")).Result.GetNumber(); got != float64(works) {
			t.Errorf("%d deep gives %v", works, got)
		}
		if got := mustRun(t, pool, script(caught+strconv.Itoa(works/3)+")")).Result.GetNumber(); got != float64(works/3) {
			t.Errorf("%d pcalls deep give %v", works/3, got)
		}
		e := pool.Run(t.Context(), script(plain+strconv.Itoa(depth+10)+")")).Error
		if e.GetKind() != "depth" || e.GetLimit() != "script.max_depth="+strconv.Itoa(depth) || e.GetLine() != 1 {
			t.Errorf("%d deep ends with %v", depth+10, e)
		}
	}
}

// TestKilledScriptSaysWhereItWas: the position of one whose runner is killed is that of its last call.
func TestKilledScriptSaysWhereItWas(t *testing.T) {
	if !countsCPU() {
		t.Skip("Wine does not count the processor time of another process")
	}
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{CPU: 500 * time.Millisecond}})
	job := attackJob(attack{source: "\n\nfile.read('/x')\nlocal f = require('m')"})
	// The compiler cannot be stopped from within.
	job.Start.Modules = map[string][]byte{"m": []byte("local x = 1 return x" + strings.Repeat("+x", 120000))}
	e := pool.Run(t.Context(), job).Error
	if e.GetKind() != "cpu" && e.GetKind() != "memory" && e.GetKind() != "depth" || e.GetScript() != "test.lua" || e.GetLine() < 3 || e.GetLine() > 4 {
		t.Errorf("it ends with %v", e)
	}
}

// TestResidentSize: hostile scripts leave no memory behind in the agent, here this process. make soak runs a thousand.
func TestResidentSize(t *testing.T) {
	if raced {
		t.Skip("the race detector's memory is not the agent's")
	}
	const warm = 20 // scripts: threads and stacks have come by then
	runs := 60
	if text := os.Getenv("QUANTIX_HOSTILE"); text != "" {
		var err error
		if runs, err = strconv.Atoi(text); err != nil || runs <= warm {
			t.Fatalf("QUANTIX_HOSTILE=%s is no number above %d", text, warm)
		}
	}
	limits := sandbox.Limits{CPU: 50 * time.Millisecond, Wall: 10 * time.Second}
	if !countsCPU() { // what does not end is then ended by the wall time
		limits.Wall = time.Second
	}
	pool := newPool(t, sandbox.Config{Limits: limits})
	list := []attack{{name: "ends well", source: "return 1"}}
	for _, class := range []string{"leaks", "memory", "metatables", "patterns", "recursion", "source", "time"} {
		list = append(list, attacks[class]...)
	}
	var first uint64
	for i := range runs {
		pool.Run(t.Context(), attackJob(list[i*7%len(list)]))
		if i == warm-1 {
			first = resident(t)
		}
	}
	last := resident(t)
	t.Logf("%d KiB after %d scripts, %d KiB after %d", first>>10, warm, last>>10, runs)
	if float64(last) > 1.1*float64(first) {
		t.Errorf("resident size is %d after %d scripts, %d after %d", first, warm, last, runs)
	}
}

// resident returns the least resident size of this process in several samples, in bytes. Two kinds of pages are left out, which
// go and come and are no leak: those of the program's file, nearly half of all, as other processes need memory; and free ones
// of the heap that a processor of the runtime has to itself, which FreeOSMemory does not return, up to 3 MiB of them.
func resident(t *testing.T) uint64 {
	t.Helper()
	least := ^uint64(0)
	for range 5 {
		runtime.GC()
		debug.FreeOSMemory()
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Skip("needs /proc")
		}
		_, text, found := strings.Cut(string(status), "\nRssAnon:")
		text, _, _ = strings.Cut(text, "kB")
		kib, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		if !found || err != nil {
			t.Fatal("no RssAnon: ", err)
		}
		var heap runtime.MemStats
		runtime.ReadMemStats(&heap)
		least = min(least, kib<<10-(heap.HeapIdle-heap.HeapReleased))
	}
	return least
}
