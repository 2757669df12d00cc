package lua

import (
	"fmt"
	"strings"
	"testing"
)

// longString returns text as source in Lua.
func longString(text string) string { return fmt.Sprintf("%s\n%s%s", "[==[", text, "]==]") }

// TestNumbersAreWritten: a whole number has its own digits wherever it becomes text.
func TestNumbersAreWritten(t *testing.T) {
	for source, want := range map[string]string{
		`tostring(2^60)`:                     "1152921504606846976",
		`json.encode({2^60})`:                "[1152921504606846976]",
		`yaml.encode({2^60})`:                "- 1152921504606846976\n",
		`string.format("%d", 2^70)`:          "1180591620717411303424",
		`string.format("%+25d|", -2^63)`:     "     -9223372036854775808|",
		`string.format("%s", 1e15)`:          "1000000000000000",
		`tostring(1732871234567890)`:         "1732871234567890",
		`tostring(-1732871234567890)`:        "-1732871234567890",
		`tostring(1000000000000000.5)`:       "1000000000000000.5",
		`json.encode({1e21, 0.5, -0.25})`:    "[1e+21,0.5,-0.25]",
		`tostring(0.1 + 0.2)`:                "0.3",
		`pcall(string.format, "%d", 1/0)`:    "false",
		`pcall(string.format, "%x", -2^64)`:  "false",
		`string.format("%x", 2^63)`:          "8000000000000000",
		`json.encode(json.decode("[1e22]"))`: "[1e+22]",
	} {
		if got := runSource("return tostring((" + source + "))"); got != want {
			t.Errorf("%s gives %s, want %s", source, got, want)
		}
	}
}

// TestYAMLStaysAsItWas: what a script does not change means the same to every reader of the document afterwards.
func TestYAMLStaysAsItWas(t *testing.T) {
	for _, same := range []string{
		"a: no\nb: yes\nc: Off\nd: ON\n", "- y\n- n\n", "on: push\nyes: 1\n", "80: a\n0x1F: b\n~: c\n", "v: 1.10\n", "mode: 0644\n", "mode: 0o644\n",
		"port: 22:22\n", "day: 2024-01-01\nat: 2001-12-14t21:59:43.10-05:00\n", "big: 1_000\n", "a: ~\nb: NULL\n", "e: 1e3\n", "h: 0x1F\n",
		"nested:\n  - - no\n    - k: 12e03\n", "x: &x no\n",
	} {
		want := strings.ReplaceAll(same, "&x ", "")
		if got := runSource("return yaml.encode(yaml.decode(" + longString(same) + "))"); got != want {
			t.Errorf("%q became %q", same, got)
		}
	}
	for _, c := range []struct{ document, source, want string }{
		{"a: no\nb: yes\n", "return tostring(v.a) .. tostring(v.b)", "falsetrue"},
		{"a: no\nb: no\n", "v.a = true return yaml.encode(v)", "a: true\nb: no\n"},
		{"a: no\n", "v.a = 'no' return yaml.encode(v)", "a: \"no\"\n"},
		{"a: no\n", "return yaml.encode({b = v.a})", "b: false\n"},
		{"a: \"no\"\nb: 'on'\n", "return v.a .. v.b .. yaml.encode(v)", "noona: \"no\"\nb: \"on\"\n"},
		{"[no, 017]", "table.insert(v, 1, 'x') return json.encode(v)", `["x",false,15]`},
		{"[no, 017]", "table.insert(v, 1, 'x') return yaml.encode(v)", "- x\n- false\n- 15\n"},
		{"day: 2024-01-01\n", "return yaml.encode({v.day, '12:30', '1e3', '0644', '0o7', 'y', 'NULL', '.inf', '='})",
			"- \"2024-01-01\"\n- \"12:30\"\n- \"1e3\"\n- \"0644\"\n- \"0o7\"\n- \"y\"\n- \"NULL\"\n- \".inf\"\n- \"=\"\n"},
		{"a: \"x:\\/\\/y\\\\/z\\/\"\nb: c\\/d\n'e\\/': 'f\\/g'\n\"h\\/\": |-\n  i\\/j\n", "return json.encode(v)", `{"a":"x://y\\/z/","b":"c\\/d","e\\/":"f\\/g","h/":"i\\/j"}`},
		{"[!!bool yes, !!bool n, !!int 0x10, !!float 3, !!str 5, !!str no]", "return json.encode(v)", `[true,false,16,3,"5","no"]`},
		{"!!map {a: !!seq [1], b: ! {c: ! [2]}}", "return json.encode(v)", `{"a":[1],"b":{"c":[2]}}`},
		{"[0x1F, 0o17, 017, 0b11, -0x10, +12]", "return json.encode(v)", "[31,15,15,3,-16,12]"},
		{"%YAML 1.2\n---\na: 1\n", "return json.encode(v)", `{"a":1}`},
		{"%YAML 1.1\n%TAG ! tag:example.com,2000:\n# c\n--- # d\na: no\n", "return json.encode(v)", `{"a":false}`},
		{"%YAML 1.2\n%RESERVED x\n---\n[yes, 010, 0o10, 1_0, 1.5, 0x1F]\n", "return json.encode(v)", `["yes",10,8,"1_0",1.5,31]`},
		{"%YAML 1.2\n---\na: no\n", "return yaml.encode(v)", "a: \"no\"\n"},
		{"\xef\xbb\xbfa: 1\n", "return json.encode(v)", `{"a":1}`},
	} {
		if got := runSource("local v = yaml.decode(" + longString(c.document) + ") " + c.source); got != c.want {
			t.Errorf("%q, %s: %q, want %q", c.document, c.source, got, c.want)
		}
	}
}

