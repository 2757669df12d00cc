package scripts_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/host"
	"github.com/quantix-kvm/guest-agent/builtins/tx"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// machine is a scratch tree with the real files room, journal and runner. Commands are noted and not run.
type machine struct {
	t        *testing.T
	dir      string
	table    *builtins.Table
	commands []string
	fails    string                  // the command that exits with 1
	does     map[string]func() error // what a command does to the tree
	serial   int
}

func newMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), does: map[string]func() error{}}
	for name, content := range files {
		path := filepath.Join(m.dir, name)
		must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)))
	}
	root, err := fsys.Open(m.dir)
	must(t, err)
	state := t.TempDir()
	undo, err := journal.Open(journal.Config{
		Dir: filepath.Join(state, "tx"), Root: root, Version: "test",
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) error {
			_, err := m.table.Invoke(ctx, &builtins.Call{}, m.table.Script(op), args)
			return err
		},
	})
	must(t, err)
	pool := sandbox.New(sandbox.Config{})
	manager := script.New(script.Config{
		Pool: pool, Journal: undo, Files: root, Secret: make([]byte, 32),
		Library: script.NewLibrary(256<<10, script.Place{Name: "bundled:", FS: scripts.Bundled()}),
		Pretend: func() (*fsys.Root, error) { return root.Pretend(filepath.Join(state, "plan")) },
	})
	files0 := file.New(root, file.Config{})
	m.table = builtins.NewTable(files0.Ops(), host.New(host.Config{Root: m.dir}).Ops(), m.exec(), tx.Ops(), manager.Ops())
	manager.Table = m.table
	t.Cleanup(func() {
		pool.Close()
		must(t, errors.Join(undo.Close(), files0.Close(), root.Close()))
	})
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exec stands for the room that runs commands: a test must not change the machine that it runs on.
func (m *machine) exec() []builtins.Op {
	run := func(ctx context.Context, call *builtins.Call, in *pb.RunArgs) (*pb.RunResult, error) {
		line := strings.Join(in.Argv, " ")
		change := &pb.Change{Op: "exec.run", Target: line, Action: "ran", Reversible: true, State: pb.ChangeState_CHANGE_STATE_APPLIED}
		switch {
		case in.Readonly:
		case call.Plan != nil && in.Plan == "":
			return nil, call.Plan.End(call, change)
		case call.Plan != nil:
			change.State = pb.ChangeState_CHANGE_STATE_WOULD
			call.Report(change)
			return &pb.RunResult{}, nil
		case len(in.Undo) > 0:
			if err := call.Tx.Undo(ctx, "exec.undo", &pb.RunArgs{Argv: in.Undo}); err != nil {
				return nil, err
			}
		case len(in.Touches) > 0:
			if err := call.Tx.BeforeTree(ctx, in.Touches...); err != nil {
				return nil, err
			}
		default:
			return nil, errors.New(line + " does not say what it does")
		}
		if !in.Readonly {
			m.commands = append(m.commands, line)
			call.Report(change)
		}
		if does := m.does[in.Argv[0]]; does != nil {
			if err := does(); err != nil {
				return nil, err
			}
		}
		if m.fails != "" && strings.HasPrefix(line, m.fails) {
			if in.Check == nil || *in.Check {
				return nil, errors.New(line + ": exit status 1")
			}
			return &pb.RunResult{Code: 1}, nil
		}
		return &pb.RunResult{}, nil
	}
	undo := func(_ context.Context, _ *builtins.Call, in *pb.RunArgs) (*pb.RunResult, error) {
		m.commands = append(m.commands, "undo: "+strings.Join(in.Argv, " "))
		return &pb.RunResult{}, nil
	}
	return []builtins.Op{
		builtins.Script("exec.run", "argv", "", "note a command", run).Writes("touches").Mutating().Plans().
			Runs(func(in proto.Message) []builtins.Command {
				args := in.(*pb.RunArgs)
				return []builtins.Command{{Argv: args.Argv}, {Argv: args.Undo}}
			}, "argv", "undo").
			Unless(func(in proto.Message) bool { return in.(*pb.RunArgs).Readonly }),
		builtins.Script("exec.undo", "argv", "", "note a command", undo).Mutating().Hidden(),
	}
}

func (m *machine) run(name string, dry bool, params map[string]any) *pb.RunScriptResponse {
	m.t.Helper()
	values, err := structpb.NewStruct(params)
	must(m.t, err)
	request := &pb.RunScriptRequest{Name: name, Params: values, DryRun: dry}
	m.serial++
	reply, err := m.table.Invoke(m.t.Context(), &builtins.Call{ID: name + string(rune('a'+m.serial))}, m.table.Native(request), request)
	must(m.t, err)
	return reply.(*pb.RunScriptResponse)
}

