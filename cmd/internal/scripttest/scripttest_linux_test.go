package scripttest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
)

// TestMain makes this program a runner, or an agent that is going to be killed, where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	if scripttest.ChildMain() {
		return
	}
	os.Exit(m.Run())
}

// test runs the test of a script and gives what became of each case, by its name; "" is why none was run.
func test(t *testing.T, script, cases string) map[string]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "site.lua")
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(file, script)
	if cases != "" {
		write(strings.TrimSuffix(file, ".lua")+"_test.lua", cases)
	}
	tester := scripttest.New(scripttest.Config{})
	defer tester.Close()
	results := map[string]string{}
	if err := tester.Test(t.Context(), file, func(r scripttest.Result) {
		if results[r.Name] = "ok"; r.Err != nil {
			results[r.Name] = r.Err.Error()
		}
	}); err != nil {
		results[""] = err.Error()
	}
	return results
}

// is checks a result against the texts that it must have in it.
func is(t *testing.T, results map[string]string, name string, want ...string) {
	t.Helper()
	for _, text := range want {
		if got, ok := results[name]; !ok || !strings.Contains(got, text) || text == "ok" && got != "ok" {
			t.Errorf("%s: %q, want %q", name, got, text)
		}
	}
}

const user = `
local exists = file.read("/etc/passwd"):find("\ndeploy:", 1, true)
if not exists then
  exec.run({"useradd", "deploy"}, {undo = {"userdel", "deploy"}})
end
file.write("/etc/app/user.conf", "deploy\n", {parents = true})
return {changed = not exists}`

func TestCasesOfATestFile(t *testing.T) {
	results := test(t, user, `
local old = file.read("/etc/passwd")
test.command("useradd *", {write = {["/etc/passwd"] = old .. "deploy:x:1:1::/:/bin/sh\n"}})
test.command("userdel *", {write = {["/etc/passwd"] = old}})
return {
  makes_the_user = function()
    local r = test.run()
    assert(r.status == "committed" and r.result.changed and #r.changes == 3, json.encode(r))
    assert(r.commands[1] == "useradd deploy" and file.read("/etc/app/user.conf") == "deploy\n")
  end,
  foretells = function()
    local r = test.run(nil, {dry_run = true})
    assert(r.status == "dry_run" and not file.exists("/etc/app"), json.encode(r))
  end,
  fails = function()
    test.command("useradd *", {code = 9, stderr = "no"})
    local r = test.run(nil, {fails = "exit"})
    assert(r.status == "rolled_back" and r.error.op == "exec.run", json.encode(r))
    assert(r.commands[2] == "undo: userdel deploy")
  end,
  survives = function()
    test.crash_at(1)
    assert(test.crash() == 3)
  end,
  is_beyond_the_end = function() test.crash_at(9) end,
  does_not_fail = function() test.run(nil, {fails = "what"}) end,
  is_alone = function() assert(not file.exists("/etc/app")) log("all is new") end,
  is_wrong = function()
    local never
    never()
  end,
}`)
	if len(results) != 8 {
		t.Errorf("%d results: %v", len(results), results)
	}
	for _, name := range []string{"makes_the_user", "fails", "survives", "is_alone"} {
		is(t, results, name, "ok")
	}
	is(t, results, "is_beyond_the_end", "site_test.lua:", "makes 2 calls")
	is(t, results, "does_not_fail", `was to fail with "what"`)
	is(t, results, "is_wrong", "site_test.lua:30:")
}

// What a script must not do is found though nobody asked for it.
func TestFaultsThatAreFoundByThemselves(t *testing.T) {
	for name, c := range map[string]struct{ script, cases, run, want string }{
		"a second run": {script: `file.append("/etc/motd", "again\n")`, want: "a second run changed something again: modified /etc/motd"},
		"a lossy undo": {
			script: `if not file.exists("/opt/x") then exec.run({"make", "x"}, {undo = {"unmake", "y"}}) end`,
			cases: `test.command("make x", {write = {["/opt/x"] = "x"}}) test.command("unmake x", {remove = {"/opt/x"}})
			return {crash = function() test.crash() end}`,
			run: "crash", want: "killed after call 1, exec.run: not all is as it was: /opt",
		},
		"a lossy undo of what fails": {
			script: `exec.run({"make", "x"}, {undo = {"true"}}) error("late")`,
			cases:  `test.command("make x", {write = {["/opt/x"] = "x"}}) return {fails = function() test.run(nil, {fails = "late"}) end}`,
			run:    "fails", want: "after a run that ended as rolled_back not all is as it was",
		},
		"an undo that does harm before": {
			script: `if not file.exists("/opt/x") then exec.run({"make", "x"}, {undo = {"unmake"}}) end`,
			cases: `test.command("make x", {write = {["/opt/x"] = "x"}}) test.command("unmake", {remove = {"/opt/x", "/opt"}})
			return {crash = function() test.crash_at(1) end}`,
			run: "crash", want: "killed in call 1, exec.run: not all is as it was: /opt is gone",
		},
		"more than it touches": {
			script: `exec.run({"make"}, {touches = {"/opt/a"}})`,
			cases:  `test.command("make", {write = {["/opt/b"] = ""}}) return {run = function() test.run() end}`,
			run:    "run", want: "does not name in touches",
		},
		"a failing script":     {script: `error("no")`, want: "site.lua:1: no"},
		"a parameter":          {script: `return script {name = "site", params = {a = {type = "ip", required = true}}, run = function() end}`, want: "it requires a, so it needs a test file, site_test.lua"},
		"what needs a desktop": {script: `clipboard.get()`, want: "there is no desktop in a tree that is not booted"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.run == "" {
				c.run = "(no test file)"
			}
			is(t, test(t, c.script, c.cases), c.run, c.want)
		})
	}
}

// What nothing takes back is no fault of the script: it said so.
// A script that configures the network is tested like any other: no network is touched.
func TestNetplanNeedsNoNetwork(t *testing.T) {
	const script = `
		netplan.set("60-lan", {network = {version = 2, ethernets = {eth0 = {dhcp4 = true}}}})
		netplan.apply{verify = {gateway = true}}
		return netplan.get("60-lan")`
	is(t, test(t, script, ""), "(no test file)", "ok")
}

func TestIrreversibleCommandsAreExcused(t *testing.T) {
	results := test(t, `if not file.exists("/opt/pkg/bin") then exec.run({"install"}, {irreversible = true}) end file.write("/etc/done", "1")`, `
test.command("install", {write = {["/opt/pkg/bin"] = "x"}})
return {crash = function() assert(test.crash() == 3) end, run = function() test.run() end}`)
	is(t, results, "crash", "ok")
	is(t, results, "run", "ok")
}

func TestScriptWithoutATestFile(t *testing.T) {
	is(t, test(t, `
		file.write("/etc/motd", "hello\n") file.mkdir("/srv/a/b", {parents = true}) file.symlink("/nowhere", "/srv/a/b/c")
		if not file.exists("/srv/moved") then file.write("/tmp/x", "1") file.move("/tmp/x", "/srv/moved") end`, ""), "(no test file)", "ok")
}

// A test that cannot be read is no test that passed.
func TestFilesThatAreNoTests(t *testing.T) {
	for cases, want := range map[string]string{
		"return 1": "site_test", "local x = = 1": "site_test.lua:1", "return {}": "returns no cases", `return {1}`: "table of named functions",
	} {
		is(t, test(t, `return 1`, cases), "", want)
	}
}
