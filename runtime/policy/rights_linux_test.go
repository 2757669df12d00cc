package policy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rooms are those that needs may name, and what they can be limited to.
var rooms = map[string]builtins.Scope{
	"exec": builtins.ScopeCommands, "file": builtins.ScopePaths, "host": "", "netplan": "", "tx": "",
}

// Each need admits what it says, and nothing else.
func TestRights(t *testing.T) {
	dir := bin(t)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "etc/app"), 0o755), os.Symlink("/etc", filepath.Join(dir, "etc/app/out")),
		os.Symlink("/etc/app", filepath.Join(dir, "app"))); err != nil {
		t.Fatal(err)
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	table := builtins.NewTable(all.New(all.Config{}).List()...)
	read := func(path string) *pb.PathArgs { return &pb.PathArgs{Path: path} }
	write := func(path string) *pb.WriteFileArgs { return &pb.WriteFileArgs{Path: path} }
	runs := func(argv ...string) *pb.RunArgs { return &pb.RunArgs{Argv: argv} }
	for _, c := range []struct {
		needs, op string
		in        proto.Message
		missing   string
	}{
		{"file", "file.read", read("/etc/shadow"), ""},
		{"file", "exec.run", runs("ls"), "exec"},
		{"file", "host.info", &pb.NoArgs{}, "host"},
		{"host", "host.info", &pb.NoArgs{}, ""},
		{"file:/etc/hosts", "file.read", read("/etc/hosts"), ""},
		{"file:/etc/hosts", "file.read", read("/etc//../etc/./hosts"), ""},
		{"file:/etc/hosts", "file.read", read("/etc/hosts2"), "file:/etc/hosts2"},
		{"file:/etc/hosts", "file.read", read("/etc/hosts/x"), "file:/etc/hosts/x"},
		{"file:/etc/hosts", "file.write", &pb.WriteFileArgs{Path: "/etc/hosts", Backup: true}, "file:/etc/hosts.bak"},
		{"file:/etc/hosts", "file.copy", &pb.FromToArgs{From: "/etc/hosts", To: "/tmp/x"}, "file:/tmp/x"},
		{"file:/etc/hosts file:/tmp/", "file.copy", &pb.FromToArgs{From: "/etc/hosts", To: "/tmp/x"}, ""},
		{"file:/etc/app/", "file.write", write("/etc/app/a/b"), ""},
		{"file:/etc/app/", "file.write", write("/app/a"), ""},
		{"file:/etc/app/", "file.mkdir", &pb.MkdirArgs{Path: "/etc/app"}, ""},
		{"file:/etc/app/", "file.write", write("/etc/application"), "file:/etc/application"},
		{"file:/etc/app/", "file.write", write("/etc/app/../hosts"), "file:/etc/hosts"},
		{"file:/etc/app/", "file.write", write("/etc/app/out/hosts"), "file:/etc/hosts"},
		{"file:/etc/app/", "file.glob", &pb.GlobArgs{Pattern: "/etc/app/*.conf"}, ""},
		{"file:/etc/app/", "file.glob", &pb.GlobArgs{Pattern: "/etc/*"}, "file:/etc"},
		{"file:/etc/app/", "file.glob", &pb.GlobArgs{Pattern: "/etc/app/*/*"}, "file:/"},
		{"file:/", "file.glob", &pb.GlobArgs{Pattern: "/etc/app/*/*"}, ""},
		{"file:/etc/app/", "file.attachment", &pb.AttachmentArgs{Name: "x"}, ""},
		{"exec", "exec.sh", &pb.ShellArgs{Command: "ls"}, ""},
		{"exec:ls", "exec.run", runs("ls", "x"), ""},
		{"exec:ls", "exec.run", runs("/bin/ls", "x"), ""},
		{"exec:/usr/bin/ls", "exec.run", runs("ls"), ""},
		{"exec:ls", "exec.run", runs("/tmp/rm"), "exec:/tmp/rm"},
		{"exec:rm", "exec.run", runs("/tmp/rm"), "exec:/tmp/rm"},
		{"exec:rm", "exec.run", &pb.RunArgs{Argv: []string{"rm"}, Env: map[string]string{"PATH": "/tmp"}}, "exec:rm"},
		{"exec:ls", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: map[string]string{"LD_PRELOAD": "/tmp/x"}}, "exec"},
		{"exec:ls", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: map[string]string{"PERL5OPT": "-Mx"}}, "exec"},
		{"exec:ls", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: map[string]string{"DEBIAN_FRONTEND": "noninteractive"}}, ""},
		{"exec", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Env: map[string]string{"PERL5OPT": "-Mx"}}, ""},
		{"exec:ls", "exec.run", runs("none"), "exec:none"},
		{"exec:none", "exec.run", runs("none"), ""},
		{"exec:ls", "exec.run", &pb.RunArgs{Argv: []string{"ls"}, Undo: []string{"rm"}}, "exec:rm"},
		{"exec:ls", "exec.sh", &pb.ShellArgs{Command: "ls"}, "exec:/bin/sh"},
		{"exec:sh", "exec.sh", &pb.ShellArgs{Command: "ls"}, ""},
		{"exec:vi", "exec.run", runs("wget"), "exec:wget"}, // both are busybox
		{"tx", "tx.on_rollback", &pb.OnRollbackArgs{Argv: []string{"ls"}}, "exec:ls"},
		{"tx exec:ls", "tx.on_rollback", &pb.OnRollbackArgs{Argv: []string{"ls"}}, ""},
		{"exec:ls", "tx.on_rollback", &pb.OnRollbackArgs{Argv: []string{"ls"}}, "tx"},
	} {
		rights, err := NewRights(root, "the script does not declare", strings.Fields(c.needs), rooms)
		if err != nil {
			t.Fatal(err)
		}
		err = rights.Check(root, table.Script(c.op), table.Script(c.op).AccessOf(c.in))
		switch {
		case c.missing == "" && err != nil:
			t.Errorf("%s: %s %v: %v", c.needs, c.op, c.in, err)
		case c.missing != "" && (!errors.Is(err, builtins.ErrPolicy) || err.Error() != `refused: it needs "`+c.missing+`", which the script does not declare`):
			t.Errorf("%s: %s %v: %v; want %s missing", c.needs, c.op, c.in, err, c.missing)
		}
	}
	for _, bad := range []string{"", "log", "fil", "file:", "file:etc", "file:/etc/*", "file:/etc/../x", "exec:", "exec:ls -l", "exec:./ls", "host:name", "file ", "netplan:x"} {
		if _, err := NewRights(root, "", []string{bad}, rooms); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}

	// A directory that a script replaces by a link after its start admits no more than before.
	rights, err := NewRights(root, "x", []string{"file:/etc/app/"}, rooms)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "etc/app")), os.Symlink("/usr", filepath.Join(dir, "etc/app"))); err != nil {
		t.Fatal(err)
	}
	if err := rights.Check(root, table.Script("file.write"), table.Script("file.write").AccessOf(write("/etc/app/bin/ls"))); !errors.Is(err, builtins.ErrPolicy) {
		t.Error(err)
	}
}
