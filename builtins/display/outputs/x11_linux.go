package outputs

import (
	"context"
	"fmt"
	"math"

	"github.com/jezek/xgb/randr"
	"github.com/jezek/xgb/xproto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/x11"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// modePrefix begins the names of the modes that are made here, so that they are known when nobody uses them any more.
const modePrefix = "quantix-"

const (
	mmPerInch = 25.4
	// usualDPI is what X servers take where they know no size in millimetres.
	usualDPI = 96
)

// x11Backend sets outputs by the RandR extension, version 1.3 or later.
type x11Backend struct {
	conn *x11.Conn
	root xproto.Window
	// The size of the screen in millimetres: the server sends it at the beginning of a connection alone.
	mmWidth, mmHeight uint32
}

func openX11(ctx context.Context, getenv func(string) string) (Backend, error) {
	conn, err := x11.Dial(ctx, getenv)
	if err != nil {
		return nil, err
	}
	b := &x11Backend{conn: conn}
	if err := b.do(ctx, b.begin); err != nil {
		conn.Close()
		return nil, err
	}
	return b, nil
}

func (b *x11Backend) begin() error {
	setup := xproto.Setup(b.conn.Conn)
	if b.conn.Screen >= len(setup.Roots) {
		return fault.Invalid("the %v has no screen %d", b.conn, b.conn.Screen)
	}
	screen := setup.Roots[b.conn.Screen]
	b.root, b.mmWidth, b.mmHeight = screen.Root, uint32(screen.WidthInMillimeters), uint32(screen.HeightInMillimeters)
	if err := randr.Init(b.conn.Conn); err != nil {
		return fault.Unsupported("the %v has no RandR extension", b.conn)
	}
	version, err := answered(randr.QueryVersion(b.conn.Conn, 1, 3).Reply())
	if err != nil {
		return err
	}
	if version.MajorVersion < 1 || version.MajorVersion == 1 && version.MinorVersion < 3 {
		return fault.Unsupported("the %v has RandR %d.%d, which has no outputs", b.conn, version.MajorVersion, version.MinorVersion)
	}
	return nil
}

// do runs a conversation with the server within Timeout.
func (b *x11Backend) do(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	return b.conn.Do(ctx, f)
}

// Close ends the connection.
func (b *x11Backend) Close() error {
	b.conn.Close()
	return nil
}

// answered is a reply of the library, which is nil when the connection has ended.
func answered[T any](reply *T, err error) (*T, error) {
	if err == nil && reply == nil {
		err = fmt.Errorf("the X server has ended the connection")
	}
	return reply, err
}

// x11State is all that is set by RandR.
type x11State struct {
	configTime    xproto.Timestamp
	width, height uint16 // of the screen
	modes         map[randr.Mode]randr.ModeInfo
	names         map[randr.Mode]string
	outputs       []x11Output
	crtcs         map[randr.Crtc]*randr.GetCrtcInfoReply
	crtcOrder     []randr.Crtc
	primary       randr.Output
}

type x11Output struct {
	id   randr.Output
	info *randr.GetOutputInfoReply
}

func (b *x11Backend) state() (*x11State, error) {
	resources, err := answered(randr.GetScreenResourcesCurrent(b.conn.Conn, b.root).Reply())
	if err != nil {
		return nil, err
	}
	geometry, err := answered(xproto.GetGeometry(b.conn.Conn, xproto.Drawable(b.root)).Reply())
	if err != nil {
		return nil, err
	}
	primary, err := answered(randr.GetOutputPrimary(b.conn.Conn, b.root).Reply())
	if err != nil {
		return nil, err
	}
	s := &x11State{
		configTime: resources.ConfigTimestamp, width: geometry.Width, height: geometry.Height, primary: primary.Output,
		modes: map[randr.Mode]randr.ModeInfo{}, names: map[randr.Mode]string{}, crtcs: map[randr.Crtc]*randr.GetCrtcInfoReply{},
		crtcOrder: resources.Crtcs,
	}
	names := resources.Names
	for _, m := range resources.Modes {
		id, n := randr.Mode(m.Id), min(int(m.NameLen), len(names))
		s.modes[id], s.names[id] = m, string(names[:n])
		names = names[n:]
	}
	for _, id := range resources.Crtcs {
		if s.crtcs[id], err = answered(randr.GetCrtcInfo(b.conn.Conn, id, s.configTime).Reply()); err != nil {
			return nil, err
		}
	}
	for _, id := range resources.Outputs {
		info, err := answered(randr.GetOutputInfo(b.conn.Conn, id, s.configTime).Reply())
		if err != nil {
			return nil, err
		}
		s.outputs = append(s.outputs, x11Output{id, info})
	}
	return s, nil
}

// crtc returns the CRTC that shows something on an output; nil: it is off.
func (s *x11State) crtc(o x11Output) *randr.GetCrtcInfoReply {
	if c := s.crtcs[o.info.Crtc]; c != nil && c.Mode != 0 {
		return c
	}
	return nil
}

// listed are the outputs that something is connected to, and those that are on all the same.
func (s *x11State) listed() (list []x11Output) {
	for _, o := range s.outputs {
		if o.info.Connection == randr.ConnectionConnected || s.crtc(o) != nil {
			list = append(list, o)
		}
	}
	return list
}

// refreshOf returns the refresh rate of a mode in Hz; 0: it has no timing.
func refreshOf(m randr.ModeInfo) float64 {
	lines := float64(m.Vtotal)
	if m.ModeFlags&randr.ModeFlagDoubleScan != 0 {
		lines *= 2
	}
	if m.ModeFlags&randr.ModeFlagInterlace != 0 {
		lines /= 2
	}
	if m.Htotal == 0 || lines == 0 {
		return 0
	}
	return float64(m.DotClock) / (float64(m.Htotal) * lines)
}

// Outputs returns the outputs of the screen.
func (b *x11Backend) Outputs(ctx context.Context) (list *pb.ListDisplaysResponse, err error) {
	err = b.do(ctx, func() error {
		s, err := b.state()
		if err != nil {
			return err
		}
		list = &pb.ListDisplaysResponse{Success: true, System: "x11", Compositor: b.conn.String()}
		if b.mmWidth != 0 {
			list.Dpi = uint32(math.Round(float64(s.width) * mmPerInch / float64(b.mmWidth)))
		}
		for _, o := range s.listed() {
			list.Outputs = append(list.Outputs, s.describe(o))
		}
		Sort(list.Outputs)
		return nil
	})
	return list, err
}

func (s *x11State) describe(o x11Output) *pb.DisplayOutput {
	out := &pb.DisplayOutput{
		Name: string(o.info.Name), Scale: 1, Transform: "normal", AnySize: true,
		WidthMm: o.info.MmWidth, HeightMm: o.info.MmHeight, Primary: o.id == s.primary,
	}
	current := randr.Mode(0)
	if c := s.crtc(o); c != nil {
		m := s.modes[c.Mode]
		current = c.Mode
		out.Enabled, out.X, out.Y, out.Transform = true, int32(c.X), int32(c.Y), rotationName(c.Rotation)
		out.Width, out.Height, out.Refresh = uint32(m.Width), uint32(m.Height), refreshOf(m)
	}
	for i, id := range o.info.Modes {
		m := s.modes[id]
		out.Modes = append(out.Modes, &pb.DisplayMode{
			Width: uint32(m.Width), Height: uint32(m.Height), Refresh: refreshOf(m),
			Current: id == current, Preferred: i < int(o.info.NumPreferred),
		})
	}
	return out
}

func rotationName(rotation uint16) string {
	name := "normal"
	switch {
	case rotation&randr.RotationRotate90 != 0:
		name = "90"
	case rotation&randr.RotationRotate180 != 0:
		name = "180"
	case rotation&randr.RotationRotate270 != 0:
		name = "270"
	}
	if rotation&(randr.RotationReflectX|randr.RotationReflectY) != 0 {
		name = "flipped-" + name
	}
	return name
}
