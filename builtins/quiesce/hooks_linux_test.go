package quiesce

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// hookRoom is a room with directories for hooks, and the file that these write to.
type hookRoom struct {
	*Room
	before, after, told string
}

func newHookRoom(t *testing.T, config Config) *hookRoom {
	t.Helper()
	dir := t.TempDir()
	h := &hookRoom{before: filepath.Join(dir, "before"), after: filepath.Join(dir, "after"), told: filepath.Join(dir, "told")}
	if err := errors.Join(os.Mkdir(h.before, 0o755), os.Mkdir(h.after, 0o755)); err != nil {
		t.Fatal(err)
	}
	config.FreezeHooks, config.ThawHooks = h.before, h.after
	h.Room = newRoom(t, config)
	h.trusted = dir
	return h
}

// put makes a hook that writes its name and what it is told, and then does what body says.
func (h *hookRoom) put(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	text := "#!/bin/sh\necho \"$(basename $0) $1\" >>" + h.told + "\n" + body + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// heard returns what the hooks were told since the last time.
func (h *hookRoom) heard(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(h.told)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	_ = os.Remove(h.told)
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

// Hooks are told in the order of their names, and of the thaw in the other; a file of the same name in the directory for the
// thaw stands for the hook, and others there come last.
func TestHooks(t *testing.T) {
	r := newHookRoom(t, Config{})
	a := disk(t, "a")
	r.put(t, r.before, "20-second", "")
	r.put(t, r.before, "10-first", "echo said by the first")
	r.put(t, r.before, "30-third", "")
	r.put(t, r.after, "30-third", "")
	r.put(t, r.after, "99-alone", "")
	if err := os.WriteFile(filepath.Join(r.before, "README"), []byte("not a hook"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true, PreFreezeScriptDir: r.before + "/"})
	if got := r.heard(t); got != "10-first freeze, 20-second freeze, 30-third freeze" {
		t.Error(got)
	}
	if len(out.Hooks) != 3 || out.Hooks[0].Output != "said by the first\n" || out.Hooks[0].Phase != "freeze" {
		t.Error(out.Hooks)
	}
	done := mustThaw(t, r.Room, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if done.HooksRunning || len(done.Hooks) != 4 {
		t.Error(done)
	}
	if got := r.heard(t); got != "30-third thaw, 20-second thaw, 10-first thaw, 99-alone thaw" {
		t.Error(got)
	}
	mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	mustThaw(t, r.Room, &pb.ThawFilesystemsRequest{})
	if got := r.heard(t); got != "" {
		t.Error("no hook was asked for, and there ran ", got)
	}
	mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	mustThaw(t, r.Room, &pb.ThawFilesystemsRequest{RunPostThawScripts: true})
	if got := r.heard(t); got != "30-third thaw, 99-alone thaw" {
		t.Error(got)
	}
}

// A hook that fails keeps the freeze from beginning, and those that were told are told of the end: by freezeFail if they know
// that.
func TestHookThatFails(t *testing.T) {
	r := newHookRoom(t, Config{})
	a := disk(t, "a")
	r.put(t, r.before, "10-first", "")
	r.put(t, r.before, "20-vmware", "# knows freezeFail")
	r.put(t, r.before, "30-fails", "[ $1 = freeze ] && { echo no lock >&2; exit 3; }; exit 0")
	r.put(t, r.before, "40-never", "")
	out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true})
	if !errors.Is(err, fault.ErrOutput) || !strings.Contains(err.Error(), "30-fails") || !strings.Contains(err.Error(), "no lock") || !canWrite(t, a) {
		t.Error(out, err)
	}
	eventually(t, "the hooks are told", func() bool { return r.config.Frozen.Check(builtins.Access{}) == nil && !r.Room.holds() })
	if got := r.heard(t); got != "10-first freeze, 20-vmware freeze, 30-fails freeze, 30-fails thaw, 20-vmware freezeFail, 10-first thaw" {
		t.Error(got)
	}
}

// holds reports whether a set is there.
func (r *Room) holds() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sets) > 0
}

