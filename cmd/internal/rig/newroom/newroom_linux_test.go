package newroom

import (
	"bytes"
	"context"
	"encoding/json"
	"go/format"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	top    = "../../../.."
	page   = "builtins/README.md"
	list   = "builtins/all/all.go"
	script = "desk-lamp.lua"
)

// The room that builtins/README.md describes needs what the page says and nothing else, and has what the page promises.
func TestANewRoom(t *testing.T) {
	if testing.Short() {
		t.Skip("builds an agent of a changed source tree; it runs without -short")
	}
	start := time.Now()
	defer func() { t.Logf("took %.1f s", time.Since(start).Seconds()) }()
	tree := t.TempDir()
	copyTree(t, tree)
	before := contents(t, tree)
	blocks := codeBlocks(t, before[page])
	addRoom(t, tree, blocks)
	run(t, tree, "go", "generate", "./wire/pb", "./builtins/all")
	t.Logf("generated after %.1f s", time.Since(start).Seconds())
	changes(t, before, contents(t, tree))
	reference(t, tree)
	bin := t.TempDir()
	run(t, tree, "go", "build", "-ldflags=-s -w", "-o", bin, "./cmd/quantix-kvm-agent", "./cmd/quantix-kvm-ctl")
	t.Logf("built after %.1f s", time.Since(start).Seconds())
	for _, c := range []struct {
		name string
		test func(*testing.T, room)
	}{
		{"transaction", transaction}, {"needs", needs}, {"audit", audit}, {"policy", policy}, {"check", check}, {"crash", crash}, {"completion", completion},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, room{bin, blocks[script]}) })
	}
}

