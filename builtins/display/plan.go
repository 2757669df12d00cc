package display

import (
	"cmp"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What a request may ask for. A picture of the largest size has 1 GiB, and no graphics card has more in one direction.
const (
	minSize    = 64
	maxSize    = 16384
	minRefresh = 1
	maxRefresh = 500
	minScale   = 0.5
	maxScale   = 8
	minDPI     = 48
	maxDPI     = 768
	maxPlace   = 32767 // of a corner, in either direction: X11 has 16 bits

	// usualDPI is that of a screen with scale 1, and scaleStep the steps in which a scale is made from dpi, as desktops offer
	// them.
	usualDPI  = 96
	scaleStep = 0.25
	// dpiTolerance is by what part the dpi of a small screen differ from what was set, since it is given in whole millimetres.
	dpiTolerance = 0.02
)

// place is an output as it shall be.
type place struct {
	set    *pb.DisplaySetting // complete
	now    *pb.DisplayOutput
	placed bool // the request says where
	named  int  // its place in the request; -1: it is not named
}

// plan completes the settings of a request: it returns one for each output, as outputs.Set takes them, and whether anything is
// to be changed. Outputs that are not named stay as they are, but make room. What was read from outputs before is not checked:
// with former it is the state that they shall have again.
func plan(list *pb.ListDisplaysResponse, asked []*pb.DisplaySetting, former bool) (
	settings []*pb.DisplaySetting, changed bool, err error,
) {
	places := make([]*place, 0, len(list.Outputs))
	for i, set := range outputs.Settings(list.Outputs) {
		places = append(places, &place{set: set, now: list.Outputs[i], named: -1})
	}
	for i, a := range asked {
		p, err := find(places, a.Name)
		if err != nil {
			return nil, false, err
		}
		if p.named >= 0 {
			return nil, false, fault.On(a.Name, fault.Invalid("it is named twice"))
		}
		p.named = i
		if !former {
			err = check(list, a)
		}
		if err == nil {
			err = p.apply(list, a)
		}
		if err != nil {
			return nil, false, fault.On(a.Name, err)
		}
	}
	if err := choosePrimary(places, asked); err != nil {
		return nil, false, err
	}
	arrange(list, places)
	if err := checkArrangement(list, places); err != nil && !former {
		return nil, false, err
	}
	for _, p := range places {
		settings = append(settings, p.set)
		changed = changed || p.set.Dpi != 0
	}
	return settings, changed || outputs.Differs(list.Outputs, settings) != nil, nil
}

// find returns the output of a name.
func find(places []*place, name string) (*place, error) {
	var names []string
	for _, p := range places {
		if p.set.Name == name {
			return p, nil
		}
		names = append(names, p.set.Name)
	}
	if len(names) == 0 {
		return nil, fault.Wrapf(fs.ErrNotExist, "there is no output %q; the desktop has none", name)
	}
	return nil, fault.Wrapf(fs.ErrNotExist, "there is no output %q; there are %s", name, strings.Join(names, ", "))
}

// apply puts what is asked for into the setting of an output.
func (p *place) apply(list *pb.ListDisplaysResponse, a *pb.DisplaySetting) error {
	enabled := p.set.GetEnabled()
	if a.Enabled != nil {
		enabled = *a.Enabled
	}
	wasOn := p.set.GetEnabled()
	p.set.Enabled = &enabled
	if !enabled {
		if a.Width != 0 || a.Refresh != 0 || a.Scale != 0 || a.X != nil || a.Primary || a.Dpi != 0 {
			return fault.Invalid("it is off, and so has no size, place or scale")
		}
		p.set = &pb.DisplaySetting{Name: a.Name, Enabled: &enabled}
		return nil
	}
	switch {
	case a.Width != 0:
		if a.Width != p.set.Width || a.Height != p.set.Height {
			p.set.Refresh = 0
		}
		p.set.Width, p.set.Height = a.Width, a.Height
	case !wasOn:
		mode := usualMode(p.now.Modes)
		if mode == nil {
			return fault.Invalid("it is off and lists no modes: say its size")
		}
		p.set.Width, p.set.Height, p.set.Refresh = mode.Width, mode.Height, mode.Refresh
	}
	if a.Refresh != 0 {
		p.set.Refresh = a.Refresh
	}
	mode := outputs.FindMode(p.now.Modes, p.set.Width, p.set.Height, p.set.Refresh)
	if mode == nil && !p.now.AnySize {
		return outputs.NoModeError(systemName(list), p.now.Modes, p.set)
	}
	if mode != nil {
		p.set.Refresh = mode.Refresh
	}
	p.set.Scale = cmp.Or(a.Scale, scaleOf(list, a.Dpi), p.now.Scale, 1)
	if mode != nil && len(mode.Scales) > 0 {
		p.set.Scale = slices.MinFunc(mode.Scales, func(x, y float64) int {
			return cmp.Compare(math.Abs(x-p.set.Scale), math.Abs(y-p.set.Scale))
		})
	}
	if !list.CanScale && math.Abs(float64(a.Dpi)-float64(list.Dpi)) > max(1, float64(a.Dpi)*dpiTolerance) {
		p.set.Dpi = a.Dpi
	}
	if a.X != nil {
		x, y := a.GetX(), a.GetY()
		p.set.X, p.set.Y, p.placed = &x, &y, true
	}
	return nil
}

// check refuses what no output can be.
func check(list *pb.ListDisplaysResponse, a *pb.DisplaySetting) error {
	inside := func(n uint32) bool { return n >= minSize && n <= maxSize }
	switch {
	case (a.Width != 0 || a.Height != 0) && !(inside(a.Width) && inside(a.Height)):
		return fault.Invalid("%dx%d is no size from %dx%d to %dx%d", a.Width, a.Height, minSize, minSize, maxSize, maxSize)
	case a.Refresh != 0 && !(a.Refresh >= minRefresh && a.Refresh <= maxRefresh):
		return fault.Invalid("a refresh rate of %g Hz is not from %d to %d", a.Refresh, minRefresh, maxRefresh)
	case a.Scale != 0 && !(a.Scale >= minScale && a.Scale <= maxScale):
		return fault.Invalid("a scale of %g is not from %g to %d", a.Scale, minScale, maxScale)
	case a.Dpi != 0 && !(a.Dpi >= minDPI && a.Dpi <= maxDPI):
		return fault.Invalid("%d dpi is not from %d to %d", a.Dpi, minDPI, maxDPI)
	case a.Scale != 0 && a.Dpi != 0:
		return fault.Invalid("scale and dpi say the same: give one of them")
	case a.Scale != 0 && a.Scale != 1 && !list.CanScale:
		return fault.Unsupported("%s has no scale for each output: give dpi", systemName(list))
	case a.Primary && list.System == "wlroots":
		return fault.Unsupported("%s has no primary output", systemName(list))
	case (a.X == nil) != (a.Y == nil):
		return fault.Invalid("x and y belong together")
	case a.GetX() < -maxPlace || a.GetX() > maxPlace || a.GetY() < -maxPlace || a.GetY() > maxPlace:
		return fault.Invalid("%d,%d is not from -%d to %d", a.GetX(), a.GetY(), maxPlace, maxPlace)
	}
	return nil
}

// systemName names the way in which outputs are set, for errors.
func systemName(list *pb.ListDisplaysResponse) string {
	switch list.System {
	case "x11":
		return "X11"
	case "gnome":
		return "GNOME"
	case "kde":
		return "KWin"
	case "windows":
		return "Windows"
	}
	return list.System
}

// scaleOf returns the scale for so many dots per inch; 0: not said, or there is none.
func scaleOf(list *pb.ListDisplaysResponse, dpi uint32) float64 {
	if dpi == 0 || !list.CanScale {
		return 0
	}
	return max(scaleStep, math.Round(float64(dpi)/usualDPI/scaleStep)*scaleStep)
}

// usualMode returns the preferred mode, else the first; nil: there is none.
func usualMode(modes []*pb.DisplayMode) *pb.DisplayMode {
	for _, m := range modes {
		if m.Preferred {
			return m
		}
	}
	if len(modes) == 0 {
		return nil
	}
	return modes[0]
}

// choosePrimary leaves one output that is on the primary one, where one was or is asked for.
func choosePrimary(places []*place, asked []*pb.DisplaySetting) error {
	wanted, had, first := "", false, (*place)(nil)
	for _, a := range asked {
		if a.Primary && wanted != "" {
			return fault.Invalid("both %s and %s shall be the primary output", wanted, a.Name)
		}
		if a.Primary {
			wanted = a.Name
		}
	}
	for _, p := range places {
		had = had || p.now.Primary
		if p.set.GetEnabled() && first == nil {
			first = p
		}
	}
	if first == nil {
		return fault.Refuse("at least one output must stay on")
	}
	primary := false
	for _, p := range places {
		if wanted != "" {
			p.set.Primary = p.set.Name == wanted
		}
		primary = primary || p.set.Primary && p.set.GetEnabled()
	}
	if had && !primary {
		first.set.Primary = true
	}
	return nil
}

// size returns what an output takes up in the layout.
func (p *place) size(list *pb.ListDisplaysResponse, width, height uint32, scale float64) (int32, int32) {
	w, h := float64(width), float64(height)
	if t := p.now.Transform; strings.HasSuffix(t, "90") || strings.HasSuffix(t, "270") {
		w, h = h, w
	}
	if list.Scaled && scale > 0 {
		w, h = math.Round(w/scale), math.Round(h/scale)
	}
	return int32(w), int32(h)
}

func (p *place) newSize(list *pb.ListDisplaysResponse) (int32, int32) {
	return p.size(list, p.set.Width, p.set.Height, p.set.Scale)
}

func (p *place) oldSize(list *pb.ListDisplaysResponse) (int32, int32) {
	return p.size(list, p.now.Width, p.now.Height, p.now.Scale)
}

// arrange gives each output that is on its place. Where several are named, and none says where, they come side by side in the
// order of the request. Where one changes its size what is to its right and below it moves along.
func arrange(list *pb.ListDisplaysResponse, places []*place) {
	var on, named, fresh []*place
	placed := false
	for _, p := range places {
		if !p.set.GetEnabled() {
			continue
		}
		on = append(on, p)
		placed = placed || p.placed
		if p.named >= 0 {
			named = append(named, p)
		}
		if p.set.X == nil { // it was off
			fresh = append(fresh, p)
			p.set.X, p.set.Y = new(int32), new(int32)
		}
	}
	switch {
	case len(named) > 1 && !placed:
		slices.SortStableFunc(on, func(a, b *place) int { return a.order() - b.order() })
		row(list, on)
	default:
		if !placed {
			follow(list, places, on)
		}
		appendNew(list, on, fresh)
		if !placed && firstOverlap(list, on) != nil {
			slices.SortStableFunc(on, func(a, b *place) int { return cmp.Compare(a.set.GetX(), b.set.GetX()) })
			row(list, on)
		}
	}
	left, top := int32(math.MaxInt32), int32(math.MaxInt32)
	for _, p := range on {
		left, top = min(left, p.set.GetX()), min(top, p.set.GetY())
	}
	if at := slices.IndexFunc(on, func(p *place) bool { return p.set.Primary }); at >= 0 && list.System == "windows" {
		left, top = on[at].set.GetX(), on[at].set.GetY() // where it has its origin
	}
	for _, p := range on {
		*p.set.X -= left
		*p.set.Y -= top
	}
}

// appendNew puts outputs that were off to the right of all others.
func appendNew(list *pb.ListDisplaysResponse, on, fresh []*place) {
	right := int32(0)
	for _, p := range on {
		if w, _ := p.newSize(list); !slices.Contains(fresh, p) {
			right = max(right, p.set.GetX()+w)
		}
	}
	for _, p := range fresh {
		*p.set.X = right
		w, _ := p.newSize(list)
		right += w
	}
}

// order is the place of an output in a row: those of the request first.
func (p *place) order() int {
	if p.named >= 0 {
		return p.named
	}
	return math.MaxInt32
}

// row puts outputs side by side. Those that showed the same before, and that the request does not name, still do.
func row(list *pb.ListDisplaysResponse, on []*place) {
	x := int32(0)
	for i, p := range on {
		if at := slices.IndexFunc(on[:i], p.mirrors); at >= 0 && p.named < 0 && on[at].named < 0 {
			*p.set.X, *p.set.Y = on[at].set.GetX(), on[at].set.GetY()
			continue
		}
		*p.set.X, *p.set.Y = x, 0
		w, _ := p.newSize(list)
		x += w
	}
}

// mirrors reports whether two outputs show the same now.
func (p *place) mirrors(q *place) bool {
	return p.now.Enabled && q.now.Enabled && p.now.X == q.now.X && p.now.Y == q.now.Y
}

// follow moves what is to the right of an output, or below it, by as much as that becomes larger or smaller, or goes away.
func follow(list *pb.ListDisplaysResponse, places, on []*place) {
	for _, p := range places {
		if !p.now.Enabled {
			continue
		}
		oldWidth, oldHeight := p.oldSize(list)
		width, height := int32(0), int32(0)
		if p.set.GetEnabled() {
			width, height = p.newSize(list)
		}
		for _, q := range on {
			if q == p || !q.now.Enabled || p.mirrors(q) {
				continue
			}
			beside := q.now.X >= p.now.X+oldWidth
			below := q.now.Y >= p.now.Y+oldHeight
			if beside && !below {
				*q.set.X += width - oldWidth
			}
			if below && !beside {
				*q.set.Y += height - oldHeight
			}
		}
	}
}

// overlap is two outputs that show a part of the same, and neither all of it nor did so before.
type overlap struct{ a, b *place }

// overlapNow reports whether two outputs show a part of the same at present.
func overlapNow(list *pb.ListDisplaysResponse, p, q *place) bool {
	pw, ph := p.oldSize(list)
	qw, qh := q.oldSize(list)
	return p.now.Enabled && q.now.Enabled &&
		p.now.X < q.now.X+qw && q.now.X < p.now.X+pw && p.now.Y < q.now.Y+qh && q.now.Y < p.now.Y+ph
}

func firstOverlap(list *pb.ListDisplaysResponse, on []*place) *overlap {
	for i, p := range on {
		pw, ph := p.newSize(list)
		for _, q := range on[:i] {
			qw, qh := q.newSize(list)
			px, py, qx, qy := p.set.GetX(), p.set.GetY(), q.set.GetX(), q.set.GetY()
			same := px == qx && py == qy && pw == qw && ph == qh || overlapNow(list, p, q)
			if px < qx+qw && qx < px+pw && py < qy+qh && qy < py+ph && !same {
				return &overlap{q, p}
			}
		}
	}
	return nil
}

// checkArrangement refuses places at which outputs overlap.
func checkArrangement(list *pb.ListDisplaysResponse, places []*place) error {
	on := slices.DeleteFunc(slices.Clone(places), func(p *place) bool { return !p.set.GetEnabled() })
	if o := firstOverlap(list, on); o != nil {
		return fault.Invalid("%v and %v overlap", describe(list, o.a), describe(list, o.b))
	}
	return nil
}

func describe(list *pb.ListDisplaysResponse, p *place) string {
	w, h := p.newSize(list)
	return fmt.Sprintf("%s (%dx%d at %d,%d)", p.set.Name, w, h, p.set.GetX(), p.set.GetY())
}

// planned returns the outputs as they will be.
func planned(list *pb.ListDisplaysResponse, settings []*pb.DisplaySetting) *pb.ListDisplaysResponse {
	after := proto.CloneOf(list)
	for i, o := range after.Outputs {
		set := settings[i]
		o.Enabled, o.Primary, o.Width, o.Height = set.GetEnabled(), set.Primary, set.Width, set.Height
		o.X, o.Y = set.GetX(), set.GetY()
		mode := outputs.FindMode(o.Modes, set.Width, set.Height, set.Refresh)
		o.Refresh, o.Scale = set.Refresh, cmp.Or(set.Scale, o.Scale)
		for _, m := range o.Modes {
			m.Current = m == mode
		}
	}
	return after
}
