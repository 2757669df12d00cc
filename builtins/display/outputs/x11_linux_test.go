package outputs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jezek/xgb/xproto"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/x11"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// untilAnswered makes a request again that a compositor which has just come up is too busy to answer.
func untilAnswered[T any](f func() (T, error)) (T, error) {
	for end := time.Now().Add(30 * time.Second); ; {
		v, err := f()
		if !errors.Is(err, context.DeadlineExceeded) || time.Now().After(end) {
			return v, err
		}
	}
}

func open(t *testing.T, s *desktoptest.Session) Backend {
	t.Helper()
	b, err := untilAnswered(func() (Backend, error) { return Open(t.Context(), s.Getenv) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func list(t *testing.T, b Backend) *pb.ListDisplaysResponse {
	t.Helper()
	l, err := untilAnswered(func() (*pb.ListDisplaysResponse, error) { return b.Outputs(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func named(t *testing.T, l *pb.ListDisplaysResponse, name string) *pb.DisplayOutput {
	t.Helper()
	for _, o := range l.Outputs {
		if o.Name == name {
			return o
		}
	}
	t.Fatalf("there is no %s in %v", name, l)
	return nil
}

// on is a setting that turns an output on.
func on(name string, width, height uint32, x, y int32) *pb.DisplaySetting {
	yes := true
	return &pb.DisplaySetting{Name: name, Enabled: &yes, Width: width, Height: height, X: &x, Y: &y}
}

// rootImage returns the size of a picture that the server makes of its whole screen, and fails where it is less.
func rootImage(t *testing.T, s *desktoptest.Session) (width, height int) {
	t.Helper()
	c, err := x11.Dial(t.Context(), s.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	root := xproto.Drawable(xproto.Setup(c.Conn).Roots[0].Root)
	g, err := xproto.GetGeometry(c.Conn, root).Reply()
	if err != nil {
		t.Fatal(err)
	}
	image, err := xproto.GetImage(c.Conn, xproto.ImageFormatZPixmap, root, 0, 0, g.Width, g.Height, ^uint32(0)).Reply()
	if err != nil {
		t.Fatal(err)
	}
	if len(image.Data) != int(g.Width)*int(g.Height)*4 {
		t.Fatalf("%d bytes of a picture of %dx%d", len(image.Data), g.Width, g.Height)
	}
	return int(g.Width), int(g.Height)
}

// A size that no mode has is made, set, and seen from outside; the mode goes when it is not used any more.
func TestX11Resize(t *testing.T) {
	s := desktoptest.Xorg(t)
	b := open(t, s)
	before := list(t, b)
	modes := strings.Count(s.Run(t, "xrandr"), "\n")
	for _, size := range [][2]uint32{{1366, 768}, {1111, 777}, {2560, 1440}, {641, 481}} {
		after, err := Set(t.Context(), b, []*pb.DisplaySetting{on("DUMMY0", size[0], size[1], 0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		o := named(t, after, "DUMMY0")
		if o.Width != size[0] || o.Height != size[1] || o.Refresh < 59.5 || o.Refresh > 60.5 || !o.Primary {
			t.Errorf("read back %v", o)
		}
		seen := s.Run(t, "xrandr")
		if want := fmt.Sprintf("DUMMY0 connected primary %dx%d+0+0", size[0], size[1]); !strings.Contains(seen, want) {
			t.Errorf("no %q in\n%s", want, seen)
		}
		if n := strings.Count(seen, modePrefix); n != 1 {
			t.Errorf("%d modes of ours are there:\n%s", n, seen)
		}
		if w, h := rootImage(t, s); w != int(size[0]) || h != int(size[1]) {
			t.Errorf("a picture of the screen has %dx%d", w, h)
		}
	}
	if _, err := Set(t.Context(), b, Settings(before.Outputs)); err != nil {
		t.Fatal(err)
	}
	if seen := s.Run(t, "xrandr"); strings.Contains(seen, modePrefix) || strings.Count(seen, "\n") != modes {
		t.Errorf("modes are left:\n%s", seen)
	}
}

// Two outputs are set side by side at once, and the primary one is chosen.
func TestX11TwoOutputs(t *testing.T) {
	s := desktoptest.Xorg(t)
	s.Run(t, "xrandr", "--newmode", "user", "60", "800", "840", "968", "1056", "600", "601", "605", "628")
	s.Run(t, "xrandr", "--addmode", "DUMMY1", "user")
	s.Run(t, "xrandr", "--output", "DUMMY1", "--mode", "user", "--right-of", "DUMMY0")
	b := open(t, s)
	left, right := on("DUMMY1", 1280, 1024, 0, 0), on("DUMMY0", 1366, 768, 1280, 0)
	left.Primary = true
	after, err := Set(t.Context(), b, []*pb.DisplaySetting{left, right})
	if err != nil {
		t.Fatal(err)
	}
	first, second := after.Outputs[0], after.Outputs[1]
	if first.Name != "DUMMY1" || second.Name != "DUMMY0" || !first.Primary || second.Primary {
		t.Errorf("read back %v", after)
	}
	seen := s.Run(t, "xrandr")
	for _, want := range []string{"current 2646 x 1024", "primary 1280x1024+0+0", "DUMMY0 connected 1366x768+1280+0"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q in\n%s", want, seen)
		}
	}
	if w, h := rootImage(t, s); w != 2646 || h != 1024 {
		t.Errorf("a picture of the screen has %dx%d", w, h)
	}

	// One is turned off, and comes back.
	off := false
	former := Settings(after.Outputs)
	alone := []*pb.DisplaySetting{{Name: "DUMMY1", Enabled: &off}, on("DUMMY0", 1366, 768, 0, 0)}
	if _, err = Set(t.Context(), b, alone); err != nil {
		t.Fatal(err)
	}
	if seen := s.Run(t, "xrandr"); !strings.Contains(seen, "current 1366 x 768") {
		t.Errorf("one of two is off:\n%s", seen)
	}
	if _, err = Set(t.Context(), b, former); err != nil {
		t.Fatal(err)
	}
}

// A change that cannot be made leaves everything as it was, and no mode behind.
func TestX11FailureRestores(t *testing.T) {
	s := desktoptest.Xorg(t)
	b := open(t, s)
	if _, err := Set(t.Context(), b, []*pb.DisplaySetting{on("DUMMY0", 1366, 768, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	before := s.Run(t, "xrandr")
	slow := on("DUMMY0", 16384, 16384, 0, 0)
	slow.Refresh = 10
	for name, settings := range map[string][]*pb.DisplaySetting{
		"a screen larger than the server has": {on("DUMMY0", 1111, 777, 32000, 0)},
		"a place beyond 16 bits":              {on("DUMMY0", 1024, 768, 0, 0), on("DUMMY1", 1024, 768, 65000, 0)},
		"memory that the card does not have":  {slow},
		"a clock that no mode has":            {on("DUMMY0", 16384, 16384, 0, 0)},
	} {
		_, err := Set(t.Context(), b, settings)
		if err == nil {
			t.Errorf("%s: it was set", name)
			continue
		}
		t.Logf("%s: %v", name, err)
		if strings.Contains(err.Error(), "not be restored") {
			t.Errorf("%s: %v", name, err)
		}
		if after := s.Run(t, "xrandr"); after != before {
			t.Errorf("%s:\n%s\nwas\n%s", name, after, before)
		}
	}
}

// Xvfb has modes of any size up to that with which it was started.
func TestXvfbResize(t *testing.T) {
	s := desktoptest.Xvfb(t, "1600x1200")
	b := open(t, s)
	if _, err := Set(t.Context(), b, []*pb.DisplaySetting{on("screen", 1111, 777, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	if w, h := rootImage(t, s); w != 1111 || h != 777 {
		t.Errorf("a picture of the screen has %dx%d", w, h)
	}
	_, err := Set(t.Context(), b, []*pb.DisplaySetting{on("screen", 1920, 1200, 0, 0)})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "1600x1200") {
		t.Errorf("more than the server has: %v", err)
	}
	if w, h := rootImage(t, s); w != 1111 || h != 777 {
		t.Errorf("after a failure a picture of the screen has %dx%d", w, h)
	}
}

// The dots per inch are told to the screen, and stay when only the size changes.
func TestX11DPI(t *testing.T) {
	s := desktoptest.Xvfb(t, "1600x1200")
	set := on("screen", 1280, 960, 0, 0)
	set.Dpi = 192
	if _, err := Set(t.Context(), open(t, s), []*pb.DisplaySetting{set}); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(t.Context(), open(t, s), []*pb.DisplaySetting{on("screen", 640, 480, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	c, err := x11.Dial(t.Context(), s.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if screen := xproto.Setup(c.Conn).Roots[0]; screen.WidthInMillimeters != 85 || screen.WidthInPixels != 640 {
		t.Errorf("%d pixels have %d mm", screen.WidthInPixels, screen.WidthInMillimeters)
	}
}

// A server that is stopped is an error in time, and one that has gone is told as well.
func TestX11ServerDoesNotAnswer(t *testing.T) {
	s := desktoptest.Xvfb(t, "800x600")
	b := open(t, s)
	pid := pidOf(t, s, "Xvfb")
	unix.Kill(pid, unix.SIGSTOP)
	_, err := b.Outputs(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("of a stopped server: %v", err)
	}
	if _, err = Open(t.Context(), s.Getenv); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection to a stopped server: %v", err)
	}
	unix.Kill(pid, unix.SIGCONT)
	again := open(t, s)
	list(t, again)
	unix.Kill(pid, unix.SIGKILL)
	if _, err := again.Outputs(t.Context()); err == nil {
		t.Error("a server that has gone tells of its outputs")
	}
}

// pidOf returns the process of a session's user whose program has a name and whose environment is the session's.
func pidOf(t *testing.T, s *desktoptest.Session, program string) int {
	t.Helper()
	found, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range found {
		comm, _ := os.ReadFile(path)
		env, _ := os.ReadFile(filepath.Dir(path) + "/environ")
		if strings.TrimSpace(string(comm)) == program && strings.Contains(string(env), "HOME="+s.Dir+"\x00") {
			pid := 0
			fmt.Sscanf(path, "/proc/%d/", &pid)
			return pid
		}
	}
	t.Fatalf("there is no %s", program)
	return 0
}
