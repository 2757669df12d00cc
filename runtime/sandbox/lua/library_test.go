package lua

import (
	"strings"
	"testing"
	"time"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// FuzzGsub checks laws: to replace each match by itself changes nothing, and gmatch returns the matches that gsub replaces.
func FuzzGsub(f *testing.F) {
	f.Add("THE (quick) fox", "%((%a+)%)")
	f.Add("a,b,,c", "[^,]*")
	f.Add("", "()")
	f.Fuzz(func(t *testing.T, text, source string) {
		if len(text) > 200 || len(source) > 50 {
			return
		}
		m := prepared(t)
		in, p := literal(text), literal(source)
		for _, replacement := range []string{`"%0"`, "{}", "function() end"} {
			got := m.evaluate("(string.gsub(" + in + ", " + p + ", " + replacement + "))")
			if want := "s:" + quoted(text); got != want && !strings.HasPrefix(got, "error ") {
				t.Errorf("gsub(%s, %s, %s) gives %s", in, p, replacement, got)
			}
		}
		found := m.evaluate("(string.find(" + in + ", " + p + ") ~= nil) == (string.match(" + in + ", " + p + ") ~= nil)")
		if found != "true" && !strings.HasPrefix(found, "error ") {
			t.Errorf("find and match of %s in %s do not agree: %s", p, in, found)
		}
		if strings.HasPrefix(source, "^") {
			return // which means something else to gmatch
		}
		counted := m.evaluate("(collect(" + in + ", " + p + ")) == select(2, string.gsub(" + in + ", " + p + ", ''))")
		if strings.HasPrefix(counted, "error ") {
			return
		}
		if counted != "true" {
			t.Errorf("gmatch and gsub of %s in %s do not agree: %s", p, in, counted)
		}
	})
}

// TestStringsAreMethods: methods of strings are this library too, and a script cannot change them.
func TestStringsAreMethods(t *testing.T) {
	m := prepared(t)
	for source, want := range map[string]string{
		`("x"):rep(3)`:                            "s:xxx",
		`("a.b"):gsub("%.", "-")`:                 "s:a-b\tn:1",
		`("a b"):find("%f[%w]b")`:                 "n:3\tn:3",
		`getmetatable("")`:                        "s:locked",
		`pcall(setmetatable, "", {})`:             "false\ts:bad argument #1 to 'setmetatable' (table expected, got string)",
		`string.format == ("").format`:            "true",
		`"10" + setmetatable({}, {__add = swap})`: "s:<10,table: 1>",
		`setmetatable({}, {__add = swap}) + "10"`: "s:<table: 2,10>",
		`-"0x10" .. ""`:                           "s:-16",
	} {
		got := m.evaluate(source)
		got = strings.NewReplacer("case:1: ", "", "table: 2", "table", "table: 1", "table").Replace(got)
		want = strings.NewReplacer("table: 2", "table", "table: 1", "table").Replace(want)
		if got != want {
			t.Errorf("%s gives %s, want %s", source, got, want)
		}
	}
}

// TestStopEndsLibraryCalls: calls that take long end when the script is stopped, and the error has the line.
func TestStopEndsLibraryCalls(t *testing.T) {
	for name, source := range map[string]string{
		"find":   "string.find(('a'):rep(3000), '(a*)(a*)(a*)(a*)(a*)%1%2%3%4%5b')",
		"gmatch": "for _ in string.gmatch(('a'):rep(3000), '(a*)(a*)(a*)(a*)%1%2%3%4b') do end",
		"gsub":   "string.gsub(('a'):rep(3000), '(a*)(a*)(a*)(a*)%1%2%3%4b', '')",
		"%b":     "string.find(('('):rep(2000000), '%b()')",
		"insert": "for i = 1, 1e9 do table.insert({}, 1e9, 1) end",
		"sort":   "local t = {} for i = 1, 200000 do t[i] = i * 7919 % 200003 end while true do table.sort(t, rawequal) end",
	} {
		t.Run(name, func(t *testing.T) {
			stop := newStopper()
			timer := time.AfterFunc(100*time.Millisecond, func() { stop.stop("cpu", "enough") })
			defer timer.Stop()
			began := time.Now()
			done := execute(&pb.RunnerStart{Name: "long", Source: []byte("\n\n" + source)}, nil, stop)
			if e := done.GetError(); e.GetKind() != "cpu" || e.GetScript() != "long" || e.GetLine() != 3 {
				t.Errorf("it ends with %v", e)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it takes %v to stop", took)
			}
		})
	}
}

// TestResultsWithinMemory: a result that would not fit into memory ends the script before it is built.
func TestResultsWithinMemory(t *testing.T) {
	for name, source := range map[string]string{
		"rep":     "return string.rep('x', 1e12)",
		"rep 2":   "return string.rep('xxxxxxxxxxxxxxxx', 2^62)",
		"gsub":    "return #string.gsub(string.rep('a', 20000), 'a', string.rep('b', 20000))",
		"concat":  "local s, t = string.rep('x', 1048576), {} for i = 1, 2000 do t[i] = s end return #table.concat(t)",
		"format":  "local s = string.rep('x', 20000000) return #string.format('%s%s%s%s%s', s, s, s, s, s)",
		"upper":   "local t, s = {}, string.rep('x', 10000000) for i = 1, 100 do t[i] = s:upper() end",
		"reverse": "local t, s = {}, string.rep('x', 10000000) for i = 1, 100 do t[i] = s:reverse() end",
		"caught":  "pcall(string.rep, 'x', 1e12) while true do end",
	} {
		t.Run(name, func(t *testing.T) {
			stop := newStopper()
			stop.memory = 64 << 20
			done := execute(&pb.RunnerStart{Name: "large", Source: []byte("\n" + source)}, nil, stop)
			if e := done.GetError(); e.GetKind() != "memory" || e.GetScript() != "large" || e.GetLine() != 2 {
				t.Errorf("it ends with %v, %v", e, done.GetResult())
			}
		})
	}
}

// TestReadOnlyTables: the table library reads read-only tables and cannot write to them.
func TestReadOnlyTables(t *testing.T) {
	m := prepared(t)
	list := m.L.NewTable()
	for _, v := range []string{"b", "a"} {
		rawSet(list, list.Len()+1, glua.LString(v))
	}
	m.L.SetGlobal("fixed", m.readOnly("fixed", list))
	for source, want := range map[string]string{
		`table.concat(fixed, ",")`:      "s:b,a",
		`unpack(fixed)`:                 "s:b\ts:a",
		`table.getn(fixed)`:             "n:2",
		`table.maxn(fixed)`:             "n:2",
		`pcall(table.insert, fixed, 1)`: "false\ts:case:1: bad argument #1 to 'insert' (a table that cannot be changed)",
		`(pcall(table.remove, fixed))`:  "false",
		`(pcall(table.sort, fixed))`:    "false",
		`#fixed`:                        "n:2",
	} {
		if got := m.evaluate(source); got != want {
			t.Errorf("%s gives %s, want %s", source, got, want)
		}
	}
}
