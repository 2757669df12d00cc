package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestParams(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script(`
		assert(not pcall(function() params.name = "x" end), "params can be changed")
		local names = {}
		for k, v in pairs(params) do table.insert(names, k .. "=" .. tostring(v)) end
		return table.concat(names, " ") .. " " .. secrets.token .. " " .. params.list[2]`)
	job.Start.Params = &pb.LuaTable{Fields: []*pb.LuaField{
		{Key: []byte("name"), Value: text("web")}, {Key: []byte("size"), Value: number(3)},
		{Key: []byte("list"), Value: &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{Array: []*pb.LuaValue{text("a"), text("b")}}}}},
	}}
	job.Start.Secrets = map[string]string{"token": "hush"}
	out := mustRun(t, pool, job)
	if got, want := string(out.Result.GetString_()), "name=web size=3 list=table: 1 hush b"; got != want {
		t.Errorf("script saw %q, want %q", got, want)
	}
}

func TestCallRoundTrip(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script("\n" + `return file.write("/etc/motd", "hi\0\255", {mode = "0644", list = {1, {}}}, nil)`)
	job.Start.Functions = functions("file.write")
	var got *pb.RunnerCall
	job.Call = func(_ context.Context, call *pb.RunnerCall) *pb.RunnerReply {
		got = call
		return &pb.RunnerReply{Value: &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: true}}}
	}
	out := mustRun(t, pool, job)
	if !out.Result.GetBoolean() || out.Stats.GetCalls() != 1 {
		t.Errorf("result is %v after %d calls", out.Result, out.Stats.GetCalls())
	}
	if got.GetScript() != "test.lua" || got.GetLine() != 2 || len(got.GetArgs()) != 3 ||
		string(got.GetArgs()[1].GetString_()) != "hi\x00\xff" ||
		got.GetArgs()[2].GetTable().GetFields()[1].GetValue().GetTable().GetArray()[0].GetNumber() != 1 {
		t.Errorf("call was %v", got)
	}
}

// readOnlyDisk fails every call like a write to a read-only disk.
func readOnlyDisk(_ context.Context, call *pb.RunnerCall) *pb.RunnerReply {
	return &pb.RunnerReply{Error: &pb.RunnerError{
		Op: call.GetName(), Code: "read_only", Object: "/etc/motd", Message: "read-only file system", Hint: "remount it",
	}}
}

func TestErrorTables(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script(`
		local ok, err = pcall(file.write, "/etc/motd", "x")
		return tostring(ok) .. "|" .. err.op .. "|" .. err.code .. "|" .. err.object .. "|" .. err.message .. "|" ..
			tostring(err) .. "|" .. ("said: " .. err)`)
	job.Start.Functions = functions("file.write")
	job.Call = readOnlyDisk
	const whole = "file.write /etc/motd: read-only file system"
	want := "false|file.write|read_only|/etc/motd|read-only file system|" + whole + "|said: " + whole
	if got := string(mustRun(t, pool, job).Result.GetString_()); got != want {
		t.Errorf("script saw\n%q, want\n%q", got, want)
	}

	job.Start.Source = []byte("local function f()\n  file.write('/etc/motd')\nend\nf()")
	e := mustFail(t, pool, job, "builtin", whole)
	if e.GetScript() != "test.lua" || e.GetLine() != 2 || e.GetOp() != "file.write" || e.GetCode() != "read_only" ||
		e.GetObject() != "/etc/motd" || e.GetHint() != "remount it" || !strings.Contains(e.GetTraceback(), "test.lua:4") {
		t.Errorf("error is %v", e)
	}
	job.Start.Source = []byte("local ok, err = pcall(file.write, '/etc/motd')\nerror(err)")
	if e := mustFail(t, pool, job, "builtin", whole); e.GetLine() != 1 {
		t.Errorf("rethrown error names line %d, want that of the call", e.GetLine())
	}
	job.Start.Source = []byte("file.wirte('/etc/motd')")
	mustFail(t, pool, job, "runtime", "file has no function wirte, did you mean write?")
}

