package clip

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/image/bmp"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// desk is a real desktop, and the programs that people use its clipboard with.
type desk struct {
	*desktoptest.Session
	copy, paste func(mime string, primary bool) []string
	stays       string // keeps the copying program in the foreground
	noPrimary   bool   // these programs cannot use the primary selection there
}

func xclip(mime string, primary bool) []string {
	selection := "clipboard"
	if primary {
		selection = "primary"
	}
	return []string{"xclip", "-selection", selection, "-t", mime}
}

func x11Desk(s *desktoptest.Session) *desk {
	return &desk{s,
		func(mime string, primary bool) []string { return append(xclip(mime, primary), "-i") },
		func(mime string, primary bool) []string { return append(xclip(mime, primary), "-o") }, "-quiet", false}
}

func waylandDesk(s *desktoptest.Session) *desk {
	wl := func(argv ...string) func(string, bool) []string {
		return func(mime string, primary bool) []string {
			list := append(slices.Clone(argv), "-t", mime)
			if primary {
				list = append(list, "-p")
			}
			return list
		}
	}
	return &desk{s, wl("wl-copy"), wl("wl-paste", "-n"), "-f", false}
}

// desks runs a test on each desktop that runs here.
func desks(t *testing.T, f func(t *testing.T, d *desk)) {
	t.Run("Xvfb", func(t *testing.T) {
		desktoptest.Need(t, "xclip", "")
		f(t, x11Desk(desktoptest.Xvfb(t, "640x480")))
	})
	t.Run("Xorg", func(t *testing.T) {
		desktoptest.Need(t, "xclip", "")
		f(t, x11Desk(desktoptest.Xorg(t)))
	})
	t.Run("sway", func(t *testing.T) {
		desktoptest.Need(t, "wl-copy", "wl-clipboard")
		f(t, waylandDesk(desktoptest.Sway(t, 1)))
	})
	t.Run("KWin", func(t *testing.T) {
		desktoptest.Need(t, "wl-copy", "wl-clipboard")
		d := waylandDesk(desktoptest.KWin(t, 1))
		d.noPrimary = true // wl-copy of Debian 12 fails
		f(t, d)
	})
	t.Run("new sway", func(t *testing.T) { // speaks ext-data-control
		desktoptest.Need(t, "wl-copy", "wl-clipboard")
		d := waylandDesk(desktoptest.NewSway(t, 1))
		if w, ok := d.open(t).(*waylandClipboard); !ok || w.manager.Interface.Name != "ext_data_control_manager_v1" {
			t.Errorf("the clipboard is %+v", w)
		}
		f(t, d)
	})
}

func (d *desk) open(t testing.TB) Backend {
	t.Helper()
	var b Backend
	waitFor(t, func() (up bool) { // a socket is there before somebody listens
		opened, err := Open(t.Context(), d.Getenv)
		if err == nil {
			b = opened
		}
		return err == nil
	})
	t.Cleanup(func() { b.Close() })
	return b
}

// set has a program of the desktop copy. It stays in the foreground: xclip sets the selection twice where it forks.
func (d *desk) set(t testing.TB, mime string, primary bool, data []byte) *exec.Cmd {
	t.Helper()
	cmd := d.Command(t.Context(), slices.Insert(d.copy(mime, primary), 1, d.stays)...)
	cmd.Stdin = bytes.NewReader(data)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	return cmd
}

// stopped has a program of the desktop copy, and stops it so that it answers nobody.
func (d *desk) stopped(t testing.TB, b Backend, mime string, data []byte) {
	t.Helper()
	// So that it is seen when theirs is there.
	if err := Set(t.Context(), b, false, []Content{{Files, []byte("file:///a")}}); err != nil {
		t.Fatal(err)
	}
	cmd := d.set(t, mime, false, data)
	waitFor(t, func() bool {
		_, names, err := b.Offered(t.Context(), false)
		return err == nil && slices.Contains(names, mime)
	})
	unix.Kill(cmd.Process.Pid, unix.SIGSTOP)
}

