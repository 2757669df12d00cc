//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// desktops begins two sessions of logind, each with X.Org's server on a terminal of its own, as startx does it: the server is
// the user's, and logind gives it the terminal when the session comes to the front. The dummy driver shows its output to
// nobody.
const desktops = `
mkdir -p /etc/X11 /run/systemd/system
cat > /etc/X11/xorg.conf <<'CONF'
Section "ServerFlags"
  Option "AutoAddDevices" "false"
  Option "AutoEnableDevices" "false"
EndSection
Section "Module"
  Disable "glx"
EndSection
Section "Device"
  Identifier "device"
  Driver "dummy"
  VideoRam 64000
EndSection
Section "Monitor"
  Identifier "monitor"
  HorizSync 5.0 - 1000.0
  VertRefresh 5.0 - 1000.0
EndSection
Section "Screen"
  Identifier "screen"
  Device "device"
  Monitor "monitor"
  DefaultDepth 24
  SubSection "Display"
    Depth 24
    Virtual 1024 768
  EndSubSection
EndSection
CONF
number=7
for user in alice bob; do
  useradd -m -s /bin/sh $user
  cat > /run/systemd/system/desktop-$user.service <<UNIT
[Service]
User=$user
PAMName=login
TTYPath=/dev/tty$number
StandardInput=tty
StandardOutput=journal
Environment=XDG_SESSION_TYPE=x11 XDG_SESSION_CLASS=user XDG_SEAT=seat0 XDG_VTNR=$number DISPLAY=:$number
ExecStart=/bin/sh -c '/usr/lib/xorg/Xorg :$number vt$number -keeptty -nolisten tcp -noreset -logfile /tmp/xorg-$user.log & exec sleep 100000'
UNIT
  number=8
done
systemctl daemon-reload
`

// asUser runs a line of shell in the session of a user.
func asUser(t testing.TB, vm *vmtest.VM, user, line string) string {
	t.Helper()
	display := map[string]string{"alice": ":7", "bob": ":8"}[user]
	return vm.Must(t, fmt.Sprintf("runuser -u %s -- env DISPLAY=%s sh -ec '%s'", user, display, line))
}

func xclipOf(t testing.TB, vm *vmtest.VM, user string) string {
	t.Helper()
	return asUser(t, vm, user, "xclip -selection clipboard -t UTF8_STRING -o")
}

func screenOf(t testing.TB, vm *vmtest.VM, user string) string {
	t.Helper()
	return asUser(t, vm, user, `xrandr | sed -n "s/.*current \([0-9]*\) x \([0-9]*\).*/\1x\2/p"`)
}

// login begins the session of a user and brings it to the front.
func login(t testing.TB, vm *vmtest.VM, user string) (session string) {
	t.Helper()
	vm.Must(t, "systemctl start desktop-"+user)
	display := map[string]string{"alice": "7", "bob": "8"}[user]
	eventually(t, vm, "the X server of "+user, "test -S /tmp/.X11-unix/X"+display+
		" && runuser -u "+user+" -- env DISPLAY=:"+display+" xrandr >/dev/null")
	session = vm.Must(t, "loginctl --no-legend list-sessions | awk '$3 == \""+user+"\" {print $1}'")
	if session == "" {
		t.Fatalf("logind has no session of %s:\n%s", user, vm.Must(t, "loginctl --no-pager list-sessions"))
	}
	vm.Must(t, "loginctl activate "+session)
	return session
}

