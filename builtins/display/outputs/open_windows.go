package outputs

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/winuser"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Open returns the displays of the session of this process.
func Open(context.Context, func(string) string) (Backend, error) { return windowsBackend{}, nil }

// windowsBackend are the displays of a session of Windows: each takes the modes that its driver lists, and has its scale by the
// settings of the user alone.
type windowsBackend struct{}

// devicePrefix is what the names of displays begin with, and is left out of those of outputs.
const devicePrefix = `\\.\`

// Outputs returns the displays. They are spoken to by calls that nothing can end.
func (windowsBackend) Outputs(context.Context) (*pb.ListDisplaysResponse, error) {
	displays, err := winuser.Outputs()
	if err != nil {
		return nil, err
	}
	list := &pb.ListDisplaysResponse{Success: true, System: "windows", Compositor: "Windows"}
	for _, d := range displays {
		o := &pb.DisplayOutput{
			Name: strings.TrimPrefix(d.Name, devicePrefix), Enabled: d.Enabled, Scale: 1, Transform: "normal", Model: d.Adapter,
		}
		if d.Enabled {
			o.Primary, o.X, o.Y = d.Primary, d.X, d.Y
			o.Width, o.Height, o.Refresh = d.Mode.Width, d.Mode.Height, refreshOf(d.Mode)
		}
		for _, m := range d.Modes {
			o.Modes = append(o.Modes, &pb.DisplayMode{
				Width: m.Width, Height: m.Height, Refresh: refreshOf(m), Current: d.Enabled && m == d.Mode,
			})
		}
		list.Outputs = append(list.Outputs, o)
	}
	Sort(list.Outputs)
	return list, nil
}

// refreshOf returns the refresh rate of a mode. 0 and 1 stand for that of the driver, which is not known.
func refreshOf(m winuser.Mode) float64 {
	if m.Refresh <= 1 {
		return 0
	}
	return float64(m.Refresh)
}

// Apply sets the displays in one step.
func (windowsBackend) Apply(_ context.Context, settings []*pb.DisplaySetting) error {
	all := make([]winuser.Setting, 0, len(settings))
	for _, s := range settings {
		if s.Dpi != 0 {
			return fault.On(s.Name, fault.Unsupported("on Windows the user alone sets how large things are drawn"))
		}
		all = append(all, winuser.Setting{
			Name: devicePrefix + s.Name, Enabled: s.GetEnabled(), Primary: s.Primary, X: s.GetX(), Y: s.GetY(),
			Mode: winuser.Mode{Width: s.Width, Height: s.Height, Refresh: uint32(math.Round(s.Refresh))},
		})
	}
	// The primary display first: positions of the others are relative to its corner.
	slices.SortStableFunc(all, func(a, b winuser.Setting) int {
		switch {
		case a.Primary == b.Primary:
			return 0
		case a.Primary:
			return -1
		}
		return 1
	})
	return winuser.Apply(all)
}

// Close has nothing to end.
func (windowsBackend) Close() error { return nil }