// get has a program of the desktop paste.
func (d *desk) get(t testing.TB, mime string, primary bool) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := d.Command(ctx, d.paste(mime, primary)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return out
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

func samePixels(t *testing.T, got, want image.Image) {
	t.Helper()
	if got.Bounds() != want.Bounds() {
		t.Fatalf("an image of %v, want %v", got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			a, b := color.NRGBAModel.Convert(got.At(x, y)), color.NRGBAModel.Convert(want.At(x, y))
			if a != b {
				t.Fatalf("the pixel at %d,%d is %v, want %v", x, y, a, b)
			}
		}
	}
}

const htmlText = "<html><body><p>Tom &amp; <b>J\u00e9r\u00f4me</b></p><p>\u4e2d</p></body></html>"

func TestBothWaysByteForByte(t *testing.T) {
	small, _ := picture(t, 20, 10)
	desks(t, func(t *testing.T, d *desk) {
		b := d.open(t)
		if _, _, err := Get(t.Context(), b, false, Kinds(), MaxContent); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "empty") {
			t.Errorf("an empty clipboard: %v", err)
		}
		large := bytes.Repeat([]byte("0123456789abcd\u00e9"), 5<<20/16)
		for _, c := range []struct {
			kind Kind
			mime string
			data []byte
		}{
			{Text, "UTF8_STRING", []byte("caf\u00e9 \u4e2d\n\n")}, {Text, "UTF8_STRING", []byte("x")}, {Text, "text/plain;charset=utf-8", large},
			{HTML, "text/html", []byte(htmlText)}, {PNG, "image/png", small},
			{Files, "text/uri-list", []byte("file:///tmp/a%20b\r\nfile:///c\r\n")},
		} {
			for _, primary := range []bool{false, true} {
				if primary && d.noPrimary {
					continue
				}
				d.set(t, c.mime, primary, c.data)
				waitFor(t, func() bool {
					got, _, err := Get(t.Context(), b, primary, []Kind{c.kind}, MaxContent)
					return err == nil && bytes.Equal(got.Data, c.data)
				})
				if err := Set(t.Context(), b, primary, []Content{{c.kind, c.data}}); err != nil {
					t.Fatalf("%s: %v", c.mime, err)
				}
				if got := d.get(t, c.mime, primary); !bytes.Equal(got, c.data) {
					t.Errorf("%s: %d bytes, want %d", c.mime, len(got), len(c.data))
				}
				got, offered, err := Get(t.Context(), b, primary, []Kind{c.kind}, MaxContent) // what is ours, too
				if err != nil || !bytes.Equal(got.Data, c.data) || !slices.Contains(offered, c.kind) {
					t.Errorf("%s, ours: %v", c.mime, err)
				}
			}
		}
	})
}

func TestSeveralFormsAtOnce(t *testing.T) {
	small, pixels := picture(t, 20, 10)
	desks(t, func(t *testing.T, d *desk) {
		b := d.open(t)
		if err := Set(t.Context(), b, false, []Content{{HTML, []byte(htmlText)}}); err != nil {
			t.Fatal(err)
		}
		if got := string(d.get(t, "text/html", false)); got != htmlText {
			t.Errorf("HTML: %q", got)
		}
		if got := string(d.get(t, "UTF8_STRING", false)); got != "Tom & J\u00e9r\u00f4me\n\u4e2d" {
			t.Errorf("the text of HTML: %q", got)
		}
		if err := Set(t.Context(), b, false, []Content{{HTML, []byte(htmlText)}, {Text, []byte("other")}}); err != nil {
			t.Fatal(err)
		}
		if got := string(d.get(t, "UTF8_STRING", false)); got != "other" {
			t.Errorf("text beside HTML: %q", got)
		}
		if err := Set(t.Context(), b, false, []Content{{Text, []byte("caf\u00e9")}}); err != nil {
			t.Fatal(err)
		}
		if got := string(d.get(t, "STRING", false)); got != "caf\xe9" && d.Getenv("DISPLAY") != "" {
			t.Errorf("Latin-1: %q", got)
		}
		if err := Set(t.Context(), b, false, []Content{{PNG, small}}); err != nil {
			t.Fatal(err)
		}
		converted, err := bmp.Decode(bytes.NewReader(d.get(t, "image/bmp", false)))
		if err != nil {
			t.Fatal(err)
		}
		samePixels(t, converted, pixels)

		var source bytes.Buffer
		if err := bmp.Encode(&source, pixels); err != nil {
			t.Fatal(err)
		}
		d.set(t, "image/bmp", false, source.Bytes())
		var got Content
		waitFor(t, func() bool {
			got, _, err = Get(t.Context(), b, false, []Kind{PNG}, MaxContent)
			return err == nil && !bytes.Equal(got.Data, small)
		})
		decoded, err := png.Decode(bytes.NewReader(got.Data))
		if err != nil {
			t.Fatal(err)
		}
		samePixels(t, decoded, pixels)
	})
}

