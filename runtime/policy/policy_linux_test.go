package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kit is a policy over a tree of its own, or over this machine.
type kit struct {
	t     *testing.T
	guest *Guest
	table *builtins.Table
	now   Current
}

func newKit(t *testing.T, dir, security string) *kit {
	t.Helper()
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	k := &kit{t: t, guest: &Guest{Files: root}, table: builtins.NewTable(all.New(all.Config{}).List()...)}
	k.set(security)
	return k
}

func (k *kit) set(security string) {
	k.t.Helper()
	c, _, err := config.Parse([]byte("security:\n" + security))
	if err != nil {
		k.t.Fatal(err)
	}
	c.Security.File = "agent.yaml"
	p, err := New(c.Security, k.guest, k.table.Ops())
	if err != nil {
		k.t.Fatal(err)
	}
	k.now.Set(p)
}

// ask asks about a row of scripts by its name, or of the host by its request.
func (k *kit) ask(name string, in proto.Message) error {
	op := k.table.Script(name)
	if name == "" {
		op = k.table.Native(in)
	}
	return k.now.Check("", op, in, op.AccessOf(in))
}

func (k *kit) refused(what, name string, in proto.Message) {
	k.t.Helper()
	err := k.ask(name, in)
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), what) {
		k.t.Errorf("%s %v: %v; want a refusal with %q", name, in, err, what)
	}
}

func (k *kit) fine(name string, in proto.Message) {
	k.t.Helper()
	if err := k.ask(name, in); err != nil {
		k.t.Errorf("%s %v: %v", name, in, err)
	}
}

// tree is a directory with a secret, and with all ways around that a path knows.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range map[string]string{"etc/shadow": "s", "etc/hosts": "h", "etc/keys/deep/key": "k", "srv/open": "o", "tmpfoo/x": "x", "tmp/y": "y"} {
		full := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink("/etc/shadow", filepath.Join(dir, "srv/link")),
		os.Symlink("../etc", filepath.Join(dir, "srv/dir")),
		os.Symlink("link", filepath.Join(dir, "srv/chain")),
		os.Link(filepath.Join(dir, "etc/shadow"), filepath.Join(dir, "srv/hard")),
		os.Link(filepath.Join(dir, "etc/keys/deep/key"), filepath.Join(dir, "srv/hardkey")),
		os.Symlink("/tmpfoo", filepath.Join(dir, "tmp/out")),
		os.Symlink("/nowhere/at/all", filepath.Join(dir, "srv/dangling")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

const denied = "  deny_file_read_paths: [/etc/shadow, /etc/keys]\n"

// No spelling, link or second name leads to what must not be read, at any row that reads.
func TestNoWayAroundPathsThatMustNotBeRead(t *testing.T) {
	k := newKit(t, tree(t), denied)
	const why = "refused by security.deny_file_read_paths (agent.yaml line 2): "
	for _, path := range []string{
		"/etc/shadow", "//etc//shadow", "/etc/./shadow", "/etc/../etc/shadow", "/srv/../etc/shadow", "/etc/shadow/", "/../etc/shadow",
		"/srv/link", "/srv/dir/shadow", "/srv/chain", "/srv/hard", "/srv/dir/../etc/shadow",
		"/etc/keys", "/etc/keys/", "/etc/keys/deep/key", "/srv/dir/keys/deep", "/srv/hardkey", "/etc/keys/not/there",
	} {
		k.refused(why, "", &pb.FileReadRequest{Path: path})
		k.refused(why, "", &pb.ListDirectoryRequest{Path: path})
		k.refused(why, "", &pb.FileStatRequest{Path: path})
		for _, name := range []string{"file.read", "file.exists", "file.stat", "file.list", "file.sha256"} {
			k.refused(why, name, &pb.PathArgs{Path: path})
		}
		k.refused(why, "file.copy", &pb.FromToArgs{From: path, To: "/srv/copy"})
		k.refused(why, "file.move", &pb.FromToArgs{From: path, To: "/srv/moved"})
		k.refused(why, "file.line", &pb.LineArgs{Path: path, Line: "x"})
		k.refused(why, "file.write", &pb.WriteFileArgs{Path: path})
	}
	for _, path := range []string{"/etc", "/", "/srv/dir"} { // what is moved or removed whole takes the secret with it
		k.refused(why, "file.move", &pb.FromToArgs{From: path, To: "/moved"})
		k.refused(why, "file.remove", &pb.RemoveArgs{Path: path, Recursive: true})
		k.refused(why, "", &pb.FileDeleteRequest{Path: path, Recursive: true})
	}
	k.refused(why, "file.glob", &pb.GlobArgs{Pattern: "/etc/keys/*"})
	k.refused(why, "file.glob", &pb.GlobArgs{Pattern: "/s*/dir/keys/*"})
	for _, path := range []string{"/etc/hosts", "/etc", "/etc/shadow-", "/etc/keysx", "/srv/open", "/srv/dangling", "/none/x"} {
		k.fine("", &pb.FileReadRequest{Path: path})
		k.fine("file.stat", &pb.PathArgs{Path: path})
	}
	k.fine("file.glob", &pb.GlobArgs{Pattern: "/srv/*"})
	k.fine("", &pb.FileWriteRequest{Path: "/etc/shadow"}) // a host may set what it must not read
}

// The links of /proc that jump out of every rule are followed by nobody.
func TestJumpingLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := newKit(t, "/", "  deny_file_read_paths: ["+secret+"]\n")
	k.refused("deny_file_read_paths", "", &pb.FileReadRequest{Path: secret})
	file, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, path := range []string{"/proc/self/root" + secret, "/proc/1/root" + secret, "/proc/thread-self/root" + secret, "/proc/self/cwd/../../../../../../../../.." + secret} {
		if err := k.ask("", &pb.FileReadRequest{Path: path}); err == nil {
			t.Errorf("%s is not refused", path)
		}
	}
}

