package lua

import (
	"fmt"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// elements returns n comma-separated elements, counted from 1.
func elements(n int, element func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = element(i + 1)
	}
	return strings.Join(parts, ",")
}

// numbered returns an element that has its number in it.
func numbered(format string) func(int) string {
	return func(i int) string { return fmt.Sprintf(format, i) }
}

// runSource runs a script and returns its result, or the error as text.
func runSource(source string) string {
	stop := newStopper()
	done := execute(&pb.RunnerStart{Name: "generated", Source: []byte(source)}, nil, stop)
	if e := done.GetError(); e != nil {
		return e.GetKind() + ": " + e.GetMessage()
	}
	return string(done.GetResult().GetString_())
}

// TestTableConstructors: each element of a table that is written out stands where it is written, however many there are,
// and whatever stands between them.
func TestTableConstructors(t *testing.T) {
	const verify = `
local function verify(t, n)
  for i = 1, n do if t[i] ~= i then return "element " .. i .. " is " .. tostring(t[i]) end end
  for k, v in pairs(t) do
    if type(k) ~= "number" and v ~= k or type(k) == "number" and (k < 1 or k > n) then return "there is " .. tostring(k) end
  end
  return #t == n and "whole" or "length " .. #t
end
local function id(...) return ... end
local x = 0
local function count() x = x + 1 return x end
local l1, l2, k = 1, 2, 200
`
	counting := func(n int) string { // with few constants: the compiler takes long for many
		return elements(n, func(i int) string { return fmt.Sprintf("%d+k*%d", i%200, i/200) })
	}
	two := func(i int) string { return fmt.Sprintf("id(%d, %d)", i, i+1) }
	for _, n := range []int{1, 49, 50, 51, 99, 100, 101, 149, 150, 151, 25500, 25549, 25550, 25551, 25600, 25601, 60000} {
		for name, body := range map[string]string{
			"numbers":        counting(n),
			"calls":          elements(n, func(int) string { return "(count())" }),
			"local names":    "l1,l2," + elements(n, func(i int) string { return fmt.Sprintf("%d+k*%d", (i+2)%200, (i+2)/200) }),
			"a name last":    counting(n) + ",a='a'",
			"names last":     counting(n) + ",a=id('a'),b=id('b'),[id('c')]=id('c')",
			"a name first":   "a='a'," + counting(n),
			"names between":  elements(n, numbered("n%[1]d=id('n%[1]d'),%[1]d")),
			"a call last":    counting(n) + ",id()",
			"parentheses":    elements(n, func(i int) string { return fmt.Sprintf("(id(%d+k*%d,0))", i%200, i/200) }),
			"tables between": elements(n, func(i int) string { return fmt.Sprintf("#{1,2,x=3}-2+%d+k*%d", i%200, i/200) }),
		} {
			if n > 1000 && name == "names between" || n > 30000 && name != "calls" {
				continue
			}
			want, items := "whole", n
			if name == "local names" {
				items = n + 2
			}
			if name == "a call last" && n == 25550 {
				want = "syntax: a table with this many elements cannot end in a call or ..., add those afterwards"
			}
			if got := runSource(verify + "return verify({" + body + "}," + fmt.Sprint(items) + ")"); got != want {
				t.Errorf("%s, %d: %s, want %s", name, n, got, want)
			}
		}
		if n < 30000 && n != 25549 && n != 25551 && n != 25550 { // two more from a call
			body := counting(n) + "," + two(n+1)
			if got := runSource(verify + fmt.Sprintf("return verify({%s}, %d)", body, n+2)); got != "whole" {
				t.Errorf("%d and two from a call: %s", n, got)
			}
			if got := runSource(verify + fmt.Sprintf("local function f(...) return verify({%s, ...}, %d) end return f(%d, %d)",
				counting(n), n+2, n+1, n+2)); got != "whole" {
				t.Errorf("%d and ...: %s", n, got)
			}
		}
	}
}