func TestErrorsOfScripts(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	for _, c := range []struct {
		name, source, kind, message string
		line                        uint32
	}{
		{"syntax", "local x = 1\nif x then then\n", "syntax", `near "then"`, 2},
		{"unfinished", "local t = {\n1,\n", "syntax", "ends in the middle", 2},
		{"compiler", "local function f()\n return ...\nend", "syntax", "vararg", 2},
		{"bytecode", "\x1bLua", "syntax", "text", 1},
		{"index of nil", "local t\nreturn t.x", "runtime", "index", 2},
		{"message", "\n\nerror('no good')", "runtime", "no good", 3},
		{"message without place", "\nerror('no good', 0)", "runtime", "no good", 2},
		{"table", "error({message = 'mine', code = 'busy'})", "runtime", "mine", 1},
		{"nil", "\nerror(nil)", "runtime", "nil", 2},
		{"function as result", "return {a = {print}}", "result", "result.a[1]: a function cannot leave", 0},
		{"hole in a result", "return {1, nil, 3}", "result", "result[2]", 0},
		{"circle", "local t = {} t.t = t return t", "result", "within themselves", 0},
		{"recursion", "local function f() return 1 + f() end\nreturn f()", "depth", "too deeply", 1},
		{"script in the middle", "script {name = 'x'}\nreturn 1", "runtime", "last statement", 1},
		{"json", "json.decode('{\"a\":')", "builtin", "json.decode: byte 5", 1},
		{"not declared", "netplan.apply()", "runtime", "index", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := mustFail(t, pool, script(c.source), c.kind, c.message)
			if e.GetLine() != c.line || e.GetScript() != "test.lua" {
				t.Errorf("error is at %s:%d, want line %d", e.GetScript(), e.GetLine(), c.line)
			}
			if strings.Contains(e.String(), "0xc0") {
				t.Errorf("error shows an address: %v", e)
			}
		})
	}
}

func TestUnsupportedIsNamed(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script("\nreturn netplan.get({})")
	job.Start.Unsupported = []string{"netplan", "power", "file.glob"}
	job.Start.Functions = functions("file.read")
	if e := mustFail(t, pool, job, "unsupported", "netplan.get"); e.GetLine() != 2 || e.GetCode() != "unsupported" {
		t.Errorf("error is %v", e)
	}
	job.Start.Source = []byte("power(16)")
	mustFail(t, pool, job, "unsupported", "power")
	job.Start.Source = []byte("file.glob('*')")
	mustFail(t, pool, job, "unsupported", "file.glob")
}

func TestLogAndProgress(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{LogLines: 5}})
	job := script(`
		log("plain", 1, {}) log.debug("d") log.warn("w\255") log.error("e") print("p", 1)
		log("one too many")
		progress(0.5, "half") progress(nil, "unknown")`)
	var lines, steps []string
	job.Log = func(l *pb.LogLine) { lines = append(lines, l.GetLevel()+" "+l.GetMessage()) }
	job.Progress = func(f *float64, step string) {
		if f != nil {
			step += fmt.Sprint(*f)
		}
		steps = append(steps, step)
	}
	out := mustRun(t, pool, job)
	want := "info plain 1 table: 1,debug d,warn w\\xff,error e,info p\t1"
	if got := strings.Join(lines, ","); got != want || out.LogDropped != 1 {
		t.Errorf("log is %q and %d dropped, want %q and 1", got, out.LogDropped, want)
	}
	if got := strings.Join(steps, ","); got != "half0.5,unknown" {
		t.Errorf("progress is %q", got)
	}
}

func TestLibraries(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	for source, want := range map[string]string{
		`return string.format("%5d|%-5s|%05.1f|%x|%g|%q|%c%%|%.2s|%5s|%i", 42, "ab", 3.14159, 255, 1e20, 'a"\n', 65, "xyz", "ü", 7)`: "   42|ab   |003.1|ff|1e+20|\"a\\\"\\\n\"|A%|xy|   ü|7",
		`return string.format("%g %g %s %d", 0.1, 100000, 1e15, -3)`:                                                                 "0.1 100000 1000000000000000 -3",
		`return tostring(select(2, pcall(string.format, "%p", {})))`:                                                                 "test.lua:1: invalid option '%p' to 'format'",
		`return ("x"):rep(3) .. ("ab"):format()`:                                                                                     "xxxab",
		`return getmetatable("")`:                                                                                                    "locked",
		`return tostring(pcall(setmetatable, "", {}))`:                                                                               "false",
		`local t = {} for i = 1, 100000 do t[i] = "ab" end return tostring(#table.concat(t, ","))`:                                   "299999",
		`return json.encode(json.decode('{"b":[1,2.5,null,{}],"a":[],"s":"<é\\n>"}'))`:                                               `{"b":[1,2.5,null,{}],"a":[],"s":"<é\n>"}`,
		`return json.encode({json.array(), {}, json.array{1}})`:                                                                      `[[],{},[1]]`,
		`return base64.decode(base64.encode("a\0b")) == "a\0b" and "same" or "other"`:                                                "same",
		`local f = function() end return tostring(f) .. tostring({}) .. tostring(f)`:                                                 "function: 1table: 2function: 1",
		`return type(os) .. type(io) .. type(debug) .. type(coroutine) .. type(load) .. type(loadstring) .. type(dofile) .. type(package) .. type(channel) .. type(newproxy) .. type(setfenv)`: "nilnilnilnilnilnilnilnilnilnilnil",
		`local n = math.random(1, 6) return tostring(n >= 1 and n <= 6 and n % 1 == 0 and collectgarbage("count") == 0)`:                                                                       "true",
		"\xef\xbb\xbf#!/usr/bin/env lua\nreturn 'shebang'": "shebang",
	} {
		out := pool.Run(t.Context(), script(source))
		if out.Error != nil || string(out.Result.GetString_()) != want {
			t.Errorf("%s\ngives %q, error %v, want %q", source, out.Result.GetString_(), out.Error, want)
		}
	}
}

