package outputs

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/randr"
	"github.com/jezek/xgb/xproto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// crtcSetting is what a CRTC shall show.
type crtcSetting struct {
	mode     randr.Mode
	x, y     int16
	rotation uint16
	outputs  []randr.Output
}

// settingOf returns what a CRTC shows.
func settingOf(c *randr.GetCrtcInfoReply) crtcSetting {
	return crtcSetting{c.Mode, c.X, c.Y, c.Rotation, c.Outputs}
}

func (c crtcSetting) equal(d crtcSetting) bool {
	return c.mode == d.mode && (c.mode == 0 ||
		c.x == d.x && c.y == d.y && c.rotation == d.rotation && slices.Equal(c.outputs, d.outputs))
}

// x11Screen is the whole that is set.
type x11Screen struct {
	crtcs             map[randr.Crtc]crtcSetting
	width, height     uint16
	mmWidth, mmHeight uint32
	primary           randr.Output
}

// Apply makes the modes that are missing, sets CRTCs, screen and primary output while the server serves nobody else, and
// removes the modes that it made and nobody uses. What it could not finish it takes back itself.
func (b *x11Backend) Apply(ctx context.Context, settings []*pb.DisplaySetting) error {
	return b.do(context.WithoutCancel(ctx), func() (err error) { // half a change is nobody's wish
		if err := xproto.GrabServerChecked(b.conn.Conn).Check(); err != nil {
			return err
		}
		defer func() {
			if end := xproto.UngrabServerChecked(b.conn.Conn).Check(); err == nil {
				err = end
			}
		}()
		s, err := b.state()
		if err != nil {
			return err
		}
		former := b.screenOf(s)
		wanted, err := b.plan(s, settings)
		if err == nil {
			err = b.set(s, former, wanted)
		}
		if unused := b.removeUnusedModes(); err == nil {
			err = unused
		}
		if err == nil {
			b.mmWidth, b.mmHeight = wanted.mmWidth, wanted.mmHeight
		}
		return err
	})
}

// screenOf returns the screen as it is.
func (b *x11Backend) screenOf(s *x11State) x11Screen {
	screen := x11Screen{
		crtcs: map[randr.Crtc]crtcSetting{}, width: s.width, height: s.height, primary: s.primary,
		mmWidth: b.mmWidth, mmHeight: b.mmHeight,
	}
	for id, c := range s.crtcs {
		screen.crtcs[id] = settingOf(c)
	}
	return screen
}

// plan returns the screen that the settings ask for, with the modes that they need, which it makes.
func (b *x11Backend) plan(s *x11State, settings []*pb.DisplaySetting) (x11Screen, error) {
	screen := x11Screen{crtcs: map[randr.Crtc]crtcSetting{}, primary: s.primary}
	limits, err := answered(randr.GetScreenSizeRange(b.conn.Conn, b.root).Reply())
	if err != nil {
		return screen, err
	}
	dpi := uint32(0)
	var pending []func() error
	for _, o := range s.outputs {
		at := slices.IndexFunc(settings, func(set *pb.DisplaySetting) bool { return set.Name == string(o.info.Name) })
		c := s.crtc(o)
		if at < 0 {
			if c != nil { // it stays as it is
				screen.crtcs[o.info.Crtc] = settingOf(c)
			}
			continue
		}
		set := settings[at]
		if !set.GetEnabled() {
			if screen.primary == o.id {
				screen.primary = 0
			}
			continue
		}
		if set.Primary {
			screen.primary = o.id
		}
		dpi = max(dpi, set.Dpi)
		if set.Width > uint32(limits.MaxWidth) || set.Height > uint32(limits.MaxHeight) { // the server would not say why
			return screen, fault.On(set.Name, b.tooLarge(int(set.Width), int(set.Height), limits))
		}
		if x, y := int(set.GetX()), int(set.GetY()); x > math.MaxInt16 || y > math.MaxInt16 {
			return screen, fault.On(set.Name, b.tooLarge(x+int(set.Width), y+int(set.Height), limits))
		}
		mode, err := b.mode(s, o, set)
		if err != nil {
			return screen, fault.On(set.Name, err)
		}
		want := crtcSetting{mode: mode, x: int16(set.GetX()), y: int16(set.GetY()), rotation: randr.RotationRotate0}
		if c != nil {
			want.rotation = c.Rotation
		}
		place := func() error { return fault.On(set.Name, screen.place(s, o, want)) }
		if c == nil {
			pending = append(pending, place) // once those that are on have kept their CRTCs
		} else if err := place(); err != nil {
			return screen, err
		}
	}
	for _, place := range pending {
		if err := place(); err != nil {
			return screen, err
		}
	}
	return screen, b.measure(s, &screen, limits, dpi)
}

