package scripttest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
)

const scripts = "../../../scripts"

var block = regexp.MustCompile("(?ms)^```lua\n-- (\\S+\\.lua)\n(.*?)^```$")

func guide(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(scripts, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// run tests scripts, of which each must have a test and pass, and gives how many cases that were.
func run(t *testing.T, files ...string) (cases int) {
	t.Helper()
	tester := scripttest.New(scripttest.Config{})
	defer tester.Close()
	for _, file := range files {
		err := tester.Test(t.Context(), file, func(r scripttest.Result) {
			cases++
			if r.Err != nil || strings.HasPrefix(r.Name, "(") {
				t.Errorf("%s: %s: %v", filepath.Base(file), r.Name, r.Err)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
	return cases
}

// Each bundled script has a test, and passes it.
func TestBundledScripts(t *testing.T) {
	files, err := filepath.Glob(scripts + "/bundled/*.lua")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := filepath.Glob(scripts + "/bundled/tests/*.lua")
	if err != nil || len(tests) != len(files) {
		t.Errorf("%d scripts have %d tests, %v", len(files), len(tests), err)
	}
	if os.Geteuid() != 0 {
		t.Log("sysctl-profile is tested as root: only root copies a tree with files that nobody may read")
		files = slices.DeleteFunc(files, func(file string) bool { return filepath.Base(file) == "sysctl-profile.lua" })
	}
	if n := run(t, files...); len(files) < 10 || n < 3*len(files) {
		t.Errorf("%d scripts have %d cases", len(files), n)
	}
}

// Every example of the guide predicts what it does, does it, and then finds it done; one that fails leaves nothing. Its
// first lines say what it is given: files, params, and the error that it ends with. One that has a test in the guide passes
// that.
func TestExamplesOfTheGuide(t *testing.T) {
	dir, files := t.TempDir(), []string{}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	examples := block.FindAllStringSubmatch(guide(t), -1)
	for _, e := range examples {
		if !strings.HasSuffix(e[1], "_test.lua") {
			files = append(files, filepath.Join(dir, e[1]))
			write(strings.TrimSuffix(e[1], ".lua")+"_test.lua", caseOf(t, e[2]))
		}
		write(e[1], e[2])
	}
	for _, e := range examples { // once more as they stand, where the guide has their own test
		if script, is := strings.CutSuffix(e[1], "_test.lua"); is {
			write("tested-"+script+".lua", find(t, examples, script+".lua"))
			write("tested-"+e[1], e[2])
			files = append(files, filepath.Join(dir, "tested-"+script+".lua"))
			write(e[1], caseOf(t, find(t, examples, script+".lua")))
		}
	}
	if n := run(t, files...); len(files) < 10 || n < 12 {
		t.Errorf("%d examples have %d cases", len(files), n)
	}
}

func find(t *testing.T, examples [][]string, name string) string {
	t.Helper()
	for _, e := range examples {
		if e[1] == name {
			return e[2]
		}
	}
	t.Fatalf("the guide has a test of %s, and not the script", name)
	return ""
}

// caseOf makes the test that the first lines of an example ask for.
func caseOf(t *testing.T, source string) string {
	t.Helper()
	given := map[string]string{"files": "{}", "params": "null", "fails": "null"}
	for line := range strings.Lines(source) {
		key, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "-- ")), ": ")
		if _, known := given[key]; !strings.HasPrefix(line, "-- ") || !ok || !known {
			break
		}
		if key == "fails" {
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			value = string(text)
		}
		given[key] = value
	}
	return fmt.Sprintf(`
		local files, params, fails = json.decode(%q), json.decode(%q), json.decode(%q)
		if params == json.null then params = nil end
		file.write("/etc/motd", "hello\n")
		for path, content in pairs(files) do file.write(path, content, {parents = true}) end
		if files["/etc/passwd"] then
			test.command("useradd *", {write = {["/etc/passwd"] = files["/etc/passwd"] .. "deploy:x:1000:1000::/:/bin/sh\n"}})
		end
		return {
			example = function()
				if fails ~= json.null then
					test.run(params, {fails = fails})
				else
					assert(#test.run(params, {foretold = true}).changes > 0)
				end
			end,
		}`, given["files"], given["params"], given["fails"])
}

// luacheck has nothing to say of any example of the guide, and of no bundled script and its test.
func TestLuacheckIsQuiet(t *testing.T) {
	luacheck, err := exec.LookPath("luacheck")
	if err != nil {
		t.Skip("luacheck is not installed here: lua-check in Debian")
	}
	config, err := filepath.Abs(scripts + "/stubs/quantix.luacheckrc")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []string
	for i, e := range regexp.MustCompile("(?ms)^```lua\n(.*?)^```$").FindAllStringSubmatch(guide(t), -1) {
		name := fmt.Sprintf("example%d", i)
		if strings.Contains(e[1], "_test.lua") {
			name += "_test"
		}
		file := filepath.Join(dir, name+".lua")
		if err := os.WriteFile(file, []byte(e[1]), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	for _, pattern := range []string{"/bundled/*.lua", "/bundled/tests/*.lua"} {
		found, err := filepath.Glob(scripts + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			if file, err = filepath.Abs(file); err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
	}
	c := exec.Command(luacheck, append([]string{"--no-color", "--config", config}, files...)...)
	if said, err := c.CombinedOutput(); err != nil || len(files) < 25 {
		t.Errorf("%d files: %v\n%s", len(files), err, said)
	}
}

// A sweep of kills of a script that does not run is no sweep, and says so.
func TestCrashOfWhatDoesNotRun(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"site.lua": `return script {name = "site", params = {port = {type = "integer", required = true}},
			run = function(p) file.write("/etc/x", tostring(p.port)) end}`,
		"site_test.lua": `return {
			refused = function()
				local ok, err = pcall(test.crash, {prt = 1})
				assert(not ok and tostring(err):find("the script does not run", 1, true), tostring(err))
			end,
			runs = function() test.crash({port = 1}) end,
		}`,
		"breaks.lua":      `error("at once")`,
		"breaks_test.lua": `return {broken = function() assert(not pcall(test.crash)) end}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := run(t, filepath.Join(dir, "site.lua"), filepath.Join(dir, "breaks.lua")); n != 3 {
		t.Errorf("%d cases", n)
	}
}