// TestDocumentsAreRefused: what Lua would have as something else is an error.
func TestDocumentsAreRefused(t *testing.T) {
	for _, c := range []struct{ library, document, want string }{
		{"json", `["\ud800"]`, `byte 2: \ud800 is one half of a character`},
		{"json", `["\\\udc00\ud800"]`, `byte 4: \udc00 is one half of a character`},
		{"json", `["\ud800\u0041"]`, `byte 2: \ud800 is one half`},
		{"json", "[\"\xed\xa0\x80\"]", "not UTF-8"},
		{"json", "[\"\xc0\xaf\"]", "not UTF-8"},
		{"json", "[\"caf\xe9\"]", "not UTF-8"},
		{"json", "\xff\xfe[\x001\x00]\x00", "not UTF-8"},
		{"yaml", "\xff\xfea\x00", "not UTF-8"},
		{"yaml", "a: caf\xe9", "not UTF-8"},
		{"yaml", "a: \xc0\xaf", "not UTF-8"},
		{"yaml", `a: "\ud800"`, "invalid Unicode"},
		{"yaml", "a: 0x1FFFFFFFFFFFFFFFF", "exactly"},
		{"yaml", "a: 0x7fffffffffffffff", "exactly"},
		{"yaml", "a: 010000000000000000000000", "exactly"},
		{"yaml", "a: 0o7777777777777777777777777", "exactly"},
		{"yaml", "a: -12345678901234567890.0", "exactly"},
		{"yaml", "a: !!float 12345678901234567890", "exactly"},
		{"yaml", "a: !!int 12345678901234567890", "exactly"},
		{"yaml", "a: 12_345_678_901_234_567_890", "exactly"},
		{"yaml", "a: [{b: 1e400}]", "exactly"},
		{"yaml", "a: !!bool maybe", "no boolean"},
		{"yaml", "a:\n  b: !Sub [x, y]", "line 2: the type !Sub is not known"},
		{"yaml", "a: !include {b: c}", "line 1: the type !include is not known"},
		{"yaml", "!!set {a, b}", "line 1: the type !!set is not known"},
		{"yaml", "!!map [a]", "line 1: the type !!map is not known"},
		{"yaml", "!!omap [a: 1]", "line 1: the type !!omap is not known"},
		{"yaml", "!!python/object:os.path {}", "line 1: the type !!python/object:os.path is not known"},
		{"yaml", "%YAML 2.0\n---\na: 1", "line 1: one %YAML"},
		{"yaml", "%YAML 1.1\n%YAML 1.1\n---\na: 1", "line 2: one %YAML"},
		{"yaml", "%YAML 1.2\na: 1", "line 2: --- is missing"},
	} {
		source := fmt.Sprintf("return tostring(select(2, pcall(%s.decode, %s)))", c.library, longString(c.document))
		if strings.ContainsAny(c.document, "\x00") {
			source = fmt.Sprintf("return tostring(select(2, pcall(%s.decode, %q)))", c.library, "\xff\xfe")
			source = strings.ReplaceAll(source, `\xff\xfe`, `\255\254`)
		}
		if got := runSource(source); !strings.Contains(got, c.want) {
			t.Errorf("%s of %q: %s, want %s", c.library, c.document, got, c.want)
		}
	}
	for document, want := range map[string]string{
		`["\ud83d\ude00", "\\ud800", "\u0000"]`: `["😀","\\ud800","\u0000"]`, "\xef\xbb\xbf[1]": "[1]",
	} {
		if got := runSource("return json.encode(json.decode(" + longString(document) + "))"); got != want {
			t.Errorf("json of %q: %s, want %s", document, got, want)
		}
	}
}

