package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMain(m *testing.M) {
	if ChildMain() {
		return
	}
	os.Exit(m.Run())
}

// room gives the room and a table with it, which is the way to its rows.
func room(t *testing.T, config Config) (*Room, *table) { return roomIn(t, "/", config) }

// roomIn is a room whose commands run below a directory.
func roomIn(t *testing.T, dir string, config Config) (*Room, *table) {
	t.Helper()
	config.Commands.Name = fmt.Sprintf("test%d%x", os.Getpid(), time.Now().UnixNano())
	config.Commands.Reexec, config.Commands.Cgroup, config.Commands.JobCgroup = true, "none", "none"
	files, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := New(&guest.Guest{Files: files, Dir: dir, Live: dir == "/", Runner: proc.New(config.Commands)}, config)
	t.Cleanup(func() {
		if err := errors.Join(r.release(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	rows := builtins.NewTable(r.Room())
	return r, &table{rows, call.New(call.Config{Table: rows, Remotes: r})}
}

// table is the rows of the room, and the way to them.
type table struct {
	*builtins.Table
	calls *call.Executor
}

// Invoke runs a row as the executor does for anybody.
func (t *table) Invoke(ctx context.Context, call *builtins.Call, op *builtins.Op, in proto.Message) (proto.Message, error) {
	return t.calls.Execute(ctx, call, op, in)
}

func native(t *testing.T, table *table, in *pb.ExecuteRequest) *pb.ExecuteResponse {
	t.Helper()
	return nativeContext(context.Background(), t, table, in)
}

func nativeContext(ctx context.Context, t *testing.T, table *table, in *pb.ExecuteRequest) *pb.ExecuteResponse {
	t.Helper()
	op := table.Native(in)
	out, err := table.Invoke(ctx, &builtins.Call{}, op, in)
	if err != nil {
		out = op.ErrorReply(err)
	}
	reply := out.(*pb.ExecuteResponse)
	if _, err := proto.Marshal(reply); err != nil {
		t.Fatalf("the reply cannot be sent: %v", err)
	}
	return reply
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the test binary as root")
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not come: " + what)
		}
	}
}

// pidIn waits for a number in a file.
func pidIn(t *testing.T, path string) (pid int) {
	t.Helper()
	eventually(t, path, func() bool {
		text, _ := os.ReadFile(path)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 1 && strings.HasSuffix(string(text), "\n")
	})
	return pid
}

// alive reports whether a process runs code of its own: not a zombie, and not one that is exiting
// (PF_EXITING, 4, of the flags in /proc/PID/stat; proc(5)).
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && fields[0] != "Z" && flags&4 == 0
}

func TestExecute(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	spaced := filepath.Join(dir, "a program")
	if err := os.WriteFile(spaced, []byte("#!/bin/sh\necho ran \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		in   *pb.ExecuteRequest
		want *pb.ExecuteResponse
	}{
		{"line of shell", &pb.ExecuteRequest{Command: "echo $((1+1)); exit 3"}, &pb.ExecuteResponse{Stdout: "2\n", ExitCode: 3}},
		{"program", &pb.ExecuteRequest{Command: "echo", Args: []string{"$HOME", "b c"}}, &pb.ExecuteResponse{Stdout: "$HOME b c\n"}},
		{"program with a space", &pb.ExecuteRequest{Command: spaced, Args: []string{"x"}}, &pb.ExecuteResponse{Stdout: "ran x\n"}},
		{"lone program goes through the shell", &pb.ExecuteRequest{Command: "'" + spaced + "'"}, &pb.ExecuteResponse{Stdout: "ran\n"}},
		{"stderr", &pb.ExecuteRequest{Command: "echo e >&2"}, &pb.ExecuteResponse{Stderr: "e\n"}},
		{"directory", &pb.ExecuteRequest{Command: "pwd", WorkingDirectory: dir}, &pb.ExecuteResponse{Stdout: dir + "\n"}},
		{"no directory given", &pb.ExecuteRequest{Command: "pwd"}, &pb.ExecuteResponse{Stdout: "/\n"}},
		{"environment", &pb.ExecuteRequest{Command: "echo $A-$LANG", Environment: map[string]string{"A": "x", "LANG": "C"}}, &pb.ExecuteResponse{Stdout: "x-C\n"}},
		{"nothing to read", &pb.ExecuteRequest{Command: "cat"}, &pb.ExecuteResponse{}},
		{"signal", &pb.ExecuteRequest{Command: "kill -9 $$"}, &pb.ExecuteResponse{ExitCode: 137, Error: "ended by signal 9 (killed)"}},
		{"no program", &pb.ExecuteRequest{Command: "/no/such", Args: []string{"x"}},
			&pb.ExecuteResponse{ExitCode: -1, Error: "execute /no/such: program: no such file or directory"}},
		{"no directory", &pb.ExecuteRequest{Command: "true", WorkingDirectory: "/no/such"},
			&pb.ExecuteResponse{ExitCode: -1, Error: "execute /no/such: directory: no such file or directory"}},
		{"no user", &pb.ExecuteRequest{Command: "touch " + dir + "/never", RunAsUser: "nobody-knows"},
			&pb.ExecuteResponse{ExitCode: -1, Error: "execute nobody-knows: there is no such user"}},
		{"no group", &pb.ExecuteRequest{Command: "touch " + dir + "/never", RunAsGroup: "nobody-knows"},
			&pb.ExecuteResponse{ExitCode: -1, Error: "execute group nobody-knows: there is no such group"}},
		{"no command", &pb.ExecuteRequest{}, &pb.ExecuteResponse{ExitCode: -1, Error: "execute: no command"}},
		{"bad environment", &pb.ExecuteRequest{Command: "true", Environment: map[string]string{"A=B": ""}},
			&pb.ExecuteResponse{ExitCode: -1, Error: `execute: environment variable "A=B" cannot be set`}},
		{"environment of two lines", &pb.ExecuteRequest{Command: "true", Environment: map[string]string{"A\nB": ""}},
			&pb.ExecuteResponse{ExitCode: -1, Error: `execute: environment variable "A\nB" cannot be set`}},
	} {
		c.in.WaitForExit = true
		got := native(t, table, c.in)
		got.DurationMs = 0
		if !proto.Equal(got, c.want) {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if _, err := os.Stat(dir + "/never"); err == nil {
		t.Error("a command ran as nobody asked")
	}
}

func TestExecuteKeepsOutputOnTimeout(t *testing.T) {
	_, table := room(t, Config{})
	got := native(t, table, &pb.ExecuteRequest{Command: "echo a; echo b >&2; sleep 60; true", TimeoutSeconds: 1, WaitForExit: true})
	if got.GetStdout() != "a\n" || got.GetStderr() != "b\n" || !got.GetTimedOut() || got.GetExitCode() != -1 || got.GetDurationMs() < 1000 ||
		!strings.HasPrefix(got.GetError(), "timed out after 1s, then ended by signal ") || strings.Contains(got.GetError(), "maximum") {
		t.Error(got)
	}
}

func TestExecuteSaysThatTheMaximumWasApplied(t *testing.T) {
	_, table := room(t, Config{MaxTimeout: time.Second})
	got := native(t, table, &pb.ExecuteRequest{Command: "sleep 60", TimeoutSeconds: 3600, WaitForExit: true})
	if !got.GetTimedOut() || !strings.Contains(got.GetError(), "1h0m0s were asked for, but the configured maximum is 1s") {
		t.Error(got)
	}
	if got := native(t, table, &pb.ExecuteRequest{Command: "sleep 60", WaitForExit: true}); !got.GetTimedOut() {
		t.Error("no timeout means the maximum", got)
	}
}

func TestExecuteKeepsOutputWhenCancelled(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		eventually(t, "the command", func() bool { _, err := os.Stat(dir + "/a"); return err == nil })
		cancel(errors.New("the host asked for it"))
	}()
	got := nativeContext(ctx, t, table, &pb.ExecuteRequest{Command: "echo part; echo $$ >" + dir + "/a; sleep 60; true", WaitForExit: true})
	if got.GetStdout() != "part\n" || got.GetExitCode() != 143 || got.GetError() != "cancelled: the host asked for it: ended by signal 15 (terminated)" {
		t.Error(got)
	}
	if alive(pidIn(t, dir+"/a")) {
		t.Error("it survives")
	}
}

func TestExecuteDetached(t *testing.T) {
	_, table := room(t, Config{MaxTimeout: time.Second})
	dir := t.TempDir()
	got := native(t, table, &pb.ExecuteRequest{Command: "cd " + dir + "; echo $$ >pid; sleep 1.5; echo x; echo y >&2; touch done"})
	if got.GetExitCode() != 0 || got.GetError() != "" || got.GetStdout() != "" {
		t.Error(got)
	}
	pid := pidIn(t, dir+"/pid")
	if session, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(session), fmt.Sprintf(" %d %d ", pid, pid)) {
		t.Errorf("not a session of its own: %s", session)
	}
	eventually(t, "the end of the command", func() bool { _, err := os.Stat(dir + "/done"); return err == nil })
	eventually(t, "no process", func() bool { return !alive(pid) })
	if got := native(t, table, &pb.ExecuteRequest{Command: "/no/such", Args: []string{"x"}}); got.GetExitCode() != -1 || got.GetError() == "" {
		t.Error(got)
	}
}

func TestExecuteAsUserHasALoginOfItsOwn(t *testing.T) {
	needRoot(t)
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	_, table := room(t, Config{})
	for _, c := range []struct {
		in   *pb.ExecuteRequest
		want string
	}{
		{&pb.ExecuteRequest{RunAsUser: "nobody", Command: "echo $(id -un) $(id -G) $HOME $USER $LOGNAME $PWD $SECRET_OF_THE_AGENT"},
			"nobody 65534 /nonexistent nobody nobody /\n"},
		{&pb.ExecuteRequest{RunAsUser: "daemon", Command: "echo $HOME $USER $PWD"}, "/usr/sbin daemon /usr/sbin\n"},
		{&pb.ExecuteRequest{RunAsGroup: "daemon", Command: "echo $(id -u) $(id -g) $(id -G)"}, "0 1 1\n"},
		{&pb.ExecuteRequest{RunAsUser: "nobody", RunAsGroup: "daemon", Command: "echo $(id -u) $(id -G)"}, "65534 1\n"},
	} {
		c.in.WaitForExit = true
		if got := native(t, table, c.in); got.GetStdout() != c.want {
			t.Errorf("%v: %v", c.in, got)
		}
	}
}

func TestExecuteEscapesWhatIsNotUTF8(t *testing.T) {
	_, table := room(t, Config{})
	for _, c := range []struct {
		line, want string
		bound      uint32
		truncated  bool
	}{
		{`printf '\377\000ok'`, "\\xff\x00ok", 0, false},
		{`printf 'a\360\237\230\200b'`, "a😀b", 0, false},
		{`printf 'a\360\237\230\200b'`, "a", 3, true}, // not half of it, nor its bytes escaped
		{`printf 'a\360\237\230\200b'`, "a😀", 5, true},
		{`printf 'a\360\237'`, `a\xf0\x9f`, 0, false}, // cut by nobody
		{`printf 'a\377\377'`, `a\xff`, 2, true},
	} {
		got := native(t, table, &pb.ExecuteRequest{Command: c.line, MaxOutputBytes: c.bound, WaitForExit: true})
		if got.GetStdout() != c.want || got.GetTruncated() != c.truncated {
			t.Errorf("%s %d: %q %v", c.line, c.bound, got.GetStdout(), got.GetTruncated())
		}
	}
}

func TestExecuteReplyFitsAFrame(t *testing.T) {
	_, table := room(t, Config{})
	line := "head -c 9000000 /dev/zero | tr '\\0' '\\377' >&2; head -c 9000000 /dev/zero | tr '\\0' '\\376'"
	got := native(t, table, &pb.ExecuteRequest{Command: line, MaxOutputBytes: 1<<32 - 1, WaitForExit: true})
	if size := proto.Size(got); size > 16<<20-1024 || size < 12<<20 || !got.GetTruncated() {
		t.Errorf("%d %v", size, got.GetTruncated())
	}
	if !strings.HasSuffix(got.GetStdout(), `\xfe`) || !strings.HasSuffix(got.GetStderr(), `\xff`) {
		t.Error("cut within an escape")
	}
}

func TestTextIsAlwaysValid(t *testing.T) {
	raw := []byte("ab\xf0\x9f\x98\x80\xff\xc3\xa4z\xe2\x82")
	for end := range len(raw) + 1 {
		for budget := range 40 {
			for _, wasCut := range []bool{false, true} {
				got, _ := outputText(raw[:end], wasCut, budget)
				if !utf8.ValidString(got) || len(got) > budget {
					t.Errorf("%q %d: %q", raw[:end], budget, got)
				}
			}
		}
	}
}

// tx is a transaction that takes notes.
type tx struct {
	builtins.Tx
	before []string
	undo   []proto.Message
	fail   error
	look   func() // called at each note
}

func (x *tx) BeforeTree(ctx context.Context, paths ...string) error { return x.Before(ctx, paths...) }

func (x *tx) BeforeTouch(ctx context.Context, paths ...string) ([]builtins.Touched, error) {
	return nil, x.Before(ctx, paths...)
}

func (x *tx) UndeclaredChanges(context.Context, string) ([]*pb.Change, error) { return nil, nil }

func (x *tx) Irreversible(context.Context, *pb.Change) error { return nil }
func (x *tx) NotBegun()                                      {}

func (x *tx) Before(_ context.Context, paths ...string) error {
	if x.look != nil {
		x.look()
	}
	x.before = append(x.before, paths...)
	return x.fail
}

func (x *tx) Undo(_ context.Context, op string, args proto.Message) error {
	if x.look != nil {
		x.look()
	}
	if op != "exec.undo" {
		return fmt.Errorf("undone by %s", op)
	}
	x.undo = append(x.undo, args)
	return x.fail
}

// calling is a script's call.
type calling struct {
	table   *table
	tx      *tx
	changes []*pb.Change
	dry     *builtins.DryRun

	warnings []string
}

func (c *calling) invoke(name string, in proto.Message) (*pb.RunResult, error) {
	call := &builtins.Call{DryRun: c.dry, Changed: func(change *pb.Change) { c.changes = append(c.changes, change) }}
	call.Warned = func(text string) { c.warnings = append(c.warnings, text) }
	if c.tx != nil {
		call.Tx = c.tx
	}
	out, err := c.table.Invoke(context.Background(), call, c.table.Script(name), in)
	if err != nil {
		return nil, err
	}
	return out.(*pb.RunResult), nil
}

func TestRunMustSayWhatItIs(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	argv := []string{"touch", dir + "/never"}
	for _, in := range []*pb.RunArgs{
		{Argv: argv},
		{Argv: argv, Readonly: true, Irreversible: true},
		{Argv: argv, Undo: []string{"true"}, Touches: []string{dir}},
	} {
		c := &calling{table: table, tx: &tx{}}
		_, err := c.invoke("exec.run", in)
		var f *fault.Error
		if !errors.Is(err, fault.ErrRefused) || !errors.As(err, &f) || !strings.Contains(f.Hint, "readonly = true") || f.Op != "exec.run" || f.Object != "touch" {
			t.Errorf("%v: %v", in, err)
		}
	}
	for _, in := range []*pb.RunArgs{
		{Readonly: true},
		{Argv: argv, Irreversible: true, Unconfined: true},
		{Argv: argv, Touches: []string{"relative"}},
		{Argv: argv, Touches: []string{"/x/.."}},
		{Argv: argv, Irreversible: true, Timeout: -1},
	} {
		c := &calling{table: table, tx: &tx{}}
		if _, err := c.invoke("exec.run", in); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v: %v", in, err)
		}
	}
	if _, err := os.Stat(dir + "/never"); err == nil {
		t.Error("it ran")
	}
}

func TestRunKeepsTheUndoBeforeItStarts(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	there := func() bool { _, err := os.Stat(dir + "/made"); return err == nil }
	x := &tx{look: func() {
		if there() {
			t.Error("it ran before")
		}
	}}
	c := &calling{table: table, tx: x}
	in := &pb.RunArgs{Argv: []string{"touch", "made"}, Cwd: dir, Undo: []string{"rm", "-f", "made"}, Env: map[string]string{"A": "x"}, Timeout: 9}
	if _, err := c.invoke("exec.run", in); err != nil || !there() {
		t.Fatal(err)
	}
	want := &pb.RunArgs{Argv: in.Undo, Cwd: dir, Env: in.Env, Timeout: 9}
	if len(x.undo) != 1 || !proto.Equal(x.undo[0], want) {
		t.Errorf("%v", x.undo)
	}
	if len(c.changes) != 1 || !proto.Equal(c.changes[0], &pb.Change{Op: "exec.run", Target: "touch made", Action: "ran", Reversible: true, State: pb.ChangeState_CHANGE_STATE_APPLIED}) {
		t.Errorf("%v", c.changes)
	}
	for range 2 { // it may come twice, as after a crash in between
		if _, err := c.invoke("exec.undo", x.undo[0]); err != nil || there() {
			t.Error(err)
		}
	}
	if _, err := c.invoke("exec.undo", &pb.RunArgs{Argv: []string{"false"}}); !errors.Is(err, fault.ErrOutput) {
		t.Error("an undo that fails must be known", err)
	}
}

func TestRunDoesNotStartWhereTheJournalFails(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	for _, in := range []*pb.RunArgs{{Undo: []string{"true"}}, {Touches: []string{dir}}} {
		in.Argv = []string{"touch", dir + "/never"}
		c := &calling{table: table, tx: &tx{fail: syscall.ENOSPC}}
		if _, err := c.invoke("exec.run", in); !errors.Is(err, syscall.ENOSPC) || len(c.changes) > 0 {
			t.Error(err, c.changes)
		}
	}
	if _, err := os.Stat(dir + "/never"); err == nil {
		t.Error("it ran")
	}
}

func TestRunTouchesWhatItSays(t *testing.T) {
	r, table := room(t, Config{})
	dir := t.TempDir()
	os.WriteFile(dir+"/a", []byte("old"), 0o600)
	os.WriteFile(dir+"/b", []byte("old"), 0o600)
	c := &calling{table: table, tx: &tx{}}
	line := &pb.ShellArgs{Command: "echo new >a; echo new >b", Cwd: dir, Touches: []string{dir + "/./a"}}
	_, err := c.invoke("exec.sh", line)
	if !slices.Equal(c.tx.before, []string{dir + "/a"}) {
		t.Errorf("%v", c.tx.before)
	}
	if len(c.changes) != 1 || !c.changes[0].GetReversible() || c.changes[0].GetTarget() != line.Command {
		t.Errorf("%v", c.changes)
	}
	if how := r.confinement(); how != "mount-namespace" {
		t.Skipf("%s: run as root, where mount namespaces may be made", how)
	}
	var f *fault.Error
	if !errors.Is(err, fault.ErrOutput) || !errors.As(err, &f) || !strings.Contains(f.Hint, "touches") {
		t.Error(err)
	}
	if a, _ := os.ReadFile(dir + "/a"); string(a) != "new\n" {
		t.Errorf("%q", a)
	}
	if b, _ := os.ReadFile(dir + "/b"); string(b) != "old" {
		t.Errorf("%q", b)
	}
	line.Unconfined = true
	if _, err := c.invoke("exec.sh", line); err != nil {
		t.Error(err)
	}
}

// No before-image can be kept of what keeps the before-images.
func TestRunDoesNotTouchTheAgentsOwnFiles(t *testing.T) {
	r, table := room(t, Config{})
	dir := t.TempDir()
	err := errors.Join(os.MkdirAll(dir+"/state/tx", 0o755), os.Mkdir(dir+"/bound", 0o755))
	if err = errors.Join(err, os.Symlink("state", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	r.guest.Protected = []string{dir + "/state"}
	places := []string{"/state", "/state/tx", "/state/new", "/link", "/link/tx", "/state/tx/../key"}
	if os.Getuid() == 0 && syscall.Mount(dir+"/state/tx", dir+"/bound", "", syscall.MS_BIND, "") == nil {
		defer syscall.Unmount(dir+"/bound", syscall.MNT_DETACH)
		r.guest.Protected = append(r.guest.Protected, dir+"/state/tx")
		places = append(places, "/bound/open")
	}
	for _, place := range places {
		for _, unconfined := range []bool{false, true} {
			c := &calling{table: table, tx: &tx{}}
			in := &pb.RunArgs{Argv: []string{"true"}, Touches: []string{dir + place}, Unconfined: unconfined}
			_, err := c.invoke("exec.run", in)
			if fault.Code(err) != "refused" || len(c.tx.before) > 0 {
				t.Errorf("%s: %v, kept %v", place, err, c.tx.before)
			}
		}
	}
}

func TestRunReadonlyIsNoChange(t *testing.T) {
	r, table := room(t, Config{})
	dir := t.TempDir()
	c := &calling{table: table, tx: &tx{}}
	got, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"cat"}, Stdin: []byte("in\xff"), Readonly: true})
	if err != nil || string(got.GetStdout()) != "in\xff" || len(c.changes) > 0 {
		t.Error(got, err, c.changes)
	}
	if how := r.confinement(); how != "mount-namespace" {
		t.Skipf("%s: run as root, where mount namespaces may be made", how)
	}
	for _, path := range []string{"/etc/quantix-never", "/usr/quantix-never"} {
		if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"touch", path}, Readonly: true}); !errors.Is(err, fault.ErrOutput) {
			t.Error(path, err)
		}
	}
	for _, path := range []string{dir + "/never", "/run/quantix-never", "/var/lib/quantix-never"} { // seen by the command alone
		_, err := c.invoke("exec.sh", &pb.ShellArgs{Command: "touch " + path + " && test -e " + path, Readonly: true, Private: true})
		if _, left := os.Stat(path); err != nil || !errors.Is(left, fs.ErrNotExist) {
			t.Error(path, err, left)
		}
	}
}