// pictureOf is a PNG of 10 MiB.
func pictureOf(t testing.TB) []byte {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, 1870, 1870))
	r := rand.New(rand.NewPCG(1, 2))
	for i := range img.Pix {
		img.Pix[i] = byte(r.Uint32()) | byte(i%4/3*255)
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The screen and the clipboard are those of whoever is in front, by the port: X.Org's server runs in sessions of two users,
// which logind switches between, and the agent is the service of the package.
func TestDesktopOfWhoIsInFront(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, desktops)
	t.Cleanup(func() {
		if t.Failed() {
			r, err := vm.Shell(limited(t, time.Minute),
				"loginctl --no-pager list-sessions; tail -n 40 /tmp/xorg-*.log; journalctl -o cat -n 40 -u 'desktop-*'")
			t.Logf("%v\n%s%s", err, r.Stdout, r.Stderr)
		}
	})
	ctx := limited(t, 5*time.Minute)
	changes := make(chan *pb.ClipboardChangedEvent, 100)
	host := dial(t, vm, vmtest.AgentPort, client.Options{Event: func(_ string, event proto.Message) {
		if change, ok := event.(*pb.ClipboardChangedEvent); ok {
			changes <- change
		}
	}})
	announced := func() bool {
		can, err := client.Call[*pb.GetCapabilitiesResponse](ctx, host, &pb.GetCapabilitiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(can.Capabilities, "display_resize") && slices.Contains(can.Capabilities, "clipboard")
	}
	resize := func(width, height uint32) (*pb.DisplayResizeResponse, error) {
		return client.Call[*pb.DisplayResizeResponse](ctx, host, &pb.DisplayResizeRequest{Width: width, Height: height})
	}
	set := func(text string) error { return host.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte(text)}) }
	desktop := func() *pb.DesktopStatus {
		t.Helper()
		s, err := client.Call[*pb.GetStatusResponse](ctx, host, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Desktop
	}
	inFront := func(user string) *pb.DesktopStatus { // by signals of logind: nobody asks for the desktop
		t.Helper()
		for begin := time.Now(); ; {
			if now := desktop(); now.User == user && now.HelperPid != 0 {
				return now
			}
			if time.Since(begin) > time.Minute || !pause(ctx, 20*time.Millisecond) {
				t.Fatalf("the helper is not in the session of %s: %v", user, desktop())
			}
		}
	}

	// A console without a desktop.
	if announced() {
		t.Error("a desktop is announced where there is none")
	}
	if _, err := resize(1280, 800); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "no graphical session") {
		t.Errorf("resize without a desktop: %v", err)
	}

	// Alice.
	first := login(t, vm, "alice")
	for begin := time.Now(); !announced(); {
		if time.Since(begin) > time.Minute || !pause(ctx, 100*time.Millisecond) {
			t.Fatal("the desktop is not announced")
		}
	}
	if out, err := resize(1280, 800); err != nil || out.ActualWidth != 1280 || out.ActualHeight != 800 {
		t.Fatalf("resize: %v, %v", out, err)
	}
	if got := screenOf(t, vm, "alice"); got != "1280x800" {
		t.Errorf("xrandr tells %s", got)
	}
	if _, err := resize(0, 0); fault.Code(err) != "invalid" {
		t.Errorf("0x0: %v", err)
	}
	if err := set("for alice"); err != nil {
		t.Fatal(err)
	}
	if got := xclipOf(t, vm, "alice"); got != "for alice" {
		t.Errorf("alice has %q", got)
	}
	ofAlice := inFront("alice")
	if ofAlice.Type != "x11" || ofAlice.Session != first || ofAlice.Seat != "seat0" || ofAlice.Display != ":7" {
		t.Errorf("in front: %v", ofAlice)
	}
	id := vm.Must(t, "id -u alice")
	want := strings.Join([]string{"Uid:", id, id, id, id}, "\t")
	got := vm.Must(t, fmt.Sprintf("grep -e ^Uid: -e ^CapEff: /proc/%d/status", ofAlice.HelperPid))
	if got != want+"\nCapEff:\t0000000000000000" {
		t.Errorf("the helper is %q", got)
	}
	desktopSpeed(ctx, t, vm, host, changes)
	killed := time.Now()
	vm.Must(t, fmt.Sprintf("kill -KILL %d", ofAlice.HelperPid))
	for desktop().HelperPid == ofAlice.HelperPid {
	}
	inFront("alice")
	t.Logf("a helper that was killed is back after %v", time.Since(killed).Round(time.Millisecond))

	// Bob logs in beside her.
	second := login(t, vm, "bob")
	inFront("bob")
	if got := vm.Must(t, "cat /sys/class/tty/tty0/active"); got != "tty8" {
		t.Errorf("%s is in front", got)
	}
	if err := set("for bob"); err != nil {
		t.Fatal(err)
	}
	if out, err := resize(800, 600); err != nil || out.ActualWidth != 800 {
		t.Errorf("resize: %v, %v", out, err)
	}
	screens := screenOf(t, vm, "alice") + " " + screenOf(t, vm, "bob")
	if got := xclipOf(t, vm, "bob"); got != "for bob" || screens != "1280x800 800x600" {
		t.Errorf("bob has %q, the screens are %s", got, screens)
	}

	// His screen is locked: the clipboard is nobody's.
	lock := func(session string, locked bool) {
		path := vm.Must(t, "busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager GetSession s "+
			session+" | cut -d\\\" -f2")
		vm.Must(t, fmt.Sprintf("busctl call org.freedesktop.login1 %s org.freedesktop.login1.Session SetLockedHint b %v", path, locked))
	}
	lock(second, true)
	if err := set("x"); fault.Code(err) != "refused" || !strings.Contains(err.Error(), "is locked") {
		t.Errorf("set in a locked session: %v", err)
	}
	lock(second, false)

	// Back to her, whose session went on without a helper; then nobody is left.
	vm.Must(t, "loginctl activate "+first)
	inFront("alice")
	if err := set("again for alice"); err != nil {
		t.Fatal(err)
	}
	if alice, bob := xclipOf(t, vm, "alice"), desktop().Display; alice != "again for alice" || bob != ":7" {
		t.Errorf("alice has %q on %s", alice, bob)
	}
	vm.Must(t, "systemctl stop desktop-alice desktop-bob")
	for begin := time.Now(); desktop().HelperPid != 0; {
		if time.Since(begin) > time.Minute || !pause(ctx, 20*time.Millisecond) {
			t.Fatalf("a helper runs without a session: %v", desktop())
		}
	}
	if err := set("x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("set without a session: %v", err)
	}
}