// TestYAMLControlCharacters: what is not printable to a reader of YAML 1.1, or ends a line to it, is escaped.
func TestYAMLControlCharacters(t *testing.T) {
	for char, want := range map[string]string{
		`\194\133`: `\N`, `\127`: `\x7F`, `\226\128\168`: `\L`, `\226\128\169`: `\P`, `\194\159`: `\x9F`, `\0`: `\0`, `\239\187\191`: `\uFEFF`,
	} {
		if got, want := runSource(`return yaml.encode({"a`+char+`b"})`), `- "a`+want+"b\"\n"; got != want {
			t.Errorf("%s: %q, want %q", char, got, want)
		}
	}
}

// TestTostringOfMetamethods: tostring returns what __tostring does, and what needs a text does not make one of nil.
func TestTostringOfMetamethods(t *testing.T) {
	const with = "local t = setmetatable({}, {__tostring = function() return %s end}) return %s"
	const refused = "false generated:1: '__tostring' must return a string"
	for _, c := range []struct{ returns, source, want string }{
		{"nil", "type(tostring(t))", "nil"},
		{"'x'", "tostring(t)", "x"},
		{"5", "type(tostring(t))", "number"},
		{"5", "string.format('%s', t)", "5"},
		{"{}", "type(tostring(t))", "table"},
		{"nil", "(function() local ok, e = pcall(string.format, '%s', t) return tostring(ok) .. ' ' .. e end)()", refused},
		{"nil", "(function() local ok, e = pcall(print, t) return tostring(ok) .. ' ' .. e end)()", refused},
		{"false", "(function() local ok, e = pcall(log, t) return tostring(ok) .. ' ' .. e end)()", refused},
	} {
		if got := runSource(fmt.Sprintf(with, c.returns, c.source)); got != c.want {
			t.Errorf("%s where it returns %s: %s, want %s", c.source, c.returns, got, c.want)
		}
	}
}

// TestJSONIsIndented: the lines are those that people write, and what they say is the same.
func TestJSONIsIndented(t *testing.T) {
	for source, want := range map[string]string{
		`json.encode({a = {1, {b = true}}, c = json.array()}, {indent = 2})`: "{\n  \"a\": [\n    1,\n    {\n      \"b\": true\n    }\n  ],\n  \"c\": []\n}",
		`json.encode({}, {indent = 4})`:                                      "{}",
		`json.encode("a\n{", {indent = 1})`:                                  `"a\n{"`,
		`json.encode({1, 2^60}, {indent = 1})`:                               "[\n 1,\n 1152921504606846976\n]",
		`json.encode({1})`:                                                   "[1]",
		`pcall(json.encode, {1}, {indent = 0})`:                              "false",
		`pcall(json.encode, {1}, {indent = 9})`:                              "false",
		`pcall(json.encode, {1}, {indent = "2"})`:                            "false",
		`pcall(json.encode, {1}, {indnt = 2})`:                               "false",
		`pcall(json.encode, {1}, {indent = 1.5})`:                            "false",
	} {
		if got := runSource("return tostring((" + source + "))"); got != want {
			t.Errorf("%s gives %q, want %q", source, got, want)
		}
	}
}