func TestRequire(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script(`local a, again = require("a"), require("a") return tostring(a == again) .. a.name .. tostring(loads)`)
	job.Start.Modules = map[string][]byte{
		"a":      []byte(`loads = (loads or 0) + 1 return {name = ... .. require("b")}`),
		"b":      []byte(`return "!"`),
		"first":  []byte(`return require("second")`),
		"second": []byte(`return require("first")`),
		"broken": []byte("\n\nif if"),
	}
	if got := string(mustRun(t, pool, job).Result.GetString_()); got != "truea!1" {
		t.Errorf("modules gave %q", got)
	}
	job.Start.Source = []byte(`require("first")`)
	mustFail(t, pool, job, "builtin", "first needs second needs first")
	job.Start.Source = []byte(`require("nothing")`)
	mustFail(t, pool, job, "builtin", "no module nothing")
	job.Start.Source = []byte(`require("broken")`)
	if e := mustFail(t, pool, job, "runtime", "syntax error"); e.GetScript() != "broken.lua" || e.GetLine() != 3 {
		t.Errorf("error is at %s:%d", e.GetScript(), e.GetLine())
	}
}

const declared = `
local helper = function(s) return s:upper() end
return script {
  name = "demo", version = "1.2", description = "for the test",
  params = {
    title = {type = "string", required = true, pattern = "^%a+$"},
    count = {type = "integer", default = 3},
    mode = {type = "enum", enum = {"fast", "slow"}, default = "slow"},
    to = {type = "cidr"}, where = {type = "path"}, who = {type = "hostname"}, ip = {type = "ip"},
    on = {type = "boolean"}, tags = {type = "list"}, map = {type = "map"}, f = {type = "number"},
    key = {type = "string", secret = true, required = true},
  },
  needs = {"file:/etc/hosts"}, timeout = "90s", confirm = 5, readonly = true,
  run = function(p) return helper(p.title) .. p.count .. p.mode .. p.key .. file.read("/x") end,
}`

func declaredJob(source string, params map[string]*pb.LuaValue) sandbox.Job {
	job := script(source)
	job.Start.Functions = functions("file.read")
	job.Start.Secrets = map[string]string{"key": "K"}
	job.Start.Params = &pb.LuaTable{}
	for name, value := range params {
		job.Start.Params.Fields = append(job.Start.Params.Fields, &pb.LuaField{Key: []byte(name), Value: value})
	}
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return &pb.RunnerReply{Value: text("!")} }
	return job
}

func TestDeclaredScript(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := declaredJob(declared, map[string]*pb.LuaValue{"title": text("hello")})
	if got := string(mustRun(t, pool, job).Result.GetString_()); got != "HELLO3slowK!" {
		t.Errorf("result is %q", got)
	}
	job.Start.Describe, job.Start.Params = true, nil
	out := mustRun(t, pool, job)
	d := out.Declaration
	if d.GetName() != "demo" || d.GetVersion() != "1.2" || d.GetTimeout() != 90 || d.GetConfirm() != 5 || !d.GetReadonly() ||
		len(d.GetNeeds()) != 1 || len(d.GetParams().GetFields()) != 12 || out.Stats.GetCalls() != 0 {
		t.Errorf("declaration is %v after %d calls", d, out.Stats.GetCalls())
	}
	if _, err := sandbox.ToStruct(d.GetParams()); err != nil {
		t.Error(err)
	}
	job.Start.Source = []byte("return 1")
	if out := mustRun(t, pool, job); out.Declaration != nil || out.Result.GetKind() != nil {
		t.Errorf("a plain script describes itself as %v, result %v", out.Declaration, out.Result)
	}
}

