package lua

import (
	"fmt"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// needsFunctions are made-up rooms of each scope: the check knows no room by name.
var needsFunctions = []*pb.RunnerFunction{
	{Name: "service.start", Args: []string{"unit"}, Options: []string{"path", "undo"}, Names: []string{"unit"}, Paths: []string{"path"},
		Commands: []string{"undo"}, Scope: pb.NeedScope_NEED_SCOPE_NAMES},
	{Name: "service.list"}, // its scope is that of the room
	{Name: "tree.copy", Args: []string{"from", "to"}, Options: []string{"with"}, Paths: []string{"from", "to"}, Commands: []string{"with"},
		Scope: pb.NeedScope_NEED_SCOPE_PATHS},
	{Name: "cmd.run", Args: []string{"argv"}, Options: []string{"undo"}, Commands: []string{"argv", "undo"}, Scope: pb.NeedScope_NEED_SCOPE_COMMANDS},
	{Name: "cmd.line", Args: []string{"line"}, Options: []string{"undo"}, Commands: []string{"line", "undo"}, Scope: pb.NeedScope_NEED_SCOPE_COMMANDS},
	{Name: "hook.add", Args: []string{"argv"}, Commands: []string{"argv"}},
	{Name: "hook.ask", Args: []string{"unit"}, Names: []string{"unit"}, NamesRoom: "service"},
}

// checkFindings returns the messages of a check of a script with these needs and this run function.
func checkFindings(t *testing.T, functions []*pb.RunnerFunction, needs, body string) (found []string) {
	t.Helper()
	source := fmt.Sprintf("return script {name = 's', needs = {%s}, run = function(p) %s end}", needs, body)
	done := execute(&pb.RunnerStart{Name: "s.lua", Source: []byte(source), Check: true, Functions: functions}, nil, newStopper())
	if done.GetError() != nil {
		t.Fatalf("%s: %v", source, done.GetError())
	}
	for _, f := range done.GetFindings() {
		found = append(found, f.GetMessage())
	}
	return found
}

func TestNeeds(t *testing.T) {
	missing := func(function, need string) string {
		return fmt.Sprintf("%s needs %q, which is not declared", function, need)
	}
	unused := func(need string) string { return fmt.Sprintf("nothing here needs %q", need) }
	for _, c := range []struct {
		needs, body string
		want        []string
	}{
		// Names.
		{`"service:nginx"`, `service.start("nginx")`, nil},
		{`"service"`, `service.start("nginx")`, nil},
		{`"service:nginx", "service"`, `service.start("nginx") service.start("redis")`, nil},
		{`"service:nginx"`, `service.start("redis")`, []string{unused("service:nginx"), missing("service.start", "service:redis")}},
		{`"service:nginx"`, `service.start("nginx.d")`, []string{unused("service:nginx"), missing("service.start", "service:nginx.d")}},
		{`"service:a", "service:b"`, `service.start({"a", "b"})`, nil},
		{`"service:a"`, `service.start({"a", "b"})`, []string{missing("service.start", "service:b")}},
		{`"service:a"`, `service.start({"a", p.x})`, nil},
		{`"service:nginx"`, `service.start(p.x)`, nil},
		{`"service:nginx"`, `service.start(nil)`, nil},
		{`"service:nginx"`, `local f = service.start f(p.x)`, nil},
		{`"service:nginx"`, `service.list()`, []string{unused("service:nginx")}},
		{`"cmd:true"`, `service.start("nginx") cmd.run({"true"})`, []string{missing("service.start", "service")}},
		{`"service:nginx"`, `service.start("nginx", {path = "/etc/x"})`, nil}, // paths are for the room of paths
		{`"service:nginx"`, `service.start("nginx.service")`, nil},
		{`"service:nginx.service"`, `service.start("nginx")`, nil},
		// Names of another room.
		{`"hook", "service:nginx"`, `hook.ask("nginx")`, nil},
		{`"hook", "service"`, `hook.ask("nginx.service")`, nil},
		{`"hook", "service:nginx"`, `hook.ask("redis")`, []string{unused("service:nginx"), missing("hook.ask", "service:redis")}},
		{`"hook"`, `hook.ask("nginx")`, []string{missing("hook.ask", "service")}},
		{`"hook"`, `hook.ask(p.x)`, []string{missing("hook.ask", "service")}},
		{`"hook", "service:nginx"`, `hook.ask(p.x)`, nil},
		{`"hook", "service:nginx"`, `pcall(hook.ask, p.x)`, nil},
		// Paths.
		{`"tree:/a/", "tree:/b"`, `tree.copy("/a/x/../y", "/b")`, nil},
		{`"tree:/a/"`, `tree.copy("/a", "/ab")`, []string{missing("tree.copy", "tree:/ab")}},
		{`"tree:/b"`, `tree.copy("/b", "/b/c")`, []string{missing("tree.copy", "tree:/b/c")}},
		// Commands, in their own room and with calls of others.
		{`"cmd:/bin/true"`, `cmd.run({"true"})`, nil},
		{`"cmd:true"`, `cmd.run({"/bin/true"}, {undo = {"false"}})`, []string{missing("cmd.run", "cmd:false")}},
		{`"cmd:true"`, `cmd.line("true; false")`, nil},
		{`"cmd:true"`, `cmd.run({p.x, "true"})`, nil},
		{`"hook"`, `hook.add({"true"})`, []string{missing("hook.add", "cmd:true")}},
		{`"hook", "cmd:true"`, `hook.add({"true"})`, nil},
		{`"hook", "cmd:true"`, `hook.add(p.argv)`, nil},
		{`"hook", "cmd:true"`, `pcall(hook.add, p.argv)`, nil},
		{`"hook", "cmd:true"`, `p.x(hook)`, nil},
		{`"tree", "cmd"`, `tree.copy("/a", "/b")`, []string{unused("cmd")}},
		{`"tree", "cmd"`, `tree.copy("/a", "/b", p.options)`, nil},
		{`"tree:/a"`, `tree.copy("/a", "/a", {with = {"cp", "-a"}})`, []string{missing("tree.copy", "cmd:cp")}},
		// Rooms.
		{`"servic:nginx"`, `service.start("nginx")`, []string{`there is no room "servic", did you mean service?`, missing("service.start", "service")}},
	} {
		got := checkFindings(t, needsFunctions, c.needs, c.body)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("needs %s, %s:\ngot  %q,\nwant %q", c.needs, c.body, got, c.want)
		}
	}
}

// TestNeedsWithoutARoomOfCommands: no room can be named for a command then.
func TestNeedsWithoutARoomOfCommands(t *testing.T) {
	functions := []*pb.RunnerFunction{{Name: "hook.add", Args: []string{"argv"}, Commands: []string{"argv"}}}
	if got := checkFindings(t, functions, `"hook"`, `hook.add({"true"})`); got != nil {
		t.Errorf("got %q", got)
	}
}
