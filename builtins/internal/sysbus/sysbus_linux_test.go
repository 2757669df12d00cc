package sysbus

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// listen makes a socket that accepts connections and answers none the system bus.
func listen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
}

func TestABusThatDoesNotAnswer(t *testing.T) {
	listen(t)
	start := time.Now()
	_, err := Open(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Fatalf("Open: %v", err)
	}
	if took := time.Since(start); took < Timeout || took > 4*Timeout {
		t.Errorf("it took %v", took)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Open(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Open: %v", err)
	}
}

func TestNoBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if _, err := Open(t.Context()); fault.Code(err) != "unsupported" {
		t.Fatalf("Open: %v", err)
	}
}

func TestErrorsHaveACode(t *testing.T) {
	for name, want := range map[string]error{
		"org.freedesktop.DBus.Error.AccessDenied":   fs.ErrPermission,
		"org.freedesktop.DBus.Error.ServiceUnknown": errors.ErrUnsupported,
		"org.freedesktop.DBus.Error.NoReply":        context.DeadlineExceeded,
	} {
		err := Error("org.example", *dbus.NewError(name, []any{"why"}))
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "org.example") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
