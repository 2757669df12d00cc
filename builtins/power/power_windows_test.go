package power

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/privilege"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// newRoom is a room whose machine is this one, but for the last step, which it only tells of.
func newRoom(t *testing.T, note string) (*Room, chan bool) {
	t.Helper()
	if err := privilege.Enable(privilege.Shutdown); err != nil {
		t.Skip("needs a user who may shut Windows down: ", err)
	}
	began := make(chan bool, 4)
	r := New(&guest.Guest{Live: true}, Config{Machine: true, Note: note, BootID: func() string { return "this" }})
	r.machine = windowsMachine(func(reboot bool) error { began <- reboot; return nil })
	t.Cleanup(func() { r.close() })
	return r, began
}

// A shutdown is begun when its time has come, in the way that was asked for, and is told before.
func TestShutdown(t *testing.T) {
	for kind, reboot := range map[pb.ShutdownType]bool{
		pb.ShutdownType_SHUTDOWN_TYPE_POWEROFF: false, pb.ShutdownType_SHUTDOWN_TYPE_REBOOT: true,
	} {
		r, began := newRoom(t, "")
		due := bootTime() + time.Second // by the room's clock, which ticks more coarsely than time.Now
		out, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Type: kind, DelaySeconds: 1, Message: "ü"})
		if err != nil || !out.Accepted || out.Pending.GetMessage() != "ü" {
			t.Fatal(out, err)
		}
		if got := <-began; got != reboot || bootTime() < due {
			t.Error(got, due-bootTime())
		}
	}
}

// What was cancelled does not happen, and what Windows does not know is refused by name.
func TestCancelAndHalt(t *testing.T) {
	r, began := newRoom(t, filepath.Join(t.TempDir(), "note"))
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{DelaySeconds: 3600}); err != nil {
		t.Fatal(err)
	}
	if out, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Cancel: true}); err != nil ||
		out.Replaced == nil {
		t.Fatal(out, err)
	}
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{Cancel: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := r.shutdown(t.Context(), &builtins.Call{},
		&pb.ShutdownRequest{Type: pb.ShutdownType_SHUTDOWN_TYPE_HALT}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	select {
	case <-began:
		t.Error("it is shut down")
	default:
	}
}

// A later process of the agent goes on with what an earlier one accepted.
func TestNoteOutlivesTheAgent(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	r, _ := newRoom(t, note)
	if _, err := r.shutdown(t.Context(), &builtins.Call{}, &pb.ShutdownRequest{DelaySeconds: 2,
		Type: pb.ShutdownType_SHUTDOWN_TYPE_REBOOT}); err != nil {
		t.Fatal(err)
	}
	r.close()
	later, began := newRoom(t, note)
	later.start()
	if reboot := <-began; !reboot {
		t.Error("it is switched off")
	}
}

// The way to Windows is there: under Wine the call succeeds and does nothing, so nobody but Wine gets it.
func TestInitiateUnderWine(t *testing.T) {
	if windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() != nil {
		t.Skip("would shut this machine down; it runs under Wine")
	}
	tellSessions(context.Background(), "a test")
	if err := initiate(true); err != nil {
		t.Error(err)
	}
}
