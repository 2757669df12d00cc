package sandbox_test

import (
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// withParam returns a job with a value for params.text.
func withParam(source, value string) sandbox.Job {
	job := script(source)
	job.Start.Params = &pb.LuaTable{Fields: []*pb.LuaField{{Key: []byte("text"), Value: text(value)}}}
	return job
}

func TestYAMLIsRead(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	for _, c := range []struct{ name, document, want string }{
		{"netplan", "network:\n  version: 2\n  ethernets:\n    eth0: {dhcp4: true, addresses: [192.0.2.7/24]}\n",
			`{"network":{"version":2,"ethernets":{"eth0":{"dhcp4":true,"addresses":["192.0.2.7/24"]}}}}`},
		{"scalars", "[1, -2.5, 0x10, 0644, true, ~, 'a', \"b\\n\", 2026-01-02, yes, 1e3]",
			`[1,-2.5,16,420,true,null,"a","b\n","2026-01-02",true,1000]`},
		{"empty tables", "a: []\nb: {}\nc:\n", `{"a":[],"b":{},"c":null}`},
		{"an alias", "a: &x {k: 1}\nb: *x\n", `{"a":{"k":1},"b":{"k":1}}`},
		{"keys are text", "80: a\ntrue: b\n", `{"80":"a","true":"b"}`},
		{"bytes", "!!binary aGk=", `"hi"`},
		{"lines", "a: |\n  one\n  two\n", `{"a":"one\ntwo\n"}`},
		{"nothing", "# only a comment\n", `null`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := mustRun(t, pool, withParam("return json.encode(yaml.decode(params.text))", c.document))
			if got := string(out.Result.GetString_()); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestYAMLRefusesWhatWouldBeLost(t *testing.T) {
	pool := newPool(t, sandbox.Config{Limits: sandbox.Limits{Memory: 192 << 20}}) // more than a bomb takes until it is counted, with the race detector too
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 10; i++ {
		name, last := string(rune('0'+i)), string(rune('0'+i-1))
		bomb += "a" + name + ": &a" + name + " [" + strings.TrimSuffix(strings.Repeat("*a"+last+", ", 10), ", ") + "]\n"
	}
	for _, c := range []struct{ name, document, words string }{
		{"a bomb of aliases", bomb, "more than"},
		{"an alias within itself", "a: &a [*a]", "deeper"},
		{"depth", strings.Repeat("[", 200) + strings.Repeat("]", 200), "deeper"},
		{"size", strings.Repeat("a", 2<<20), "the limit is"},
		{"a second document", "a: 1\n---\nb: 2\n", "second document"},
		{"a key twice", "a: 1\na: 2\n", "line 2: the key a stands there a second time"},
		{"no YAML", "a: [1", "line 1"},
		{"a number that Lua does not have", "id: 9007199254740993", "exactly"},
		{"merging", "a: &a {k: 1}\nb:\n  <<: *a\n", "line 3"},
		{"a type of its own", "!secret x", "!secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustFail(t, pool, withParam("return yaml.decode(params.text)", c.document), "builtin", c.words)
		})
	}
}

// What is encoded is decoded as the same, and parsers of YAML 1.1 see the same types.
func TestYAMLIsWritten(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	out := mustRun(t, pool, script(`
		return yaml.encode({network = {version = 2, renderer = "networkd", list = {"a", "b"}, none = json.array(), map = {}}}) ..
			yaml.encode({"yes", "no", "0644", "1.10", "12:30:45", "on", "", "null", "~", "a: b", "plain text", 644, 1.5, false, json.null})`))
	want := `network:
  version: 2
  renderer: networkd
  list:
    - a
    - b
  none: []
  map: {}
- "yes"
- "no"
- "0644"
- "1.10"
- "12:30:45"
- "on"
- ""
- "null"
- "~"
- "a: b"
- plain text
- 644
- 1.5
- false
- null
`
	if got := string(out.Result.GetString_()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	mustRun(t, pool, script(`
		local pieces = {"a", " ", "\n", ":", "#", "'", '"', "-", "\\", "\t", "é", "0", "{", "|", "&", "\r", "\226\128\168", "\0", "yes", "%", "@"}
		local n = 7
		for i = 1, 3000 do
			local s = ""
			for j = 1, i % 7 do
				n = (n * 1103515245 + 12345) % 2147483648
				s = s .. pieces[math.floor(n / 65536) % #pieces + 1]
			end
			local back = yaml.decode(yaml.encode({[s] = {s, {k = s}}}))
			assert(back[s] and back[s][1] == s and back[s][2].k == s, string.format("%q", s))
		end`))
	mustFail(t, pool, script(`yaml.encode({a = {"\255"}})`), "builtin", "value.a[1]: a string is not UTF-8")
	mustFail(t, pool, script(`yaml.encode({1, a = 2})`), "builtin", "a list or has names")
	mustFail(t, pool, script(`yaml.encode({0/0})`), "builtin", "value[1]")
}

func TestRandom(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	source := `assert(#random(1) == 1 and #random(4096) == 4096) return random(32)`
	one, other := mustRun(t, pool, script(source)), mustRun(t, pool, script(source))
	if string(one.Result.GetString_()) == string(other.Result.GetString_()) {
		t.Error("two runs have the same random bytes")
	}
	for _, wrong := range []string{"0", "4097", "-1", "1.5", "0/0", "'x'"} {
		mustFail(t, pool, script("random("+wrong+")"), "runtime", "random")
	}
}