// twice runs a script as a dry run, for good, and once more, which must change nothing.
func (m *machine) twice(name string, params map[string]any) {
	m.t.Helper()
	foretold := m.run(name, true, params)
	first := m.run(name, false, params)
	if first.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(first.Changes) == 0 {
		m.t.Fatalf("%s: %v", name, first)
	}
	if foretold.Status != pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN || !slices.Equal(targets(foretold), targets(first)) {
		m.t.Errorf("%s: foretold %v, did %v (%v)", name, targets(foretold), targets(first), foretold.Error)
	}
	commands := len(m.commands)
	second := m.run(name, false, params)
	if second.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(second.Changes) != 0 || len(m.commands) != commands ||
		second.Result.GetStructValue().GetFields()["changed"].GetBoolValue() {
		m.t.Errorf("%s, again: %v", name, second)
	}
}

// targets is what was changed, but for commands that only looked.
func targets(reply *pb.RunScriptResponse) (list []string) {
	for _, c := range reply.Changes {
		if c.State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
			list = append(list, c.Action+" "+c.Target)
		}
	}
	return list
}

func (m *machine) has(path, want string) {
	m.t.Helper()
	got, err := os.ReadFile(filepath.Join(m.dir, path))
	if err != nil || string(got) != want {
		m.t.Errorf("%s is %q, %v; want %q", path, got, err, want)
	}
}

func TestHostsEntry(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/hosts": "127.0.0.1 localhost\n10.0.0.5 old\n"})
	m.twice("hosts-entry", map[string]any{"address": "10.0.0.5", "names": []any{"db.example.org", "db"}})
	m.has("etc/hosts", "127.0.0.1 localhost\n10.0.0.5\tdb.example.org db\n")
	m.twice("hosts-entry", map[string]any{"address": "10.0.0.5", "state": "absent"})
	m.has("etc/hosts", "127.0.0.1 localhost\n")
	for _, params := range []map[string]any{{"address": "127.0.0.1", "names": []any{"db"}}, {"address": "::1", "state": "absent"}} {
		if reply := m.run("hosts-entry", false, params); reply.GetError().GetKind() != "runtime" {
			t.Error("the loopback lost its name:", reply)
		}
	}
	reply := m.run("hosts-entry", false, map[string]any{"address": "10.0.0.6", "names": []any{"a b"}})
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(reply.Error.Message, "no host name") {
		t.Error(reply)
	}
}

func TestSysctlProfile(t *testing.T) {
	m := newMachine(t, map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n", "proc/sys/net/ipv4/tcp_rmem": "1\t2\t3\n"})
	m.twice("sysctl-profile", map[string]any{"name": "router", "settings": map[string]any{"net.ipv4.ip_forward": 1, "net.ipv4.tcp_rmem": "1 2 3"}})
	m.has("etc/sysctl.d/router.conf", "net.ipv4.ip_forward = 1\nnet.ipv4.tcp_rmem = 1 2 3\n")
	m.has("proc/sys/net/ipv4/ip_forward", "1\n")
	m.has("proc/sys/net/ipv4/tcp_rmem", "1\t2\t3\n")
	reply := m.run("sysctl-profile", false, map[string]any{"name": "bad", "settings": map[string]any{"no.such": 1}})
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.Error.Code != "not_found" {
		t.Error(reply)
	}
}

func TestSSHDHardening(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\n"})
	m.twice("sshd-hardening", map[string]any{"allow_groups": []any{"admins"}})
	want := []string{"systemctl try-reload-or-restart ssh.service"}
	if !slices.Equal(m.commands, want) {
		t.Errorf("commands %q", m.commands)
	}
	m.commands, m.fails = nil, "sshd -t"
	reply := m.run("sshd-hardening", false, map[string]any{"max_auth_tries": 9})
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !slices.Equal(m.commands, []string{"undo: systemctl try-reload-or-restart ssh.service"}) {
		t.Errorf("%v, commands %q", reply, m.commands)
	}
	if got, _ := os.ReadFile(filepath.Join(m.dir, "etc/ssh/sshd_config.d/00-hardening.conf")); !strings.Contains(string(got), "MaxAuthTries 3\n") {
		t.Errorf("a configuration that sshd refuses stays: %s", got)
	}
	bare := newMachine(t, map[string]string{"etc/ssh/sshd_config": "Port 22\n"})
	if reply := bare.run("sshd-hardening", false, nil); reply.Error == nil {
		t.Error("a file that nobody reads was written")
	}
}

func TestCACertificate(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/ssl/certs/one.pem": "one"})
	pem := "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	m.does["update-ca-certificates"] = func() error { return os.WriteFile(m.dir+"/etc/ssl/certs/two.pem", nil, 0o644) }
	m.twice("ca-certificate", map[string]any{"name": "corp", "pem": pem})
	m.has("usr/local/share/ca-certificates/corp.crt", pem)
	m.twice("ca-certificate", map[string]any{"name": "corp", "state": "absent"})
	if _, err := os.Stat(m.dir + "/usr/local/share/ca-certificates/corp.crt"); err == nil {
		t.Error("it is still there")
	}
	if reply := m.run("ca-certificate", false, map[string]any{"name": "corp", "pem": "no"}); reply.Error == nil {
		t.Error("nonsense is a certificate")
	}
	// What the command did is taken back with the rest.
	must(t, os.Remove(m.dir+"/etc/ssl/certs/two.pem"))
	m.fails = "update-ca-certificates"
	if reply := m.run("ca-certificate", false, map[string]any{"name": "corp", "pem": pem}); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(reply)
	}
	if entries, _ := os.ReadDir(m.dir + "/etc/ssl/certs"); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

func TestAptSource(t *testing.T) {
	m := newMachine(t, nil)
	key := "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----\n"
	params := map[string]any{"name": "tools", "uri": "https://deb.example.org/debian", "suites": []any{"bookworm"}, "key": key, "update": true}
	m.twice("apt-source", params)
	m.has("etc/apt/sources.list.d/tools.sources", "Types: deb\nURIs: https://deb.example.org/debian\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/tools.asc\n")
	m.has("etc/apt/keyrings/tools.asc", key)
	params["suites"] = []any{"bookworm\nTrusted: yes"}
	if reply := m.run("apt-source", false, params); reply.Error == nil {
		t.Error("a suite became a line")
	}
}

func TestSwapFile(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n", "proc/swaps": "Filename Type Size Used Priority\n"})
	m.does["sh"] = func() error { return os.WriteFile(m.dir+"/swapfile", make([]byte, 4096), 0o600) }
	m.does["swapon"] = func() error {
		return os.WriteFile(m.dir+"/proc/swaps", []byte("Filename Type Size Used Priority\n/swapfile file 4096 0 -2\n"), 0o644)
	}
	if foretold := m.run("swap-file", true, map[string]any{"size_mib": 4}); foretold.Error != nil || len(foretold.Changes) != 3 {
		t.Error("the dry run:", foretold)
	}
	first := m.run("swap-file", false, map[string]any{"size_mib": 4})
	if first.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(m.commands) != 2 {
		t.Fatalf("%v, commands %q", first, m.commands)
	}
	m.has("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n")
	if second := m.run("swap-file", false, map[string]any{"size_mib": 4}); len(second.Changes) > 0 || len(m.commands) != 2 {
		t.Error(second, m.commands)
	}
	other := newMachine(t, map[string]string{"etc/fstab": "", "proc/swaps": ""})
	other.does["sh"], other.fails = func() error { return os.WriteFile(other.dir+"/swapfile", nil, 0o644) }, "swapon"
	reply := other.run("swap-file", false, nil)
	if _, err := os.Stat(other.dir + "/swapfile"); err == nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%v: the file is still there", reply)
	}
}

