package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The commands of tx.on_commit run once each, in their order, when the files are there and the script has ended well; the reply
// tells what came of them.
func TestOnCommit(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	const script = `
		tx.on_commit({"sh", "-c", "cat $/file >> $/log"})
		file.write("$/file", "written\n")
		tx.on_commit({"sh", "-c", "echo second >> $/log"})
		tx.on_commit({"sh", "-c", "cat $/file >> $/log"})
		tx.on_commit({"sh", "-c", "echo words of its own >&2; exit 3"})
	`
	for _, test := range []struct {
		name, source string
		dry          bool
		status       pb.ScriptStatus
		log, after   string
	}{
		{"dry run", script, true, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "", "WOULD WOULD WOULD"},
		{"error", script + `error("wanted")`, false, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, "", ""},
		{"declared", `return script {name = "x", version = "1", needs = {"file", "tx", "exec"}, run = function()` + script + `end}`, false,
			pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, "written\nsecond\n", "APPLIED APPLIED UNKNOWN"},
		{"not declared", `return script {name = "x", version = "1", needs = {"file", "tx"}, run = function()` + script + `end}`, false,
			pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, "", ""},
	} {
		dir := t.TempDir()
		request := &pb.RunScriptRequest{Source: []byte(strings.ReplaceAll(test.source, "$", dir)), DryRun: test.dry}
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, request)
		if err != nil {
			t.Fatal(err)
		}
		var after []string
		for _, c := range reply.AfterCommit {
			after = append(after, strings.TrimPrefix(c.State.String(), "CHANGE_STATE_"))
		}
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		if reply.Status != test.status || strings.Join(after, " ") != test.after || string(log) != test.log {
			t.Errorf("%s: the log is %q: %v", test.name, log, reply)
		}
		if n := len(reply.AfterCommit); test.log != "" && (n == 0 || !strings.Contains(reply.AfterCommit[n-1].Target, "words of its own")) {
			t.Errorf("%s: %v", test.name, reply.AfterCommit)
		}
		if _, err := os.Stat(filepath.Join(dir, "file")); (err == nil) != (test.log != "") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// An agent that is killed while a command of tx.on_commit runs has it run again at its next start, and the stored reply tells
// so.
func TestOnCommitIsFinishedByRecovery(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	a := agenttest.Start(t, agenttest.Options{State: state})
	c := a.Client(t, client.Options{})
	source := strings.ReplaceAll(`
		tx.on_commit({"sh", "-c", "echo first >> $/log"})
		tx.on_commit({"sh", "-c", "echo begun >> $/log; test -e $/go || sleep 1000; echo ended >> $/log"})
		file.write("$/file", "written")
		return "result"
	`, "$", dir)
	request := &pb.RunScriptRequest{Source: []byte(source), Key: "key"}
	answered := make(chan error, 1)
	go func() {
		_, err := client.Call[*pb.RunScriptResponse](context.Background(), c, request)
		answered <- err
	}()
	log := func() string { text, _ := os.ReadFile(filepath.Join(dir, "log")); return string(text) }
	for deadline := time.Now().Add(time.Minute); log() != "first\nbegun\n"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log is %q", log())
		}
	}
	a.Kill()
	if err := <-answered; err == nil {
		t.Fatal("answered by an agent that was killed before")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b := agenttest.Start(t, agenttest.Options{State: state})
	d := b.Client(t, client.Options{})
	awaitEnded(t, d)
	if want := "first\nbegun\nfirst\nbegun\nended\n"; log() != want {
		t.Errorf("the log is %q, want %q", log(), want)
	}
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), d, request)
	if err != nil || !reply.Replayed || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Result.GetStringValue() != "result" || len(reply.AfterCommit) != 2 {
		t.Error(reply, err)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(content) != "written" {
		t.Errorf("%q, %v", content, err)
	}
}

// In a tree that is not booted nothing runs, so tx.notify changes nothing there; names and actions are looked at all the same.
func TestNotifyInATree(t *testing.T) {
	root := scratch(t)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	for source, code := range map[string]string{
		`tx.notify("web") tx.notify("web.service", "reload") file.write("/etc/app.conf", "new")`: "",
		`tx.notify("a/b")`:           "invalid",
		`tx.notify("-h")`:            "invalid",
		`tx.notify("web", "poke")`:   "invalid",
		`tx.notify("web", "stop")`:   "invalid",
		`tx.notify("") return false`: "invalid",
	} {
		reply := runIn(t, c, "", source)
		if reply.GetError().GetCode() != code || (reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED) != (code == "") {
			t.Errorf("%s: %v", source, reply)
		}
	}
	if content, err := os.ReadFile(filepath.Join(root, "etc/app.conf")); err != nil || string(content) != "new" {
		t.Errorf("%q, %v", content, err)
	}
	can, err := client.Call[*pb.GetCapabilitiesResponse](ctxFor(t, time.Minute), c, &pb.GetCapabilitiesRequest{})
	if err != nil || strings.Contains(strings.Join(can.Capabilities, " "), "service") || can.Features["service_control"] != "" {
		t.Error(can, err)
	}
	if _, err := c.ControlService(ctxFor(t, time.Minute), "web", pb.ServiceAction_SERVICE_ACTION_START); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if list, err := c.Services(ctxFor(t, time.Minute), &pb.ListServicesRequest{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(list, err)
	}
}

// Units are enabled in a tree by a declared script, in a transaction: an error takes the links back with the directories that
// were made for them.
func TestUnitsOfATree(t *testing.T) {
	root := scratch(t)
	unit := filepath.Join(root, "usr/lib/systemd/system/web.service")
	err := errors.Join(os.MkdirAll(filepath.Dir(unit), 0o755),
		os.WriteFile(unit, []byte("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	script := func(needs, body string) string {
		return `return script {name = "x", version = "1", needs = {` + needs + `}, run = function() ` + body + ` end}`
	}
	const body = `local changed = service.enable("web")
		return {changed = changed, enabled = service.status("web").enabled, changes = #tx.changes()}`
	before := picture(t, root)
	for _, test := range []struct {
		needs, body string
		want        pb.ScriptStatus
	}{
		{`"service:web"`, body + ` .. error("x")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK},
		{`"service:web.service"`, `service.enable("web") service.mask("web") error("x")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK},
		{`"service:other", "tx"`, body, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK},
		{`"file", "tx"`, body, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK},
	} {
		reply := runIn(t, c, "", script(test.needs, test.body))
		if after := picture(t, root); reply.Status != test.want || len(reply.NotUndone) > 0 || after != before {
			t.Errorf("%s: %v\n%s\nbefore:\n%s", test.body, reply, after, before)
		}
	}
	for _, needs := range []string{`"service:web", "tx"`, `"service:web.service", "tx"`} {
		reply := runIn(t, c, "", script(needs, body))
		got := reply.Result.GetStructValue().AsMap()
		if first := needs == `"service:web", "tx"`; reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || got["enabled"] != "enabled" || got["changed"] != first {
			t.Errorf("%s: %v", needs, reply)
		}
	}
	link := filepath.Join(root, "etc/systemd/system/multi-user.target.wants/web.service")
	if target, err := os.Readlink(link); err != nil || target != "/usr/lib/systemd/system/web.service" {
		t.Error(target, err)
	}
}