// Writes stay below what is listed: by elements, behind links, and not to a file that has other names.
func TestWritesStayWhereTheyMay(t *testing.T) {
	dir := tree(t)
	k := newKit(t, dir, "  allow_file_write_paths:\n    - /tmp\n    - /srv/new\n")
	const why = "refused by security.allow_file_write_paths (agent.yaml line 3): "
	if err := os.Link(filepath.Join(dir, "etc/hosts"), filepath.Join(dir, "tmp/hard")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/tmpfoo/x", "/tmp/../etc/hosts", "/tmp/out", "/tmp/out/x", "/tmp/hard", "/etc/hosts", "/", "/srv/newer"} {
		k.refused(why, "", &pb.FileWriteRequest{Path: path})
		k.refused(why, "", &pb.FileDeleteRequest{Path: path})
		k.refused(why, "", &pb.CreateDirectoryRequest{Path: path})
		k.refused(why, "file.write", &pb.WriteFileArgs{Path: path})
		k.refused(why, "file.chmod", &pb.ChmodArgs{Path: path})
		k.refused(why, "file.symlink", &pb.SymlinkArgs{Path: path, Target: "/tmp/y"})
		k.refused(why, "file.move", &pb.FromToArgs{From: "/tmp/y", To: path})
		k.refused(why, "file.move", &pb.FromToArgs{From: path, To: "/tmp/z"})
		k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"true"}, Touches: []string{"/tmp/y", path}})
	}
	k.refused(why, "file.write", &pb.WriteFileArgs{Path: "/srv/new", Content: nil, Backup: true}) // the copy would lie beside it
	for _, path := range []string{"/tmp/y", "//tmp/./y", "/tmp/not/there/yet", "/srv/new", "/srv/new/x"} {
		k.fine("", &pb.FileWriteRequest{Path: path})
		k.fine("file.write", &pb.WriteFileArgs{Path: path})
	}
	k.fine("file.read", &pb.PathArgs{Path: "/etc/shadow"})

	// A listed directory that becomes a link allows no more than before.
	if err := os.Symlink("/etc", filepath.Join(dir, "srv/new")); err != nil {
		t.Fatal(err)
	}
	k.refused(why, "", &pb.FileWriteRequest{Path: "/srv/new/hosts"})
}

