package core

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a runner where it is started as one, and else runs the tests in namespaces of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	if code, ran := inOwnNamespaces(); ran {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// inOwnNamespaces runs this program once more, where its mounts are not seen by others: an agent elsewhere on this machine that
// sees a frozen file system while it runs a command takes that for the command's work. ran is false where it is that program
// already, or that cannot be done.
func inOwnNamespaces() (code int, ran bool) {
	const mark = "QUANTIX_TEST_OWN_NAMESPACES"
	unshare := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"}
	self, err := os.Executable()
	if err != nil || os.Geteuid() != 0 || os.Getenv(mark) != "" || exec.Command("unshare", append(unshare, "true")...).Run() != nil {
		return 0, false
	}
	cmd := exec.Command("unshare", slices.Concat(unshare, []string{self}, os.Args[1:])...)
	cmd.Env = append(os.Environ(), mark+"=1")
	if s := (unix.Statfs_t{}); unix.Statfs("/dev/shm", &s) == nil && s.Type == unix.TMPFS_MAGIC {
		cmd.Env = append(cmd.Env, "TMPDIR=/dev/shm") // a thaw ends with a sync of the image, which other tests would delay
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return max(cmd.ProcessState.ExitCode(), 1), true
	}
	return 0, true
}

// testDisk mounts an ext4 of its own.
func testDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20), os.Mkdir(point, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, point}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs loop devices and mkfs.ext4: %v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		var err error
		for range 50 {
			if err = unix.Unmount(point, 0); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("umount %s: %v", point, err)
		_ = unix.Unmount(point, unix.MNT_DETACH)
	})
	return point
}

// freezingCore is an agent's inside that may freeze, with its state directory on a disk of its own.
func freezingCore(t *testing.T, disk string) *Core {
	t.Helper()
	pool := sandbox.New(sandbox.Config{})
	config := Config{
		Root: "/", State: filepath.Join(disk, "state"), Pool: pool, Library: script.NewLibrary(1 << 20),
		BootID: func() string { return "boot" }, MachineID: func() string { return "machine" },
	}
	config.Rooms.Machine = true
	core, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(core.Rooms.Release(), core.Close()); err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	return core
}

func ask[Out proto.Message](t *testing.T, core *Core, in proto.Message) (Out, error) {
	t.Helper()
	op := core.Calls.Native(in)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := core.Calls.Execute(ctx, &builtins.Call{ID: nextID()}, op, in)
	if err != nil {
		out = op.ErrorReply(err)
	}
	return out.(Out), err
}

var ids int

func nextID() string { ids++; return "id" + strings.Repeat("x", ids) }

// While a file system is frozen, requests that need it are refused at once, and those that do not are served.
func TestRequestsWhileFrozen(t *testing.T) {
	disk := testDisk(t)
	core := freezingCore(t, disk)
	elsewhere := t.TempDir()
	link := filepath.Join(elsewhere, "link")
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	frozen, err := ask[*pb.QuiesceFilesystemsResponse](t, core, &pb.QuiesceFilesystemsRequest{MountPoints: []string{disk}})
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string) *pb.FileWriteRequest {
		return &pb.FileWriteRequest{Path: path, Data: []byte("x"), Eof: true}
	}
	for name, in := range map[string]proto.Message{
		"a write": write(disk + "/x"), "a write by a link": write(link + "/x"), "a read": &pb.FileReadRequest{Path: disk + "/x"},
		"a list":                     &pb.ListDirectoryRequest{Path: disk},
		"what removes a tree":        &pb.FileDeleteRequest{Path: filepath.Dir(disk), Recursive: true},
		"a command there":            &pb.ExecuteRequest{Command: "true", WorkingDirectory: disk, WaitForExit: true},
		"what has a transaction":     &pb.ResetPasswordRequest{Username: disk},
		"a second freeze of the one": &pb.QuiesceFilesystemsRequest{MountPoints: []string{disk}},
	} {
		begun := time.Now()
		if name == "what has a transaction" {
			continue // it waits within its time, as a script does
		}
		if _, err := ask[proto.Message](t, core, in); !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), "frozen") {
			t.Errorf("%s: %v after %v", name, err, time.Since(begun))
		}
	}
	if _, err := ask[*pb.FileWriteResponse](t, core, write(elsewhere+"/x")); err != nil {
		t.Error(err)
	}
	if out, err := ask[*pb.ExecuteResponse](t, core, &pb.ExecuteRequest{Command: "echo served", WaitForExit: true}); err != nil || !strings.Contains(out.Stdout, "served") {
		t.Error(out, err)
	}
	if report := core.Rooms.Telemetry(t.Context()); report == nil {
		t.Error("no telemetry")
	}
	if _, err := ask[*pb.ThawFilesystemsResponse](t, core, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken}); err != nil {
		t.Error(err)
	}
	if _, err := ask[*pb.FileWriteResponse](t, core, write(disk+"/x")); err != nil {
		t.Error(err)
	}
}