func TestRunRaisesOnANonZeroExit(t *testing.T) {
	_, table := room(t, Config{})
	c := &calling{table: table, tx: &tx{}}
	in := &pb.ShellArgs{Command: "echo out; echo 'no such thing' >&2; exit 4", Irreversible: true}
	_, err := c.invoke("exec.sh", in)
	if !errors.Is(err, fault.ErrOutput) || err.Error() != "exec.sh sh: exit code 4: no such thing" {
		t.Error(err)
	}
	if len(c.changes) != 1 || c.changes[0].GetReversible() {
		t.Error(c.changes)
	}
	in.Check = proto.Bool(false)
	got, err := c.invoke("exec.sh", in)
	if err != nil || got.GetCode() != 4 || string(got.GetStdout()) != "out\n" || string(got.GetStderr()) != "no such thing\n" {
		t.Error(got, err)
	}
	if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"/no/such"}, Irreversible: true}); !errors.Is(err, fs.ErrNotExist) || len(c.changes) != 2 {
		t.Error("what was not started changed nothing", err, c.changes)
	}
	start := time.Now()
	_, err = c.invoke("exec.run", &pb.RunArgs{Argv: []string{"sleep", "60"}, Irreversible: true, Timeout: 0.2, Check: proto.Bool(false)})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Error(err)
	}
}

