package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// runIn runs a script with $ for a directory.
func runIn(t *testing.T, c *client.Client, dir, source string) *pb.RunScriptResponse {
	t.Helper()
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(strings.ReplaceAll(source, "$", dir))})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// states lists what became of each change.
func states(changes []*pb.Change, dir string) string {
	var list []string
	for _, c := range changes {
		list = append(list, strings.ReplaceAll(c.Action+" "+c.Target, dir, "")+" "+strings.TrimPrefix(c.State.String(), "CHANGE_STATE_"))
	}
	return strings.Join(list, "\n")
}

// The list of changes tells of each what became of it: of a command whose undo fails, of one that has none, and of one that
// never ran, for whose sake nothing is run or named.
func TestStatesOfChanges(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	for _, test := range []struct {
		name, source    string
		status          pb.ScriptStatus
		changes, undone string
	}{
		{"an undo that fails", `
			file.write("$/one", "1")
			exec.run({"touch", "$/two"}, {undo = {"false"}})
			file.write("$/three", "3")
			error("no")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED,
			"created /one UNDONE\nran touch /two NOT_UNDONE\ncreated /three UNDONE", "restore exec.undo false: exit code 1 NOT_UNDONE"},
		{"a command twice, undone once", `
			exec.run({"true"}, {undo = {"true"}})
			exec.run({"true"}, {irreversible = true})
			error("no")`, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL,
			"ran true UNDONE\nran true NOT_UNDONE", "ran true NOT_UNDONE"},
		{"a command that is not there", `
			pcall(exec.run, {"/nowhere/at all"}, {irreversible = true})
			pcall(exec.run, {"/nowhere/at all"}, {undo = {"touch", "$/undone"}})
			file.write("$/four", "4")
			error("no")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK,
			"created /four UNDONE", ""},
		{"a call that failed, and one after it", `
			pcall(file.write, "$/none/five", "5")
			exec.run({"true"}, {undo = {"false"}})
			error("no")`, pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED,
			"ran true NOT_UNDONE", "restore exec.undo false: exit code 1 NOT_UNDONE"},
	} {
		dir := t.TempDir()
		reply := runIn(t, c, dir, test.source)
		if reply.Status != test.status || states(reply.Changes, dir) != test.changes || states(reply.NotUndone, dir) != test.undone {
			t.Errorf("%s: %v\n%s\nnot undone:\n%s", test.name, reply.Status, states(reply.Changes, dir), states(reply.NotUndone, dir))
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 && left[0].Name() != "two" {
			t.Errorf("%s: left is %v, %v", test.name, left, err)
		}
	}
}

// What another program puts where a file was moved away from is not lost when the file comes back.
func TestMoveBackKeepsWhatOthersMade(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	for name, content := range map[string]string{"file": "mine", "tree/in": "deep"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reply := runIn(t, c, dir, `
		file.move("$/file", "$/file.moved")
		file.move("$/tree", "$/tree.moved")
		exec.sh("echo others > $/file; mkdir $/tree; echo others > $/tree/in", {irreversible = true})
		error("no")`)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL {
		t.Error(reply)
	}
	for name, want := range map[string]string{"file": "mine", "tree/in": "deep", "file.quantix-conflict": "others\n", "tree.quantix-conflict/in": "others\n"} {
		if content, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", name, content, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 4 {
		t.Error(left, err)
	}
}

// A file with two names whose mode was taken away comes back also where the agent is not root.
func TestUnreadableLinkedFileComesBack(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/one", []byte("1"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/one", dir+"/two"); err != nil {
		t.Fatal(err)
	}
	before := picture(t, dir)
	if reply := runIn(t, c, dir, `file.chmod("$/one", "0000") error("no")`); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(reply)
	}
	if after := picture(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
