package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// manager is what a service manager hears.
type manager struct {
	path string
	said chan string
}

// newManager listens as systemd does, on a socket in the file system or an abstract one.
func newManager(t *testing.T, abstract bool) *manager {
	dir, err := os.MkdirTemp("", "qn-")
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: filepath.Join(dir, "n"), said: make(chan string, 1000)}
	if abstract {
		m.path = "@" + m.path
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				m.said <- strings.TrimSuffix(line, "\n")
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done; os.RemoveAll(dir) })
	return m
}

// hear waits for a line that begins so.
func (m *manager) hear(t *testing.T, want string) {
	t.Helper()
	for limit := time.After(20 * time.Second); ; {
		select {
		case line := <-m.said:
			if strings.HasPrefix(line, want) {
				return
			}
		case <-limit:
			t.Fatalf("the service manager never heard %q", want)
		}
	}
}

func (m *manager) env() []string { return []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=400000"} }

// The whole life of a service as its manager hears it.
func TestServiceManagerHears(t *testing.T) {
	m := newManager(t, true)
	a := agenttest.Start(t, agenttest.Options{Env: m.env()})
	m.hear(t, "READY=1")
	c := a.Client(t, client.Options{})
	m.hear(t, "STATUS=serving unix:"+a.Socket+" (a host)")
	c.Close()
	m.hear(t, "STATUS=serving unix:"+a.Socket+" (no host)")
	for range 3 {
		m.hear(t, "WATCHDOG=1")
	}
	syscall.Kill(a.PID(), syscall.SIGHUP)
	m.hear(t, "RELOADING=1")
	m.hear(t, "MONOTONIC_USEC=")
	m.hear(t, "READY=1")
	if took := a.Stop(); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	m.hear(t, "STOPPING=1")
}

// Where no port is there the agent is ready all the same, and says what it waits for: a boot must not hang on it.
func TestReadyWithoutAPort(t *testing.T) {
	binary, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	m := newManager(t, false)
	state := t.TempDir()
	cmd := exec.Command(binary, "--config", "/nonexistent", "--device", "/nonexistent/port", "--state", state)
	cmd.Env = append(os.Environ(), m.env()...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err, log.String())
		}
	}()
	m.hear(t, "READY=1")
	m.hear(t, "STATUS=waiting: no channel")
	m.hear(t, "WATCHDOG=1")
}

func tool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	binary, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, args...).CombinedOutput()
	return string(out), err
}

