package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A policy that denies everything refuses every request in its own reply type, and none of it is announced; what tells of
// the agent itself is answered as ever, and cancel where it is only not listed.
func TestPolicyThatDeniesEverything(t *testing.T) {
	for _, security := range []string{"deny_operations: ['*']", "allow_operations: [host.uptime]"} {
		a := agenttest.Start(t, agenttest.Options{Config: "security:\n  " + security + "\n"})
		c := a.Client(t, client.Options{})
		for _, request := range requests() {
			reply, err := client.Call[proto.Message](ctxFor(t, 20*time.Second), c, request)
			if reply == nil || reply.ProtoReflect().Descriptor() != wire.ReplyType(request).Descriptor() {
				t.Errorf("%T: answered with %T (%v)", request, reply, err)
			}
			switch request.(type) {
			case *pb.PingRequest, *pb.GetCapabilitiesRequest, *pb.GetStatusRequest:
				if err != nil {
					t.Errorf("%T: %v", request, err)
				}
			case *pb.CancelRequest:
				told := reply.(*pb.CancelResponse).GetError().GetMessage()
				if denied := strings.HasPrefix(security, "deny"); strings.Contains(told, "deny_operations") != denied {
					t.Errorf("%T: %v", request, reply)
				}
			default:
				if !errors.Is(err, errors.ErrUnsupported) && (!errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "operations (agent.yaml line 2)")) {
					t.Errorf("%T was not refused: %v", request, err)
				}
			}
		}
		can, err := client.Call[*pb.GetCapabilitiesResponse](ctxFor(t, 20*time.Second), c, &pb.GetCapabilitiesRequest{})
		if err != nil || strings.Join(can.Capabilities, " ") != "status telemetry" || can.Features["policy"] != "yes, of agent.yaml" {
			t.Error(can, err)
		}
	}
}

// A reload puts another policy into force; a file with faults, also one that only the operations tell, leaves it as it was.
func TestReloadExchangesThePolicy(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "secret"), []byte("s"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, Config: "security:\n  deny_file_read_paths: [/secret]\n"})
	c := a.Client(t, client.Options{})
	read := func() error {
		_, err := client.Call[*pb.FileReadResponse](ctxFor(t, 20*time.Second), c, &pb.FileReadRequest{Path: "/secret"})
		return err
	}
	file := filepath.Join(filepath.Dir(a.State), "agent.yaml")
	reload := func(text string) string {
		t.Helper()
		before := agentStatus(t, c).Config.Generation
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(a.PID(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if s := agentStatus(t, c).Config; s.Generation > before {
				return s.Error
			}
			if time.Now().After(deadline) {
				t.Fatal("not read again")
			}
		}
	}
	refused := func(when string) {
		t.Helper()
		if err := read(); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "refused by security.deny_file_read_paths (agent.yaml line 2): /secret") {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("at first")
	if e := reload("security:\n  deny_file_read_path: [/secret]\n"); !strings.Contains(e, "unknown key") {
		t.Error(e)
	}
	refused("after a misspelt key")
	if e := reload("security:\n  deny_operations: [file_raed]\n"); !strings.Contains(e, `line 2: security.deny_operations: "file_raed" names no operation`) {
		t.Error(e)
	}
	refused("after a name that is none")
	if e := reload("log_level: debug\n"); e != "" {
		t.Error(e)
	}
	if err := read(); err != nil {
		t.Error(err)
	}
	if e := reload("security:\n  deny_file_read_paths: [/secret]\n"); e != "" {
		t.Error(e)
	}
	refused("at last")
}

func agentStatus(t *testing.T, c *client.Client) *pb.GetStatusResponse {
	t.Helper()
	s, err := client.Call[*pb.GetStatusResponse](ctxFor(t, 20*time.Second), c, &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a channel's own section forbids is refused and not announced there; that of another channel binds nobody here.
func TestPolicyOfAChannel(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Root: t.TempDir(), Config: `security:
  ports:
    org.quantix.agent.0: {deny_operations: ["*"]}
    "unix:*":
      deny_operations: [file_delete, run_script]
`})
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 60*time.Second)
	if _, err := client.Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{Path: "/x", Eof: true}); err != nil {
		t.Error(err)
	}
	_, err := client.Call[*pb.FileDeleteResponse](ctx, c, &pb.FileDeleteRequest{Path: "/x"})
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "security.ports.unix:*.deny_operations (agent.yaml line 5)") {
		t.Error(err)
	}
	if reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte("return 1")}); reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_REFUSED {
		t.Error(reply, err)
	}
	about, err := client.Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
	if err != nil || slices.Contains(about.Capabilities, "file_delete") || !slices.Contains(about.Capabilities, "file_stat") {
		t.Error(about, err)
	}
}

