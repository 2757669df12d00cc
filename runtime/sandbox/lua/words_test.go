package lua

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestWordsAndPlaces: an error that ends a script names the variable, its line, the script or module, and the functions around.
func TestWordsAndPlaces(t *testing.T) {
	module := []byte("local m = {}\nfunction m.get(t)\n  return t.name.first\nend\nreturn m\n")
	for _, c := range []struct{ name, source, message, script, trace string }{
		{"a line of its own", "local a = 1\nlocal b\n\nreturn a + b", "attempt to perform arithmetic on local 'b' (a nil value)", "main.lua:4", "\tmain.lua:4: in main chunk\n\t[G]: ?"},
		{"a module", "local m = require 'm'\nlocal v = m.get({})\nreturn v", "attempt to index field 'name' (a nil value)", "m.lua:3",
			"\tm.lua:3: in function 'get'\n\tmain.lua:2: in main chunk\n\t[G]: ?"},
		{"declared", "return script {\n  name = 'x', version = '1',\n  run = function(p)\n    p.hosts.each()\n  end,\n}", "attempt to index field 'hosts' (a nil value)", "main.lua:4",
			"\tmain.lua:4: in main chunk\n\t[G]: ?"},
		{"a tail call", "local function f() return nothing() end\nreturn f()", "attempt to call global 'nothing' (a nil value)", "main.lua:1",
			"\tmain.lua:1: in main chunk\n\t(tailcall): ?\n\t[G]: ?"},
		{"raised again", "local ok, e = pcall(function() local x x() end)\nerror(e, 0)", "attempt to call local 'x' (a nil value)", "main.lua:1", ""},
		{"a method for what is missing", "app = {}\nfunction app.web:start() end", "attempt to index field 'web' (a nil value)", "main.lua:2", ""},
		{"a text too long", "--" + strings.Repeat("x", maxExplained) + "\nlocal b\nreturn b.c", "attempt to index a nil value", "main.lua:3", ""},
		{"said by the script", "error('attempt to call a non-function object', 0)", "attempt to call a non-function object", "main.lua:1", ""},
	} {
		start := &pb.RunnerStart{Name: "main.lua", Source: []byte(c.source), Modules: map[string][]byte{"m": module}}
		e := execute(start, nil, newStopper()).GetError()
		if e.GetMessage() != c.message || fmt.Sprintf("%s:%d", e.GetScript(), e.GetLine()) != c.script {
			t.Errorf("%s: %q at %s:%d, want %q at %s", c.name, e.GetMessage(), e.GetScript(), e.GetLine(), c.message, c.script)
		}
		if c.trace != "" && e.GetTraceback() != c.trace {
			t.Errorf("%s: traceback %q, want %q", c.name, e.GetTraceback(), c.trace)
		}
	}
}
