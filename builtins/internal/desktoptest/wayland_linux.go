package desktoptest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
)

// busConfig is a session bus that root may connect to as well, as tests do.
const busConfig = `<busconfig>
  <type>session</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// bus starts a session bus, and sets DBUS_SESSION_BUS_ADDRESS.
func (s *Session) bus(t testing.TB) {
	t.Helper()
	Need(t, "dbus-daemon", "dbus-daemon")
	path, config := filepath.Join(s.Dir, "bus"), filepath.Join(s.Dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, path), 0o644); err != nil {
		t.Fatal(err)
	}
	s.start(t, socket(path), "dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile")
	s.Set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+path)
}

// owned reports whether somebody has a name on the session bus.
func (s *Session) owned(t testing.TB, name string) (owned bool) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	bus, err := sysbus.OpenSession(ctx, s.Getenv("DBUS_SESSION_BUS_ADDRESS"))
	if err != nil {
		return false
	}
	defer bus.Close()
	err = bus.Call(ctx, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner", []any{&owned}, name)
	return err == nil && owned
}

// Mutter starts GNOME's compositor without a shell, with virtual monitors of the sizes WIDTHxHEIGHT, called Meta-0 and so on.
// Each has one mode.
func Mutter(t testing.TB, sizes ...string) *Session {
	t.Helper()
	Need(t, "mutter", "")
	s := newSession(t)
	s.bus(t)
	argv := []string{"mutter", "--headless", "--no-x11"}
	for _, size := range sizes {
		argv = append(argv, "--virtual-monitor", size)
	}
	s.startMutter(t, argv...)
	return s
}

// NestedMutter starts GNOME's compositor in a window of an X server, with a number of monitors, whose modes are the
// sizes WIDTHxHEIGHT. What it draws has its own size.
func NestedMutter(t testing.TB, monitors int, sizes ...string) *Session {
	t.Helper()
	Need(t, "mutter", "")
	x := Xvfb(t, "1280x1024")
	s := newSession(t)
	s.bus(t)
	s.Set("DISPLAY", x.Getenv("DISPLAY"))
	s.Set("MUTTER_DEBUG_NUM_DUMMY_MONITORS", strconv.Itoa(monitors))
	s.Set("MUTTER_DEBUG_DUMMY_MODE_SPECS", strings.Join(sizes, ":"))
	s.startMutter(t, "mutter", "--nested", "--no-x11")
	return s
}

func (s *Session) startMutter(t testing.TB, argv ...string) {
	t.Helper()
	s.Set("GSETTINGS_BACKEND", "memory")
	listens := socket(filepath.Join(s.Dir, "wayland-0"))
	s.start(t, func() bool { return listens() && s.owned(t, "org.gnome.Mutter.DisplayConfig") }, argv...)
	s.Set("WAYLAND_DISPLAY", "wayland-0")
	s.Set("XDG_SESSION_TYPE", "wayland")
}

// KWin starts KDE's compositor, with virtual outputs of 1024x768, called Virtual-0 and so on.
func KWin(t testing.TB, outputs int) *Session {
	t.Helper()
	Need(t, "kwin_wayland", "kwin-wayland")
	s := newSession(t)
	s.bus(t)
	// The program has a file capability, with which nobody may run it who cannot have it: a copy has none.
	installed, err := exec.LookPath("kwin_wayland")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Dir, "kwin_wayland")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	s.start(t, socket(filepath.Join(s.Dir, "wayland-0")), path, "--virtual", "--width", "1024", "--height", "768",
		"--output-count", fmt.Sprint(outputs), "--no-lockscreen", "--no-global-shortcuts", "--socket", "wayland-0")
	s.Set("WAYLAND_DISPLAY", "wayland-0")
	s.Set("XDG_SESSION_TYPE", "wayland")
	return s
}
