package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// samples are requests of rows whose fields alone do not make one, or that change what their fields do not name.
var samples = map[string]proto.Message{
	"host.hostname":    &pb.HostnameArgs{New: "a"},
	"host.timezone":    &pb.TimezoneArgs{New: "UTC"},
	"host.locale":      &pb.LocaleArgs{New: "C.UTF-8"},
	"host.keymap":      &pb.KeymapArgs{New: "us"},
	"package.install":  &pb.PackageInstallArgs{Names: []string{"a"}},
	"package.remove":   &pb.PackageRemoveArgs{Names: []string{"a"}},
	"host.sysctl":      &pb.SysctlArgs{Name: "vm.swappiness", Value: proto.String("1")},
	"account.groups":   &pb.AccountGroupsArgs{Name: "a", Groups: []string{"b"}},
	"account.ssh_keys": &pb.AccountKeysArgs{Name: "a", Keys: []string{"ssh-ed25519 AAAA"}},
	"write_files":      &pb.WriteFilesRequest{Entries: []*pb.TreeEntry{{Path: "/secret/file", Kind: "file"}}},
	"exec_input":       &pb.ExecInputRequest{ExecId: "a", End: true}, // ends what the same port began, and names nothing
}

// request returns one in which every path leads to where nothing may be done, and every command is one that may not run.
func request(op *builtins.Op) proto.Message {
	if in := samples[op.Name]; in != nil {
		return in
	}
	in := op.In.ProtoReflect().New()
	fill := func(names []string, text string) {
		for _, name := range names {
			field := in.Descriptor().Fields().ByName(protoreflect.Name(name))
			if field.IsList() {
				in.Mutable(field).List().Append(protoreflect.ValueOfString(text))
				continue
			}
			in.Set(field, protoreflect.ValueOfString(text))
		}
	}
	fill(op.Roles.Paths, "/secret/file")
	fill(op.Roles.Commands, "/bin/program")
	if field := in.Descriptor().Fields().ByName("backup"); field != nil {
		in.Set(field, protoreflect.ValueOfBool(true))
	}
	return in.Interface()
}

// Every row that changes something is refused by every kind of rule that is about what it does: a new row is held to the rules
// by what its access computes, and one of which that says nothing is found here.
func TestEveryChangeByEveryRule(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "bin"), 0o755), os.MkdirAll(filepath.Join(dir, "secret"), 0o755),
		os.WriteFile(filepath.Join(dir, "bin/program"), nil, 0o755), os.WriteFile(filepath.Join(dir, "secret/file"), nil, 0o644),
		os.MkdirAll(filepath.Join(dir, "var/lib/dpkg"), 0o755), os.WriteFile(filepath.Join(dir, "var/lib/dpkg/status"), nil, 0o644),
		os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755), os.WriteFile(filepath.Join(dir, "usr/bin/apt-get"), nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	k := &kit{t: t, guest: &Guest{Files: root}, table: builtins.NewTable(all.New(all.Config{Files: root, Dir: dir}).List()...)}
	for i := range k.table.Ops() {
		op := &k.table.Ops()[i]
		if !op.Mutates || op.Internal {
			continue
		}
		in := request(op)
		access := op.AccessOn(root, in)
		commands, helpers, writes := len(access.Commands) > 0, len(access.Helpers) > 0, len(access.Writes) > 0
		if helpers != slices.Contains([]string{"package.install", "package.remove", "package.update"}, op.Name) {
			t.Errorf("%s has the helpers %v", op.Name, access.Helpers)
		}
		if !commands && !writes && len(access.Objects) == 0 && samples[op.Name] == nil {
			t.Errorf("%s changes something, and its access says nothing of it", op.Name)
		}
		for rule, concerned := range map[string]bool{
			"deny_operations: ['" + op.Name + "']":  true,
			"deny_operations: ['*']":                true,
			"allow_operations: [file.glob]":         true,
			"read_only: true":                       true,
			"allow_file_write_paths: [/free]":       writes,
			"deny_file_read_paths: [/secret]":       slices.Contains(slices.Concat(access.Reads, access.Trees), "/secret/file"),
			"command_allowlist: [other]":            commands || helpers,
			"command_allowlist: [apt-get]":          commands,
			"command_allowlist: [apt-get update]":   commands || helpers,
			"command_blocklist: [apt-get]":          helpers,
			"command_blocklist: [program]":          commands,
			"command_blocklist: [sh]":               op.Name == "exec.sh",
			"deny_operations: ['exec.*']":           commands && op.Script != nil,
			"deny_operations: [exec.run, exec.sh]":  commands && op.Script != nil,
			"allow_operations: ['" + op.Name + "']": op.Defers != "" || commands && op.Script != nil && op.Room() != "exec" || op.Name == "write_files",
		} {
			k.set("  " + rule + "\n")
			err := k.now.Check("", op, in, access)
			key, _, _ := strings.Cut(rule, ":")
			switch {
			case concerned && (!errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), key)):
				t.Errorf("%s is not refused by %s: %v", op.Name, rule, err)
			case !concerned && err != nil:
				t.Errorf("%s is refused by %s: %v", op.Name, rule, err)
			}
		}
	}
}

