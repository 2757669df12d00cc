package display

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktoptest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// local is a desktop that is spoken to by this process, in place of the helper in its session.
type local struct{ session *desktoptest.Session }

func (l local) with(
	ctx context.Context, f func(outputs.Backend) (*pb.ListDisplaysResponse, error),
) (*pb.ListDisplaysResponse, error) {
	b, err := outputs.Open(ctx, l.session.Getenv)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return f(b)
}

func (l local) Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	return l.with(ctx, func(b outputs.Backend) (*pb.ListDisplaysResponse, error) { return b.Outputs(ctx) })
}

func (l local) Set(ctx context.Context, settings []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error) {
	return l.with(ctx, func(b outputs.Backend) (*pb.ListDisplaysResponse, error) { return outputs.Set(ctx, b, settings) })
}

func (l local) Present(bool) string { return l.session.Dir }

func roomOn(s *desktoptest.Session) *Room { return New(&guest.Guest{Live: true}, local{s}) }

func resize(t *testing.T, r *Room, in *pb.DisplayResizeRequest) *pb.DisplayResizeResponse {
	t.Helper()
	out, err := r.resize(t.Context(), &builtins.Call{}, in)
	if err != nil {
		t.Fatalf("%v: %v", in, err)
	}
	return out
}

func xrandr(t *testing.T, s *desktoptest.Session, want ...string) {
	t.Helper()
	seen := s.Run(t, "xrandr")
	for _, text := range want {
		if !strings.Contains(seen, text) {
			t.Errorf("no %q in\n%s", text, seen)
		}
	}
}

// display_resize sets the primary output, or the one that is named; the others make room, and what is told was read back.
func TestResize(t *testing.T) {
	s := desktoptest.Xorg(t)
	s.Run(t, "xrandr", "--addmode", "DUMMY1", "800x600")
	s.Run(t, "xrandr", "--output", "DUMMY1", "--mode", "800x600", "--right-of", "DUMMY0")
	r := roomOn(s)
	out := resize(t, r, &pb.DisplayResizeRequest{Width: 1366, Height: 768})
	if out.ActualWidth != 1366 || out.ActualHeight != 768 || !out.Success {
		t.Errorf("%v", out)
	}
	xrandr(t, s, "DUMMY0 connected primary 1366x768+0+0", "800x600+1366+0")
	if out := resize(t, r, &pb.DisplayResizeRequest{Width: 1111, Height: 777, DisplayId: "DUMMY1"}); out.ActualWidth != 1111 {
		t.Errorf("%v", out)
	}
	xrandr(t, s, "DUMMY0 connected primary 1366x768+0+0", "1111x777+1366+0")

	before := s.Run(t, "xrandr")
	for _, c := range []struct {
		in          *pb.DisplayResizeRequest
		code, words string
	}{
		{&pb.DisplayResizeRequest{}, "invalid", "0x0 is no size"},
		{&pb.DisplayResizeRequest{Width: 65535, Height: 65535}, "invalid", "65535x65535 is no size"},
		{&pb.DisplayResizeRequest{Width: 800, Height: 600, DisplayId: "HDMI-7"}, "not_found", `"HDMI-7"; there are DUMMY0, DUMMY1`},
		{&pb.DisplayResizeRequest{Width: 16384, Height: 16384}, "invalid", "more than a mode can have"},
		{&pb.DisplayResizeRequest{Width: 800, Height: 600, Dpi: 1}, "invalid", "1 dpi"},
	} {
		out, err := r.resize(t.Context(), &builtins.Call{}, c.in)
		if fault.Code(err) != c.code || !strings.Contains(err.Error(), c.words) || out != nil {
			t.Errorf("%v: %v, %v", c.in, out, err)
		}
	}
	if after := s.Run(t, "xrandr"); after != before {
		t.Errorf("after requests that were refused:\n%s\nwas\n%s", after, before)
	}
}

