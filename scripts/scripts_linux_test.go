package scripts_test

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a runner where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// guest answers the builtins that bundled scripts use, from memory.
type guest struct {
	files    map[string]string
	units    map[string]bool // "enabled x.timer", "active x.timer"
	commands []string
	writes   int
}

func yes(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }

func text(s string) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(s)}}
}

func table(fields ...any) *pb.LuaValue {
	t := &pb.LuaTable{}
	for i := 0; i < len(fields); i += 2 {
		t.Fields = append(t.Fields, &pb.LuaField{Key: []byte(fields[i].(string)), Value: fields[i+1].(*pb.LuaValue)})
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: t}}
}

func (g *guest) write(path, content string) *pb.LuaValue {
	if old, ok := g.files[path]; ok && old == content {
		return yes(false)
	}
	g.files[path] = content
	g.writes++
	return yes(true)
}

func (g *guest) call(_ context.Context, call *pb.RunnerCall) *pb.RunnerReply {
	arg := func(i int) string { return string(call.GetArgs()[i].GetString_()) }
	value := &pb.LuaValue{}
	switch call.GetName() {
	case "file.exists":
		_, ok := g.files[arg(0)]
		value = yes(ok)
	case "file.read":
		value = text(g.files[arg(0)])
	case "file.write":
		value = g.write(arg(0), arg(1))
	case "file.template":
		content := arg(1)
		for _, f := range call.GetArgs()[2].GetTable().GetFields() {
			content = strings.ReplaceAll(content, "{{"+string(f.GetKey())+"}}", string(f.GetValue().GetString_()))
		}
		value = g.write(arg(0), content)
	case "host.info":
		value = table("hostname", text("guest7"))
	case "exec.run":
		value = g.run(call)
	}
	return &pb.RunnerReply{Value: value}
}

func (g *guest) run(call *pb.RunnerCall) *pb.LuaValue {
	var argv []string
	for _, v := range call.GetArgs()[0].GetTable().GetArray() {
		argv = append(argv, string(v.GetString_()))
	}
	code := 0.0
	last := argv[len(argv)-1]
	switch argv[1] {
	case "is-enabled", "is-active":
		if !g.units[strings.TrimPrefix(argv[1], "is-")+" "+last] {
			code = 1
		}
	case "enable":
		g.units["enabled "+last] = true
	case "start":
		g.units["active "+last] = true
	}
	if !strings.HasPrefix(argv[1], "is-") {
		g.commands = append(g.commands, strings.Join(argv, " "))
	}
	return table("code", &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: code}})
}

// run runs a bundled script and gives whether it says that it changed anything.
func run(t *testing.T, pool *sandbox.Pool, g *guest, name string, params *pb.LuaValue) (bool, *pb.ScriptError) {
	t.Helper()
	source, err := fs.ReadFile(scripts.Bundled(), name+".lua")
	if err != nil {
		t.Fatal(err)
	}
	start := &pb.RunnerStart{Name: name + ".lua", Source: source, Params: params.GetTable()}
	for _, f := range []string{"file.exists", "file.read", "file.write", "file.template", "host.info", "exec.run"} {
		start.Functions = append(start.Functions, &pb.RunnerFunction{Name: f})
	}
	out := pool.Run(t.Context(), sandbox.Job{Start: start, Call: g.call})
	for _, f := range out.Result.GetTable().GetFields() {
		if string(f.GetKey()) == "changed" {
			return f.GetValue().GetBoolean(), out.Error
		}
	}
	return false, out.Error
}

func newGuest() *guest { return &guest{files: map[string]string{}, units: map[string]bool{}} }

func newPool(t *testing.T) *sandbox.Pool {
	pool := sandbox.New(sandbox.Config{})
	t.Cleanup(pool.Close)
	return pool
}