// TestProgramsTooLarge: what the interpreter would compile to something else is refused, or runs as it is written.
func TestProgramsTooLarge(t *testing.T) {
	nested := func(levels, each int) string { // of functions that have local variables, and the innermost uses all of them
		var source, end, used strings.Builder
		for level := range levels {
			for i := range each {
				fmt.Fprintf(&source, "local a%d_%d = 1\n", level, i)
				fmt.Fprintf(&used, "+a%d_%d", level, i)
			}
			source.WriteString("return (function()\n")
			end.WriteString(" end)()")
		}
		return source.String() + "return tostring(0" + used.String() + ")" + end.String()
	}
	repeated := func(s string, n int) string { return strings.Repeat(s, n) }
	functions := func(n int) string { return elements(n, numbered("function() return %d end")) }
	const spread = "local t = {} for i = 1, 600 do t[i] = i end "
	for _, c := range []struct{ name, source, want string }{
		{"190 functions as arguments", "local function f(...) return (select(190, ...))() + (select(1, ...))() end return tostring(f(" + functions(190) + "))", "191"},
		{"300 functions as arguments", "local function f() end f(" + functions(300) + ")", "syntax: 300 values at once, the limit is 200"},
		{"functions as arguments of a call that is an argument", "local function f() end f(" + functions(150) + ", f(" + functions(150) + "))", "syntax: too many values at once, split the statement"},
		{"300 functions as results", "local function f() return " + functions(300) + " end f()", "syntax: 300 values at once, the limit is 200"},
		{"600 globals from a call", spread + elements(600, numbered("g%d")) + " = unpack(t) return tostring(g600)", "syntax: 600 values at once, the limit is 200"},
		{"180 globals from a call", spread + elements(180, numbered("g%d")) + " = unpack(t) return g1 .. g180", "1180"},
		{"600 globals from ...", "local function f(...) " + elements(600, numbered("g%d")) + " = ... end f()", "syntax: 600 values at once, the limit is 200"},
		{"250 local variables", "local " + elements(250, numbered("l%d")) + " = 1", "syntax: 250 values at once, the limit is 200"},
		{"250 local variables, one by one", repeated("local l = 1\n", 250), "syntax: too many local variables"},
		{"250 parameters", "local function f(" + elements(250, numbered("l%d")) + ") end", "syntax: register overflow"},
		{"250 variables of the functions around", nested(2, 125), "250"},
		{"300 variables of the functions around", nested(2, 150), "syntax: a function uses 300 local variables of the functions around it, the limit is 255"},
		{"600 variables of the functions around", nested(4, 150), "syntax: a function uses 300 local variables of the functions around it, the limit is 255"},
		{"150 strings joined", "return tostring(#(" + repeated("tostring(1)..", 150) + "'y'))", "151"},
		{"300 strings joined", "return #(" + repeated("tostring(1)..", 300) + "'y')", "syntax: 301 values at once, the limit is 200"},
		{"strings joined step by step", "return tostring(#(" + repeated("(", 300) + "'x'" + repeated("..'x')", 300) + "))", "301"},
		{"40000 conditions", "local n = 0\n" + repeated("if true then end\n", 40000) + "if n == 1 then n = 5 else n = 7 end return tostring(n)", "7"},
		{"50000 conditions", "local n = 0\n" + repeated("if true then end\n", 50000) + "if n == 1 then n = 5 else n = 7 end return tostring(n)", "syntax: a function has too many conditions, split it"},
		{"a long loop", "local n = 0 for i = 1, 3 do " + repeated("n = n + 1 ", 130000) + " end return tostring(n)", "390000"},
		{"too long a loop", "local n = 0 for i = 1, 3 do " + repeated("n = n + 1 ", 132000) + " end return tostring(n)", "syntax: a function with a loop has 132011 instructions, the limit is 131071"},
		{"too long a while", "local n, k = 0, 0 while k < 3 do k = k + 1 " + repeated("n = n + 1 ", 132000) + " end return tostring(n)", "syntax: too long to jump."},
		{"too long a repeat", "local n, k = 0, 0 repeat k = k + 1 " + repeated("n = n + 1 ", 132000) + " until k == 3 return tostring(n)", "syntax: a function with a loop has 132010 instructions, the limit is 131071"},
		{"too long a for in", "local n = 0 for _ in pairs({1, 2}) do " + repeated("n = n + 1 ", 132000) + " end return tostring(n)", "syntax: too long to jump."},
		{"too long a goto", "local n = 0 ::top:: " + repeated("n = n + 1 ", 132000) + " if n < 200000 then goto top end return tostring(n)", "syntax: a function with a loop has 132016 instructions, the limit is 131071"},
		{"a long if", "local n = 0 if n > 5 then " + repeated("n = n + 1 ", 130000) + " end return tostring(n)", "0"},
		{"too long an if", "local n = 0 if n > 5 then " + repeated("n = n + 1 ", 140000) + " end return tostring(n)", "syntax: too long to jump."},
		{"long without a loop", "local n = 0 " + repeated("n = n + 1 ", 140000) + " return tostring(n)", "140000"},
		{"150 tables within one another", "return tostring(#" + repeated("{", 150) + repeated("}", 150) + ")", "1"},
		{"300 tables within one another", "return " + repeated("{", 300) + repeated("}", 300), "syntax: register overflow(too many local variables)"},
		{"not, 10001 times", "local x = 1 return tostring(" + repeated("not ", 10001) + "x)", "false"},
		{"parentheses, 10000", "return tostring(" + repeated("(", 10000) + "5" + repeated(")", 10000) + ")", "5"},
		{"300 constants", "local t = {} " + repeated("", 1) + strings.ReplaceAll(elements(300, numbered("t.k%[1]d = 'v%[1]d'")), ",", " ") + " return t.k1 .. t.k256 .. t.k257 .. t.k300", "v1v256v257v300"},
	} {
		if got := runSource(c.source); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestNumbersInScripts: a number in a script is what the manual says, or the script is refused.
func TestNumbersInScripts(t *testing.T) {
	for text, want := range map[string]string{
		"0644": "644", "00644": "644", "000": "0", "0x10": "16", "0XfF": "255", "1e3": "1000", "1E+3": "1000", "5e-1": "0.5", ".5": "0.5", "5.": "5",
		"1e400": "inf", "9007199254740992": "9007199254740992", "9007199254740993": "syntax: a number in Lua cannot be 9007199254740993 exactly; make it text, with quotes",
		"9223372036854775807": "syntax: a number in Lua cannot be 9223372036854775807 exactly; make it text, with quotes",
		"9223372036854775808": "9223372036854775808", "0x7fffffffffffffff": "syntax: a number in Lua cannot be 0x7fffffffffffffff exactly; make it text, with quotes",
		"0x8000000000000000": "9223372036854775808", "0xffffffff": "4294967295", "89148000000060671234": "syntax: a number in Lua cannot be 89148000000060671234 exactly; make it text, with quotes",
		"3e": "syntax: the script ends in the middle of a statement", "1e+": "syntax: the script ends in the middle of a statement", "1.7328712345678901e18": "1732871234567890176", "3e ": "syntax: malformed number 3e ",
	} {
		if got := runSource("return tostring(" + text + ")"); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
	if got := runSource("local t = {0010, -00020} return tostring(t[1]) .. t[2] .. tostring(0x10 == 16.0)"); got != "10-20true" {
		t.Errorf("%s", got)
	}
}

// TestInstructionFormat: the compiled code has the form that correct reads.
func TestInstructionFormat(t *testing.T) {
	proto, err := compileTree(parsed(t, "return {"+elements(25601, numbered("%d"))+"}"), "format")
	if err != nil {
		t.Fatal(err)
	}
	var counts []int
	for pc := 0; pc < len(proto.Code); pc++ {
		if in := instruction(proto.Code[pc]); in.op() == glua.OP_SETLIST {
			n := in.c()
			if n == 0 {
				pc++
				n = int(proto.Code[pc])
			}
			counts = append(counts, n)
		}
	}
	for i, n := range counts {
		if n != i+1 {
			t.Fatalf("group %d of the elements has the number %d", i+1, n)
		}
	}
	if len(counts) != 513 {
		t.Errorf("there are %d groups of elements, want 513", len(counts))
	}
}

func parsed(t *testing.T, source string) []ast.Stmt {
	t.Helper()
	chunk, err := parse.Parse(strings.NewReader(source), "source")
	if err != nil {
		t.Fatal(err)
	}
	return chunk
}

// TestNumbersOfDocuments: json and yaml give back the number that they were given, or say that they cannot.
func TestNumbersOfDocuments(t *testing.T) {
	const refused = "a number in Lua cannot be %s exactly; make it text, with quotes"
	for text, want := range map[string]string{
		"1732871234567890": "1732871234567890", "-9007199254740992": "-9007199254740992", "0.1": "0.1", "[1, {\"a\": 5}]": "[1,{\"a\":5}]",
		"9007199254740993": "", "1732871234567890123": "", "89148000000060671234": "", "-89148000000060671234": "",
		"18446744073709551616": "18446744073709551616", "9007199254740993.0": "", "9007199254740993e0": "", "123456789012345678e3": "",
		"1e400": "", "-1e400": "", "1e-400": "", "0e5": "0",
	} {
		for _, library := range []string{"json", "yaml"} {
			// A value that has another place is written anew.
			got := runSource(fmt.Sprintf("local ok, v = pcall(function() return json.encode({%s.decode('[%s]')[1]}) end) return tostring(v)", library, text))
			if want == "" {
				if want := fmt.Sprintf(refused, text); !strings.Contains(got, want) {
					t.Errorf("%s of %s gives %s, want %s", library, text, got, want)
				}
				continue
			}
			if want := "[" + want + "]"; got != want {
				t.Errorf("%s of %s gives %s, want %s", library, text, got, want)
			}
		}
	}
	for source, want := range map[string]string{
		`return require("string").upper("a") .. require("math").floor(1.5) .. type(require("table"))`: "A1table",
		`return yaml.encode({a = 1732871234567890})`:                                                  "a: 1732871234567890\n",
		`return yaml.encode({a = 1e-7})`:                                                              "a: 1.0e-07\n",
		`return yaml.encode({a = 2.5e30})`:                                                            "a: 2.5e+30\n",
		`return yaml.encode({a = 1e30})`:                                                              "a: 1.0e+30\n",
		`return tostring(select(2, pcall(json.decode, '{"a":"caf\233"}')))`:                           "json.decode: the text is not UTF-8",
	} {
		if got := runSource(source); got != want {
			t.Errorf("%s gives %s, want %s", source, got, want)
		}
	}
}