// Many sizes, as while a window is drawn larger, leave the last one, and no modes behind.
func TestResizeManyTimes(t *testing.T) {
	s := desktoptest.Xorg(t)
	r := roomOn(s)
	var all sync.WaitGroup
	for i := range uint32(20) {
		all.Go(func() {
			if _, err := r.resize(t.Context(), &builtins.Call{}, &pb.DisplayResizeRequest{Width: 900 + i, Height: 700}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	resize(t, r, &pb.DisplayResizeRequest{Width: 999, Height: 701})
	xrandr(t, s, "DUMMY0 connected primary 999x701+0+0")
	if n := strings.Count(s.Run(t, "xrandr"), "quantix-"); n != 1 {
		t.Errorf("%d modes are left", n)
	}
}

// The dpi are a scale where outputs have one.
func TestResizeWithDPI(t *testing.T) {
	s := desktoptest.Sway(t, 2)
	r := roomOn(s)
	resize(t, r, &pb.DisplayResizeRequest{Width: 2560, Height: 1440, Dpi: 192, DisplayId: "HEADLESS-1"})
	list, err := r.list(t.Context(), &builtins.Call{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Outputs {
		if o.Name == "HEADLESS-1" && (o.Scale != 2 || o.Width != 2560 || o.X != 0) ||
			o.Name == "HEADLESS-2" && (o.Scale != 1 || o.X != 1280) {
			t.Errorf("%v", o)
		}
	}
}

// journal is a transaction that keeps what is announced.
type journal struct {
	builtins.Tx
	undo []*pb.DisplayLayoutArgs
}

func (j *journal) Undo(_ context.Context, op string, args proto.Message) error {
	if op != restoreOp {
		return fmt.Errorf("%s is announced", op)
	}
	j.undo = append(j.undo, args.(*pb.DisplayLayoutArgs))
	return nil
}

// What a script sets is announced before it is done, reported, the same in a dry run, and taken back by what was announced.
func TestScript(t *testing.T) {
	s := desktoptest.Sway(t, 2)
	r := roomOn(s)
	layout := func() *pb.DisplayLayoutArgs {
		on := true
		return &pb.DisplayLayoutArgs{Outputs: []*pb.DisplaySetting{
			{Name: "HEADLESS-2", Enabled: &on, Width: 1280, Height: 720, Scale: 2}, {Name: "HEADLESS-1", Enabled: &on},
		}}
	}
	before, err := r.list(t.Context(), &builtins.Call{}, nil)
	if err != nil {
		t.Fatal(err)
	}

	var would []*pb.Change
	dry := &builtins.Call{DryRun: &builtins.DryRun{}, Changed: func(c *pb.Change) { would = append(would, c) }}
	if out, err := r.scriptLayout(t.Context(), dry, layout()); err != nil || !out.Changed || len(would) != 1 {
		t.Fatalf("dry run: %v, %v, %v", out, err, would)
	}
	if out, err := r.scriptLayout(t.Context(), dry, layout()); err != nil || out.Changed {
		t.Errorf("a second time in a dry run: %v, %v", out, err)
	}
	pretended, err := r.scriptList(t.Context(), dry, nil)
	if err != nil || pretended.Outputs[1].Width+pretended.Outputs[0].Width != 1280+before.Outputs[0].Width {
		t.Errorf("a dry run pretends %v, %v", pretended, err)
	}
	if now, err := r.list(t.Context(), &builtins.Call{}, nil); err != nil || !proto.Equal(now, before) {
		t.Errorf("a dry run has changed %v to %v, %v", before, now, err)
	}

	var did []*pb.Change
	j := &journal{}
	call := &builtins.Call{Tx: j, Changed: func(c *pb.Change) { did = append(did, c) }}
	if out, err := r.scriptLayout(t.Context(), call, layout()); err != nil || !out.Changed || len(did) != 1 || len(j.undo) != 1 {
		t.Fatalf("%v, %v, %v", out, err, did)
	}
	if did[0].Diff != would[0].Diff || did[0].Target != would[0].Target ||
		did[0].State != pb.ChangeState_CHANGE_STATE_APPLIED || !did[0].Reversible {
		t.Errorf("%v, and the dry run told %v", did[0], would[0])
	}
	if out, err := r.scriptLayout(t.Context(), call, layout()); err != nil || out.Changed || len(did) != 1 || len(j.undo) != 1 {
		t.Errorf("a second time: %v, %v, %v", out, err, did)
	}
	for range 2 { // an undo is done again after a crash
		if _, err := r.restore(t.Context(), &builtins.Call{Undo: true}, j.undo[0]); err != nil {
			t.Fatal(err)
		}
		now, err := r.list(t.Context(), &builtins.Call{}, nil)
		if err != nil || outputs.Differs(now.Outputs, outputs.Settings(before.Outputs)) != nil {
			t.Errorf("taken back: %v, %v", now, err)
		}
	}
	unknown := &pb.DisplaySetArgs{Width: 800, Height: 600, Output: "NO"}
	if _, err := r.scriptSet(t.Context(), &builtins.Call{}, unknown); fault.Code(err) != "not_found" {
		t.Errorf("an unknown output: %v", err)
	}
}

// Where there is no desktop, requests say so, nothing is announced, and an undo has nothing to do.
func TestNoDesktop(t *testing.T) {
	r := New(&guest.Guest{Live: true}, nowhere{})
	request := &pb.DisplayResizeRequest{Width: 800, Height: 600}
	if _, err := r.resize(t.Context(), &builtins.Call{}, request); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("display_resize: %v", err)
	}
	if _, err := r.restore(t.Context(), &builtins.Call{Undo: true}, &pb.DisplayLayoutArgs{}); err != nil {
		t.Errorf("undo: %v", err)
	}
	tree := New(&guest.Guest{}, nowhere{})
	if _, err := tree.list(t.Context(), &builtins.Call{}, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("list_displays in a tree: %v", err)
	}
	if r.available() || tree.available() || r.features() != nil {
		t.Error("it is announced")
	}
	// A desktop that turns out to have no way to set its outputs is announced until then.
	s := desktoptest.Mutter(t, "1024x768")
	s.Set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+s.Dir+"/none")
	r = roomOn(s)
	if !r.available() {
		t.Error("it is not announced")
	}
	_, err := r.resize(t.Context(), &builtins.Call{}, request)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "mutter") {
		t.Errorf("%v", err)
	}
	if r.available() {
		t.Error("it is announced still")
	}
}

// nowhere is no desktop.
type nowhere struct{}

func (nowhere) Outputs(context.Context) (*pb.ListDisplaysResponse, error) {
	return nil, fault.Unsupported("there is no desktop")
}

func (n nowhere) Set(ctx context.Context, _ []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error) {
	return n.Outputs(ctx)
}

func (nowhere) Present(bool) string { return "" }