// What the agent keeps of files for a rollback is as secret as they are.
func TestCopiesOfTheAgentAreNotRead(t *testing.T) {
	k := newKit(t, tree(t), denied)
	k.guest.State = "/srv/state"
	k.refused("keeps copies", "file.read", &pb.PathArgs{Path: "/srv/state/tx/1/kept"})
	k.refused("keeps copies", "file.move", &pb.FromToArgs{From: "/srv", To: "/x"})
}

// bin makes programs, and names of them.
func bin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/bin/rm", "usr/bin/ls", "usr/bin/dash", "usr/bin/env", "usr/bin/busybox", "usr/bin/python3.11", "tmp/rm"} {
		full := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte("#!/bin/false\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"bin": "usr/bin", "usr/bin/sh": "dash", "tmp/harmless": "/usr/bin/rm", "tmp/e": "/usr/bin/env",
		"usr/bin/vi": "busybox", "usr/bin/wget": "/bin/busybox", "usr/bin/python3": "python3.11"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "usr/bin/rm"), filepath.Join(dir, "tmp/hard")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func execute(command string, args ...string) *pb.ExecuteRequest {
	return &pb.ExecuteRequest{Command: command, Args: args}
}

// A forbidden program is refused by any of its names, and after what runs others.
func TestForbiddenCommands(t *testing.T) {
	k := newKit(t, bin(t), "  command_blocklist: [ls]\n")
	k.set("  command_blocklist:\n    - wget\n    - rm\n")
	const why = "refused by security.command_blocklist (agent.yaml line 4): "
	for _, in := range []*pb.ExecuteRequest{
		execute("rm", "-rf"), execute("/bin/rm", "x"), execute("/usr/bin/rm", "x"), execute("/bin/../bin//./rm", "x"),
		execute("/tmp/harmless", "x"), execute("/tmp/hard", "x"), execute("/tmp/rm", "x"),
		execute("rm -rf /"), execute("ls; rm x"), execute("ls && /bin/rm x"), execute("ls $(rm x)"), execute("ls|/tmp/hard"), execute("'rm' x"),
		execute("env", "rm", "x"), execute("env", "A=b", "/bin/rm"), execute("/tmp/e", "rm"), execute("sh", "-c", "ls; rm x"),
		execute("busybox", "rm", "x"), execute("env", "env", "sh", "-c", "rm x"), execute("env", "-S", "rm x"), execute("env", "/tmp/harmless"),
	} {
		k.refused(why, "", in)
	}
	for _, wrapper := range []string{"nice", "ionice", "nohup", "timeout", "xargs", "find", "sudo", "setsid", "chroot", "systemd-run"} {
		k.refused(why, "", execute(wrapper, "-x", "rm"))
	}
	k.refused("line 3): /bin/sh", "", execute("wget"))
	k.refused("line 3", "", execute("/bin/busybox", "wget"))
	k.refused(why, "", &pb.ExecStartRequest{Command: "ls; rm x"})
	k.refused(why, "", &pb.ExecStartRequest{Command: "rm", Args: []string{"x"}})
	k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"rm"}})
	k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Undo: []string{"rm", "x"}})
	k.refused(why, "exec.sh", &pb.ShellArgs{Command: "rm x"})
	k.refused(why, "tx.on_rollback", &pb.OnRollbackArgs{Argv: []string{"rm", "x"}})
	k.refused("relative", "exec.run", &pb.RunArgs{Argv: []string{"./rm"}})
	k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"./rm"}, Cwd: "/tmp"})
	for _, in := range []*pb.ExecuteRequest{
		execute("ls"), execute("ls", "rm"), execute("sh", "-c", "charm it"), execute("vi", "x"), execute("/bin/busybox", "vi"), execute("none", "x"),
	} {
		k.fine("", in)
	}
	k.fine("exec.run", &pb.RunArgs{Argv: []string{"charm"}})
}

