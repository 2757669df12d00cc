package winuser

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func open(t *testing.T) *Clipboard {
	t.Helper()
	c, err := OpenClipboard()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const limit = 1 << 20

// What one window sets another reads, in each form, and nothing that was there before.
func TestClipboard(t *testing.T) {
	mine, other := open(t), open(t)
	for _, text := range []string{"plain", "ü 😀\nsecond line\n", strings.Repeat("x", 200_000)} {
		if err := mine.Write(Contents{Text: text}); err != nil {
			t.Fatal(err)
		}
		if got, err := other.Text(limit); err != nil || got != text {
			t.Errorf("%.40q is %.40q: %v", text, got, err)
		}
		forms, names, err := other.Forms()
		if err != nil || !slices.Equal(forms, []string{"text"}) || !slices.Contains(names, "CF_UNICODETEXT") {
			t.Error(forms, names, err)
		}
	}
	image := picture(t, 7, 5)
	if err := mine.Write(Contents{Text: "ü", HTML: "<b>ü</b>", PNG: image}); err != nil {
		t.Fatal(err)
	}
	if got, err := other.HTML(limit); err != nil || got != "<b>ü</b>" {
		t.Error(got, err)
	}
	if got, err := other.PNG(limit); err != nil || !bytes.Equal(got, image) {
		t.Error(len(got), len(image), err)
	}
	if forms, _, err := other.Forms(); err != nil || !slices.Equal(forms, []string{"text", "html", "png"}) {
		t.Error(forms, err)
	}
	// An image that another program left as a bitmap alone is made a PNG.
	dib, err := EncodeDIB(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := mine.with(func() error {
		user32("EmptyClipboard").Call()
		return write(formatDIB, dib)
	}); err != nil {
		t.Fatal(err)
	}
	got, err := other.PNG(limit)
	if err != nil {
		t.Fatal(err)
	}
	same(t, image, got)
	if _, err := other.Text(limit); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestClipboardRefuses(t *testing.T) {
	c := open(t)
	if err := c.Write(Contents{Text: strings.Repeat("x", 100)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Text(50); !errors.Is(err, fault.ErrTooLarge) {
		t.Error(err)
	}
	for _, bad := range []Contents{{}, {Text: "a\x00b"}, {Text: "\xff"}, {HTML: "\xff"}, {PNG: []byte("no image")}} {
		if err := c.Write(bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if got, err := c.Text(limit); err != nil || len(got) != 100 {
		t.Error("what was refused has changed something:", got, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(Contents{Text: "x"}); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

// A change that others make is told, and one's own is not.
func TestClipboardIsWatched(t *testing.T) {
	mine, other := open(t), open(t)
	changed := make(chan bool, 16)
	if err := mine.Watch(func() { changed <- true }); err != nil {
		t.Fatal(err)
	}
	if err := other.Write(Contents{Text: "theirs"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("the change of another is not told")
	}
	settle := func() { // the messages of what was done before have come when a later one has
		t.Helper()
		if _, err := mine.Text(limit); err != nil {
			t.Fatal(err)
		}
	}
	settle()
	for len(changed) > 0 { // of one change there may be several
		<-changed
	}
	if err := mine.Write(Contents{Text: "mine"}); err != nil {
		t.Fatal(err)
	}
	settle()
	if len(changed) > 0 {
		t.Error("one's own change is told")
	}
}

// Displays can be set to another of their modes and back, and what is not there is refused.
func TestDisplays(t *testing.T) {
	list, err := Outputs()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there is no display: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(list, func(o Output) bool { return o.Enabled && o.Primary })
	if at < 0 {
		t.Fatalf("none of %+v is the first one", list)
	}
	before := list[at]
	if before.Mode.Width == 0 || len(before.Modes) == 0 {
		t.Fatalf("%+v", before)
	}
	set := func(mode Mode) error {
		return Apply([]Setting{{Name: before.Name, Enabled: true, Mode: mode, X: before.X, Y: before.Y, Primary: true}})
	}
	if err := set(Mode{Width: 12345, Height: 7}); err == nil {
		t.Error("a mode that there is not is set")
	}
	t.Cleanup(func() {
		if err := set(before.Mode); err != nil {
			t.Error(err)
		}
	})
	other := slices.IndexFunc(before.Modes, func(m Mode) bool { return m.Width != before.Mode.Width && m.Width >= 640 })
	if other < 0 {
		t.Skip("the display has one mode alone")
	}
	if err := set(before.Modes[other]); err != nil {
		t.Fatal(err)
	}
	after, err := Outputs()
	if err != nil {
		t.Fatal(err)
	}
	if got := after[at].Mode; got.Width != before.Modes[other].Width || got.Height != before.Modes[other].Height {
		t.Errorf("it shows %+v, and was set to %+v", got, before.Modes[other])
	}
}