// A name that is no operation's is found at the start, and everything is refused then.
func TestPolicyWithAnUnknownOperationRefusesAll(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Config: "security:\n  allow_operations: [file_raed]\n"})
	c := a.Client(t, client.Options{})
	_, err := client.Call[*pb.FileStatResponse](ctxFor(t, 20*time.Second), c, &pb.FileStatRequest{Path: "/"})
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "names no operation") {
		t.Error(err)
	}
}

// The audit log has an entry of each operation whatever the level of the log is, and nothing of what it carries.
func TestAudit(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Root: t.TempDir(), Args: []string{"--log-level", "error"},
		Config: "security:\n  audit_logging: true\n  command_blocklist: [rm]\n"})
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 60*time.Second)
	_, _ = client.Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{Path: "/x", Data: []byte("topsecret"), Eof: true})
	_, _ = client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "rm", Args: []string{"topsecret"}, WaitForExit: true})
	_, _ = client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(`file.read("/x")`)})
	_, _ = client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{
		Secrets: map[string]string{"pw": "topsecret"}, // a large file's attributes are an operation of their own to take back
		Source:  []byte(`local p = "/of-" .. secrets.pw file.write(p, string.rep("x", 2000000)) file.chmod(p, "600") error("no")`),
	})
	a.AwaitLog(t, `"op":"run_script"`, 2)
	found := map[string]string{}
	for line := range strings.Lines(a.Log()) {
		var entry struct {
			Msg, Op, Outcome, Port string
			Paths, Programs        []string
			Seconds                *float64
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg != "audit" {
			continue
		}
		if entry.Port == "" && entry.Op != "file.attributes" || entry.Seconds == nil {
			t.Error(line)
		}
		found[entry.Op] = strings.Join(append(append(entry.Paths, entry.Programs...), entry.Outcome), " ")
	}
	for op, want := range map[string]string{"file_write": "/x ok", "execute": "rm refused", "file.read": "/x ok", "file.write": "/of-[secret] ok", "run_script": "runtime"} {
		if found[op] != want {
			t.Errorf("%s: %q, want %q", op, found[op], want)
		}
	}
	if strings.Contains(a.Log(), "topsecret") {
		t.Error("the log tells a secret")
	}
}

// Of a streamed command the audit log has the start and what ends it, and not each piece of input and each acknowledgement.
func TestAuditOfAStream(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Args: []string{"--log-level", "error"}, Config: "security:\n  audit_logging: true\n"})
	c := a.Client(t, client.Options{})
	s := streamOf(t, c, client.StreamOptions{Stdin: true}, "cat")
	var text string
	for range 3 {
		if _, err := s.Write(ctxFor(t, time.Minute), []byte("more\n")); err != nil {
			t.Fatal(err)
		}
		heard(t, s, &text, "more\n")
		text = ""
	}
	if err := s.Signal(ctxFor(t, time.Minute), "TERM"); err != nil {
		t.Fatal(err)
	}
	heard(t, s, &text, "")
	if _, err := c.Stat(ctxFor(t, time.Minute), "/"); err != nil {
		t.Fatal(err)
	}
	a.AwaitLog(t, `"op":"file_stat"`, 1)
	for op, want := range map[string]int{"exec_start": 1, "exec_input": 1} {
		if n := strings.Count(a.Log(), `"op":"`+op+`"`); n != want {
			t.Errorf("%d lines of %s, want %d", n, op, want)
		}
	}
}

// The examples in the configuration of the package are understood.
func TestShippedPolicy(t *testing.T) {
	text := "security:\n"
	for line := range strings.Lines(read(t, "package/agent.yaml")) {
		if example, ok := strings.CutPrefix(line, "# e.g. "); ok {
			text += "  " + example
		}
	}
	c, _, err := config.Parse([]byte(text))
	s := c.Security
	if err != nil || len(s.AllowedCommands) != 3 || len(s.AllowedVariables) != 1 || len(s.DeniedCommands) != 2 || len(s.AllowedWritePaths) != 2 || len(s.DeniedReadPaths) != 2 || len(s.DeniedOperations) != 2 {
		t.Fatalf("%v\n%+v", err, s)
	}
	root, err := fsys.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := policy.New(s, &policy.Guest{Files: root}, builtins.NewTable(all.New(all.Config{}).List()...).Ops()); err != nil {
		t.Error(err)
	}
}