func TestDryRun(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	for _, in := range []*pb.RunArgs{{Undo: []string{"true"}}, {Touches: []string{dir}}, {Irreversible: true}} {
		in.Argv = []string{"touch", dir + "/never"}
		c := &calling{table: table, dry: &builtins.DryRun{}}
		_, err := c.invoke("exec.run", in)
		if !errors.Is(err, fault.ErrRefused) || c.dry.Ended == nil || len(c.changes) != 1 || c.changes[0].State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
			t.Error(err, c.dry.Ended, c.changes)
		}
		in.Plan = "makes a file"
		c = &calling{table: table, dry: &builtins.DryRun{}}
		_, err = c.invoke("exec.run", in)
		if err != nil || c.dry.Ended != nil || len(c.changes) != 1 || c.changes[0].State != pb.ChangeState_CHANGE_STATE_WOULD || c.changes[0].Diff != "makes a file" {
			t.Error(err, c.dry.Ended, c.changes)
		}
	}
	look := &pb.RunArgs{Argv: []string{"echo", "read"}, Readonly: true}
	c := &calling{table: table, dry: &builtins.DryRun{}}
	if got, err := c.invoke("exec.run", look); err != nil || string(got.GetStdout()) != "read\n" || len(c.changes) > 0 {
		t.Error(got, err, c.changes)
	}
	c.dry.Changed = true
	if got, err := c.invoke("exec.run", look); err != nil || string(got.GetStdout()) != "read\n" || c.changes[0].State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
		t.Error(got, err, c.changes)
	}
	// What fails may do so for want of what is only pretended.
	c = &calling{table: table, dry: &builtins.DryRun{Changed: true}}
	if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"false"}, Readonly: true}); err == nil || c.dry.Ended == nil || len(c.changes) != 1 {
		t.Error(err, c.dry.Ended, c.changes)
	}
	c = &calling{table: table, dry: &builtins.DryRun{}}
	if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"false"}, Readonly: true}); err == nil || c.dry.Ended != nil || len(c.changes) > 0 {
		t.Error(err, c.dry.Ended, c.changes)
	}
	// A command may run as a user that was made before.
	asNew := &pb.RunArgs{Argv: []string{"id"}, User: "quantix-nobody", Irreversible: true, Plan: "runs as it"}
	if _, err := c.invoke("exec.run", asNew); err == nil {
		t.Error("there is no such user")
	}
	c.dry.Changed = true
	if _, err := c.invoke("exec.run", asNew); err != nil || !c.dry.Planned {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/never"); err == nil {
		t.Error("it ran")
	}
}