// unshown are paths that rows change without telling what was there: they replace it, or give it another owner or mode, or keep
// it from the list of changes whatever its mode is. * is each path that such a row changes.
var unshown = map[string]string{
	"account.create": "/etc/shadow /etc/gshadow", "account.modify": "/etc/gshadow", "account.remove": "/etc/shadow /etc/gshadow",
	"account.groups": "/etc/gshadow", "account.password": "/etc/shadow", "reset_password": "*",
	"create_directory": "*", "file_write": "*", "write_files": "*",
	"file.mkdir": "*", "file.symlink": "*", "file.chmod": "*", "file.chown": "*",
	"exec.run": "*", "exec.sh": "*",
	"service.enable": "*", "service.disable": "*", "service.mask": "*", "service.unmask": "*",
}

// A link to a file that must not be read gives nobody its content, whatever the path is that it stands at, of those that a row
// reads or changes: the row is refused, and what it predicts without a rule tells of nothing that its access does not say.
func TestALinkToWhatMustNotBeRead(t *testing.T) {
	const content = "PASSWORD=hunter2\n"
	tree := func() (*kit, *os.Root) {
		dir := t.TempDir()
		files, err := os.OpenRoot(dir) // nothing outside of it is ever touched
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { files.Close() })
		for path, text := range map[string]string{
			"secret/file": content, "etc/group": "root:x:0:\nb:x:7:\n",
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\na:x:1000:0::/home/a:/bin/sh\n",
			"etc/shadow": "root:*:::::::\na:*:::::::\n", "etc/subuid": "", "etc/subgid": "", "etc/timezone": "Etc/UTC\n",
			"etc/fstab": "", "etc/skel/.profile": "", "usr/share/zoneinfo/UTC": "TZif",
			"etc/netplan/own.yaml": "network: {version: 2}\n", "etc/default/locale": "LANG=C\n", "usr/share/keymaps/us.map": "", "bin/program": "",
		} {
			if err := errors.Join(files.MkdirAll(filepath.Dir(path), 0o755), files.WriteFile(path, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		k := newKit(t, dir, "  deny_file_read_paths: [/secret]\n")
		made := all.New(all.Config{Files: k.guest.Files, Dir: dir})
		t.Cleanup(func() { made.Close() })
		k.table = builtins.NewTable(made.List()...)
		return k, files
	}
	tried := 0
	first, _ := tree()
	for i := range first.table.Ops() {
		op := &first.table.Ops()[i]
		if op.Internal {
			continue
		}
		in := request(op)
		access := op.AccessOn(first.guest.Files, in)
		for _, path := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(access.Reads, access.Writes)))) {
			if fsys.Within(path, "/secret") || fsys.Within(path, "/proc") {
				continue
			}
			k, files := tree()
			at := strings.TrimPrefix(path, "/")
			err := errors.Join(files.RemoveAll(at), files.MkdirAll(filepath.Dir(at), 0o755), files.Symlink("/secret/file", at))
			if err != nil {
				t.Fatal(err)
			}
			tried++
			op := &k.table.Ops()[i]
			refused := k.now.Check("", op, in, op.AccessOn(k.guest.Files, in))
			may := unshown[op.Name] == "*" || slices.Contains(strings.Fields(unshown[op.Name]), path)
			if may != (refused == nil) || refused != nil && !strings.Contains(refused.Error(), "deny_file_read_paths") {
				t.Errorf("%s with a link at %s: %v", op.Name, path, refused)
			}
			if refused == nil && strings.Contains(foretold(t, k, op, in), "hunter2") {
				t.Errorf("%s shows what a link at %s leads to", op.Name, path)
			}
		}
	}
	if tried < 30 {
		t.Errorf("%d paths were tried", tried)
	}
}

