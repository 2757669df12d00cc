package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// rootHold holds what the tests' own files are on, without freezing it.
func rootHold(t *testing.T, token string) Hold {
	t.Helper()
	mounts, _, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := meeting{mounts: mounts}
	for _, m := range mounts { // the mount that the directory is on
		at.holds = []Hold{{Systems: []System{{Device: m.Device, Point: m.Point}}}}
		if _, held := at.byLink(dir); held {
			return Hold{Token: token, Systems: []System{{Device: m.Device, Point: m.Point, Path: m.Point}}}
		}
	}
	t.Skip("it is not known which mount a directory is on")
	return Hold{}
}

// A freeze hears of the changes that are under way and would meet it, and of no others; those that come later wait for its end.
func TestEnter(t *testing.T) {
	var told []bool
	s := New(Config{Changed: func(frozen bool) { told = append(told, frozen) }})
	here := builtins.Access{Writes: []string{filepath.Join(t.TempDir(), "new", "file")}}
	elsewhere := builtins.Access{Writes: []string{"/proc/self/comm"}}
	leave, err := s.Enter(t.Context(), here, false)
	if err != nil {
		t.Fatal(err)
	}
	leaveOther, err := s.Enter(t.Context(), elsewhere, false)
	if err != nil {
		t.Fatal(err)
	}
	defer leaveOther()
	h := rootHold(t, "a")
	running, err := s.Hold(h)
	if err != nil || len(running) != 1 {
		t.Fatal(running, err)
	}
	select {
	case <-running[0]:
		t.Error("it has ended already")
	default:
	}
	leave()
	<-running[0]
	if _, err := s.Enter(t.Context(), here, false); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	if err := s.Check(builtins.Access{Trees: []string{"/"}, Reads: []string{"/"}}); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	if leave, err := s.Enter(t.Context(), elsewhere, false); err != nil {
		t.Error(err)
	} else {
		leave()
	}
	if _, err := s.Hold(Hold{Token: "b", Systems: h.Systems}); !errors.Is(err, fault.ErrBusy) {
		t.Error("held twice:", err)
	}
	late, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Enter(late, here, true); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, err := s.Enter(gone, here, true); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	entered := make(chan error, 1)
	go func() {
		leave, err := s.Enter(context.Background(), here, true)
		if err == nil {
			leave()
		}
		entered <- err
	}()
	select {
	case err := <-entered:
		t.Error("it has not waited", err)
	case <-time.After(50 * time.Millisecond):
	}
	s.Release("a")
	if err := <-entered; err != nil {
		t.Error(err)
	}
	if err := s.Check(here); err != nil {
		t.Error(err)
	}
	if len(told) != 2 || !told[0] || told[1] {
		t.Error(told)
	}
}

// The note has what is frozen at any moment, also where what was written last is shorter than what was there before.
func TestNote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "frozen")
	s := New(Config{Note: path})
	read := func() (content noted) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &content)
		}
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	long := Hold{Token: "a", Hooks: []string{"one", "two", "three"}, Systems: []System{{Device: "9:9", Point: "/a b"}, {Device: "9:8", Point: "/b"}}}
	if _, err := s.Hold(long); err != nil {
		t.Fatal(err)
	}
	if n := read(); len(n.Holds) != 1 || len(n.Holds[0].Systems) != 2 || n.Holds[0].Systems[0].Point != "/a b" || len(n.Holds[0].Hooks) != 3 {
		t.Error(n)
	}
	s.SetWatched([]string{"/c"}, true)
	if _, err := s.Hold(Hold{Token: "a"}); err != nil {
		t.Fatal(err)
	}
	if n := read(); len(n.Holds) != 1 || len(n.Holds[0].Systems) != 0 || len(n.Commands) != 1 {
		t.Error(n)
	}
	s.Release("a")
	s.SetWatched(nil, false)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A note that cannot be read is told, and one of another agent that lives is left alone.
func TestThawLeftOfANote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "frozen")
	if left := ThawLeft(path); len(left.Messages) != 0 {
		t.Error(left)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if left := ThawLeft(path); len(left.Messages) != 1 {
		t.Error(left)
	}
	if err := os.WriteFile(path, []byte(`{"commands":["/nonexistent/point"]} and what was there before`), 0o600); err != nil {
		t.Fatal(err)
	}
	if left := ThawLeft(path); len(left.Messages) != 1 {
		t.Error(left)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