func TestScriptCommandLeavesNothingRunning(t *testing.T) {
	_, table := room(t, Config{})
	dir := t.TempDir()
	c := &calling{table: table, tx: &tx{}}
	_, err := c.invoke("exec.sh", &pb.ShellArgs{Command: "cd " + dir + "; setsid sh -c 'echo $$ >a; sleep 300' & while ! test -s a; do :; done", Irreversible: true})
	if err != nil {
		t.Fatal(err)
	}
	if pid := pidIn(t, dir+"/a"); alive(pid) {
		t.Error("it survives")
	}
}

func TestRootNeedsRoot(t *testing.T) {
	_, table := roomIn(t, t.TempDir(), Config{})
	c := &calling{table: table, tx: &tx{}}
	_, err := c.invoke("exec.run", &pb.RunArgs{Argv: []string{"/bin/true"}, Irreversible: true})
	if os.Getuid() == 0 {
		if !errors.Is(err, fs.ErrNotExist) { // there is nothing in it, and nothing outside is taken for it
			t.Error(err)
		}
	} else if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "commands under --root need root") {
		t.Error(err)
	}
}

func TestQuote(t *testing.T) {
	if got := Quote([]string{"ls", "-l", "a b", "it's", "", "$x", "ä=1"}); got != `ls -l 'a b' 'it'\''s' '' '$x' ä=1` {
		t.Error(got)
	}
}