func TestAllFaultsOfParamsAtOnce(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := declaredJob(declared, map[string]*pb.LuaValue{
		"titel": text("x"), "count": number(1.5), "mode": text("slwo"), "to": text("192.0.2.1"), "where": text("/a/../b"),
		"who": text("-x"), "ip": text("300.1.1.1"), "on": text("yes"), "tags": text("a"), "map": number(1), "f": text("1"),
		"key": text("leak"),
	})
	job.Start.Secrets = nil
	e := mustFail(t, pool, job, "params", "")
	for _, words := range []string{
		"title is required", "unknown parameter titel, did you mean title?", "count must be an integer",
		"mode must be one of fast, slow (did you mean slow?)", "to must be an IP address with prefix length",
		"where must be an absolute path", "who must be a host name", "ip must be an IP address", "on must be a boolean",
		"tags must be a list", "map must be a map", "f must be a number", "key is required", "key is secret",
	} {
		if !strings.Contains(e.GetMessage(), words) {
			t.Errorf("message lacks %q: %s", words, e.GetMessage())
		}
	}
	if strings.Contains(e.GetMessage(), "leak") {
		t.Errorf("message shows a secret: %s", e.GetMessage())
	}
	mustFail(t, pool, declaredJob(declared, map[string]*pb.LuaValue{"title": text("a b")}), "params", "title must match ^%a+$")
}

func TestFaultsOfDeclarations(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	for body, words := range map[string]string{
		`name = "x", run = 1`:                                                       "run must be a function",
		`name = "X y", run = print`:                                                 "name must be",
		`name = "x", run = print, parms = {}`:                                       "unknown field parms, did you mean params?",
		`name = "x", run = print, params = {a = {type = "strin"}}`:                  "params.a: type strin is not one of",
		`name = "x", run = print, params = {a = {type = "enum"}}`:                   "params.a: an enum needs enum",
		`name = "x", run = print, params = {a = {type = "integer", default = "1"}}`: "params.a: default must be an integer",
		`name = "x", run = print, params = {a = {type = "string", pattern = "[a"}}`: "params.a: pattern",
		`name = "x", run = print, params = {a = {type = "string", requird = true}}`: "unknown field requird, did you mean required?",
		`name = "x", run = print, timeout = "soon"`:                                 "timeout",
		`name = "x", run = print, needs = "all"`:                                    "needs must be a list of strings",
		`name = "x", run = print, needs = {}`:                                       "needs is empty, which would limit nothing",
	} {
		e := pool.Run(t.Context(), declaredJob("local x\nreturn script {"+body+"}", nil)).Error
		if e.GetKind() != "syntax" || !strings.Contains(e.GetMessage(), words) || e.GetLine() != 2 {
			t.Errorf("%s gives %v, want %q", body, e, words)
		}
	}
}

func TestTopLevelOfADeclaredScriptDoesNothing(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := declaredJob("local x = 1\nfile.read('/x')\nreturn script {name = 'x', run = print}", nil)
	if e := mustFail(t, pool, job, "builtin", "not at the top level of a declared script"); e.GetLine() != 2 {
		t.Errorf("error is %v", e)
	}
	job.Start.Describe = true
	mustFail(t, pool, job, "builtin", "not at the top level of a declared script")
}

func TestTimeoutNamesTheLine(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{Wall: 300 * time.Millisecond}})
	inTime(t, func() *pb.ScriptError {
		return mustFail(t, pool, script("local x\nwhile true do\n  x = 1\nend"), "timeout", "too long")
	}, func(e *pb.ScriptError) bool {
		return e.GetLine() >= 2 && e.GetLine() <= 4 && e.GetLimit() == "script.timeout_seconds=0.3"
	})
}

// inTime tries several times until a script ends with the right error: on a busy machine a runner may not have started when
// its time is over, and may be killed before it has reported where it was.
func inTime(t *testing.T, end func() *pb.ScriptError, right func(*pb.ScriptError) bool) {
	t.Helper()
	var e *pb.ScriptError
	for range 10 {
		if e = end(); right(e) {
			return
		}
	}
	t.Errorf("it ends with %v", e)
}