// Of programs only those run that are listed, by the place where they lie; a line for the shell needs the shell listed.
func TestAllowedCommands(t *testing.T) {
	k := newKit(t, bin(t), "  command_allowlist: [ls, vi, /bin/python3]\n")
	const why = "refused by security.command_allowlist (agent.yaml line 2): "
	for _, in := range []*pb.ExecuteRequest{
		execute("ls", "x"), execute("/bin/ls", "x"), execute("//usr/bin/./ls", "x"), execute("python3", "x"), execute("/usr/bin/python3", "x"), execute("vi", "x"),
	} {
		k.fine("", in)
	}
	for _, in := range []*pb.ExecuteRequest{
		execute("ls"), execute("ls; rm -rf /"), execute("ls x; rm", "y"), execute("rm", "x"), execute("sh", "-c", "ls"), execute("/tmp/ls", "x"),
		execute("lsx", "x"), execute("env", "ls"), execute("busybox", "vi"), execute("/usr/bin/python3.11", "x"), execute("wget", "x"),
		{Command: "ls", Args: []string{"x"}, Environment: map[string]string{"PATH": "/tmp"}},
	} {
		k.refused(why, "", in)
	}
	for _, name := range []string{"LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "GCONV_PATH"} {
		env := map[string]string{"A": "b", name: "/tmp/x"}
		k.refused(why+"the environment variable "+name, "", &pb.ExecuteRequest{Command: "ls", Args: []string{"x"}, Environment: env})
		k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: env})
	}
	k.fine("exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: map[string]string{"LANG": "C"}})
	k.refused(why, "exec.sh", &pb.ShellArgs{Command: "ls"})
	k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"rm"}, Env: map[string]string{"PATH": "/tmp"}})
	k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Undo: []string{"rm"}})
	k.set("  command_allowlist: [sh]\n")
	k.fine("", execute("ls; rm x"))
	k.fine("exec.sh", &pb.ShellArgs{Command: "ls"})
	k.set("  command_allowlist: [ls, sh]\n  command_blocklist: [ls]\n") // what is forbidden is not allowed
	k.refused("command_blocklist", "", execute("ls", "x"))
}

// Under a list of programs the environment is a list of names, and arguments are as the list has them.
func TestAllowedEnvironmentAndArguments(t *testing.T) {
	k := newKit(t, bin(t), "  command_allowlist: [ls, vi restart nginx, vi show *]\n  command_environment: [APP_MODE]\n")
	const why = "refused by security.command_allowlist (agent.yaml line 2): "
	for _, name := range []string{
		"PERL5OPT", "TAR_OPTIONS", "GIT_SSH_COMMAND", "EDITOR", "PAGER", "PYTHONSTARTUP", "HOME", "PATH", "IFS", "http_proxy",
		"APP_MODE2", "app_mode", "LANGUAGE",
	} {
		env := map[string]string{name: "x", "LANG": "C"}
		k.refused(why+"the environment variable "+name+" ", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: env})
		k.refused(why, "tx.on_rollback", &pb.OnRollbackArgs{Argv: []string{"ls"}, Env: env})
		k.refused(why, "", &pb.ExecStartRequest{Command: "ls", Args: []string{"x"}, Environment: env})
	}
	for setting, fine := range map[string]bool{
		"LC_ALL=de_DE.UTF-8": true, "TZ=Europe/Berlin": true, "DEBIAN_FRONTEND=noninteractive": true, "APP_MODE=/x": true,
		"TZ=:/etc/shadow": false, "LANG=../../tmp/x": false, "DEBIAN_FRONTEND=dialog;exec": false,
	} {
		name, value, _ := strings.Cut(setting, "=")
		in := &pb.RunArgs{Argv: []string{"ls", "any", "argument"}, Env: map[string]string{name: value}}
		if err := k.ask("exec.run", in); (err == nil) != fine {
			t.Errorf("%s: %v", setting, err)
		}
	}
	for _, args := range []string{"restart nginx", "show a", "show a;b"} {
		k.fine("exec.run", &pb.RunArgs{Argv: append([]string{"/bin/vi"}, strings.Fields(args)...)})
	}
	for _, args := range []string{"", "restart", "restart nginx x", "restart sshd", "show", "show -x", "show a b", "edit"} {
		argv := append([]string{"vi"}, strings.Fields(args)...)
		k.refused(why+"/usr/bin/vi is not listed with these arguments", "exec.run", &pb.RunArgs{Argv: argv})
		k.refused(why, "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Undo: argv})
	}
}