// predicted is all that a dry run of a row tells.
func foretold(t *testing.T, k *kit, op *builtins.Op, in proto.Message) string {
	t.Helper()
	if op.Mutates && !op.Predictable {
		return ""
	}
	overlay, err := k.guest.Files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	var told strings.Builder
	call := &builtins.Call{DryRun: &builtins.DryRun{Files: overlay}, Changed: func(c *pb.Change) { fmt.Fprintln(&told, c) }}
	out, err := op.Call(t.Context(), call, in)
	fmt.Fprintln(&told, out, err)
	return told.String()
}

// What a new home directory is a copy of is read, also where a dry run has just pretended which directory that is, and a mail
// spool is written. An operation that finds another skeleton than the rules were asked about copies nothing.
func TestSkeletonAndMailOfANewUser(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{
		"secret/d/data": "TOPSECRET", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/skel/.profile": "",
		"etc/default/useradd": "CREATE_MAIL_SPOOL=yes\n", "var/mail/root": "", "home/root/x": "",
	} {
		file := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	k := newKit(t, dir, "  deny_file_read_paths: [/secret]\n")
	made := all.New(all.Config{Files: k.guest.Files, Dir: dir})
	t.Cleanup(func() { made.Close() })
	k.table = builtins.NewTable(made.List()...)
	op, in := k.table.Script("account.create"), &pb.AccountCreateArgs{Name: "eve"}
	overlay, err := k.guest.Files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	ask := func() (builtins.Access, error) {
		access := op.AccessOn(overlay, in)
		access.Checked = overlay.NewCheckedPaths(slices.Concat(access.Reads, access.Writes)...)
		return access, k.now.Check("", op, in, access)
	}
	before, err := ask()
	if err != nil {
		t.Error(err)
	}
	at, err := overlay.At("/etc/default/useradd")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	staged, err := at.Stage()
	if err == nil {
		_, err = staged.File.WriteString("SKEL=/secret/d\nCREATE_MAIL_SPOOL=yes\n")
	}
	if err = errors.Join(err, staged.Commit(fsys.Attr{}, false)); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(); !errors.Is(err, builtins.ErrPolicy) || !strings.Contains(err.Error(), "line 2): /secret/d") {
		t.Errorf("the skeleton is read: %v", err)
	}
	call := &builtins.Call{DryRun: &builtins.DryRun{Files: overlay}, Checked: before.Checked}
	if out, err := op.Call(t.Context(), call, in); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("%v, %v", out, err)
	}
	if _, err := overlay.ReadFile("/home/eve/data", 100); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what must not be read was copied: %v", err)
	}
	k.set("  allow_file_write_paths: [/etc, /home]\n")
	if _, err := ask(); !errors.Is(err, builtins.ErrPolicy) || !strings.Contains(err.Error(), "/var/mail/eve") {
		t.Errorf("the mail spool is written: %v", err)
	}
}

