package quiesce

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// victim is what a process of this test that is killed does: it freezes, and thaws.
type victim struct {
	Step    string   // at which it is killed
	Dir     string   // the directory of hooks is in
	Note    string   // what is frozen is noted in
	Points  []string // are frozen; the second one thaws first
	PidFile string   // for hooks that kill it
}

const victimVariable = "QUANTIX_TEST_VICTIM"

// dies is a file system at whose system calls the process is killed.
type dies struct {
	target
	step, name string
}

func (d dies) at(step string) {
	if d.step == step+" "+d.name {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

func (d dies) Sync() error { d.at("sync"); return d.target.Sync() }

func (d dies) Freeze() error {
	d.at("before the freeze of")
	err := d.target.Freeze()
	d.at("after the freeze of")
	return err
}

func (d dies) Thaw() (bool, error) {
	d.at("before the thaw of")
	was, err := d.target.Thaw()
	d.at("after the thaw of")
	return was, err
}

// TestVictim is the process that is killed.
func TestVictim(t *testing.T) {
	text := os.Getenv(victimVariable)
	if text == "" {
		t.Skip("is run by another test")
	}
	var v victim
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.PidFile, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRoom(t, Config{
		Frozen:      freeze.New(freeze.Config{Note: v.Note}),
		FreezeHooks: filepath.Join(v.Dir, "before"), ThawHooks: filepath.Join(v.Dir, "after"),
	})
	r.trusted = v.Dir
	open := r.openTarget
	r.openTarget = func(path string) (target, error) {
		opened, err := open(path)
		return dies{opened, v.Step, filepath.Base(path)}, err
	}
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: v.Points, RunPreFreezeScripts: true, TimeoutSeconds: 300})
	if v.Step == "while all is frozen" {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	time.Sleep(20 * time.Second) // a hook kills it
	t.Fatal("nothing has killed it")
}

// An agent that is killed at any step of a freeze or a thaw leaves nothing frozen once the next one has started, and each hook
// that was told of the freeze is told of the thaw.
func TestKilledAtEachStep(t *testing.T) {
	needRoot(t)
	for _, step := range []string{
		"the first hook", "the second hook", "sync b", "before the freeze of a", "after the freeze of a", "before the freeze of b",
		"after the freeze of b", "while all is frozen", "before the thaw of b", "after the thaw of b", "before the thaw of a",
		"after the thaw of a", "the second hook of the thaw", "the first hook of the thaw",
	} {
		t.Run(step, func(t *testing.T) { killedAt(t, step) })
	}
}

func killedAt(t *testing.T, step string) {
	r := newHookRoom(t, Config{})
	dir := filepath.Dir(r.before)
	a, b := disk(t, "a"), disk(t, "b")
	v := victim{Step: step, Dir: dir, Note: filepath.Join(dir, "frozen"), Points: []string{a, b}, PidFile: filepath.Join(dir, "pid")}
	for name, hook := range map[string]string{"10-first": "the first hook", "20-second": "the second hook"} {
		body := ""
		switch step { // by its pid once: the next agent tells the hook as well
		case hook:
			body = `[ "$1" = freeze ] && kill -9 $(cat ` + v.PidFile + `); exit 0`
		case hook + " of the thaw":
			body = `[ "$1" = thaw ] && kill -9 $(cat ` + v.PidFile + `) && : >` + v.PidFile + `; exit 0`
		}
		r.put(t, r.before, name, body)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimVariable+"="+string(text))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(interface{ Signaled() bool }).Signaled() != true {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	left := freeze.ThawLeft(v.Note)
	next := newHookRoom(t, Config{Left: left})
	next.trusted = dir
	next.start()
	if !canWrite(t, a) || !canWrite(t, b) {
		t.Error("it is still frozen")
	}
	next.work.Wait()
	if _, err := os.Stat(v.Note); !errors.Is(err, os.ErrNotExist) {
		t.Error("the note is still there: ", err)
	}
	heard := r.heard(t)
	for _, name := range []string{"10-first", "20-second"} {
		told, undone := strings.Contains(heard, name+" freeze"), strings.Contains(heard, name+" thaw")
		if told != undone {
			t.Errorf("%s was told of the freeze: %v, of the thaw: %v", name, told, undone)
		}
	}
	frozen := mustFreeze(t, next.Room, &pb.QuiesceFilesystemsRequest{MountPoints: v.Points}) // all works as before
	mustThaw(t, next.Room, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken})
	if _, err := next.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken}); err == nil {
		t.Error("what is thawed can be thawed again")
	}
}

// The end of the agent, and a shutdown of the guest, thaw.
func TestEndOfTheAgent(t *testing.T) {
	state := freeze.New(freeze.Config{})
	r := newRoom(t, Config{Frozen: state})
	a := disk(t, "a")
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	r.endAll("the guest is being shut down")
	if !canWrite(t, a) {
		t.Error("a shutdown does not thaw")
	}
	_, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if !errors.Is(err, fault.ErrChanged) || !strings.Contains(err.Error(), "shut down") {
		t.Error(err)
	}
	mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	if err := r.release(); err != nil || !canWrite(t, a) {
		t.Error("the end does not thaw", err)
	}
	if out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}}); err == nil {
		t.Error("frozen after the end", out)
	}
}

// The next agent thaws what a killed one left, and tells who comes with the token.
func TestKilledAgent(t *testing.T) {
	note := filepath.Join(t.TempDir(), "frozen")
	r := newRoom(t, Config{Frozen: freeze.New(freeze.Config{Note: note})})
	outer := disk(t, "outer")
	inner := filepath.Join(t.TempDir(), "inner")
	mountIn(t, outer, inner, "ext4", 16, "-q")
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{outer, inner}})
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	if left := freeze.ThawLeft(note); len(left.Holds) != 0 || canWrite(t, outer) {
		t.Error("the agent lives, and another one thaws", left)
	}
	copied := note + ".copy" // which nobody has locked, as if the agent were killed
	if err := os.WriteFile(copied, text, 0o600); err != nil {
		t.Fatal(err)
	}
	left := freeze.ThawLeft(copied)
	if len(left.Messages) != 2 || len(left.Holds) != 1 || !canWrite(t, outer) || !canWrite(t, inner) {
		t.Error(left)
	}
	if _, err := os.Stat(copied); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	next := newRoom(t, Config{Left: left})
	_, err = next.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if !errors.Is(err, fault.ErrChanged) || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if err := r.release(); err != nil { // which was not killed after all
		t.Error(err)
	}
}