// The hooks are told of a freeze that failed after them, of one that ended by its time, and of one whose agent was killed.
func TestHooksHearOfEveryEnd(t *testing.T) {
	note := filepath.Join(t.TempDir(), "frozen")
	r := newHookRoom(t, Config{Frozen: freeze.New(freeze.Config{Note: note})})
	a, b := disk(t, "a"), disk(t, "b")
	r.put(t, r.before, "hook", "")
	h := hang(t, r.Room, b)
	r.freezeTime = 500 * time.Millisecond
	if _, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}, RunPreFreezeScripts: true}); err == nil {
		t.Error("frozen")
	}
	r.freezeTime = freezeTime
	close(h.release)
	eventually(t, "the end of the freeze that failed", func() bool { return !r.holds() })
	if got := r.heard(t); got != "hook freeze, hook thaw" {
		t.Error(got)
	}
	out := mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true, TimeoutSeconds: 1})
	eventually(t, "the end of its time", func() bool { return !r.holds() })
	if got := r.heard(t); got != "hook freeze, hook thaw" {
		t.Error(got)
	}
	if _, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken, RunPostThawScripts: true}); err == nil || r.heard(t) != "" {
		t.Error(err)
	}
	mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true})
	text, err := os.ReadFile(note)
	if err == nil {
		err = os.WriteFile(note+".copy", text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.heard(t)
	next := newHookRoom(t, Config{Left: freeze.ThawLeft(note + ".copy")})
	next.trusted = r.trusted
	next.start()
	next.work.Wait()
	if got := r.heard(t); got != "hook thaw" {
		t.Error(got)
	}
	if err := r.release(); err != nil {
		t.Error(err)
	}
}

// A hook that hangs has a limit, also where a process of it holds its output open.
func TestHookThatHangs(t *testing.T) {
	r := newHookRoom(t, Config{})
	a := disk(t, "a")
	r.put(t, r.before, "hangs", "[ $1 = freeze ] && exec sleep 1000; exit 0")
	ctx, cancel := context.WithTimeout(t.Context(), replySpare+time.Second)
	defer cancel()
	if out, err := r.quiesce(ctx, &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true}); !errors.Is(err, fault.ErrOutput) && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(out, err)
	}
	if !canWrite(t, a) {
		t.Error("it is frozen")
	}
}

// What others than root could have put there is refused by name, and so is a directory that a request brings.
func TestHooksOfOthers(t *testing.T) {
	r := newHookRoom(t, Config{})
	a := disk(t, "a")
	ask := func(dir string) error {
		_, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true, PreFreezeScriptDir: dir})
		if err == nil {
			mustThaw(t, r.Room, &pb.ThawFilesystemsRequest{})
		}
		return err
	}
	if err := ask("/tmp"); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), r.before) {
		t.Error(err)
	}
	path := r.put(t, r.before, "hook", "")
	for name, change := range map[string]func() error{
		"writable by all":       func() error { return os.Chmod(path, 0o777) },
		"writable by its group": func() error { return os.Chmod(path, 0o775) },
		"another's":             func() error { return os.Chown(path, 12345, 0) },
		"in a directory that all may write to": func() error {
			return os.Chmod(r.before, 0o777)
		},
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := ask(""); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), r.before) {
			t.Error(name, err)
		}
		if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o755), os.Chmod(r.before, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.heard(t); got != "" {
		t.Error(got)
	}
	elsewhere := t.TempDir() // below a directory that all may write to
	link := filepath.Join(r.before, "link")
	if err := errors.Join(os.WriteFile(filepath.Join(elsewhere, "x"), []byte("#!/bin/sh\n"), 0o755), os.Symlink(filepath.Join(elsewhere, "x"), link)); err != nil {
		t.Fatal(err)
	}
	if err := ask(""); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), link) {
		t.Error(err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := ask(""); err != nil {
		t.Error(err)
	}
}

// Hooks that every agent has run after the others, and one of the same name replaces them. Lua hooks are run as scripts.
func TestBundledAndLuaHooks(t *testing.T) {
	var ran []string
	r := newHookRoom(t, Config{
		RunScript: func(_ context.Context, _ *builtins.Call, name string, source []byte, phase string) error {
			ran = append(ran, filepath.Base(name)+" "+string(source)+" "+phase)
			return nil
		},
	})
	r.config.Bundled = fstest.MapFS{
		"database": {Data: []byte("echo bundled $1 >>" + r.told + "\n")},
		"replaced": {Data: []byte("exit 1\n")},
	}
	a := disk(t, "a")
	r.put(t, r.before, "replaced", "")
	if err := os.WriteFile(filepath.Join(r.before, "50.lua"), []byte("return 1"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustFreeze(t, r.Room, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, RunPreFreezeScripts: true})
	mustThaw(t, r.Room, &pb.ThawFilesystemsRequest{})
	if got := r.heard(t); got != "replaced freeze, bundled freeze, bundled thaw, replaced thaw" {
		t.Error(got)
	}
	if got := strings.Join(ran, ", "); got != "50.lua return 1 freeze, 50.lua return 1 thaw" {
		t.Error(got)
	}
}
