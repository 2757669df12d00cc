package outputs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// swayOutputs is what swaymsg tells.
func swayOutputs(t *testing.T, s *desktoptest.Session) string {
	t.Helper()
	var outputs []struct {
		Name  string
		Scale float64
		Rect  struct{ X, Y, Width, Height int }
		Mode  struct {
			Width, Height int
		} `json:"current_mode"`
	}
	if err := json.Unmarshal([]byte(s.Run(t, "swaymsg", "-r", "-t", "get_outputs")), &outputs); err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, o := range outputs {
		text = append(text, fmt.Sprintf("%s %dx%d*%g at %d,%d", o.Name, o.Mode.Width, o.Mode.Height, o.Scale, o.Rect.X, o.Rect.Y))
	}
	return strings.Join(text, "\n")
}

// screenshot returns the size of a picture of one output.
func screenshot(t *testing.T, s *desktoptest.Session, output string) (width, height int) {
	t.Helper()
	desktoptest.Need(t, "grim", "")
	path := filepath.Join(s.Dir, "shot.png")
	s.Run(t, "grim", "-o", output, path)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	picture, err := png.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	return picture.Bounds().Dx(), picture.Bounds().Dy()
}

func TestSwayResize(t *testing.T) {
	s := desktoptest.Sway(t, 1)
	b := open(t, s)
	if l := list(t, b); l.System != "wlroots" || l.Compositor != "sway" {
		t.Errorf("it is %s of %s", l.System, l.Compositor)
	}
	for _, size := range [][2]uint32{{1366, 768}, {1111, 777}, {2560, 1440}} {
		after, err := Set(t.Context(), b, []*pb.DisplaySetting{on("HEADLESS-1", size[0], size[1], 0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		if o := named(t, after, "HEADLESS-1"); o.Width != size[0] || o.Height != size[1] {
			t.Errorf("read back %v", o)
		}
		if got, want := swayOutputs(t, s), fmt.Sprintf("HEADLESS-1 %dx%d*1 at 0,0", size[0], size[1]); got != want {
			t.Errorf("swaymsg tells %s, not %s", got, want)
		}
		if w, h := screenshot(t, s, "HEADLESS-1"); w != int(size[0]) || h != int(size[1]) {
			t.Errorf("a picture of the screen has %dx%d", w, h)
		}
	}
}

func TestSwayTwoOutputs(t *testing.T) {
	s := desktoptest.Sway(t, 2)
	b := open(t, s)
	left, right := on("HEADLESS-2", 2560, 1440, 0, 0), on("HEADLESS-1", 1366, 768, 1280, 0)
	left.Scale = 2
	if _, err := Set(t.Context(), b, []*pb.DisplaySetting{left, right}); err != nil {
		t.Fatal(err)
	}
	want := "HEADLESS-1 1366x768*1 at 1280,0\nHEADLESS-2 2560x1440*2 at 0,0"
	if got := swayOutputs(t, s); got != want {
		t.Errorf("swaymsg tells\n%s, not\n%s", got, want)
	}
	if w, h := screenshot(t, s, "HEADLESS-2"); w != 2560 || h != 1440 {
		t.Errorf("a picture of the screen has %dx%d", w, h)
	}
	// sway 1.7 does not turn a headless output off, by its own command either: what it refuses changes nothing.
	off := false
	_, err := Set(t.Context(), b, []*pb.DisplaySetting{{Name: "HEADLESS-1", Enabled: &off}})
	if o := named(t, list(t, b), "HEADLESS-1"); o.Enabled != (err != nil) {
		t.Errorf("turned off with %v: %v", err, o)
	}
	if _, err := Set(t.Context(), b, []*pb.DisplaySetting{left, right}); err != nil {
		t.Fatal(err)
	}
	if got := swayOutputs(t, s); got != want {
		t.Errorf("in the end swaymsg tells\n%s, not\n%s", got, want)
	}
}

// A configuration for a former state of the outputs is cancelled, and made again for the present one.
func TestSwayCancelledIsTriedAgain(t *testing.T) {
	s := desktoptest.Sway(t, 2)
	b := open(t, s)
	list(t, b)
	s.Run(t, "swaymsg", "output HEADLESS-1 mode --custom 900x700@60Hz") // behind the back of b
	cancelled := b.(*wlrBackend).configure(t.Context(), []*pb.DisplaySetting{on("HEADLESS-2", 1111, 777, 900, 0)}, wlrTest)
	if !errors.Is(cancelled, errCancelled) {
		t.Errorf("a configuration for a former state: %v", cancelled)
	}
	s.Run(t, "swaymsg", "output HEADLESS-1 mode --custom 800x600@60Hz")
	if err := b.Apply(t.Context(), []*pb.DisplaySetting{on("HEADLESS-2", 1111, 777, 800, 0)}); err != nil {
		t.Fatal(err)
	}
	if got, want := swayOutputs(t, s), "HEADLESS-1 800x600*1 at 0,0\nHEADLESS-2 1111x777*1 at 800,0"; got != want {
		t.Errorf("swaymsg tells\n%s, not\n%s", got, want)
	}
}

func TestSwayDoesNotAnswer(t *testing.T) {
	s := desktoptest.Sway(t, 1)
	b := open(t, s)
	pid := pidOf(t, s, "sway")
	unix.Kill(pid, unix.SIGSTOP)
	_, err := b.Outputs(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "sway does not answer") {
		t.Errorf("of a stopped compositor: %v", err)
	}
	unix.Kill(pid, unix.SIGCONT)
	again := open(t, s)
	list(t, again)
	unix.Kill(pid, unix.SIGKILL)
	if _, err := Set(t.Context(), again, []*pb.DisplaySetting{on("HEADLESS-1", 1111, 777, 0, 0)}); err == nil ||
		!strings.Contains(err.Error(), "ended the connection") {
		t.Errorf("of a compositor that has gone: %v", err)
	}
}

// KWin takes the modes that it lists; scale, position and primary output are set in one configuration.
func TestKWin(t *testing.T) {
	s := desktoptest.KWin(t, 2)
	b := open(t, s)
	before := list(t, b)
	if before.System != "kde" || !strings.HasPrefix(before.Compositor, "kwin_wayland") || len(before.Outputs) != 2 {
		t.Fatalf("%v", before)
	}
	first, second := before.Outputs[0].Name, before.Outputs[1].Name
	left, right := on(second, 1024, 768, 0, 0), on(first, 1024, 768, 512, 0)
	left.Scale, left.Primary, right.Scale = 2, true, 1.5
	after, err := Set(t.Context(), b, []*pb.DisplaySetting{left, right})
	if err != nil {
		t.Fatal(err)
	}
	if o := named(t, after, second); o.Scale != 2 || !o.Primary || o.X != 0 {
		t.Errorf("read back %v", o)
	}
	if o := named(t, list(t, open(t, s)), first); o.Scale != 1.5 || o.Primary || o.X != 512 {
		t.Errorf("another connection reads %v", o)
	}
	_, err = Set(t.Context(), b, []*pb.DisplaySetting{on(first, 1111, 777, 512, 0)})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "it lists 1024x768") {
		t.Errorf("a size that KWin does not list: %v", err)
	}
	if err := Differs(list(t, b).Outputs, Settings(after.Outputs)); err != nil {
		t.Errorf("after a failure: %v", err)
	}
}

// Mutter's virtual monitors have one mode each: scale, position and primary monitor are set.
func TestMutterLayout(t *testing.T) {
	s := desktoptest.Mutter(t, "1024x768", "2560x1600")
	b := open(t, s)
	before := list(t, b)
	if before.System != "gnome" || before.Compositor != "mutter" || len(before.Outputs) != 2 {
		t.Fatalf("%v", before)
	}
	large, small := on("Meta-1", 2560, 1600, 0, 0), on("Meta-0", 1024, 768, 2560, 0)
	large.Primary = true
	if before.Scaled {
		t.Errorf("%v", before)
	}
	after, err := Set(t.Context(), b, []*pb.DisplaySetting{large, small})
	if err != nil {
		t.Fatal(err)
	}
	if o := named(t, after, "Meta-0"); o.X != 2560 || o.Primary {
		t.Errorf("read back %v", o)
	}
	for name, settings := range map[string][]*pb.DisplaySetting{
		"a size that Mutter does not list": {on("Meta-0", 1111, 777, 2560, 0)},
		"a gap between two":                {on("Meta-0", 1024, 768, 5000, 0), large},
	} {
		_, err := Set(t.Context(), b, settings)
		if err == nil {
			t.Errorf("%s: it was set", name)
		}
		t.Logf("%s: %v", name, err)
		if err := Differs(list(t, b).Outputs, Settings(after.Outputs)); err != nil {
			t.Errorf("%s: afterwards %v", name, err)
		}
	}
}

// A monitor of Mutter with several modes takes each of them.
func TestMutterResize(t *testing.T) {
	s := desktoptest.NestedMutter(t, 1, "800x600", "1024x768", "1280x960")
	b := open(t, s)
	name := list(t, b).Outputs[0].Name
	for _, size := range [][2]uint32{{1280, 960}, {800, 600}, {1024, 768}} {
		after, err := Set(t.Context(), b, []*pb.DisplaySetting{on(name, size[0], size[1], 0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		if o := named(t, after, name); o.Width != size[0] || o.Height != size[1] {
			t.Errorf("read back %v", o)
		}
	}
}

// A compositor that has none of the ways to set outputs is named.
func TestUnknownCompositor(t *testing.T) {
	s := desktoptest.Mutter(t, "1024x768")
	s.Set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+filepath.Join(s.Dir, "none"))
	_, err := Open(t.Context(), s.Getenv)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "mutter has no way to set its outputs") {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.Context(), func(string) string { return "" }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no desktop at all: %v", err)
	}
}