// place gives an output a CRTC: that of another output which shows the same, if it was so; else its own, or one that is free.
func (screen *x11Screen) place(s *x11State, o x11Output, want crtcSetting) error {
	free := func(id randr.Crtc) bool {
		c, taken := screen.crtcs[id]
		if !taken {
			return true
		}
		shared := c.mode == want.mode && c.x == want.x && c.y == want.y && c.rotation == want.rotation
		now := s.crtcs[id]
		return shared && now != nil && slices.Contains(now.Outputs, o.id)
	}
	id := o.info.Crtc
	if id == 0 || !free(id) {
		at := slices.IndexFunc(o.info.Crtcs, free)
		if at < 0 {
			return fault.Refuse("there is no CRTC left for it")
		}
		id = o.info.Crtcs[at]
	}
	if c, taken := screen.crtcs[id]; taken {
		want.outputs = c.outputs
	}
	want.outputs = append(slices.Clone(want.outputs), o.id)
	slices.Sort(want.outputs)
	screen.crtcs[id] = want
	return nil
}

// measure sets the size of the screen to what its CRTCs need, within what the server has, and its millimetres so that it has
// that many dots per inch; 0: as many as now.
func (b *x11Backend) measure(s *x11State, screen *x11Screen, limits *randr.GetScreenSizeRangeReply, dpi uint32) error {
	width, height := 0, 0
	for _, c := range screen.crtcs {
		m := s.modes[c.mode]
		w, h := int(m.Width), int(m.Height)
		if c.rotation&(randr.RotationRotate90|randr.RotationRotate270) != 0 {
			w, h = h, w
		}
		width, height = max(width, int(c.x)+w), max(height, int(c.y)+h)
	}
	if width > int(limits.MaxWidth) || height > int(limits.MaxHeight) {
		return b.tooLarge(width, height, limits)
	}
	width, height = max(width, int(limits.MinWidth)), max(height, int(limits.MinHeight))
	screen.width, screen.height = uint16(width), uint16(height)
	xDPI, yDPI := float64(usualDPI), float64(usualDPI)
	switch {
	case dpi != 0:
		xDPI, yDPI = float64(dpi), float64(dpi)
	case b.mmWidth != 0 && b.mmHeight != 0:
		xDPI = float64(s.width) * mmPerInch / float64(b.mmWidth)
		yDPI = float64(s.height) * mmPerInch / float64(b.mmHeight)
	}
	screen.mmWidth = uint32(max(1, math.Round(float64(width)*mmPerInch/xDPI)))
	screen.mmHeight = uint32(max(1, math.Round(float64(height)*mmPerInch/yDPI)))
	return nil
}

func (b *x11Backend) tooLarge(width, height int, limits *randr.GetScreenSizeRangeReply) error {
	return fault.Unsupported("%dx%d is more than the %dx%d that the %v has",
		width, height, limits.MaxWidth, limits.MaxHeight, b.conn)
}

// mode returns the mode of an output for a setting, which it makes where there is none.
func (b *x11Backend) mode(s *x11State, o x11Output, set *pb.DisplaySetting) (randr.Mode, error) {
	listed := s.describe(o).Modes
	if m := FindMode(listed, set.Width, set.Height, set.Refresh); m != nil {
		return o.info.Modes[slices.Index(listed, m)], nil
	}
	refresh := set.Refresh
	if refresh == 0 {
		refresh = defaultRefresh
	}
	name := fmt.Sprintf("%s%dx%d-%.2f", modePrefix, set.Width, set.Height, refresh)
	mode := randr.Mode(0)
	for id, other := range s.names {
		if other == name {
			mode = id
		}
	}
	if mode == 0 {
		info, ok := modeInfo(set.Width, set.Height, refresh, name)
		if !ok {
			return 0, fault.Invalid("%dx%d at %g Hz is more than a mode can have", set.Width, set.Height, refresh)
		}
		made, err := answered(randr.CreateMode(b.conn.Conn, b.root, info, name).Reply())
		if err != nil {
			return 0, fmt.Errorf("mode %dx%d: %w", set.Width, set.Height, serverError(err))
		}
		mode = made.Mode
		info.Id = uint32(mode)
		s.modes[mode], s.names[mode] = info, name
	}
	if err := randr.AddOutputModeChecked(b.conn.Conn, o.id, mode).Check(); err != nil {
		return 0, fmt.Errorf("mode %dx%d: %w", set.Width, set.Height, serverError(err))
	}
	return mode, nil
}