// Read-only refuses whatever changes the guest, and commands, which could.
func TestReadOnlyAndOperations(t *testing.T) {
	k := newKit(t, tree(t), "  read_only: true\n")
	for _, op := range k.table.Ops() {
		if op.Internal {
			continue
		}
		in := op.In.ProtoReflect().New().Interface()
		want := op.Changes(in) || len(op.Roles.Commands) > 0 || op.Name == "file_write"
		if err := k.now.Check("", &op, in, op.AccessOf(in)); errors.Is(err, builtins.ErrPolicy) != want {
			t.Errorf("%s: %v", op.Name, err)
		}
	}
	k.refused("refused by security.read_only (agent.yaml line 2): host.hostname", "host.hostname", &pb.HostnameArgs{New: "x"})
	k.refused("read_only", "exec.run", &pb.RunArgs{Argv: []string{"true"}, Readonly: true})
	k.set("  deny_operations: [file.*, execute]\n")
	k.refused("refused by security.deny_operations (agent.yaml line 2): file.read", "file.read", &pb.PathArgs{Path: "/etc/hosts"})
	k.fine("", &pb.FileReadRequest{Path: "/etc/hosts"})
	k.refused("deny_operations", "", execute("ls"))
	k.set("  allow_operations: [file_read, host.*]\n")
	k.fine("", &pb.FileReadRequest{Path: "/etc/hosts"})
	k.fine("host.info", &pb.NoArgs{})
	k.refused("allow_operations", "", &pb.FileStatRequest{Path: "/etc/hosts"})
	c, _, err := config.Parse([]byte("security:\n  deny_operations: [file_raed]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(c.Security, k.guest, k.table.Ops()); err == nil || !strings.Contains(err.Error(), `line 2: security.deny_operations: "file_raed" names no operation`) {
		t.Error(err)
	}
}

// A section of a channel binds its hosts, beside the general one, and nobody else.
func TestPorts(t *testing.T) {
	k := newKit(t, tree(t), `  deny_operations: [file_delete]
  ports:
    org.quantix.agent.1:
      read_only: true
    "unix:*":
      allow_operations: [execute, file_delete]
      max_commands_per_minute: 1
`)
	for _, c := range []struct {
		port string
		in   proto.Message
		want string
	}{
		{"org.quantix.agent.0", execute("ls"), ""},
		{"org.quantix.agent.0", &pb.FileDeleteRequest{Path: "/x"}, "refused by security.deny_operations (agent.yaml line 2): file_delete"},
		{"org.quantix.agent.1", &pb.FileStatRequest{Path: "/etc"}, ""},
		{"org.quantix.agent.1", execute("ls"), "refused by security.ports.org.quantix.agent.1.read_only (agent.yaml line 5): execute"},
		{"org.quantix.agent.10", execute("ls"), ""},
		{"unix:/run/a/b.sock", &pb.FileStatRequest{Path: "/etc"}, "refused by security.ports.unix:*.allow_operations (agent.yaml line 7): file_stat is not listed"},
		{"unix:/run/a/b.sock", &pb.FileDeleteRequest{Path: "/x"}, "refused by security.deny_operations"},
		{"unix:/run/a/b.sock", execute("ls"), ""},
		{"unix:/run/a/b.sock", execute("ls"), "refused by security.ports.unix:*.max_commands_per_minute (agent.yaml line 8): more than 1"},
		{"", execute("ls"), ""},
	} {
		err := k.now.Check(c.port, k.table.Native(c.in), c.in, k.table.Native(c.in).AccessOf(c.in))
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s %T: %v, want %q", c.port, c.in, err, c.want)
		}
	}
	stat := k.table.Native(&pb.FileStatRequest{})
	if k.now.Denies("org.quantix.agent.0", stat) || !k.now.Denies("unix:/x", stat) {
		t.Error("what is announced is not by channel")
	}
}

