package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// authored writes files into a directory of their own.
func authored(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var seconds = regexp.MustCompile(`[0-9]+\.[0-9]+s`)

func TestScriptTest(t *testing.T) {
	dir := authored(t, map[string]string{
		"good.lua":      `return file.write("/etc/port", tostring(params.port or require("ports").web))`,
		"good_test.lua": `return {writes = function() test.run({port = 8}) log("port", file.read("/etc/port")) end, takes_the_module = function() test.run() assert(file.read("/etc/port") == "80") end}`,
		"bad.lua":       `file.append("/etc/motd", "more")`,
		"ports.lua":     `return {web = 80}`,
	})
	in := func(name string) string { return filepath.Join(dir, name) }
	modules := []string{"ports=" + in("ports.lua")}
	run := func(f trialFlags, names ...string) (string, error) {
		var out bytes.Buffer
		for i := range names {
			names[i] = in(names[i])
		}
		err := testScripts(t.Context(), &out, names, f)
		return seconds.ReplaceAllString(strings.ReplaceAll(out.String(), dir+"/", ""), "0s"), err
	}
	got, err := run(trialFlags{modules: modules, verbose: true}, "good.lua", "good_test.lua", "bad.lua")
	want := "--- PASS: writes (0s)\n    port 8\n--- PASS: takes_the_module (0s)\nok  \tgood.lua\t0s\n" +
		"--- FAIL: (no test file) (0s)\n    a second run changed something again: modified /etc/motd\nFAIL\tbad.lua\t0s\n"
	if got != want || err == nil || err.Error() != "1 of 2 failed" {
		t.Errorf("got %q, want %q, error %v", got, want, err)
	}
	if got, err = run(trialFlags{modules: modules}, "good.lua"); got != "ok  \tgood.lua\t0s\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	got, err = run(trialFlags{json: true}, "good_test.lua", "none.lua")
	var line struct {
		Script, Case, Error string
		Passed              bool
		Log                 []string
	}
	d := json.NewDecoder(strings.NewReader(got))
	for i, passed := range []bool{true, false, false} { // the second lacks its module
		if err := d.Decode(&line); err != nil || line.Passed != passed || (line.Error == "") != passed || line.Passed && line.Log[0] != "port 8" {
			t.Errorf("line %d is %+v, %v", i, line, err)
		}
	}
	if err == nil {
		t.Error("a file that is not there passed")
	}
}

// What script new writes passes script check and script test, and script doc describes it.
func TestScriptNew(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := createScript(&out, filepath.Join(dir, "my.site")); err != nil {
		t.Fatal(err)
	}
	made := strings.Fields(out.String())
	if len(made) != 5 {
		t.Fatal(made)
	}
	for _, path := range made {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	files := made[:2] // the others are for editors
	if luacheck, err := exec.LookPath("luacheck"); err == nil {
		c := exec.Command(luacheck, "--no-color", "my.site.lua", "my.site_test.lua")
		c.Dir = dir
		if said, err := c.CombinedOutput(); err != nil {
			t.Errorf("luacheck: %v\n%s", err, said)
		}
	}
	out.Reset()
	if err := checkScripts(t.Context(), &out, files, nil); err != nil || len(files) != 2 {
		t.Errorf("%v: %v\n%s", files, err, out.String())
	}
	if err := testScripts(t.Context(), &out, files, trialFlags{verbose: true}); err != nil || strings.Count(out.String(), "--- PASS") != 3 {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, again := range []string{"my.site", "my.site.lua", "Bad", "-x"} {
		if err := createScript(&out, filepath.Join(dir, again)); err == nil {
			t.Errorf("%q was begun", again)
		}
	}
	out.Reset()
	if err := documentScripts(t.Context(), &out, files[:1], nil); err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"# my.site 0.1\n", "Say where the site listens.\n", "What it is for", "    quantix-kvm-ctl run my.site -p port=…\n",
		"| `port` | integer | required | Where it listens. At least 1. At most 65535. |\n", "It needs `file:/etc/my.site.conf`."} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("%q lacks %q", out.String(), words)
		}
	}
}

func TestScriptDoc(t *testing.T) {
	dir := authored(t, map[string]string{
		"all.lua": `#!/usr/bin/env quantix
-- Head.
return script {name = "all", readonly = true, timeout = "90s", params = {
  a = {type = "enum", enum = {"x|y", "z"}, default = "z"}, b = {type = "list", default = {}}, c = {type = "string", secret = true, required = true}}, run = function() end}`,
		"plain.lua": "return 1", "bad.lua": "return script {}",
	})
	var out bytes.Buffer
	if err := documentScripts(t.Context(), &out, []string{filepath.Join(dir, "all.lua")}, nil); err != nil {
		t.Fatal(err)
	}
	want := "# all\n\nHead.\n\n    quantix-kvm-ctl run all --secret c\n\n| parameter | type | default | |\n|---|---|---|---|\n" +
		"| `a` | enum | \"z\" | One of \"x\\|y\", \"z\". |\n| `b` | list | [] |  |\n| `c` | string | required | Secret. |\n\n" +
		"It changes nothing. It may call everything. It ends within 1m30s.\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	for _, name := range []string{"plain.lua", "bad.lua", "none.lua"} {
		if err := documentScripts(t.Context(), &out, []string{filepath.Join(dir, name)}, nil); err == nil {
			t.Errorf("%s was described", name)
		}
	}
}
