package wayland

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
)

// The interfaces of wlr-data-control-unstable-v1 as far as the test speaks them.
var (
	sourceType = &Interface{Name: "zwlr_data_control_source_v1", Version: 1, Events: []EventType{
		{Name: "send", Args: "sh"}, {Name: "cancelled"},
	}}
	offerType  = &Interface{Name: "zwlr_data_control_offer_v1", Version: 1, Events: []EventType{{Name: "offer", Args: "s"}}}
	deviceType = &Interface{Name: "zwlr_data_control_device_v1", Version: 1, Events: []EventType{
		{Name: "data_offer", Args: "n", New: offerType}, {Name: "selection", Args: "o"}, {Name: "finished"},
	}}
	managerType = &Interface{Name: "zwlr_data_control_manager_v1", Version: 1}
)

func dial(t *testing.T, s *desktoptest.Session) *Conn {
	t.Helper()
	path, err := SocketPath(s.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func bind(t *testing.T, c *Conn, kind *Interface) *Object {
	t.Helper()
	object, err := c.Bind(kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A selection of 1 MiB goes from one connection to another one through the compositor: requests, events with objects that the
// compositor makes, and descriptors both ways.
func TestSelectionBetweenTwoConnections(t *testing.T) {
	s := desktoptest.Sway(t, 1)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

	owner := dial(t, s)
	if owner.Compositor() != "sway" {
		t.Errorf("the compositor is %q", owner.Compositor())
	}
	manager, seat := bind(t, owner, managerType), bind(t, owner, Seat)
	device := manager.New(deviceType, nil)
	check(t, manager.Request(1, device, seat))
	source := manager.New(sourceType, func(e *Event) {
		if e.Opcode == 0 && e.String(0) == "text/plain" {
			file := e.File(1)
			file.SetWriteDeadline(time.Now().Add(10 * time.Second))
			go func() {
				defer file.Close()
				file.Write(content)
			}()
		}
	})
	check(t, manager.Request(0, source))
	check(t, source.Request(0, "text/plain"))
	check(t, device.Request(0, source))
	check(t, owner.Roundtrip(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() {
		served <- owner.DispatchUntil(ctx, func() bool { return false })
	}()
	defer func() {
		stop()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("the loop of the owner ended with %v", err)
		}
		check(t, owner.Roundtrip(t.Context())) // a loop that was cancelled leaves the connection as it is
	}()

	reader := dial(t, s)
	types := map[*Object][]string{}
	var selection *Object
	manager, seat = bind(t, reader, managerType), bind(t, reader, Seat)
	device = manager.New(deviceType, func(e *Event) {
		switch e.Opcode {
		case 0:
			e.Of(0).Handle = func(offered *Event) { types[offered.Object] = append(types[offered.Object], offered.String(0)) }
		case 1:
			selection = e.Of(0)
		}
	})
	check(t, manager.Request(1, device, seat))
	check(t, reader.Roundtrip(t.Context()))
	if selection == nil || len(types[selection]) != 1 || types[selection][0] != "text/plain" {
		t.Fatalf("the selection is %v of %v", selection, types)
	}
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	check(t, selection.Request(0, "text/plain", w))
	w.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(r)
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Fatalf("%d bytes came, of %d", len(got), len(content))
	}
	check(t, selection.Destroy(1))
	check(t, reader.Roundtrip(t.Context()))
}

// Ids are given back and used again: a thousand round trips need no more objects than one.
func TestObjectsAreUsedAgain(t *testing.T) {
	c := dial(t, desktoptest.Sway(t, 1))
	check(t, c.Roundtrip(t.Context()))
	before := c.next
	for range 1000 {
		check(t, c.Roundtrip(t.Context()))
	}
	if c.next != before || len(c.objects) > 4 {
		t.Errorf("after 1000 round trips there are %d objects, and the next id is %d, which was %d", len(c.objects), c.next, before)
	}
}

// An error event is an error of the object that it is about, and ends the connection.
func TestErrorEvent(t *testing.T) {
	c := dial(t, desktoptest.Sway(t, 1))
	manager := bind(t, c, managerType)
	check(t, manager.Request(99))
	err := c.Roundtrip(t.Context())
	var refused *ProtocolError
	if !errors.As(err, &refused) || refused.Interface != "wl_display" && refused.Interface != managerType.Name {
		t.Fatalf("an unknown request: %v", err)
	}
	if again := c.Roundtrip(t.Context()); !errors.As(again, &refused) {
		t.Errorf("the connection goes on with %v", again)
	}
}

func TestGlobalsAndBind(t *testing.T) {
	c := dial(t, desktoptest.Sway(t, 1))
	if _, err := c.Bind(&Interface{Name: "org_kde_no_such", Version: 1}, nil); !errors.Is(err, errors.ErrUnsupported) ||
		!strings.Contains(err.Error(), "sway does not offer org_kde_no_such") {
		t.Errorf("an interface that is not offered: %v", err)
	}
	name := ""
	_, err := c.Bind(Seat, func(e *Event) {
		if e.Opcode == 1 {
			name = e.String(0)
		}
	})
	check(t, err)
	check(t, c.Roundtrip(t.Context()))
	if name != "seat0" {
		t.Errorf("the seat is %q", name)
	}
}

// A compositor that is stopped answers nothing: the error names it, and comes in time to be told.
func TestCompositorThatDoesNotAnswer(t *testing.T) {
	s := desktoptest.Sway(t, 1)
	c := dial(t, s)
	raw, err := c.socket.SyscallConn()
	check(t, err)
	pid := 0
	check(t, raw.Control(func(fd uintptr) {
		peer, _ := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pid = int(peer.Pid)
	}))
	check(t, unix.Kill(pid, unix.SIGSTOP))
	defer unix.Kill(pid, unix.SIGCONT)
	err = c.Roundtrip(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "sway does not answer (waited for 2 s)") {
		t.Errorf("of a stopped compositor: %v", err)
	}
}

func TestNoCompositor(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no socket: %v", err)
	}
	for _, c := range []struct{ display, dir, want string }{
		{"wayland-1", "/run/user/7", "/run/user/7/wayland-1"}, {"", "/run/user/7", "/run/user/7/wayland-0"},
		{"/tmp/w", "", "/tmp/w"}, {"wayland-1", "", ""},
	} {
		got, err := SocketPath(func(name string) string {
			return map[string]string{"WAYLAND_DISPLAY": c.display, "XDG_RUNTIME_DIR": c.dir}[name]
		})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// What a peer sends that is no event ends the connection with an error, and never the program.
func TestMalformedEvents(t *testing.T) {
	word := order.AppendUint32
	event := func(id uint32, size, opcode int, body ...byte) []byte {
		return append(word(word(nil, id), uint32(size)<<16|uint32(opcode)), body...)
	}
	for name, sent := range map[string][]byte{
		"length below that of a header": event(1, 4, 1),
		"length of no whole words":      event(1, 13, 1, 0, 0, 0, 0, 0),
		"unknown object":                event(77, 12, 0, 0, 0, 0, 0),
		"unknown opcode":                event(1, 12, 9, 0, 0, 0, 0),
		"argument missing":              event(1, 8, 1),
		"an argument too many":          event(1, 16, 1, 1, 0, 0, 0, 0, 0, 0, 0),
		"text longer than the event":    event(2, 20, 0, append(word(word(nil, 1), math.MaxUint32), 0, 0, 0, 0)...),
		"text without its zero":         event(2, 24, 0, append(word(word(nil, 1), 4), 'a', 'b', 'c', 'd', 1, 0, 0, 0)...),
	} {
		dir := t.TempDir()
		listener, err := net.Listen("unix", filepath.Join(dir, "w"))
		check(t, err)
		go func() {
			peer, err := listener.Accept()
			if err != nil {
				return
			}
			defer peer.Close()
			peer.Write(sent)
			io.Copy(io.Discard, peer)
		}()
		if _, err := Dial(t.Context(), filepath.Join(dir, "w")); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		listener.Close()
	}
}

// A text is encoded so that the decoder of events returns it, whatever its length; what no compositor takes is refused.
func TestEncoding(t *testing.T) {
	for n := range 40 {
		text := strings.Repeat("é", n)
		message, _, err := encode(5, 3, []any{text, []byte(text), int32(-2), Fixed(384)})
		check(t, err)
		if order.Uint32(message) != 5 || int(order.Uint32(message[4:])) != len(message)<<16|3 {
			t.Errorf("header % x", message[:8])
		}
		d := decoder{data: message[headerSize:]}
		a, b, c, f := d.text(), d.bytes(), int32(d.word()), Fixed(d.word())
		if a != text || string(b) != text || c != -2 || f.Float() != 1.5 {
			t.Errorf("%q, %q, %d, %v", a, b, c, f)
		}
		if d.bad || len(d.data) != 0 {
			t.Errorf("%d bytes are left", len(d.data))
		}
	}
	for _, arg := range []any{strings.Repeat("x", maxRequest), "a\x00b"} {
		if _, _, err := encode(1, 0, []any{arg}); err == nil {
			t.Error("a text that cannot be sent was encoded")
		}
	}
}