// A backup is written beside what a link leads to, and must be allowed there.
func TestBackupThroughALink(t *testing.T) {
	dir := tree(t)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "srv/target"), nil, 0o644), os.Symlink("/srv/target", filepath.Join(dir, "tmp/way"))); err != nil {
		t.Fatal(err)
	}
	k := newKit(t, dir, "  allow_file_write_paths: [/tmp, /srv/target]\n")
	in := &pb.LineArgs{Path: "/tmp/way"}
	k.fine("file.line", in)
	in.Backup = true
	k.refused("allow_file_write_paths (agent.yaml line 2): /srv/target.bak is not below", "file.line", in)
	rights, err := NewRights(k.guest.Files, "x", []string{"file:/tmp/", "file:/srv/target"}, rooms)
	if err != nil {
		t.Fatal(err)
	}
	op := k.table.Script("file.line")
	if err := rights.Check(k.guest.Files, op, op.AccessOf(in)); !errors.Is(err, builtins.ErrPolicy) || !strings.Contains(err.Error(), "file:/srv/target.bak") {
		t.Error(err)
	}
}

// What a script has put off is held to the needs of the room that does it.
func TestNeedsOfWhatIsPutOff(t *testing.T) {
	k := newKit(t, tree(t), "")
	op := k.table.Script("tx.notify")
	unit := "nginx.service"
	check := func(needs ...string) error {
		t.Helper()
		rights, err := NewRights(k.guest.Files, "x", needs, map[string]builtins.Scope{"tx": "", "service": "service", "netplan": ""})
		if err != nil {
			t.Fatal(err)
		}
		return rights.Check(k.guest.Files, op, op.AccessOf(&pb.ServiceNotifyArgs{Unit: unit}))
	}
	for _, needs := range [][]string{{"tx", "service:nginx"}, {"tx", "service:nginx.service"}, {"tx", "service"}} {
		if err := check(needs...); err != nil {
			t.Errorf("%q: %v", needs, err)
		}
	}
	for _, needs := range [][]string{{"tx"}, {"tx", "service:ssh"}, {"service:nginx"}} {
		if err := check(needs...); !errors.Is(err, builtins.ErrPolicy) {
			t.Errorf("%q: %v", needs, err)
		}
	}
	unit = "netplan"
	if err := check("tx", "netplan"); err != nil {
		t.Error(err)
	}
	if err := check("tx", "service"); !errors.Is(err, builtins.ErrPolicy) || !strings.Contains(err.Error(), `"netplan"`) {
		t.Error(err)
	}
}

// What a script has put off is held to the rules about what does the same at once.
func TestRulesOfWhatIsPutOff(t *testing.T) {
	k := newKit(t, tree(t), "")
	op := k.table.Script("tx.notify")
	for rule, refused := range map[string]string{
		"deny_operations: [service.restart]":                           "restart reload-or-restart",
		"deny_operations: [service.reload]":                            "reload reload-or-restart",
		"deny_operations: [service.enable, service.stop]":              "",
		"deny_operations: ['service.*']":                               "restart reload start reload-or-restart",
		"allow_operations: [tx.notify]":                                "restart reload start reload-or-restart",
		"allow_operations: [tx.notify, service.restart]":               "reload start reload-or-restart",
		"allow_operations: [tx.notify, service.restart, 'service.r*']": "start",
		"allow_operations: ['service.*']":                              "restart reload start reload-or-restart",
	} {
		k.set("  " + rule + "\n")
		for _, action := range []string{"", "restart", "reload", "start", "reload-or-restart"} {
			in := &pb.ServiceNotifyArgs{Unit: "nginx", Action: action}
			if action == "" {
				action = "restart"
			}
			want := slices.Contains(strings.Fields(refused), action)
			if err := k.now.Check("", op, in, op.AccessOf(in)); (err != nil) != want {
				t.Errorf("%s, %s: %v", rule, action, err)
			}
		}
	}
}
