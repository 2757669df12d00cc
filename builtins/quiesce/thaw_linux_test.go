package quiesce

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Each freeze has a timer of its own: that of one that was thawed does not end the next.
func TestTimerOfAnEarlierFreeze(t *testing.T) {
	r := newRoom(t, Config{})
	a := disk(t, "a")
	first := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, TimeoutSeconds: 1})
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: first.QuiesceToken})
	second := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}, TimeoutSeconds: 60})
	time.Sleep(1500 * time.Millisecond)
	if canWrite(t, a) {
		t.Error("the timer of the first ended the second")
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: second.QuiesceToken})
}

// A thaw of one of two leaves the timer of the other, and what ends by its time is told: as an event, in the log, and to who
// comes with the token.
func TestThawOfOneAndEarlyThaw(t *testing.T) {
	words := make(chan string, 10)
	events := make(chan proto.Message, 10)
	r := newRoom(t, Config{Thawed: func(w string) { words <- w }})
	a, b := disk(t, "a"), disk(t, "b")
	call := &builtins.Call{Event: func(m proto.Message) bool { events <- m; return true }}
	out, err := r.quiesce(t.Context(), call, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}, TimeoutSeconds: 2})
	if err != nil {
		t.Fatal(err)
	}
	done := mustThaw(t, r, &pb.ThawFilesystemsRequest{MountPoints: []string{a}})
	if !slices.Equal(done.ThawedMountPoints, []string{a}) || !canWrite(t, a) || canWrite(t, b) {
		t.Error(done)
	}
	event := (<-events).(*pb.ErrorEvent)
	if event.Code != "thawed_early" || event.Details["quiesce_token"] != out.QuiesceToken || event.Details["mount_points"] != b {
		t.Error(event)
	}
	if w := <-words; !strings.Contains(w, b) {
		t.Error(w)
	}
	eventually(t, "it is thawed", func() bool { return canWrite(t, b) })
	if n := r.Notices(); len(n) != 1 || n[0].Code != "thawed_early" {
		t.Error(n)
	}
	_, err = r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	reply := failedThaw(err).(*pb.ThawFilesystemsResponse)
	if !errors.Is(err, fault.ErrChanged) || reply.Success || !reply.ThawedEarly || reply.ThawedAt == nil || reply.FrozenDurationMs < 1500 {
		t.Error(reply, err)
	}
	if n := r.Notices(); len(n) != 0 {
		t.Error(n)
	}
}

// A thaw opens no file system and starts no program: what it needs was opened before the freeze.
func TestThawOpensNothing(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
	open, runner := r.openTarget, r.guest.Runner
	r.openTarget = func(path string) (target, error) {
		t.Error("the thaw opens ", path)
		return open(path)
	}
	r.guest.Runner = nil
	t.Setenv("PATH", "/nonexistent")
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	r.openTarget, r.guest.Runner = open, runner
}

func TestTokens(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	one := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	two := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{b}})
	for _, wrong := range []string{"x", strings.ToUpper(one.QuiesceToken) + "0"} {
		if out, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: wrong}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(out, err)
		}
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: one.QuiesceToken})
	if !canWrite(t, a) || canWrite(t, b) {
		t.Error("a token thaws what is another's")
	}
	if out, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: one.QuiesceToken}); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an old token:", out, err)
	}
	other := &builtins.Call{Sees: func(port string) bool { return port == "another" }}
	if out, err := r.thaw(t.Context(), other, &pb.ThawFilesystemsRequest{}); !errors.Is(err, fs.ErrNotExist) || canWrite(t, b) {
		t.Error("a host on another port:", out, err)
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: two.QuiesceToken})
}

// What another program has thawed was not frozen all the time, and what it has frozen is not thawed.
func TestOtherPrograms(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	run(t, "fsfreeze", "-u", a)
	_, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if reply := failedThaw(err).(*pb.ThawFilesystemsResponse); !errors.Is(err, fault.ErrChanged) || !reply.ThawedEarly {
		t.Error(reply, err)
	}
	run(t, "fsfreeze", "-f", b)
	if _, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}}); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	if !canWrite(t, a) || canWrite(t, b) {
		t.Error("all or nothing")
	}
	if done := mustThaw(t, r, &pb.ThawFilesystemsRequest{MountPoints: []string{b}}); !canWrite(t, b) {
		t.Error(done)
	}
}
