package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	guestof "github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is a room over a directory that stands for the root of a guest, reached as everybody reaches it: through the
// table.
type guest struct {
	t     *testing.T
	of    *guestof.Guest
	dir   string
	room  builtins.Room
	table *builtins.Table
	calls *call.Executor
	call  *builtins.Call
	// changes are what the operations told.
	changes []*pb.Change
}

func newGuest(t *testing.T, config file.Config) *guest {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	return guestAt(t, dir, config)
}

func guestAt(t *testing.T, dir string, config file.Config) *guest {
	t.Helper()
	root, err := fsys.Open(dir)
	must(t, err)
	of := &guestof.Guest{Files: root}
	room := file.New(of, config).Room()
	t.Cleanup(func() {
		must(t, room.Close())
		must(t, root.Close())
	})
	g := &guest{t: t, of: of, dir: dir, room: room, table: builtins.NewTable(room)}
	g.calls = call.New(call.Config{Table: g.table})
	g.call = &builtins.Call{Port: "0", Changed: func(c *pb.Change) { g.changes = append(g.changes, c) }}
	return g
}

// run invokes a row, by the type of its request or by its name.
func run[Out proto.Message](g *guest, name string, in proto.Message) (out Out, err error) {
	g.t.Helper()
	op := g.table.Script(name)
	if op == nil {
		op = g.table.Native(in)
	}
	if op == nil {
		g.t.Fatalf("there is no %s", name)
	}
	message, err := g.calls.Execute(g.t.Context(), g.call, op, in)
	if err != nil {
		return out, err
	}
	return message.(Out), nil
}

// changed runs a script's row that changes something, and reports whether it did.
func (g *guest) changed(name string, in proto.Message) bool {
	g.t.Helper()
	out, err := run[*pb.Changed](g, name, in)
	if err != nil {
		g.t.Fatal(err)
	}
	return out.Changed
}