// desktopSpeed looks at changes in the guest, and logs how long they take to come to the host, and an image of 10 MiB beside a
// file of that size.
func desktopSpeed(
	ctx context.Context, t *testing.T, vm *vmtest.VM, host *client.Client, changes <-chan *pb.ClipboardChangedEvent,
) {
	t.Helper()
	if err := host.WatchClipboard(ctx); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for i := range 6 {
		text := fmt.Sprintf("change %d", i)
		if err := host.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("of the host")}); err != nil { // which is not told
			t.Fatal(err)
		}
		begin := asUser(t, vm, "alice", "printf \""+text+"\" > /tmp/text; date +%s%N; "+
			"xclip -selection clipboard -quiet -i /tmp/text >/dev/null 2>&1 &")
		select {
		case change := <-changes:
			if string(change.Data) != text {
				t.Errorf("told: %v", change)
			}
		case <-ctx.Done():
			t.Fatalf("change %d was not told", i)
		}
		var at int64
		fmt.Sscan(begin, &at)
		took = append(took, time.Since(time.Unix(0, at)))
	}
	slices.Sort(took)
	t.Logf("from the start of xclip to the event on the host, the clocks being set alike: %v", took)

	picture := pictureOf(t)
	measure := func(f func() error) time.Duration {
		var all []time.Duration
		for range 3 {
			begin := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			all = append(all, time.Since(begin))
		}
		slices.Sort(all)
		return all[1]
	}
	pushed := measure(func() error {
		_, err := host.Push(ctx, "/run/picture", bytes.NewReader(picture), client.PushOptions{})
		return err
	})
	set := measure(func() error {
		return host.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Type: pb.ClipboardType_CLIPBOARD_TYPE_IMAGE, Data: picture})
	})
	got := measure(func() error {
		reply, err := host.Clipboard(ctx, &pb.ClipboardGetRequest{PreferredType: pb.ClipboardType_CLIPBOARD_TYPE_IMAGE})
		if err == nil && !bytes.Equal(reply.Data, picture) {
			err = errors.New("it is not what was set")
		}
		return err
	})
	t.Logf("%d bytes: pushed as a file in %v, set in %v, read in %v", len(picture), pushed, set, got)
	if err := host.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("small")}); err != nil {
		t.Fatal(err)
	}
}
