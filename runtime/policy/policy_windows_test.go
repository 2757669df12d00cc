package policy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kit is a policy over this machine.
type kit struct {
	t     *testing.T
	guest *Guest
	table *builtins.Table
	now   Current
}

func newKit(t *testing.T, security string) *kit {
	t.Helper()
	root, err := fsys.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	k := &kit{t: t, guest: &Guest{Files: root}, table: builtins.NewTable(all.New(all.Config{}).List()...)}
	c, _, err := config.Parse([]byte("security:\n" + security))
	if err != nil {
		t.Fatal(err)
	}
	c.Security.File = "agent.yaml"
	p, err := New(c.Security, k.guest, k.table.Ops())
	if err != nil {
		t.Fatal(err)
	}
	k.now.Set(p)
	return k
}

func (k *kit) ask(in proto.Message) error {
	op := k.table.Native(in)
	return k.now.Check("", op, in, op.AccessOf(in))
}

// tree makes a directory of the C drive with a secret, and returns it.
func tree(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(`C:\`, "policy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, path := range []string{`secret directory\deep\key`, `open\file`, `open\other file with a name`} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shortPath is a path by its 8.3 names; "" where there are none.
func shortPath(t *testing.T, path string) string {
	t.Helper()
	name, _ := windows.UTF16PtrFromString(path)
	buf := make([]uint16, 1000)
	n, err := windows.GetShortPathName(name, &buf[0], uint32(len(buf)))
	if err != nil {
		t.Fatal(err)
	}
	if short := windows.UTF16ToString(buf[:n]); strings.Contains(short, "~") {
		return short
	}
	return ""
}

// junction makes a junction. Wine has none.
func junction(t *testing.T, link, to string) bool {
	t.Helper()
	out, err := exec.Command("cmd.exe", "/C", "mklink", "/J", link, to).CombinedOutput()
	if _, statErr := os.Lstat(link); err != nil || statErr != nil {
		t.Logf("no junction is made here: %v %s", err, out)
		return false
	}
	return true
}

// W-8: no spelling, short name, second name, link or other drive leads to what must not be read.
func TestNoWayAroundPathsThatMustNotBeRead(t *testing.T) {
	dir := tree(t)
	secret, open := dir+`\secret directory`, dir+`\open`
	ways := []string{
		secret, secret + `\deep\key`, strings.ToUpper(secret) + `\Deep\KEY`, filepath.ToSlash(secret) + "/deep/key",
		open + `\..\secret directory\deep\key`, secret[2:] + `\deep\key`, secret + `\deep\not there`, secret + `\.\deep\`,
		strings.ToLower(secret[:1]) + secret[1:] + `\deep\key`,
	}
	if short := shortPath(t, secret+`\deep\key`); short != "" {
		ways = append(ways, short, shortPath(t, secret))
	} else {
		t.Log("this volume has no short names")
	}
	if err := os.Link(secret+`\deep\key`, open+`\hard`); err == nil {
		ways = append(ways, open+`\hard`)
	}
	if junction(t, open+`\junction`, secret) {
		ways = append(ways, open+`\junction`, open+`\junction\deep\key`)
	}
	if err := os.Symlink(secret, open+`\link`); err == nil {
		if _, err := os.Stat(open + `\link\deep`); err == nil { // Wine makes none, and says nothing
			ways = append(ways, open+`\link\deep\key`)
		}
	}
	if prefix := os.Getenv("WINEPREFIX"); prefix != "" { // its Z drive is the machine that it runs on
		other := `Z:` + filepath.FromSlash(prefix) + `\drive_c` + secret[2:]
		if _, err := os.Stat(other); err != nil {
			t.Fatal(err)
		}
		ways = append(ways, other, other+`\deep\key`)
	}
	k := newKit(t, "  deny_file_read_paths: ['"+secret+"']\n")
	for _, path := range ways {
		for _, in := range []proto.Message{
			&pb.FileReadRequest{Path: path}, &pb.FileStatRequest{Path: path}, &pb.ListDirectoryRequest{Path: path},
		} {
			const why = "deny_file_read_paths (agent.yaml line 2)"
			if err := k.ask(in); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), why) {
				t.Errorf("%T %s: %v", in, path, err)
			}
		}
	}
	for _, path := range []string{open + `\file`, open, dir, secret + `s`, `C:\windows`} {
		if err := k.ask(&pb.FileReadRequest{Path: path}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{secret + `\deep\key:stream`, `\\?\` + secret + `\deep\key`, `\\localhost\c$\x`} {
		if err := k.ask(&pb.FileReadRequest{Path: path}); err == nil {
			t.Errorf("%s may be read", path)
		}
	}
	if err := k.ask(&pb.FileDeleteRequest{Path: dir, Recursive: true}); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("the tree around it may be removed: %v", err)
	}
}

// What may be written is below what is listed, in any spelling, and nothing that a short name or a link leads out of it.
func TestPathsThatMayBeWritten(t *testing.T) {
	dir := tree(t)
	open := dir + `\open`
	k := newKit(t, "  allow_file_write_paths: ['"+filepath.ToSlash(strings.ToUpper(open))+"']\n")
	for _, path := range []string{open + `\new`, open + `\file`, strings.ToLower(open) + `\New\deeper`, open[2:] + `\new`} {
		if err := k.ask(&pb.FileWriteRequest{Path: path}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if short := shortPath(t, open+`\other file with a name`); short != "" {
		if err := k.ask(&pb.FileWriteRequest{Path: short}); err != nil {
			t.Errorf("%s: %v", short, err)
		}
	}
	ways := []string{dir + `\opens\x`, dir + `\x`, open + `\..\x`, `D:` + open[2:] + `\new`}
	if err := os.Link(dir+`\secret directory\deep\key`, open+`\hard`); err == nil {
		ways = append(ways, open+`\hard`)
	}
	if junction(t, open+`\junction`, dir+`\secret directory`) {
		ways = append(ways, open+`\junction\new`)
	}
	for _, path := range ways {
		if err := k.ask(&pb.FileWriteRequest{Path: path}); err == nil {
			t.Errorf("%s may be written", path)
		}
	}
}

// Needs of a script bind as rules do.
func TestNeedsOfPaths(t *testing.T) {
	dir := tree(t)
	root, err := fsys.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	op := builtins.NewTable(all.New(all.Config{}).List()...).Script("file.read")
	for _, need := range []string{`file:` + dir + `\open\`, `file:` + filepath.ToSlash(dir) + `/OPEN/`} {
		rights, err := NewRights(root, "x", []string{need}, map[string]builtins.Scope{"file": builtins.ScopePaths})
		if err != nil {
			t.Fatal(err)
		}
		if err := rights.Check(root, op, op.AccessOf(&pb.PathArgs{Path: dir + `\Open\file`})); err != nil {
			t.Error(err)
		}
		outside := &pb.PathArgs{Path: dir + `\open\..\secret directory\deep\key`}
		if err := rights.Check(root, op, op.AccessOf(outside)); !errors.Is(err, builtins.ErrPolicy) {
			t.Error(need, err)
		}
	}
}

// Rules on commands would be no boundary here, and are refused by name at the start.
func TestRulesOnCommandsAreRefused(t *testing.T) {
	root, err := fsys.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	rule := []config.Rule{{Value: "cmd.exe", Line: 2}}
	for _, s := range []config.Security{{AllowedCommands: rule}, {DeniedCommands: rule}} {
		if _, err := New(s, &Guest{Files: root}, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
}