// A script waits for the thaw within its time, and one whose time is over is busy. A freeze waits for the call that is under
// way, and the script goes on after the thaw.
func TestScriptsWhileFrozen(t *testing.T) {
	disk := testDisk(t)
	core := freezingCore(t, disk)
	freeze := func() string {
		t.Helper()
		out, err := ask[*pb.QuiesceFilesystemsResponse](t, core, &pb.QuiesceFilesystemsRequest{MountPoints: []string{disk}})
		if err != nil {
			t.Fatal(err)
		}
		return out.QuiesceToken
	}
	thaw := func(token string) {
		t.Helper()
		if out, err := ask[*pb.ThawFilesystemsResponse](t, core, &pb.ThawFilesystemsRequest{QuiesceToken: token}); err != nil {
			t.Error(out, err)
		}
	}
	run := func(source string, timeout uint32) <-chan *pb.RunScriptResponse {
		done := make(chan *pb.RunScriptResponse, 1)
		in := &pb.RunScriptRequest{Source: []byte(source), TimeoutSeconds: timeout}
		id := nextID()
		go func() {
			out, err := core.Calls.Execute(t.Context(), &builtins.Call{ID: id}, core.Calls.Native(in), in)
			if err != nil {
				t.Error(err)
			}
			done <- out.(*pb.RunScriptResponse)
		}()
		return done
	}
	token := freeze()
	late := <-run(`file.write("`+disk+`/late", "x")`, 1)
	if late.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || late.Error == nil {
		t.Error(late)
	}
	waits := run(`file.write("`+disk+`/waited", "x")`, 60)
	select {
	case out := <-waits:
		t.Fatal("it does not wait: ", out)
	case <-time.After(500 * time.Millisecond):
	}
	thaw(token)
	if out := <-waits; out.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(out)
	}
	if _, err := os.Stat(disk + "/waited"); err != nil {
		t.Error(err)
	}

	began := filepath.Join(t.TempDir(), "began")
	long := run(`file.write("`+disk+`/before", "x")
		exec.run({"sh", "-c", "echo >`+began+`; sleep 1; echo x >`+disk+`/during"}, {touches = {"`+disk+`/during"}, unconfined = true})
		file.write("`+disk+`/after", "x")`, 60)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(began); err == nil {
			break
		}
	}
	token = freeze()
	if _, err := os.Stat(disk + "/during"); err != nil {
		t.Error("the freeze has not waited for the call:", err)
	}
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Stat(disk + "/after"); err == nil {
		t.Error("a call ran while all was frozen")
	}
	thaw(token)
	if out := <-long; out.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(out)
	}
}

// A Lua hook is a script that is told of the freeze and the thaw; one that fails keeps it from beginning.
func TestLuaHooks(t *testing.T) {
	disk := testDisk(t)
	dir, err := os.MkdirTemp("/root", "quiesce-hooks-") // which others than root may not write to
	if err != nil {
		t.Skip("needs a directory of root's own: ", err)
	}
	defer os.RemoveAll(dir)
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	config := Config{Root: "/", State: filepath.Join(t.TempDir(), "state"), Pool: pool, Library: script.NewLibrary(1 << 20)}
	config.Rooms.Machine, config.Rooms.FreezeHooks = true, dir
	core, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	told := filepath.Join(t.TempDir(), "told")
	put := func(body string) {
		t.Helper()
		text := `return script {
			name = "hook", version = "1", description = "is told of a freeze",
			params = { phase = { type = "string", required = true } },
			needs = { "file:` + told + `" },
			run = function(p) ` + body + ` end,
		}`
		if err := os.WriteFile(filepath.Join(dir, "hook.lua"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(`file.append("` + told + `", p.phase .. "\n")`)
	frozen, err := ask[*pb.QuiesceFilesystemsResponse](t, core, &pb.QuiesceFilesystemsRequest{MountPoints: []string{disk}, RunPreFreezeScripts: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask[*pb.ThawFilesystemsResponse](t, core, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken}); err != nil {
		t.Error(err)
	}
	heard := func(want string) {
		t.Helper()
		var text []byte
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && string(text) != want; time.Sleep(20 * time.Millisecond) {
			text, _ = os.ReadFile(told)
		}
		if string(text) != want {
			t.Errorf("the hook has heard %q, want %q", text, want)
		}
	}
	heard("freeze\nthaw\n")
	put(`file.append("/etc/motd", p.phase)`) // which it has no right to
	if _, err := ask[*pb.QuiesceFilesystemsResponse](t, core, &pb.QuiesceFilesystemsRequest{MountPoints: []string{disk}, RunPreFreezeScripts: true}); !errors.Is(err, fault.ErrOutput) || !strings.Contains(err.Error(), "hook.lua") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "written"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := core.Rooms.Release(); err != nil {
		t.Error(err)
	}
}