// refused runs a row that must fail with a code, and gives the text of the error.
func (g *guest) refused(code, name string, in proto.Message) string {
	g.t.Helper()
	out, err := run[proto.Message](g, name, in)
	if got := fault.Code(err); got != code {
		g.t.Errorf("%s %v: %q (%v), want %q; out %v", name, in, got, err, code, out)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

func (g *guest) write(path, content string) {
	g.t.Helper()
	must(g.t, os.WriteFile(g.dir+path, []byte(content), 0o644))
}

func (g *guest) mkdir(path string) {
	g.t.Helper()
	must(g.t, os.MkdirAll(g.dir+path, 0o755))
}

// has checks a file against its content.
func (g *guest) has(path, content string) {
	g.t.Helper()
	got, err := os.ReadFile(g.dir + path)
	if err != nil || string(got) != content {
		if len(got) > 200 {
			got = got[:200]
		}
		g.t.Errorf("%s holds %q, %v; want %.200q", path, got, err, content)
	}
}

// names checks a directory against the names in it.
func (g *guest) names(path string, want ...string) {
	g.t.Helper()
	entries, err := os.ReadDir(g.dir + path)
	must(g.t, err)
	got := []string{}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !reflect.DeepEqual(got, append([]string{}, want...)) {
		g.t.Errorf("%s holds %q, want %q", path, got, want)
	}
}

// told holds the changes told since the last call against "action path" each.
func (g *guest) told(want ...string) {
	g.t.Helper()
	got := []string{}
	for _, c := range g.changes {
		got = append(got, c.Action+" "+c.Target)
	}
	if !reflect.DeepEqual(got, append([]string{}, want...)) {
		g.t.Errorf("told %q, want %q", got, want)
	}
	g.changes = nil
}

// tx is a transaction that writes down what it is told, and what was there at that moment.
type tx struct {
	builtins.Tx
	g    *guest
	fail error
	log  []string
	undo []proto.Message
}

func (x *tx) Before(_ context.Context, paths ...string) error {
	if x.fail != nil {
		return x.fail
	}
	for _, path := range paths {
		state := "absent"
		if info, err := os.Lstat(x.g.dir + path); err == nil {
			state = info.Mode().Type().String()
			if content, err := os.ReadFile(x.g.dir + path); err == nil && info.Mode().IsRegular() {
				state = string(content)
			}
		}
		x.log = append(x.log, "before "+path+" "+state)
	}
	return nil
}

func (x *tx) Kept(path string) (builtins.Touched, bool) { return txtest.Kept(x.g.dir, path) }

func (*tx) HeldNames(fsys.Meta) uint32 { return 0 }

func (x *tx) Take(_ context.Context, path string, _ fsys.Meta) error {
	if x.fail != nil {
		return x.fail
	}
	x.log = append(x.log, "take "+path)
	return os.RemoveAll(x.g.dir + path)
}

func (x *tx) Undo(_ context.Context, op string, args proto.Message) error {
	if x.fail != nil {
		return x.fail
	}
	x.log = append(x.log, "undo "+op)
	x.undo = append(x.undo, args)
	return nil
}

// inTx puts the guest's calls into a transaction.
func (g *guest) inTx() *tx {
	x := &tx{g: g}
	g.call.Tx = x
	return x
}

func (x *tx) logged(want ...string) {
	x.g.t.Helper()
	if !reflect.DeepEqual(append([]string{}, x.log...), append([]string{}, want...)) {
		x.g.t.Errorf("the transaction heard %q, want %q", x.log, want)
	}
	x.log = nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("run as root: " + why)
	}
}

func TestEveryRowFitsItsMessages(t *testing.T) {
	g := newGuest(t, file.Config{})
	if got := strings.Join(g.calls.Capabilities(""), " "); got != "directory_create file_delete file_list file_read file_stat file_tree file_write" {
		t.Errorf("announced: %s", got)
	}
	for _, op := range g.table.Ops() {
		reads := strings.Contains("file_read list_directory file_stat stat_files file.read file.exists file.stat file.list file.glob file.sha256 file.attachment", op.Name)
		if op.Mutates == reads || op.Summary == "" {
			t.Errorf("%s: mutates is %v, summary %q", op.Name, op.Mutates, op.Summary)
		}
	}
}

func TestAnErrorNamesOperationObjectAndCause(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/dir")
	for in, want := range map[proto.Message]string{
		&pb.ReadFileArgs{Path: "/not"}:                      "file.read /not: no such file or directory",
		&pb.WriteFileArgs{Path: "/dir"}:                     "file.write /dir: is a directory",
		&pb.ChmodArgs{Path: "/not", Mode: "0644"}:           "file.chmod /not: file does not exist",
		&pb.ChmodArgs{Path: "/dir", Mode: "rwx"}:            `file.chmod /dir: mode "rwx" is not octal like 0644`,
		&pb.FromToArgs{From: "/not", To: "/x"}:              "file.copy /not: file does not exist",
		&pb.FileStatRequest{Path: "relative"}:               "file_stat relative: the path is relative; give it from the root on",
		&pb.FileReadRequest{Path: "/dir"}:                   "file_read /dir: is a directory",
		&pb.FileWriteRequest{Path: "/no/parent", Eof: true}: "file_write /no/parent: no such file or directory",
	} {
		name := map[string]string{"ReadFileArgs": "file.read", "WriteFileArgs": "file.write", "ChmodArgs": "file.chmod", "FromToArgs": "file.copy"}[string(in.ProtoReflect().Descriptor().Name())]
		if _, err := run[proto.Message](g, name, in); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestTheAgentsOwnFilesAreLeftAlone(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.of.Protected = []string{"/etc/quantix-kvm", "/usr/bin/agent", "/not/there"}
	g.mkdir("/etc/quantix-kvm")
	g.mkdir("/usr/bin")
	g.write("/etc/quantix-kvm/agent.yaml", "own")
	g.write("/usr/bin/agent", "own")
	g.write("/f", "x")
	must(t, os.Symlink("etc", g.dir+"/conf"))
	for _, path := range []string{"/etc/quantix-kvm/agent.yaml", "/conf/quantix-kvm/agent.yaml", "/etc/../conf/./quantix-kvm//new", "/usr/bin/agent"} {
		g.refused("refused", "file.write", &pb.WriteFileArgs{Path: path, Content: []byte("y")})
		g.refused("refused", "", &pb.FileWriteRequest{Path: path, Data: []byte("y"), Eof: true, CreateParents: true})
		g.refused("refused", "", &pb.FileDeleteRequest{Path: path})
		g.refused("refused", "file.move", &pb.FromToArgs{From: "/f", To: path})
	}
	for _, path := range []string{"/etc", "/etc/quantix-kvm", "/usr", "/usr/bin/agent"} {
		g.refused("refused", "", &pb.FileDeleteRequest{Path: path, Recursive: true})
		g.refused("refused", "file.remove", &pb.RemoveArgs{Path: path, Recursive: true})
		g.refused("refused", "file.move", &pb.FromToArgs{From: path, To: "/away"})
	}
	g.refused("refused", "file.chmod", &pb.ChmodArgs{Path: "/usr/bin/agent", Mode: "0777"})
	g.refused("refused", "", &pb.FileDeleteRequest{Path: "/", Recursive: true})
	g.has("/etc/quantix-kvm/agent.yaml", "own")
	if !g.changed("file.write", &pb.WriteFileArgs{Path: "/etc/quantix-kvm.d", Content: []byte("y")}) {
		t.Error("a name that only begins alike is not the agent's")
	}
	if _, err := run[*pb.Content](g, "file.read", &pb.ReadFileArgs{Path: "/usr/bin/agent"}); err != nil {
		t.Errorf("reading is not refused here: %v", err)
	}
}

func uid() string { return strconv.Itoa(os.Geteuid()) }
func gid() string { return strconv.Itoa(os.Getegid()) }

var errJournal = errors.New("journal is full")