func TestEachScriptDeclaresItsFileName(t *testing.T) {
	pool := newPool(t)
	entries, err := fs.ReadDir(scripts.Bundled(), ".")
	if err != nil || len(entries) == 0 {
		t.Fatalf("bundled scripts: %v, %v", entries, err)
	}
	for _, entry := range entries {
		source, err := fs.ReadFile(scripts.Bundled(), entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		out := pool.Run(t.Context(), sandbox.Job{Start: &pb.RunnerStart{Name: entry.Name(), Source: source, Describe: true}})
		d := out.Declaration
		if out.Error != nil || d.GetName()+".lua" != entry.Name() || d.GetVersion() == "" || d.GetDescription() == "" ||
			len(d.GetNeeds()) == 0 {
			t.Errorf("%s declares %v, error %v", entry.Name(), d, out.Error)
		}
	}
}

func TestMotd(t *testing.T) {
	pool, g := newPool(t), newGuest()
	params := table("title", text("Welcome"), "contact", text("ops@example.org"),
		"text", text("{{title}} to {{hostname}}\n{{contact}}\n"))
	for round, want := range []bool{true, false} {
		changed, err := run(t, pool, g, "motd", params)
		if err != nil || changed != want {
			t.Errorf("round %d: changed is %v, want %v, error %v", round, changed, want, err)
		}
	}
	if got, want := g.files["/etc/motd"], "Welcome to guest7\nops@example.org\n"; got != want {
		t.Errorf("/etc/motd is %q, want %q", got, want)
	}
	if _, err := run(t, pool, g, "motd", table("titel", text("x"))); err.GetKind() != "params" ||
		!strings.Contains(err.GetMessage(), "did you mean title?") {
		t.Errorf("misspelt parameter gives %v", err)
	}
}

func TestSystemdTimer(t *testing.T) {
	pool, g := newPool(t), newGuest()
	params := func(calendar string) *pb.LuaValue {
		return table("name", text("backup"), "command", text("/usr/local/bin/backup --all"),
			"on_calendar", text(calendar), "activate", yes(true))
	}
	for round, want := range []bool{true, false} {
		changed, err := run(t, pool, g, "systemd-timer", params("daily"))
		if err != nil || changed != want {
			t.Errorf("round %d: changed is %v, want %v, error %v", round, changed, want, err)
		}
	}
	want := []string{"systemctl daemon-reload", "systemctl daemon-reload", "systemctl enable backup.timer", "systemctl start backup.timer"}
	if !slices.Equal(g.commands, want) || g.writes != 2 {
		t.Errorf("commands are %q, want %q; %d writes, want 2", g.commands, want, g.writes)
	}
	if !strings.Contains(g.files["/etc/systemd/system/backup.service"], "\nExecStart=/usr/local/bin/backup --all\n") {
		t.Errorf("service is %q", g.files["/etc/systemd/system/backup.service"])
	}
	g.commands = nil
	if changed, err := run(t, pool, g, "systemd-timer", params("weekly")); err != nil || !changed ||
		!slices.Contains(g.commands, "systemctl restart backup.timer") {
		t.Errorf("another time: changed %v, commands %q, error %v", changed, g.commands, err)
	}
}

func TestSystemdTimerWithoutActivateRunsNothing(t *testing.T) {
	pool, g := newPool(t), newGuest()
	changed, err := run(t, pool, g, "systemd-timer",
		table("name", text("x"), "command", text("/bin/true"), "on_calendar", text("daily")))
	if err != nil || !changed || len(g.commands) != 0 {
		t.Errorf("changed %v, commands %q, error %v", changed, g.commands, err)
	}
}

func TestSystemdTimerRefusesWhatWouldBeMoreThanAValue(t *testing.T) {
	pool := newPool(t)
	for field, value := range map[string]string{
		"name": "../evil", "command": "/bin/true\nExecStartPost=/bin/evil", "on_calendar": "daily\n[Service]", "user": "a b",
	} {
		fields := map[string]string{"name": "x", "command": "/bin/true", "on_calendar": "daily"}
		fields[field] = value
		params := &pb.LuaTable{}
		for k, v := range fields {
			params.Fields = append(params.Fields, &pb.LuaField{Key: []byte(k), Value: text(v)})
		}
		g := newGuest()
		_, err := run(t, pool, g, "systemd-timer", &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: params}})
		if err.GetKind() != "params" || !strings.Contains(err.GetMessage(), field) || g.writes != 0 {
			t.Errorf("%s = %q gives %v", field, value, err)
		}
	}
}
