package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// ranScript sends a script to an agent.
func ranScript(t *testing.T, c *client.Client, request *pb.RunScriptRequest) *pb.RunScriptResponse {
	t.Helper()
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 2*time.Minute), c, request)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// Files and modules come with the request, and with no other.
func TestWhatIsSentAlongWithAScript(t *testing.T) {
	root := t.TempDir()
	c := agenttest.Start(t, agenttest.Options{Root: root}).Client(t, client.Options{})
	request := &pb.RunScriptRequest{
		Source: []byte(`
			local site = require("site")
			file.write("/site.tar", file.attachment("site.tar"))
			return {module = site.name(), same = require("site") == site, size = #file.attachment("empty")}`),
		Attachments: []*pb.Attachment{{Name: "site.tar", Data: []byte("\x00\xff tar")}, {Name: "empty"}},
		Modules:     map[string][]byte{"site": []byte(`local inner = require("inner.names") return {name = function() return inner end}`), "inner.names": []byte(`return "shop"`)},
	}
	reply := ranScript(t, c, request)
	got := reply.Result.GetStructValue().AsMap()
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || got["module"] != "shop" || got["same"] != true || got["size"] != 0.0 {
		t.Error(reply)
	}
	if content, err := os.ReadFile(filepath.Join(root, "site.tar")); err != nil || string(content) != "\x00\xff tar" {
		t.Errorf("%q, %v", content, err)
	}
	for source, want := range map[string]string{`file.attachment("site.tar")`: "site.tar", `require("site")`: "site"} {
		if reply := ranScript(t, c, &pb.RunScriptRequest{Source: []byte(source)}); reply.Error.GetKind() != "builtin" || reply.Error.Code != "not_found" || !strings.Contains(reply.Error.Message, want) {
			t.Errorf("%s: %v", source, reply)
		}
	}
	request.Modules["inner.names"] = []byte("return = 1")
	if e := ranScript(t, c, request).Error; e.GetScript() != "inner.names.lua" || e.GetLine() != 1 {
		t.Errorf("a module that does not parse gives %v", e)
	}
	request.Attachments[1].Name = "site.tar"
	if reply := ranScript(t, c, request); reply.Error.GetKind() != "params" || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED {
		t.Errorf("two attachments of one name: %v", reply)
	}
}

// The administrator's scripts go before those of the image, and these before the bundled ones, in the list and when one is
// run by its name.
func TestPrecedenceOfScriptDirectories(t *testing.T) {
	root := t.TempDir()
	const own, image = "/etc/quantix-kvm/scripts.d", "/usr/share/quantix-kvm/scripts"
	for path, version := range map[string]string{own + "/motd": "own", own + "/both": "own", image + "/both": "image", image + "/baked": "image"} {
		name := filepath.Base(path)
		source := `return script {name = "` + name + `", version = "` + version + `", run = function() return "` + version + `" end}`
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path+".lua"), []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := agenttest.Start(t, agenttest.Options{Root: root}).Client(t, client.Options{})
	list, err := client.Call[*pb.ListScriptsResponse](ctxFor(t, 2*time.Minute), c, &pb.ListScriptsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*pb.ScriptInfo{}
	for _, s := range list.Scripts {
		if found[s.Name] != nil {
			t.Errorf("%s is listed twice", s.Name)
		}
		found[s.Name] = s
	}
	for name, want := range map[string]string{"motd": own, "both": own, "baked": image, "hosts-entry": "bundled:"} {
		if s := found[name]; s.GetError() != "" || s.GetSourcePath() != want+"/"+name+".lua" {
			t.Errorf("%s is %v, want it from %s", name, s, want)
		}
	}
	for name, want := range map[string]string{"motd": "own", "both": "own", "baked": "image"} {
		if reply := ranScript(t, c, &pb.RunScriptRequest{Name: name}); reply.Result.GetStringValue() != want || reply.Script.GetVersion() != want {
			t.Errorf("%s gives %v, want %s", name, reply, want)
		}
	}
}

var (
	ruleLine = regexp.MustCompile("(?m)^\\| (`[^|]*`) \\| (.*) \\|$")
	code     = regexp.MustCompile("`([^`]*)`")
)

// What the guide for authors says of results is so: each row of its table is tried.
func TestRulesOfResults(t *testing.T) {
	guide, err := os.ReadFile("../../scripts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(guide), "| a script returns |")
	table, _, _ = strings.Cut(table, "\n\n")
	c, tried := agenttest.Start(t, agenttest.Options{Root: t.TempDir()}).Client(t, client.Options{}), 0
	for _, row := range ruleLine.FindAllStringSubmatch(table, -1) {
		failure, fails := strings.CutPrefix(row[2], "an error: ")
		wants := code.FindAllStringSubmatch(row[2], -1)
		for i, source := range code.FindAllStringSubmatch(row[1], -1) {
			tried++
			reply := ranScript(t, c, &pb.RunScriptRequest{Source: []byte("return " + source[1])})
			text, err := json.Marshal(reply.Result.AsInterface())
			switch {
			case err != nil:
				t.Fatal(err)
			case fails && (reply.Error.GetKind() != "result" || !strings.Contains(reply.Error.Message, failure)):
				t.Errorf("%s gives %s, %v, want an error with %q", source[1], text, reply.Error, failure)
			case !fails && i >= len(wants):
				t.Errorf("the guide does not say what %s gives", source[1])
			case !fails && (string(text) != wants[i][1] || reply.Error != nil):
				t.Errorf("%s gives %s, %v, want %s", source[1], text, reply.Error, wants[i][1])
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d rules were found", tried)
	}
}

// promised are the functions that scripts are to have one day, by room.
var promised = map[string]string{
	"file": "read write append exists stat list glob mkdir remove copy move symlink chmod chown sha256 line replace template attachment",
	"exec": "run sh", "netplan": "get validate set remove apply status", "clipboard": "get set",
	"service": "status list start stop restart reload enable disable mask daemon_reload", "account": "exists create remove password ssh_keys groups",
	"package": "installed install remove", "host": "info hostname timezone interfaces disks memory uptime sysctl mount",
	"power": "reboot poweroff", "tx": "on_rollback on_commit notify changes",
}

// What this agent does not have says so by its name, and can be caught.
func TestWhatIsNotThereYetIsNamed(t *testing.T) {
	c := agenttest.Start(t, agenttest.Options{Root: t.TempDir()}).Client(t, client.Options{})
	table := builtins.NewTable(all.New(all.Config{}).List()...)
	var source strings.Builder
	for room, functions := range promised {
		for _, function := range strings.Fields(functions) {
			if name := room + "." + function; table.Script(name) == nil {
				source.WriteString("missing(\"" + name + "\", function() " + name + "(\"x\", {}) end)\n")
				if e := ranScript(t, c, &pb.RunScriptRequest{Source: []byte("\n" + name + "('x')")}).Error; e.GetKind() != "unsupported" || e.Op != name || e.Line != 2 {
					t.Errorf("%s gives %v", name, e)
				}
			}
		}
	}
	reply := ranScript(t, c, &pb.RunScriptRequest{Source: []byte(`
		local function missing(name, call)
			local ok, err = pcall(call)
			assert(not ok and err.op == name and err.code == "unsupported", name .. ": " .. tostring(err))
		end
		` + source.String())})
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Changes) != 0 {
		t.Error(reply)
	}
}