// What the hosts on a channel began is theirs; others see it where a section of theirs says so.
func TestOtherPortsAreSeenWhereASectionSaysSo(t *testing.T) {
	k := newKit(t, tree(t), `  ports:
    org.quantix.agent.1: {other_ports: [org.quantix.agent.0]}
    org.quantix.agent.3: {other_ports: ["*"]}
`)
	for _, c := range []struct {
		port, owner string
		want        bool
	}{
		{"org.quantix.agent.0", "org.quantix.agent.0", true},
		{"org.quantix.agent.0", "org.quantix.agent.1", false},
		{"org.quantix.agent.0", "", true},
		{"org.quantix.agent.1", "org.quantix.agent.0", true},
		{"org.quantix.agent.1", "org.quantix.agent.2", false},
		{"org.quantix.agent.3", "org.quantix.agent.0", true},
		{"unix:/run/a/b.sock", "unix:/run/another.sock", true},
	} {
		if got := k.now.Sees(c.port, c.owner); got != c.want {
			t.Errorf("%s sees what %q began: %v", c.port, c.owner, got)
		}
	}
	if none := (&Current{}); none.Sees("a", "b") || !none.Sees("a", "a") {
		t.Error("without a policy it is not each its own")
	}
}

// No policy at all lets nothing through.
func TestNoPolicy(t *testing.T) {
	k := newKit(t, tree(t), "  deny_operations: ['*']\n")
	none := &Current{}
	for _, c := range []*Current{&k.now, none} {
		op, in := k.table.Script("file.move"), &pb.FromToArgs{From: "/a", To: "/b"}
		if err := c.Check("", op, in, op.AccessOf(in)); !errors.Is(err, builtins.ErrPolicy) {
			t.Error(err)
		}
		if !c.Denies("", op) {
			t.Error("not denied")
		}
	}
}

// Ten a minute are ten at most within a moment, and then one in six seconds; what is refused costs nothing.
func TestRates(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(10, 60)
	b.now, b.at = func() time.Time { return now }, now
	take := func() (n int) {
		for b.take() {
			n++
		}
		return n
	}
	if n := take(); n != 10 {
		t.Error(n)
	}
	now = now.Add(2 * time.Second)
	if n := take(); n != 0 {
		t.Error(n)
	}
	now = now.Add(4*time.Second + time.Millisecond)
	if n := take(); n != 1 {
		t.Error(n)
	}
	now = now.Add(time.Hour)
	if n := take(); n != 10 {
		t.Error(n)
	}
	// A request for many things lets those after wait for five seconds, however small the limit is.
	for _, limit := range []int{1, 5, 1000} {
		b := newBucket(limit, 1)
		b.now, b.at = func() time.Time { return now }, now
		if !b.takeAll(1000) || b.takeAll(1) {
			t.Errorf("%d a second: 1000 at once did not pass, or one behind did", limit)
		}
		now = now.Add(5*time.Second + time.Millisecond)
		if !b.takeAll(1) {
			t.Errorf("%d a second: nothing passes after five seconds", limit)
		}
	}
	k := newKit(t, tree(t), "  max_commands_per_minute: 2\n  max_file_ops_per_second: 1\n  command_blocklist: [rm]\n")
	for range 5 {
		k.refused("command_blocklist", "", execute("rm", "x"))
	}
	k.fine("", execute("ls", "x"))
	k.fine("exec.run", &pb.RunArgs{Argv: []string{"ls"}})
	if err := k.ask("", execute("ls", "x")); !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), "security.max_commands_per_minute (agent.yaml line 2): more than 2") {
		t.Error(err)
	}
	k.fine("file.read", &pb.PathArgs{Path: "/etc/hosts"})
}
