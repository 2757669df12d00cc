package policy

import (
	"errors"
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
		access := op.AccessOf(in)
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