// modeInfo is a mode as it is made.
func modeInfo(width, height uint32, refresh float64, name string) (randr.ModeInfo, bool) {
	t, ok := cvt(width, height, refresh)
	return randr.ModeInfo{
		Width: t.horizontalPixels, Height: t.verticalLines, DotClock: t.clock,
		HsyncStart: t.hSyncStart, HsyncEnd: t.hSyncEnd, Htotal: t.hTotal,
		VsyncStart: t.vSyncStart, VsyncEnd: t.vSyncEnd, Vtotal: t.vTotal,
		NameLen: uint16(len(name)), ModeFlags: randr.ModeFlagHsyncPositive | randr.ModeFlagVsyncNegative,
	}, ok
}

// set makes the screen what is wanted, or what it was.
func (b *x11Backend) set(s *x11State, former, wanted x11Screen) error {
	err := b.change(s, former, wanted)
	if err == nil {
		return nil
	}
	now, stateErr := b.state()
	if stateErr == nil {
		stateErr = b.change(now, b.screenOf(now), former)
	}
	if stateErr != nil {
		return fmt.Errorf("%w; and the former state could not be restored: %v", err, stateErr)
	}
	return err
}

// change turns off the CRTCs that will show something else, sets the size of the screen, which all CRTCs must fit into at any
// time, and then the CRTCs.
func (b *x11Backend) change(s *x11State, from, to x11Screen) error {
	for _, id := range s.crtcOrder {
		if from.crtcs[id].mode != 0 && !from.crtcs[id].equal(to.crtcs[id]) {
			if err := b.setCRTC(s, id, crtcSetting{rotation: randr.RotationRotate0}); err != nil {
				return err
			}
		}
	}
	if to.width != from.width || to.height != from.height || to.mmWidth != from.mmWidth || to.mmHeight != from.mmHeight {
		err := randr.SetScreenSizeChecked(b.conn.Conn, b.root, to.width, to.height, to.mmWidth, to.mmHeight).Check()
		if err != nil {
			return fmt.Errorf("a screen of %dx%d: %w", to.width, to.height, serverError(err))
		}
	}
	for _, id := range s.crtcOrder {
		if c := to.crtcs[id]; c.mode != 0 && !c.equal(from.crtcs[id]) {
			if err := b.setCRTC(s, id, c); err != nil {
				return err
			}
		}
	}
	if to.primary != from.primary {
		return serverError(randr.SetOutputPrimaryChecked(b.conn.Conn, b.root, to.primary).Check())
	}
	return nil
}

func (b *x11Backend) setCRTC(s *x11State, id randr.Crtc, c crtcSetting) error {
	what := s.names[c.mode]
	if m := s.modes[c.mode]; m.Width != 0 {
		what = fmt.Sprintf("mode %dx%d", m.Width, m.Height)
	}
	reply, err := answered(randr.SetCrtcConfig(
		b.conn.Conn, id, xproto.TimeCurrentTime, s.configTime, c.x, c.y, c.mode, c.rotation, c.outputs).Reply())
	switch {
	case err != nil:
		return fmt.Errorf("%s at %d,%d: %w", what, c.x, c.y, serverError(err))
	case reply.Status == randr.SetConfigSuccess:
		return nil
	case reply.Status == randr.SetConfigInvalidConfigTime, reply.Status == randr.SetConfigInvalidTime:
		return fault.Wrapf(fault.ErrBusy, "the outputs have changed meanwhile")
	}
	return fault.Refuse("the X server does not set %s at %d,%d", what, c.x, c.y)
}

// serverError gives an error of the server a cause of the fault table.
func serverError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(xgb.Error); ok {
		name, _, _ := strings.Cut(err.Error(), " ") // behind it are numbers of the request
		return fault.Refuse("the X server refuses it: %s", name)
	}
	return err
}

// removeUnusedModes destroys the modes of ours that no CRTC shows.
func (b *x11Backend) removeUnusedModes() error {
	s, err := b.state()
	if err != nil {
		return err
	}
	used := map[randr.Mode]bool{}
	for _, c := range s.crtcs {
		used[c.Mode] = true
	}
	for id, name := range s.names {
		if used[id] || !strings.HasPrefix(name, modePrefix) {
			continue
		}
		for _, o := range s.outputs {
			if slices.Contains(o.info.Modes, id) {
				if err := randr.DeleteOutputModeChecked(b.conn.Conn, o.id, id).Check(); err != nil {
					return serverError(err)
				}
			}
		}
		if err := randr.DestroyModeChecked(b.conn.Conn, id).Check(); err != nil {
			return serverError(err)
		}
	}
	return nil
}
