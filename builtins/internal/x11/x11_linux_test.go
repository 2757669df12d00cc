package x11

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jezek/xgb/xproto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
)

// A server that wants a cookie gets that of the session, and nobody is let in without it.
func TestCookie(t *testing.T) {
	s := desktoptest.XvfbWithCookie(t, "640x480", [16]byte{1, 2, 3, 15: 16})
	c, err := Dial(t.Context(), s.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if screen := xproto.Setup(c.Conn).Roots[c.Screen]; screen.WidthInPixels != 640 || screen.HeightInPixels != 480 {
		t.Errorf("%v has a screen of %dx%d", c, screen.WidthInPixels, screen.HeightInPixels)
	}
	for range 100 { // requests after the first one are the library's own
		if _, err := xproto.GetInputFocus(c.Conn).Reply(); err != nil {
			t.Fatal(err)
		}
	}
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, entry(familyWild, "", "", cookieName, "0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{wrong, filepath.Join(t.TempDir(), "none")} {
		s.Set("XAUTHORITY", path)
		if _, err := Dial(t.Context(), s.Getenv); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("with %s: %v", path, err)
		}
	}
}

// entry is an entry of an authority file.
func entry(family uint16, parts ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, family)
	for _, part := range parts {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
	}
	return b
}

func TestFindCookie(t *testing.T) {
	file := bytes.Join([][]byte{
		entry(familyLocal, "other", "0", cookieName, "other machine"),
		entry(familyLocal, "here", "1", cookieName, "other display"),
		entry(familyLocal, "here", "0", "XDM-AUTHORIZATION-1", "other kind"),
		entry(0, "\x7f\x00\x00\x01", "0", cookieName, "by network"),
		entry(familyLocal, "here", "0", cookieName, "this one"),
		entry(familyWild, "", "", cookieName, "any"),
	}, nil)
	for display, want := range map[string]string{"0": "this one", "1": "other display", "7": "any"} {
		if got := findCookie(bytes.NewReader(file), "here", display); string(got) != want {
			t.Errorf("display %s: %q", display, got)
		}
	}
	for n := range file { // wherever it is cut
		findCookie(bytes.NewReader(file[:n]), "nowhere", "0")
	}
	if got := findCookie(bytes.NewReader(file[:len(file)-1]), "here", "7"); got != nil {
		t.Errorf("of an entry that is cut: %q", got)
	}
}

func TestParse(t *testing.T) {
	for display, want := range map[string][2]int{":0": {0, 0}, ":7.1": {7, 1}, "unix:12": {12, 0}} {
		if number, screen, err := parse(display); err != nil || number != want[0] || screen != want[1] {
			t.Errorf("%s: %d, %d, %v", display, number, screen, err)
		}
	}
	for _, display := range []string{"", "host:0", "localhost:10.0", "0", ":", ":x", ":-1", ":1.x"} {
		if _, _, err := parse(display); err == nil {
			t.Errorf("%q is a display", display)
		}
	}
	if _, err := Dial(t.Context(), func(string) string { return ":59999" }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no server: %v", err)
	}
}