// A script calls what it declares, what its request allows, and what the policy does not refuse: the error is of kind
// policy and names the call and what is missing, and the run is taken back.
func TestRightsOfScripts(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/app"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, Config: "security:\n  deny_file_read_paths: [/etc/app/secret]\n"})
	c := a.Client(t, client.Options{})
	script := func(needs, body string) string {
		return `return script {name = "x", needs = ` + needs + `, run = function() file.write("/etc/app/a", "a") ` + body + ` end}`
	}
	for _, s := range []struct {
		source, allow, kind, message string
	}{
		{script(`{"file:/etc/app/"}`, ""), "", "", ""},
		{script(`{"file:/etc/app/"}`, `file.write("/etc/b", "b")`), "", "policy", `file.write: refused: it needs "file:/etc/b", which the script does not declare`},
		{script(`{"file"}`, `file.write("/etc/b", "b")`), "file:/etc/app/", "policy", `file.write: refused: it needs "file:/etc/b", which the request does not allow`},
		{script(`{"file:/etc/app/"}`, `file.write("/etc/b", "b")`), "file", "policy", "which the script does not declare"},
		{script(`{"file:/etc/app/"}`, `host.info()`), "", "policy", `host.info: refused: it needs "host"`},
		{script(`{"file:/etc/app/"}`, `log.info(json.encode({})) progress(0.5)`), "", "", ""},
		{script(`{"file"}`, `file.read("/etc/app/secret")`), "", "policy", "file.read: refused by security.deny_file_read_paths (agent.yaml line 2): /etc/app/secret"},
		{script(`{"file"}`, `pcall(file.read, "/etc/app/secret") error("other")`), "", "runtime", "other"},
		{script(`{"fil"}`, ""), "", "source", `need "fil": there is no room "fil"`},
		{script(`{"file"}`, ""), "everything", "params", `need "everything"`},
		{`file.write("/etc/c", "c")`, "", "", ""},
		{`file.write("/etc/d", "d")`, "file:/etc/app/", "policy", "which the request does not allow"},
	} {
		for _, dry := range []bool{true, false} {
			request := &pb.RunScriptRequest{Source: []byte(s.source), DryRun: dry}
			if s.allow != "" {
				request.Allow = []string{s.allow}
			}
			reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 60*time.Second), c, request)
			if err != nil {
				t.Fatal(err)
			}
			if e := reply.Error; e.GetKind() != s.kind || !strings.Contains(e.GetMessage(), s.message) {
				t.Errorf("%s (allowed %q, dry %v): %v", s.source, s.allow, dry, e)
			}
		}
	}
	for name, want := range map[string]bool{"etc/app/a": true, "etc/b": false, "etc/c": true, "etc/d": false} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A policy and the audit see which process was to get a signal, from a host and from a script.
func TestAuditOfSignals(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Args: []string{"--log-level", "error"}, Config: "security:\n  audit_logging: true\n  read_only: true\n"})
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, time.Minute)
	self := uint32(os.Getpid())
	if err := c.Kill(ctx, &pb.KillProcessRequest{Pid: self, Signal: 9}); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "security.read_only") {
		t.Error(err)
	}
	if list, err := c.Processes(ctx, &pb.ListProcessesRequest{Filter: "policy-test", MaxEntries: 1}); err != nil {
		t.Error(list, err)
	}
	source := "process.kill(params.pid, 'KILL')"
	params, err := structpb.NewStruct(map[string]any{"pid": float64(self)})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source), Params: params})
	if reply.GetError().GetKind() != "policy" {
		t.Error(reply, err)
	}
	a.AwaitLog(t, `"op":"run_script"`, 1)
	seen := map[string]string{}
	for line := range strings.Lines(a.Log()) {
		var entry struct {
			Msg, Op, Outcome string
			Objects          []string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "audit" {
			seen[entry.Op] = strings.Join(append(entry.Objects, entry.Outcome), " ")
		}
	}
	process := fmt.Sprint("process:", self)
	for op, want := range map[string]string{
		"kill_process": process + " refused", "process.kill": process + " refused", "list_processes": "process:policy-test ok",
	} {
		if seen[op] != want {
			t.Errorf("%s: %q, want %q", op, seen[op], want)
		}
	}
}