func TestCancelInACall(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script("\nexec.run({'sleep', '60'})")
	job.Start.Functions = functions("exec.run")
	ctx, cancel := context.WithCancelCause(t.Context())
	job.Call = func(ctx context.Context, _ *pb.RunnerCall) *pb.RunnerReply {
		cancel(errors.New("the host asked for it"))
		<-ctx.Done()
		return &pb.RunnerReply{}
	}
	out := pool.Run(ctx, job)
	if e := out.Error; e.GetKind() != "cancelled" || e.GetLine() != 2 || !strings.Contains(e.GetMessage(), "the host asked") {
		t.Errorf("error is %v", e)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if e := pool.Run(short, script("while true do end")).Error; e.GetKind() != "timeout" {
		t.Errorf("error is %v", e)
	}
}

func TestTimeInACallIsNotProcessorTime(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{CPU: 500 * time.Millisecond}})
	job := script("exec.run({}) return 1")
	job.Start.Functions = functions("exec.run")
	job.Call = func(ctx context.Context, _ *pb.RunnerCall) *pb.RunnerReply {
		select { // a command that takes its time
		case <-ctx.Done():
		case <-time.After(700 * time.Millisecond):
		}
		return &pb.RunnerReply{}
	}
	mustRun(t, pool, job)
}

func TestCallLimit(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{Calls: 3}})
	job := script("for i = 1, 10 do\n file.read('/x')\nend")
	job.Start.Functions = functions("file.read")
	calls := 0
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { calls++; return nil }
	if e := mustFail(t, pool, job, "calls", "too many"); e.GetLine() != 2 || calls != 3 {
		t.Errorf("error is %v after %d calls", e, calls)
	}
}

func TestSizeLimits(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{Source: 1000, Result: 1000}})
	mustFail(t, pool, script(strings.Repeat("-", 1001)), "source", "1001 bytes")
	if e := mustFail(t, pool, script(`return string.rep("x", 2000)`), "result", "bytes"); e.GetLimit() != "script.max_result_bytes=1000" {
		t.Errorf("error is %v", e)
	}
	large := script(`local s = ("x"):rep(30000) return script {name = "x", description = s, version = s, needs = {s}, run = function() end}`)
	large.Start.Describe = true
	mustFail(t, newPool(t, sandbox.Config{}), large, "syntax", "more than 65536")
	large.Start = &pb.RunnerStart{DescribeAll: true, Modules: map[string][]byte{"a": large.Start.Source, "b": []byte("return 1")}}
	told := mustRun(t, newPool(t, sandbox.Config{}), large).Descriptions
	if e := told["a"].Error; e.GetKind() != "syntax" || told["b"].Error != nil || len(told) != 2 {
		t.Errorf("described are %v", told)
	}
	job := script("return require('m')")
	job.Start.Modules = map[string][]byte{"m": make([]byte, 1001)}
	mustFail(t, pool, job, "source", "1001 bytes")
}

func TestLargeArgumentsAndReplies(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script(`
		local s = string.rep("x", 4194304)
		assert(#file.write("/x", s) == #s)
		local ok, err = pcall(file.write, "/x", string.rep("x", 8388608))
		assert(not ok and err.code == "too_large", tostring(err))
		local many = {} for i = 1, 70000 do many[i] = i end
		local ok, err = pcall(file.write, "/x", many)
		assert(not ok and err.code == "invalid", tostring(err))
		local ok, err = pcall(file.read, "/big")
		assert(not ok and err.code == "too_large", tostring(err))
		local ok, err = pcall(file.read, "/many")
		assert(not ok and err.code == "too_large", tostring(err))
		assert(#file.read("/some") == 100000)`)
	job.Start.Functions = functions("file.write", "file.read")
	job.Call = func(_ context.Context, call *pb.RunnerCall) *pb.RunnerReply {
		switch string(call.GetArgs()[0].GetString_()) {
		case "/many":
			return &pb.RunnerReply{Value: list(slices.Repeat([]*pb.LuaValue{number(1)}, 200_000)...)}
		case "/some":
			return &pb.RunnerReply{Value: list(slices.Repeat([]*pb.LuaValue{number(1)}, 100_000)...)}
		case "/big":
			return &pb.RunnerReply{Value: text(strings.Repeat("x", 9<<20))}
		}
		return &pb.RunnerReply{Value: call.GetArgs()[1]}
	}
	mustRun(t, pool, job)
}