// Content stays for as long as nobody else sets the clipboard, and a change of others is told: of ours it is not.
func TestContentStaysAndChangesAreTold(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		b := d.open(t)
		changes := make(chan struct{}, 100)
		if err := b.Watch(func() { changes <- struct{}{} }); err != nil {
			t.Fatal(err)
		}
		if err := Set(t.Context(), b, false, []Content{{Text, []byte("ours")}}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(300 * time.Millisecond)
			if got := string(d.get(t, "UTF8_STRING", false)); got != "ours" {
				t.Fatalf("it is %q", got)
			}
		}
		if len(changes) > 0 {
			t.Errorf("%d changes were told of what is ours", len(changes))
		}
		d.set(t, "UTF8_STRING", false, []byte("theirs"))
		<-changes
		waitFor(t, func() bool {
			got, _, err := Get(t.Context(), b, false, []Kind{Text}, 100)
			return err == nil && string(got.Data) == "theirs"
		})
		if len(changes) > 0 {
			t.Errorf("%d more changes were told", len(changes))
		}
	})
}

func TestHostileContent(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		b := d.open(t)
		read := func(kind Kind) error {
			_, _, err := Get(t.Context(), b, false, []Kind{kind}, MaxContent)
			return err
		}
		for name, c := range map[string]struct {
			mime string
			data []byte
			kind Kind
			code string
		}{
			"a PNG whose header lies":   {"image/png", lyingPNG(65535), PNG, "too_large"},
			"a PNG that is cut":         {"image/png", lyingPNG(100), PNG, "invalid"},
			"a BMP whose header lies":   {"image/bmp", lyingBMP(4000, 4000), PNG, "invalid"},
			"HTML beyond the limit":     {"text/html", bytes.Repeat([]byte("x"), 16<<20), HTML, "too_large"},
			"text that is not UTF-8":    {"text/plain;charset=utf-8", []byte("a\xff\xfeb\xc0"), Text, "invalid"},
			"what was not asked for":    {"application/x-other", []byte("x"), Text, "not_found"},
			"a list that is not UTF-8":  {"text/uri-list", []byte("file:///\xff"), Files, "invalid"},
			"a JPEG that says it's PNG": {"image/png", []byte("\xff\xd8\xff\xe0 and so on"), PNG, "unsupported"},
		} {
			ours := Content{Files, []byte("file:///a")} // so that it is seen when theirs is there
			if c.kind == Files {
				ours = Content{Text, nil}
			}
			if err := Set(t.Context(), b, false, []Content{ours}); err != nil {
				t.Fatal(err)
			}
			d.set(t, c.mime, false, c.data)
			waitFor(t, func() bool {
				_, names, err := b.Offered(t.Context(), false)
				return err == nil && slices.Contains(names, c.mime)
			})
			if err := read(c.kind); fault.Code(err) != c.code {
				t.Errorf("%s: %v, want %s", name, err, c.code)
			}
		}
		d.stopped(t, b, "text/html", []byte("silence"))
		begin := time.Now()
		if err := read(HTML); fault.Code(err) != "timeout" || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("an owner that never answers: %v after %v", err, time.Since(begin))
		}
		if err := Set(t.Context(), b, false, []Content{{Text, []byte("again")}}); err != nil {
			t.Error(err)
		}
		if got := string(d.get(t, "UTF8_STRING", false)); got != "again" {
			t.Errorf("after that it is %q", got)
		}
	})
}