func TestJournaldLimits(t *testing.T) {
	m := newMachine(t, nil)
	m.twice("journald-limits", map[string]any{"max_use": "200M"})
	const limits = "[Journal]\nSystemMaxUse=200M\nSystemKeepFree=1G\nMaxRetentionSec=1month\n"
	m.has("etc/systemd/journald.conf.d/50-limits.conf", limits)
	// In an image systemctl does nothing, and finds nothing that runs.
	image := newMachine(t, nil)
	image.fails = "systemctl"
	if reply := image.run("journald-limits", false, map[string]any{"max_use": "200M"}); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(image.commands) > 0 {
		t.Error(reply, image.commands)
	}
	image.has("etc/systemd/journald.conf.d/50-limits.conf", limits)
}

func TestImageCleanup(t *testing.T) {
	m := newMachine(t, map[string]string{
		"etc/machine-id": "0123\n", "etc/ssh/ssh_host_rsa_key": "k", "etc/ssh/ssh_host_rsa_key.pub": "k", "etc/ssh/sshd_config": "Port 22\n",
		"var/log/syslog": "a line\n", "var/log/syslog.1": "old", "var/log/dpkg.log": "x", "var/log/journal/0123/system.journal": "x",
		"var/lib/apt/lists/deb": "x", "root/.bash_history": "passwd", "home/me/.bash_history": "x", "home/me/work": "mine",
	})
	m.twice("image-cleanup", nil)
	m.has("etc/machine-id", "")
	m.has("etc/ssh/sshd_config", "Port 22\n")
	m.has("home/me/work", "mine")
	for _, gone := range []string{"etc/ssh/ssh_host_rsa_key", "var/log/syslog.1", "var/log/journal/0123", "root/.bash_history"} {
		if _, err := os.Stat(filepath.Join(m.dir, gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

func TestMotdOfSeveralLines(t *testing.T) {
	m := newMachine(t, map[string]string{"etc/hostname": "guest7\n"})
	m.twice("motd", map[string]any{"title": "Welcome", "lines": []any{"one", "two"}})
	m.has("etc/motd", "Welcome\n\none\ntwo\n\nContact: the owner of this machine\n")
	m.twice("motd", map[string]any{"title": "Welcome", "text": "{{title}} to {{ hostname }}\n"})
	m.has("etc/motd", "Welcome to guest7\n")
}