// status asks as the command does, through its own socket.
func status(t *testing.T, control string) *pb.GetStatusResponse {
	t.Helper()
	s, err := askStatus(t.Context(), flags{control: control})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// short is a path for a socket.
func short(t *testing.T) string {
	dir, err := os.MkdirTemp("", "qc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// reloadable is an agent whose configuration can be rewritten.
func reloadable(t *testing.T, text string) (a *agenttest.Agent, control string, rewrite func(string)) {
	control = short(t)
	file := filepath.Join(t.TempDir(), "own.yaml")
	rewrite = func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(text)
	a = agenttest.Start(t, agenttest.Options{Args: []string{"--config", file, "--control", control, "--log-level="}})
	return a, control, rewrite
}

func TestStatusCommand(t *testing.T) {
	a, control, _ := reloadable(t, "telemetry_interval: 3600\n")
	c := a.Client(t, client.Options{})
	if _, err := client.Call[*pb.PongResponse](ctxFor(t, 20*time.Second), c, &pb.PingRequest{Sequence: 2}); err != nil {
		t.Fatal(err)
	}
	// A ping is answered before the recovery is done, and this after it.
	if _, err := client.Call[*pb.FileStatResponse](ctxFor(t, 20*time.Second), c, &pb.FileStatRequest{Path: "/"}); err != nil {
		t.Fatal(err)
	}
	out, err := tool(t, "status", "--control", control)
	for _, want := range []string{"serving", "unix:" + a.Socket + ": a host, 1 so far", "journal", "ready", "sandbox", "spelt telemetry_interval_secs", fmt.Sprint(a.PID())} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%q is missing, %v:\n%s", want, err, out)
		}
	}
	out, _ = tool(t, "status", "--json", "--control", control)
	var s struct {
		State string
		Ports []struct{ Sessions []any }
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.State != "AGENT_STATE_SERVING" || len(s.Ports) != 1 || len(s.Ports[0].Sessions) != 1 {
		t.Error(err, out)
	}
	if info, err := os.Stat(control); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("the socket is", info.Mode(), err)
	}
	a.Stop()
	if out, err := tool(t, "status", "--control", control); err == nil || !strings.Contains(out, "no agent answers") {
		t.Error(out, err)
	}
}

// What can change at run time does, what cannot is named, and a faulty file changes nothing.
func TestReload(t *testing.T) {
	a, control, rewrite := reloadable(t, "telemetry_interval_secs: 3600\nlog_level: error\n")
	c := a.Client(t, client.Options{})
	script := func(text string) *pb.RunScriptResponse {
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if reply := script("return 1"); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(reply)
	}
	if strings.Contains(a.Log(), "serving") {
		t.Error("log_level: error lets info through")
	}
	rewrite("telemetry_interval_secs: 1\nlog_level: debug\nframing: qtx1\nscript:\n  max_calls: 3\n  cpu_limit_seconds: 7\n")
	if out, err := tool(t, "reload", "--control", control); err != nil || !strings.Contains(out, "waits for a restart: framing") {
		t.Error(out, err)
	}
	if reply := script("for i = 1, 10 do host.info() end"); reply.Error.GetKind() != "calls" {
		t.Error(reply)
	}
	a.AwaitLog(t, `"level":"debug"`, 1)
	if s := status(t, control); s.Config.Generation != 2 || fmt.Sprint(s.Config.NeedsRestart) != "[framing]" || s.Config.Error != "" {
		t.Error(s.Config)
	}
	rewrite("log_level: error\nnonsense: 1\n")
	if out, err := tool(t, "reload", "--control", control); err == nil || !strings.Contains(out, "line 2: nonsense: unknown key") {
		t.Error(out, err)
	}
	if reply := script("for i = 1, 10 do host.info() end"); reply.Error.GetKind() != "calls" {
		t.Error("a faulty file changed something:", reply)
	}
	s := status(t, control)
	if s.State != pb.AgentState_AGENT_STATE_SERVING || !strings.Contains(s.Config.Error, "nonsense") || len(s.Errors) == 0 ||
		!strings.Contains(s.Errors[len(s.Errors)-1].Message, "what was in force stays") {
		t.Error(s)
	}
	if s.Config.Absent {
		t.Error("the file is there")
	}
	if err := os.Remove(s.Config.Path); err != nil {
		t.Fatal(err)
	}
	if out, err := tool(t, "reload", "--control", control); err != nil {
		t.Error(out, err)
	}
	if s := status(t, control); !s.Config.Absent || s.Config.Error != "" {
		t.Error(s.Config)
	}
}

// An agent that refuses says so in its status, and that a restart ends it once the file is sound.
func TestReloadWhileRefusing(t *testing.T) {
	_, control, rewrite := reloadable(t, "nonsense: 1\n")
	if s := status(t, control); s.State != pb.AgentState_AGENT_STATE_REFUSING || !strings.Contains(s.Reason, "line 1: nonsense") {
		t.Error(s)
	}
	rewrite("log_level: info\n")
	if out, err := tool(t, "reload", "--control", control); err != nil || !strings.Contains(out, "waits for a restart: everything") {
		t.Error(out, err)
	}
	if s := status(t, control); s.State != pb.AgentState_AGENT_STATE_REFUSING {
		t.Error(s)
	}
}

// A field of the configuration that changes is noticed: nothing is ignored at a reload.
func TestReloadKnowsEverySetting(t *testing.T) {
	list := settings(func(string) func(config.Config) { return nil })
	var check func(path string, v reflect.Value, conf *config.Config)
	check = func(path string, v reflect.Value, conf *config.Config) {
		for i := range v.NumField() {
			field, name := v.Field(i), path+v.Type().Field(i).Name
			if field.Kind() == reflect.Struct {
				check(name+".", field, conf)
				continue
			}
			before := *conf
			old := reflect.ValueOf(field.Interface())
			switch field.Kind() {
			case reflect.Bool:
				field.SetBool(!field.Bool())
			case reflect.String:
				field.SetString(field.String() + "x")
			case reflect.Int, reflect.Int64:
				field.SetInt(field.Int() + 1)
			case reflect.Uint32:
				field.SetUint(field.Uint() + 1)
			case reflect.Slice:
				field.Set(reflect.MakeSlice(field.Type(), field.Len()+1, field.Len()+1))
			default:
				t.Errorf("%s: this test cannot change a %s", name, field.Kind())
				continue
			}
			noticed := false
			for _, s := range list {
				noticed = noticed || !same(s.of(before), s.of(*conf))
			}
			if !noticed {
				t.Errorf("a reload does not notice a change of %s", name)
			}
			field.Set(old)
		}
	}
	conf := config.Default()
	check("", reflect.ValueOf(&conf).Elem(), &conf)
}

// A log file is rotated by size, and no more old ones are kept than the configuration says.
func TestLogIsRotated(t *testing.T) {
	dir := t.TempDir()
	conf := config.Default()
	conf.LogFile, conf.LogMaxSize, conf.LogMaxFiles = filepath.Join(dir, "agent.log"), 1<<20, 2
	log, err := newLog(conf, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 1000)
	for range 10_000 {
		log.Info(text)
	}
	log.out.close()
	used := func() (total int64, files int) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if info, err := entry.Info(); err == nil { // one that is removed meanwhile is none
				total, files = total+info.Size(), files+1
			}
		}
		return total, files
	}
	deadline := time.Now().Add(20 * time.Second) // old files are removed in the background
	for total, files := used(); total > 3<<20 || files > 3; total, files = used() {
		if time.Now().After(deadline) {
			t.Fatalf("%d files of %d bytes", files, total)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// What goes to the journal begins with its priority, so that journalctl -p finds it.
func TestJournalLinesHavePriorities(t *testing.T) {
	for _, c := range []struct{ console, journal bool }{{false, true}, {true, true}, {false, false}} {
		e := newEncoder(c.console, c.journal)
		line, err := e.Clone().EncodeEntry(zapcore.Entry{Level: zapcore.WarnLevel, Message: "be careful", Time: time.Now()}, []zap.Field{zap.String("port", "p")})
		if err != nil {
			t.Fatal(err)
		}
		text := line.String()
		if strings.HasPrefix(text, "<4>") != c.journal || !strings.Contains(text, "be careful") || !strings.HasSuffix(text, "\n") ||
			!c.console && !json.Valid([]byte(strings.TrimPrefix(text, "<4>"))) || c.console && strings.Contains(text, "warn") {
			t.Errorf("%+v: %q", c, text)
		}
	}
}

// The watchdog is not fed for another process than the one it is meant for.
func TestNotifierReadsItsEnvironment(t *testing.T) {
	env := func(list ...string) func(string) string {
		return func(name string) string {
			for _, entry := range list {
				if value, ok := strings.CutPrefix(entry, name+"="); ok {
					return value
				}
			}
			return ""
		}
	}
	for _, c := range []struct {
		env      []string
		watchdog time.Duration
	}{
		{nil, 0},
		{[]string{"WATCHDOG_USEC=1000000"}, 0},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000"}, time.Second},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000", "WATCHDOG_PID=1"}, 0},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000", fmt.Sprint("WATCHDOG_PID=", os.Getpid())}, time.Second},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=soon"}, 0},
	} {
		if n := newNotifier(env(c.env...)); n.watchdog != c.watchdog {
			t.Errorf("%q: %v", c.env, n.watchdog)
		}
	}
}

// At early boot the files of an interrupted script are as they were, before any agent runs.
func TestEarlyRecovery(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	before := picture(t, root)
	func() {
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{Framing: wire.Plain})
		changed := make(chan bool, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(changes + "\nwhile true do end")})
			changed <- true
		}()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(root, "etc/hosts.moved")); err == nil {
				break
			}
		}
		if out, err := tool(t, "recover", "--early", "--root", root, "--state", state); err == nil || !strings.Contains(out, "another agent uses it") {
			t.Error("recovery beside a running agent:", out, err)
		}
		a.Kill()
		cancel()
		<-changed
	}()
	if picture(t, root) == before {
		t.Fatal("the script had done nothing")
	}
	out, err := tool(t, "recover", "--early", "--root", root, "--state", state)
	if err != nil || !strings.Contains(out, "rolled_back") {
		t.Error(out, err)
	}
	if after := picture(t, root); after != before {
		t.Errorf("not as it was:\n%s\nbut\n%s", before, after)
	}
	if out, err := tool(t, "recover", "--early", "--root", root, "--state", state); err != nil || out != "" {
		t.Error("a second time:", out, err)
	}
}