// An owner that stops amid its content, and a reader that takes nothing, cost their own call alone.
func TestTransferThatStops(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		b, other := d.open(t), d.open(t)
		large := bytes.Repeat([]byte("x"), 8<<20)
		if err := Set(t.Context(), b, false, []Content{{Text, large}}); err != nil {
			t.Fatal(err)
		}
		argv := d.paste("UTF8_STRING", false)
		for range 3 {
			cmd := d.Command(t.Context(), argv...)
			out, err := cmd.StdoutPipe()
			if err != nil || cmd.Start() != nil {
				t.Fatal(err)
			}
			if d.Getenv("WAYLAND_DISPLAY") != "" {
				out.Read(make([]byte, 1)) // it has begun
			}
			cmd.Process.Kill()
			cmd.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		if _, _, err := Get(ctx, other, false, []Kind{Text}, MaxContent); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("a read that is given up: %v", err)
		}
		got, _, err := Get(t.Context(), other, false, []Kind{Text}, MaxContent)
		if err != nil || !bytes.Equal(got.Data, large) {
			t.Errorf("a read behind that: %v", err)
		}
		if _, _, err := Get(t.Context(), other, false, []Kind{Text}, 1<<20); fault.Code(err) != "too_large" {
			t.Errorf("a read of less: %v", err)
		}
		got, _, err = Get(t.Context(), other, false, []Kind{Text}, MaxContent)
		if err != nil || !bytes.Equal(got.Data, large) {
			t.Errorf("a read behind that: %v", err)
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestAThousandChangesLeaveNothing(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		b, other := d.open(t), d.open(t)
		changes := make(chan struct{}, 1)
		b.Watch(func() {
			select {
			case changes <- struct{}{}:
			default:
			}
		})
		round := func(i int) {
			want := []byte(strings.Repeat("x", i%3*300_000) + "end")
			if err := Set(t.Context(), other, false, []Content{{Text, want}}); err != nil {
				t.Fatal(err)
			}
			<-changes
			waitFor(t, func() bool {
				got, _, err := Get(t.Context(), b, false, []Kind{Text}, MaxContent)
				return err == nil && bytes.Equal(got.Data, want)
			})
			if err := Set(t.Context(), b, false, []Content{{Text, []byte("back")}}); err != nil {
				t.Fatal(err)
			}
		}
		round(2)
		files, goroutines := openFiles(t), runtime.NumGoroutine()
		for i := range 500 { // two changes each
			round(i)
		}
		waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines })
		if n := openFiles(t); n > files {
			t.Errorf("%d descriptors were open, and %d are", files, n)
		}
		switch b := b.(type) {
		case *x11Clipboard:
			if len(b.out) > 0 || len(b.owned) != 1 {
				t.Errorf("it holds %d transfers, %d selections", len(b.out), len(b.owned))
			}
		case *waylandClipboard:
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.offers) > 2 {
				t.Errorf("it holds %d offers", len(b.offers))
			}
		}
	})
}

func TestADisplayThatEnds(t *testing.T) {
	s := desktoptest.Xvfb(t, "640x480")
	b := x11Desk(s).open(t)
	x := b.(*x11Clipboard)
	x.conn.Close() // as the server does when it ends
	<-b.Done()
	if err := Set(t.Context(), b, false, []Content{{Text, []byte("x")}}); err == nil {
		t.Error("the clipboard of a display that has ended was set")
	}
	if _, err := Open(t.Context(), func(string) string { return "" }); fault.Code(err) != "unsupported" {
		t.Errorf("no display: %v", err)
	}
}

// A compositor that gives no program access to its clipboard is named.
func TestCompositorWithoutDataControl(t *testing.T) {
	s := desktoptest.Mutter(t, "1024x768")
	_, err := Open(t.Context(), s.Getenv)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "mutter gives no program access to its clipboard") {
		t.Errorf("on GNOME's compositor: %v", err)
	}
}

func TestDecodeText(t *testing.T) {
	for _, c := range []struct {
		data   string
		latin1 bool
		want   string
		code   string
	}{
		{"caf\u00e9", false, "caf\u00e9", ""}, {"caf\xe9", true, "caf\u00e9", ""}, {"caf\xe9", false, "", "invalid"},
		{"\xff\xfea\x00\xe9\x00", false, "a\u00e9", ""}, {"\xfe\xff\x00a", false, "a", ""}, {"\xff\xfea", false, "", "invalid"},
	} {
		got, err := decodeText(HTML, []byte(c.data), c.latin1)
		if string(got) != c.want || fault.Code(err) != c.code {
			t.Errorf("%q: %q, %v", c.data, got, err)
		}
	}
}
