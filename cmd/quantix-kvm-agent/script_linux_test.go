package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func check(t *testing.T, source string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s.lua")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err := checkScripts(t.Context(), &out, []string{file}, nil)
	return strings.ReplaceAll(out.String(), file, "s.lua"), err
}

func TestCheckFinds(t *testing.T) {
	for _, c := range []struct{ name, source, want string }{
		{"what does not parse", "local a = = 1", "s.lua:1:11: syntax error near \"=\"\n"},
		{"unknown names", "local a = 1\nlgo(a)\nreturn b", "s.lua:2:1: lgo is not known, did you mean log?\ns.lua:3:8: b is not known\n"},
		{"a global by chance", "for i = 1, 2 do total = i end\nreturn total", "s.lua:1:17: total becomes a global: is local missing?\n"},
		{"what replaces a builtin", "function log() end", "s.lua:1:10: log is the language's own, and is replaced here\n"},
		{"an unknown function", "file.wirte('/a', 'b')", "s.lua:1:1: file has no function wirte, did you mean write?\n"},
		{"one of the language", "string.trim('a')", "s.lua:1:1: string has no function trim\n"},
		{"an unknown option", "file.write('/a', 'b', {\n  mode = '0644', onwer = 'root'})", "s.lua:2:18: file.write: unknown option onwer, did you mean owner?\n"},
		{"a missing argument", "file.write('/a')", "s.lua:1:1: file.write: argument 2 (content) is missing\n"},
		{"no options", "service.start('a', 'b')", "s.lua:1:1: service.start: argument 2 must be a table of options\n"},
		{"too many", "file.read('/a', 'b')", "s.lua:1:1: file.read takes at most 1 arguments, not 2\n"},
		{"in functions", "local function f() return function() return x end end\nreturn f", "s.lua:1:45: x is not known\n"},
		{"a declaration", "return script {\n  nmae = 'x', run = function() host.info() end,\n}",
			"s.lua:1:8: declaration: unknown field nmae, did you mean name?; name must be 1 to 64 of a-z, 0-9, '.', '_', '-', and begin with a letter or digit\n"},
		{"an act at the top level", "file.remove('/etc')\nreturn script {name = 'x', run = function() end}",
			"s.lua:1: file.remove: not at the top level of a declared script\n"},
		{"two on a line", "local a = xy + 1, xy\nfile.read('/a') file.read()\nreturn a", "s.lua:1:11: xy is not known\ns.lua:1:19: xy is not known\ns.lua:2:17: file.read: argument 1 (path) is missing\n"},
		{"a room that is not declared", "return script {name = 's', needs = {'host'}, run = function()\n  host.info() file.read('/a')\nend}",
			"s.lua:2:15: file.read needs \"file\", which is not declared\n"},
		{"a path that is not declared", "return script {name = 's', needs = {'file:/etc/a/', 'file:/b'}, run = function()\n  file.copy('/etc/a/x', '/etc/ab')\n  file.read('/b')\nend}",
			"s.lua:2:3: file.copy needs \"file:/etc/ab\", which is not declared\n"},
		{"a program that is not declared", "return script {name = 's', needs = {'exec:useradd'}, run = function()\n  exec.run({'/usr/sbin/useradd', 'x'}, {undo = {'userdel', 'x'}})\nend}",
			"s.lua:2:3: exec.run needs \"exec:userdel\", which is not declared\n"},
		{"a program of a rollback", "return script {name = 's', needs = {'tx'}, run = function() tx.on_rollback({'true'}) end}",
			"s.lua:1:61: tx.on_rollback needs \"exec:true\", which is not declared\n"},
		{"what nothing needs", "return script {\n  name = 's', needs = {'file:/etc/a',\n    'exec', 'host', 'file:/etc/b'}, run = function() file.read('/etc/a') end}",
			"s.lua:3:5: nothing here needs \"exec\"\ns.lua:3:13: nothing here needs \"host\"\ns.lua:3:21: nothing here needs \"file:/etc/b\"\n"},
		{"a command that says nothing of itself", "exec.run({'true'})\nexec.sh('true', {check = false})\nexec.run({'true'}, {undo = {'true'}, readonly = true})",
			"s.lua:1:1: exec.run does not say what the command does to the guest: one of readonly, undo, touches, irreversible\n" +
				"s.lua:2:1: exec.sh does not say what the command does to the guest: one of readonly, undo, touches, irreversible\n" +
				"s.lua:3:1: exec.run says more than one of readonly, undo, touches, irreversible\n"},
		{"a command that says no", "exec.run({'true'}, {readonly = false})",
			"s.lua:1:1: exec.run does not say what the command does to the guest: one of readonly, undo, touches, irreversible\n"},
		{"no room", "return script {name = 's', needs = {'fiel'}, run = function() end}", "s.lua:1:37: there is no room \"fiel\", did you mean file?\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := check(t, c.source); got != c.want || err == nil {
				t.Errorf("got %q, want %q, error %v", got, c.want, err)
			}
		})
	}
}

// What is well is not blamed: names in every kind of scope, arguments that nobody can count, tables that are no options.
func TestCheckIsSilentOnGoodScripts(t *testing.T) {
	files, err := filepath.Glob("../../scripts/bundled/*.lua")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var out strings.Builder
	if err := checkScripts(t.Context(), &out, files, nil); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	got, err := check(t, `#!/usr/bin/env lua
local t = {f = 1, ["g"] = 2}
function t.a(x, ...) return x, ... end
function t:b() return self.f end
local function loop(n) if n > 0 then return loop(n - 1) end end
repeat local done = true until done
for i = 1, #t do log(i) end
for k, v in pairs(t) do log(k, v) end
local file = {write = function() end}
file.write(1, 2, 3, 4)
file.nothing()
local args = {"/a", "b"}
local options = {readonly = true}
exec.run({"true"}, options)
exec.run({"true"}, {["read" .. "only"] = true})
exec.run({"true"}, {readonly = #args > 0, undo = nil})
host.sysctl(unpack(args))
exec.run({"true", x = nil}, {readonly = true})
host.hostname() host.sysctl("a.b") host.sysctl("a.b", "1")
local path, f = "/etc/x", host
local ok, err = pcall(t.a, params.x, secrets.y, -1, not ok_, #args)
return json.null, yaml.encode({}), string.format("%s", err), ok, path, f`)
	if want := "s.lua:21:57: ok_ is not known\n"; got != want || err == nil {
		t.Errorf("got %q, want %q, error %v", got, want, err)
	}
	got, err = check(t, `
local function all(room) return room end
return script {
  name = "s", needs = {"file:/etc/a", "file:/etc/b/", "exec:true", "exec:/bin/false", "host", "tx"},
  run = function(p)
    file.read("/etc/b/" .. p.x)
    file.write("/etc/a", "x")
    exec.run({"true"}, {undo = {"false"}})
    all(tx)
    return host.info
  end,
}`)
	if got != "" || err != nil {
		t.Errorf("got %q, error %v", got, err)
	}
	got, err = check(t, `local function more(x) return require(x) end return script {name = "s", needs = {"host"}, run = function() more("x") end}`)
	if got != "" || err != nil {
		t.Errorf("got %q, error %v", got, err)
	}
}

// A word that is no command is a mistake, and does not pass as a request for help.
func TestNoSuchScriptCommand(t *testing.T) {
	c := command()
	c.SetArgs([]string{"script", "bogus"})
	if err := c.Execute(); err == nil || !strings.Contains(err.Error(), `unknown command "bogus"`) {
		t.Error(err)
	}
}
