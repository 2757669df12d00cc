package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
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

// Modes come back: of a file with two names that nobody may read, also where the agent is not root, and of a large one.
func TestModesComeBack(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/one", []byte("1"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/one", dir+"/two"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/large", make([]byte, 3<<20), 0o644); err != nil { // of which the content is not kept
		t.Fatal(err)
	}
	before := picture(t, dir)
	if reply := runIn(t, c, dir, `file.chmod("$/one", "0000") file.chmod("$/large", "0600") file.write("$/large", "small") error("no")`); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(reply)
	}
	if after := picture(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// What a command changes beside the files that it touches is an error, and named: nothing kept it. Putting a file in the place
// of a touched one is none, nor is what happens where all may write.
func TestTouchesNamesAllThatChanges(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	reset := func() {
		t.Helper()
		for _, line := range [][2]string{{"one", "1\n"}, {"two", "2\n"}, {"open/one", "1\n"}} {
			file := filepath.Join(dir, line[0])
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(line[1]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		_ = os.Remove(dir + "/link")
		if err := os.Symlink("two", dir+"/link"); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(dir + "/fifo")
		if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
			t.Fatal(err)
		}
		for name, mode := range map[string]os.FileMode{dir: 0o755, dir + "/open": 0o777} { // whatever the umask is
			if err := errors.Join(os.Chmod(name, mode), os.Chown(name, os.Geteuid(), -1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const stray = ` error("not reached")`
	for _, test := range []struct {
		name, source, message string
		status                pb.ScriptStatus
		undone                string
	}{
		{"a new file", `exec.sh("echo x >> $/one; echo x > $/new", {touches = {"$/one"}})` + stray, "/new was created, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "created /new NOT_UNDONE"},
		{"a link", `exec.sh("ln -sf one $/link", {touches = {"$/one"}})` + stray, "/link was modified, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "modified /link NOT_UNDONE"},
		{"the owner of a link", `exec.sh("chown -h 5 $/link", {touches = {"$/one"}})` + stray, "/link was modified, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "modified /link NOT_UNDONE"},
		{"the mode of a FIFO", `exec.sh("chmod 666 $/fifo", {touches = {"$/one"}})` + stray, "/fifo was modified, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "modified /fifo NOT_UNDONE"},
		{"the directory", `exec.sh("chmod 777 $", {touches = {"$/one"}})` + stray, " was modified, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "modified  NOT_UNDONE"},
		{"the directory, where all may write", `exec.sh("chown 5 $/open", {touches = {"$/open/one"}})` + stray,
			"/open was modified, which touches does not name", pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "modified /open NOT_UNDONE"},
		{"the directory, changed and changed back", `exec.sh("chmod 777 $; chmod 755 $", {touches = {"$/one"}}) error("wanted")`, "wanted",
			pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
		{"beside what is not there", `exec.sh("mkdir -p $/a/b; rm $/link", {touches = {"$/a/b/c"}})` + stray, "/link was deleted, which touches does not name",
			pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, "deleted /link NOT_UNDONE"},
		{"replaced", `exec.sh("sed -i s/1/3/ $/one", {touches = {"$/one"}}) error("wanted")`, "wanted",
			pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
		{"where all may write", `exec.sh("echo x > $/open/new", {touches = {"$/open/one"}}) error("wanted")`, "wanted",
			pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
		{"through a link", `exec.sh("echo x >> $/link", {touches = {"$/link"}, unconfined = true}) error("wanted")`, "wanted",
			pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, ""},
	} {
		if os.Geteuid() != 0 && strings.Contains(test.source, "chown") {
			continue // needs root
		}
		reset()
		reply := runIn(t, c, dir, test.source)
		if reply.Status != test.status || states(reply.NotUndone, dir) != test.undone || !strings.Contains(reply.GetError().GetMessage(), test.message) {
			t.Errorf("%s: %v", test.name, reply)
		}
		for file, want := range map[string]string{"one": "1\n", "two": "2\n"} {
			if content, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(content) != want {
				t.Errorf("%s: %s is %q, %v", test.name, file, content, err)
			}
		}
		_ = os.Remove(dir + "/new")
	}
}

// What a command left beside the files that it touches is named also where the agent was killed in the middle of it.
func TestLeftBesideByAKill(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	one := filepath.Join(dir, "one")
	if err := errors.Join(os.WriteFile(one, []byte("1\n"), 0o644), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{State: state})
	c := a.Client(t, client.Options{})
	source := strings.ReplaceAll(`exec.sh("cp $/one $/one.tmp; echo 2 >> $/one; sleep 1000", {touches = {"$/one"}})`, "$", dir)
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source)})
	}()
	eventually(t, "the command", func() bool {
		content, err := os.ReadFile(one)
		return err == nil && string(content) == "1\n2\n"
	})
	a.Kill()
	d := agenttest.Start(t, agenttest.Options{State: state}).Client(t, client.Options{})
	awaitEnded(t, d)
	list, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{})
	if err != nil || len(list.Transactions) != 1 {
		t.Fatal(list, err)
	}
	shown, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{TransactionId: list.Transactions[0].TransactionId})
	if err != nil {
		t.Fatal(err)
	}
	reply := shown.Transactions[0].Reply
	if reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || states(reply.GetNotUndone(), dir) != "created /one.tmp NOT_UNDONE" {
		t.Error(reply)
	}
	if content, err := os.ReadFile(one); err != nil || string(content) != "1\n" {
		t.Errorf("%q, %v", content, err)
	}
}

// ranIn lists what a rollback ran, in its order.
func ranIn(changes []*pb.Change, dir string) string {
	var list []string
	for _, c := range changes {
		list = append(list, strings.ReplaceAll(c.Op+" "+c.Action+" "+c.Target, dir, ""))
	}
	return strings.Join(list, "\n")
}

// What a rollback ran is in the reply, and in what is stored, by its name and with its time, and without secrets.
func TestWhatARollbackRan(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir, began := t.TempDir(), time.Now()
	source := strings.ReplaceAll(`
		tx.on_rollback({"touch", "$/hook"})
		exec.run({"true"}, {undo = {"touch", "$/word", "$/" .. secrets.word}})
		exec.run({"true"}, {undo = {"touch", "$/never"}, undo_if = {"false"}})
		exec.run({"true"}, {undo = {"false"}})
		error("no")`, "$", dir)
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{
		Source: []byte(source), Secrets: map[string]string{"word": "abcdefgh"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "exec.undo failed false\nexec.undo not needed touch /never\nexec.undo ran touch /word /[secret]\nexec.undo ran touch /hook"
	if got := ranIn(reply.RollbackRan, dir); got != want {
		t.Errorf("the reply: %s", got)
	}
	for _, r := range reply.RollbackRan {
		if at := r.At.AsTime(); at.Before(began) || at.After(time.Now()) || r.DurationMs > uint64(time.Since(began).Milliseconds()) {
			t.Error(r)
		}
	}
	shown, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), c, &pb.TransactionsRequest{TransactionId: reply.TransactionId})
	if err != nil || len(shown.Transactions) != 1 || ranIn(shown.Transactions[0].Reply.RollbackRan, dir) != want {
		t.Error(shown, err)
	}
}

// After a crash of the agent, in the script and again in its rollback, all that ran in the rollback is told, each once.
func TestWhatARollbackRanAfterACrash(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	a := agenttest.Start(t, agenttest.Options{State: state})
	c := a.Client(t, client.Options{})
	source := strings.ReplaceAll(`
		exec.run({"true"}, {undo = {"sh", "-c", "touch $/second; test -e $/go || exec sleep 1000"}})
		exec.run({"true"}, {undo = {"touch", "$/first", "$/" .. secrets.word}})
		file.write("$/reached", "") error("no")`, "$", dir)
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{
			Source: []byte(source), Secrets: map[string]string{"word": "abcdefgh"}})
	}()
	exists := func(name string) func() bool {
		return func() bool { _, err := os.Stat(dir + name); return err == nil }
	}
	eventually(t, "the second undo command", exists("/second"))
	a.Kill()
	if err := os.WriteFile(dir+"/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d := agenttest.Start(t, agenttest.Options{State: state}).Client(t, client.Options{})
	awaitEnded(t, d)
	list, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{})
	if err != nil || len(list.Transactions) != 1 {
		t.Fatal(list, err)
	}
	shown, err := client.Call[*pb.TransactionsResponse](ctxFor(t, 20*time.Second), d, &pb.TransactionsRequest{TransactionId: list.Transactions[0].TransactionId})
	if err != nil {
		t.Fatal(err)
	}
	const want = "exec.undo ran touch /first /[secret]\nexec.undo ran sh -c 'touch /second; test -e /go || exec sleep 1000'"
	if got := ranIn(shown.Transactions[0].Reply.GetRollbackRan(), dir); got != want {
		t.Errorf("%s", got)
	}
}

// A file that several calls edit is in the list of changes once, with its whole diff: in a run, its dry run, and one that is
// rolled back. What is caught and taken back, and what others do in between, keeps the list true.
func TestOneDiffForAFile(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	for _, open := range []string{dir, filepath.Dir(dir)} { // so that all may read what is there
		if err := os.Chmod(open, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const edits = `
		file.line("$/a", {line = "two"})
		file.write("$/b", "b\n")
		file.replace("$/a", "one", "1")
		pcall(file.replace, "$/a", "1", "$9")
		file.append("$/a", "three\n")
		exec.sh("echo other >> $/b", {touches = {"$/b"}, plan = "adds a line"})
		file.line("$/b", {line = "end"})`
	const diff = "--- a/a\n+++ b/a\n@@ -1,1 +1,3 @@\n-one\n+1\n+two\n+three\n"
	for _, test := range []struct {
		name, source, changes string
		dry                   bool
	}{
		{"dry run", strings.Split(edits, "exec.sh")[0], "modified /a WOULD\ncreated /b WOULD", true},
		{"rolled back", edits + ` error("no")`, "modified /a UNDONE\ncreated /b UNDONE\nran echo other >> /b UNDONE\nmodified /b UNDONE", false},
		{"run", edits, "modified /a APPLIED\ncreated /b APPLIED\nran echo other >> /b APPLIED\nmodified /b APPLIED", false},
	} {
		if err := os.WriteFile(dir+"/a", []byte("one\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, &pb.RunScriptRequest{
			Source: []byte(strings.ReplaceAll(test.source, "$/", dir+"/")), DryRun: test.dry})
		if err != nil || states(reply.Changes, dir) != test.changes {
			t.Errorf("%s: %v\n%s\n%v", test.name, err, states(reply.GetChanges(), dir), reply.GetChanges())
			continue
		}
		if got := strings.ReplaceAll(reply.Changes[0].Diff, dir, ""); got != diff {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}