// copyTree copies what git would track: all but its own directory and what .gitignore lists at top level.
func copyTree(t *testing.T, to string) {
	t.Helper()
	skip := []string{".git"}
	ignored, err := os.ReadFile(filepath.Join(top, ".gitignore"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(ignored)) {
		skip = append(skip, strings.Trim(line, "/\n"))
	}
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		from, to := filepath.Join(top, e.Name()), filepath.Join(to, e.Name())
		switch {
		case slices.Contains(skip, e.Name()):
		case e.IsDir():
			err = os.CopyFS(to, os.DirFS(from))
		default:
			var content []byte
			if content, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(to, content, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// contents are all files of a tree.
func contents(t *testing.T, tree string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(tree), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(tree, path))
		files[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// codeBlocks returns the code blocks of the page that name a file after their language, by that name.
func codeBlocks(t *testing.T, page string) map[string]string {
	t.Helper()
	blocks := map[string]string{}
	for i, part := range strings.Split(page, "```") {
		if head, text, ok := strings.Cut(part, "\n"); ok && i%2 == 1 {
			if _, file, named := strings.Cut(head, " "); named {
				blocks[file] = text
			}
		}
	}
	want := []string{list, "builtins/lamp/lamp.go", script, "wire/pb/lamp.proto"}
	if have := slices.Sorted(maps.Keys(blocks)); !slices.Equal(have, want) {
		t.Fatalf("the page has blocks for %q, want %q", have, want)
	}
	return blocks
}

// addRoom does what the page says: it writes the room's files, and puts the entry into the list of rooms.
func addRoom(t *testing.T, tree string, blocks map[string]string) {
	t.Helper()
	for file, text := range blocks {
		path := filepath.Join(tree, file)
		switch file {
		case script:
			continue
		case list:
			text = withEntry(t, path, text)
		}
		if strings.HasSuffix(file, ".go") {
			if formatted, err := format.Source([]byte(text)); err != nil || string(formatted) != text {
				t.Errorf("%s is not as gofmt has it (%v)", file, err)
			}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// withEntry returns the list of rooms with an entry: its import, and its element at the beginning of the list.
func withEntry(t *testing.T, path, entry string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	imported, element, ok := strings.Cut(entry, "\n\n")
	if !ok {
		t.Fatalf("the entry %q is not an import, an empty line, and an element", entry)
	}
	text := string(content)
	for _, c := range []struct{ behind, line string }{
		{"\t\"github.com/quantix-kvm/guest-agent/builtins\"\n", imported + "\n"}, {"builtins.Room{\n", element},
	} {
		if n := strings.Count(text, c.behind); n != 1 {
			t.Fatalf("%s has %q %d times, want once", list, c.behind, n)
		}
		text = strings.Replace(text, c.behind, c.behind+c.line, 1)
	}
	formatted, err := format.Source([]byte(text)) // sorts the imports
	if err != nil {
		t.Fatal(err)
	}
	return string(formatted)
}

// changes sees that by hand one package, one entry and one .proto file were written, and that all else is generated.
func changes(t *testing.T, before, after map[string]string) {
	t.Helper()
	var byHand, generated []string
	for file, text := range after {
		head, _, _ := strings.Cut(text, "\npackage ")
		switch {
		case before[file] == text:
		case strings.Contains(head[:min(len(head), 300)], "enerated "):
			generated = append(generated, file)
		default:
			byHand = append(byHand, file)
		}
	}
	for file := range before {
		if _, there := after[file]; !there {
			t.Errorf("%s is gone", file)
		}
	}
	slices.Sort(byHand)
	if want := []string{list, "builtins/lamp/lamp.go", "wire/pb/lamp.proto"}; !slices.Equal(byHand, want) {
		t.Errorf("written by hand: %q, want %q", byHand, want)
	}
	slices.Sort(generated)
	want := []string{"builtins/all/OPS.md", "scripts/stubs/quantix.lua", "scripts/stubs/quantix.luacheckrc", "wire/pb/lamp.pb.go"}
	if !slices.Equal(generated, want) {
		t.Errorf("generated: %q, want %q", generated, want)
	}
	var added []string
	old := strings.Split(before[list], "\n")
	for line := range strings.SplitSeq(after[list], "\n") {
		if at := slices.Index(old, line); at >= 0 {
			old = slices.Delete(old, at, at+1)
		} else {
			added = append(added, strings.TrimSpace(line))
		}
	}
	if want := []string{`"github.com/quantix-kvm/guest-agent/builtins/lamp"`, "lamp.New(g).Room(),"}; !slices.Equal(added, want) || len(old) > 0 {
		t.Errorf("%s: added %q, want %q; removed %q", list, added, want, old)
	}
}

// reference sees that the reference and what editors know have the room.
func reference(t *testing.T, tree string) {
	t.Helper()
	for file, words := range map[string][]string{
		"builtins/all/OPS.md":              {"\n## lamp\n", "\n### lamp.get(name)\n", "\n### lamp.set(name, state)\n\nSwitch a lamp on or off. Gives `changed` (boolean).", "| `state` | string | on or off |"},
		"scripts/stubs/quantix.lua":        {"\n---@class (exact) quantix.room.lamp\n", "\n---@return boolean changed\nfunction lamp.set(name, state) end\n"},
		"scripts/stubs/quantix.luacheckrc": {`lamp = {fields = {"get", "set"}}`},
	} {
		text, err := os.ReadFile(filepath.Join(tree, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s lacks %q", file, w)
			}
		}
	}
}

// run runs a program in a directory. What go builds there is in the cache for the next time, whatever the directory is called.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS="+os.Getenv("GOFLAGS")+" -trimpath -buildvcs=false")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, &stdout, &stderr)
	}
	return stdout.String()
}

// room is the new one.
type room struct {
	bin string // the directory of the agent and the ctl that have it
	lua string // the script of the page
}

func (r room) agent() string { return filepath.Join(r.bin, "quantix-kvm-agent") }
func (r room) ctl() string   { return filepath.Join(r.bin, "quantix-kvm-ctl") }

// guest is a tree with an agent that has the room.
type guest struct {
	*agenttest.Agent
	*client.Client
	root string
}

func (r room) start(t *testing.T, security string) guest {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Binary: r.agent(), Root: root, Config: "security:\n  audit_logging: true\n" + security})
	return guest{a, a.Client(t, client.Options{}), root}
}

// lua runs a script.
func (g guest) lua(t *testing.T, source string, edit ...func(*pb.RunScriptRequest)) *pb.RunScriptResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request := &pb.RunScriptRequest{Name: "test.lua", Source: []byte(source)}
	for _, f := range edit {
		f(request)
	}
	reply, err := client.Call[*pb.RunScriptResponse](ctx, g.Client, request)
	if reply == nil || reply.Status == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED {
		t.Fatalf("%s: %v", source, err)
	}
	return reply
}

func dry(request *pb.RunScriptRequest) { request.DryRun = true }

// lamps are the files of the room: name=state, or nil where there is no directory.
func (g guest) lamps(t *testing.T) []string {
	t.Helper()
	dir := filepath.Join(g.root, "etc/lamps")
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	lamps := []string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		lamps = append(lamps, e.Name()+"="+strings.TrimSpace(string(content)))
	}
	return lamps
}

func (g guest) wantLamps(t *testing.T, after string, want ...string) {
	t.Helper()
	if have := g.lamps(t); !slices.Equal(have, want) || (have == nil) != (want == nil) {
		t.Errorf("after %s: %q, want %q", after, have, want)
	}
}

// told are the changes of a reply, each as state, operation, target and action.
func told(reply *pb.RunScriptResponse) string {
	var list []string
	for _, c := range reply.Changes {
		state := strings.TrimPrefix(c.State.String(), "CHANGE_STATE_")
		list = append(list, strings.Join([]string{state, c.Op, c.Target, c.Action}, " "))
	}
	return strings.Join(list, "; ")
}

func want(t *testing.T, what string, reply *pb.RunScriptResponse, status pb.ScriptStatus, changes string) {
	t.Helper()
	if reply.Status != status || told(reply) != changes {
		t.Errorf("%s: %v, %q (%v), want %v, %q", what, reply.Status, told(reply), reply.Error, status, changes)
	}
}

// Undo, the dry run, and a second run.
func transaction(t *testing.T, r room) {
	g := r.start(t, "")
	const made = " lamp.set /etc/lamps created; "
	failed := g.lua(t, `lamp.set("desk", "on") error("no more")`)
	want(t, "a script that fails", failed, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, "UNDONE"+made+"UNDONE lamp.set /etc/lamps/desk created")
	g.wantLamps(t, "a script that fails")

	foretold := g.lua(t, `lamp.set("desk", "on") return lamp.get("desk")`, dry)
	want(t, "a dry run", foretold, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "WOULD"+made+"WOULD lamp.set /etc/lamps/desk created")
	if state := foretold.Result.GetStringValue(); state != "on" {
		t.Errorf("a dry run reads %q, want on", state)
	}
	g.wantLamps(t, "a dry run")

	first := g.lua(t, r.lua)
	want(t, "the first run", first, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, "APPLIED"+made+"APPLIED lamp.set /etc/lamps/desk created")
	second := g.lua(t, r.lua)
	want(t, "the second run", second, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, "")
	if !first.Result.GetBoolValue() || second.Result.GetBoolValue() {
		t.Errorf("changed is %v and then %v", first.Result, second.Result)
	}
	g.wantLamps(t, "two runs", "desk=on")

	want(t, "a later failure", g.lua(t, `lamp.set("desk", "off") error("no more")`), pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, "UNDONE lamp.set /etc/lamps/desk modified")
	g.wantLamps(t, "a later failure", "desk=on")
	for _, call := range []string{`lamp.set("../desk", "on")`, `lamp.set("desk", "dim")`, `lamp.get("")`} {
		if e := g.lua(t, call).Error; e.GetCode() != "invalid" {
			t.Errorf("%s: %v", call, e)
		}
	}
}

// Needs, by the word of the script or of the host.
func needs(t *testing.T, r room) {
	g := r.start(t, "")
	declared := func(needs, call string) string {
		return `return script {name = "s", needs = {` + needs + `}, run = function() return ` + call + ` end}`
	}
	for _, c := range []struct{ needs, call, missing string }{
		{`"lamp:desk"`, `lamp.set("desk", "on")`, ""},
		{`"lamp:desk"`, `lamp.get("desk")`, ""},
		{`"lamp:desk"`, `lamp.set("kitchen", "on")`, "lamp:kitchen"},
		{`"lamp:desk"`, `lamp.get("kitchen")`, "lamp:kitchen"},
		{`"lamp"`, `lamp.get("kitchen")`, ""},
		{`"host"`, `lamp.get("desk")`, "lamp"},
	} {
		reply := g.lua(t, declared(c.needs, c.call))
		allowed := c.missing == "" && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		refused := c.missing != "" && reply.Error.GetKind() == "policy" && strings.Contains(reply.Error.GetMessage(), `it needs "`+c.missing+`", which `)
		if !allowed && !refused {
			t.Errorf("needs %s, %s: %v", c.needs, c.call, reply)
		}
	}
	reply := g.lua(t, `return lamp.set("kitchen", "on")`, func(request *pb.RunScriptRequest) { request.Allow = []string{"lamp:desk"} })
	if !strings.Contains(reply.Error.GetMessage(), `it needs "lamp:kitchen", which `) {
		t.Error(reply)
	}
	g.wantLamps(t, "what was allowed", "desk=on")
}

// Each line of the audit says what was asked for, and what came of it.
func audit(t *testing.T, r room) {
	g := r.start(t, "  deny_operations: [lamp.get]\n")
	ran := g.lua(t, `lamp.set("desk", "on") pcall(lamp.get, "desk")`)
	want(t, "a run", ran, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, "APPLIED lamp.set /etc/lamps created; APPLIED lamp.set /etc/lamps/desk created")
	g.lua(t, `lamp.set("desk", "off")`, dry)
	g.AwaitLog(t, `"op":"run_script"`, 2)
	type line struct {
		Op, Outcome, Cause, Transaction string
		Paths, Objects                  []string
		DryRun                          bool `json:"dry_run"`
	}
	var lines []line
	for text := range strings.Lines(g.Log()) {
		var l struct {
			Msg string
			line
		}
		if json.Unmarshal([]byte(text), &l) == nil && l.Msg == "audit" && strings.HasPrefix(l.Op, "lamp.") {
			lines = append(lines, l.line)
		}
	}
	if len(lines) != 3 || ran.TransactionId == "" {
		t.Fatalf("%+v, transaction %q", lines, ran.TransactionId)
	}
	for _, l := range lines {
		if !slices.Equal(l.Objects, []string{"lamp:desk"}) || !slices.Contains(l.Paths, "/etc/lamps/desk") {
			t.Errorf("%+v", l)
		}
	}
	if l := lines[0]; l.Op != "lamp.set" || l.Outcome != "ok" || l.Cause != "" || l.DryRun || l.Transaction != ran.TransactionId {
		t.Errorf("a change: %+v, transaction %s", l, ran.TransactionId)
	}
	if l := lines[1]; l.Op != "lamp.get" || l.Outcome != "refused" || !strings.Contains(l.Cause, "refused by security.deny_operations (agent.yaml line 3)") {
		t.Errorf("a refusal: %+v", l)
	}
	if l := lines[2]; l.Op != "lamp.set" || l.Outcome != "ok" || !l.DryRun || l.Transaction != "" {
		t.Errorf("a dry run: %+v", l)
	}
}

// The rules of agent.yaml bind the room, by its names and by the paths that it writes.
func policy(t *testing.T, r room) {
	for _, c := range []struct{ rule, says string }{
		{"deny_operations: [lamp.*]", "refused by security.deny_operations (agent.yaml line 3): lamp.set"},
		{"allow_operations: [run_script, file.*]", "refused by security.allow_operations (agent.yaml line 3): lamp.set is not listed"},
		{"allow_file_write_paths: [/etc/network]", "refused by security.allow_file_write_paths (agent.yaml line 3): /etc/lamps/desk is not below what is listed"},
		{"deny_file_read_paths: [/etc/lamps]", "refused by security.deny_file_read_paths (agent.yaml line 3): /etc/lamps/desk"},
		{"read_only: true", "refused by security.read_only (agent.yaml line 3): lamp.set"},
	} {
		g := r.start(t, "  "+c.rule+"\n")
		for _, edit := range []func(*pb.RunScriptRequest){func(*pb.RunScriptRequest) {}, dry} {
			if e := g.lua(t, `lamp.set("desk", "on")`, edit).Error; e.GetKind() != "policy" || e.GetOp() != "lamp.set" || !strings.Contains(e.GetMessage(), c.says) {
				t.Errorf("%s: %v, want %q", c.rule, e, c.says)
			}
		}
		g.wantLamps(t, c.rule)
	}
	g := r.start(t, "  allow_file_write_paths: [/etc/lamps]\n")
	if reply := g.lua(t, `return lamp.set("desk", "on")`); !reply.Result.GetBoolValue() {
		t.Error(reply)
	}
}

// The check of scripts knows the functions, their arguments and the needs.
func check(t *testing.T, r room) {
	file := filepath.Join(t.TempDir(), script)
	for _, c := range []struct{ source, says string }{
		{r.lua, ""},
		{strings.Replace(r.lua, `lamp.set("desk"`, `lamp.set("kitchen"`, 1), `lamp.set needs "lamp:kitchen", which is not declared`},
		{strings.Replace(r.lua, `"lamp:desk"`, `"host"`, 1), `lamp.set needs "lamp`},
		{strings.Replace(r.lua, `"desk", `, "", 1), "lamp.set: argument 2 (state) is missing"},
		{strings.Replace(r.lua, "lamp.set", "lamp.sett", 1), "lamp has no function sett, did you mean set?"},
	} {
		if err := os.WriteFile(file, []byte(c.source), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), r.agent(), "script", "check", file).CombinedOutput()
		if (err == nil) != (c.says == "") || !strings.Contains(string(out), c.says) {
			t.Errorf("%s\n%s%v, want %q", c.source, out, err, c.says)
		}
	}
}

// The test of a script has the room, and kills the agent at its calls.
func crash(t *testing.T, r room) {
	dir := t.TempDir()
	for name, text := range map[string]string{script: r.lua, "desk-lamp_test.lua": `return {
	switches_the_lamp = function()
		assert(test.run().result == true and file.read("/etc/lamps/desk") == "on\n")
	end,
	survives_a_crash = function()
		file.write("/etc/lamps/desk", "on\n", {parents = true})
		assert(test.crash({state = "off"}) > 0)
	end,
}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := run(t, dir, r.agent(), "script", "test", script); !strings.HasPrefix(out, "ok") {
		t.Error(out)
	}
}

// The ctl asks the guest what can be allowed.
func completion(t *testing.T, r room) {
	g := r.start(t, "")
	g.Client.Close()
	out := run(t, ".", r.ctl(), "--socket", g.Socket, "__complete", "run", "./"+script, "--allow", "la")
	if !strings.HasPrefix(out, "lamp\tor lamp:LAMP\n") {
		t.Errorf("%q", out)
	}
}
