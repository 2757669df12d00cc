package script_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a runner where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// scripts is a manager without a journal, and the way to its requests.
func scripts(pool *sandbox.Pool, library *script.Library) (*script.Manager, *call.Executor) {
	calls := call.New(call.Config{Table: builtins.NewTable()})
	manager := script.New(script.Config{Pool: pool, Library: library, Calls: calls})
	return manager, calls.WithJournal(nil, builtins.NewTable(manager.Room()))
}

// A listing describes anew only what is not as it was in the one before.
func TestListingRemembersWhatItDescribed(t *testing.T) {
	source := func(version string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(`return script {name = "a", version = "` + version + `", run = function() end}`)}
	}
	dir := fstest.MapFS{"a.lua": source("1"), "b.lua": {Data: []byte("return script {}")}, "c.lua": {Data: []byte("return 1")}}
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	_, calls := scripts(pool, script.NewLibrary(1<<10, script.Place{Name: "/scripts", FS: dir}))
	list := func() []*pb.ScriptInfo {
		t.Helper()
		request := &pb.ListScriptsRequest{}
		reply, err := calls.Execute(t.Context(), &builtins.Call{}, calls.Native(request), request)
		if err != nil {
			t.Fatal(err)
		}
		return reply.(*pb.ListScriptsResponse).Scripts
	}
	is := func(scripts []*pb.ScriptInfo, version string) {
		t.Helper()
		if len(scripts) != 3 || scripts[0].Version != version || scripts[0].Error != "" ||
			!strings.Contains(scripts[1].Error, "run must be a function") || scripts[2].Error != "" {
			t.Errorf("listed are %v, want version %s of a", scripts, version)
		}
	}
	first := list()
	is(first, "1")
	first[0].Version = "changed by who asked"
	dir["a.lua"] = source("2")
	is(list(), "2")
	pool.Close() // from here on nothing can be described
	is(list(), "2")
	dir["a.lua"] = source("3")
	if got := list()[0]; got.Version != "" || got.Error == "" {
		t.Errorf("another source is %v without a runner", got)
	}
}

// One script that takes its runner down keeps no other from being described, and many need more runners than one.
func TestListingOutlivesAScript(t *testing.T) {
	dir := fstest.MapFS{"z.lua": {Data: []byte("while true do end return script {}")}, "plain.lua": {Data: []byte("return script")}}
	for i := range 9 {
		name := fmt.Sprintf("s%d", i)
		source := "--" + strings.Repeat("x", 60<<10) + "\nreturn script {name = '" + name + "', version = '" + name + "', run = function() end}"
		dir[name+".lua"] = &fstest.MapFile{Data: []byte(source)}
	}
	pool := sandbox.New(sandbox.Config{Limits: sandbox.Limits{CPU: 2 * time.Second}})
	defer pool.Close()
	_, calls := scripts(pool, script.NewLibrary(1<<18, script.Place{Name: "/scripts", FS: dir}))
	request := &pb.ListScriptsRequest{}
	reply, err := calls.Execute(t.Context(), &builtins.Call{}, calls.Native(request), request)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range reply.(*pb.ListScriptsResponse).Scripts {
		switch {
		case s.Name == "z" && !strings.Contains(s.Error, "processor time") && !strings.Contains(s.Error, "too long"): // on a busy machine
			t.Errorf("a script that never ends is %v", s)
		case s.Name == "plain" && s.Error != "", strings.HasPrefix(s.Name, "s") && (s.Version != s.Name || s.Error != ""):
			t.Errorf("%.200v", s)
		}
	}
}

// A pipe, and a script that never says what it is, keep nobody from the others; a key has a bound.
func TestListingIsNotHeldUp(t *testing.T) {
	dir := t.TempDir()
	for name, source := range map[string]string{"a": `return script {name = "a", run = function() end}`, "spins": "while true do end return script {}"} {
		if err := os.WriteFile(filepath.Join(dir, name+".lua"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.lua"), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	_, calls := scripts(pool, script.NewLibrary(1<<10, script.Place{Name: dir, FS: os.DirFS(dir)}))
	request := &pb.ListScriptsRequest{}
	start := time.Now()
	reply, err := calls.Execute(t.Context(), &builtins.Call{}, calls.Native(request), request)
	list := reply.(*pb.ListScriptsResponse).GetScripts()
	if err != nil || len(list) != 3 || list[0].Error != "" || !strings.Contains(list[1].Error, "not a regular file") || list[2].Error == "" {
		t.Errorf("%v, %v", list, err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Error("it took", took)
	}
	run := &pb.RunScriptRequest{Source: []byte("return 1"), Key: strings.Repeat("k", 900<<10)}
	got, err := calls.Execute(t.Context(), &builtins.Call{}, calls.Native(run), run)
	if refused := got.(*pb.RunScriptResponse); err != nil || refused.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || !strings.Contains(refused.Error.Message, "key has 921600 bytes") {
		t.Error(got, err)
	}
}
