// Package outputs lists and sets the outputs of one desktop. It runs in the desktop's session, as its user.
//
//	Open ─► x11: RandR by protocol
//	        wlroots: zwlr_output_manager_v1 · kde: kde_output_management_v2 · gnome: Mutter's DisplayConfig on the session bus
//	        windows: ChangeDisplaySettingsEx
//	Set: the present state kept ─► Backend.Apply ─► read back ─► as asked, or the former state again
//
// Not here: which outputs shall be what where a request leaves that open, and which session is in front.
package outputs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Timeout bounds each conversation with a display server.
const Timeout = 2 * time.Second

// restoreTimeout bounds the way back to the former state: it is gone even if the caller has given up.
const restoreTimeout = 2 * time.Second

// Backend is one way to list and to set the outputs of a desktop. It is used by one goroutine.
type Backend interface {
	// Outputs returns the outputs as they are.
	Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error)
	// Apply sets outputs as the settings say: each has a name and enabled, and where it is enabled width, height, x and y. A
	// refresh or a scale of 0 is the backend's to choose. An output that no setting names stays as it is. The caller looks
	// for itself what came of it.
	Apply(ctx context.Context, settings []*pb.DisplaySetting) error
	// Close ends the connection to the display server.
	Close() error
}

// Set sets outputs as the settings say, which are as Backend.Apply takes them, and returns what was read back. If anything is
// not as it was asked for, the former state is restored, and the error says what was the matter; where that fails as well, it
// says so.
func Set(ctx context.Context, b Backend, settings []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error) {
	before, err := b.Outputs(ctx)
	if err != nil {
		return nil, err
	}
	err = b.Apply(ctx, settings)
	if err == nil {
		after, err := readBack(ctx, b, settings)
		if err == nil {
			return after, nil
		}
		return nil, restore(ctx, b, before, err)
	}
	return nil, restore(ctx, b, before, err)
}

// readBack returns the outputs once they are as the settings say. Some compositors report a change before all outputs show it.
func readBack(ctx context.Context, b Backend, settings []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error) {
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		after, err := b.Outputs(ctx)
		if err != nil {
			return nil, err
		}
		err = Differs(after.Outputs, settings)
		if err == nil || wait > 500*time.Millisecond {
			return after, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// restore brings the former state back after an error, which it returns, also when ctx has ended.
func restore(ctx context.Context, b Backend, before *pb.ListDisplaysResponse, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout)
	defer cancel()
	former := Settings(before.Outputs)
	now, err := b.Outputs(ctx)
	if err == nil && Differs(now.Outputs, former) == nil {
		return cause // nothing was changed
	}
	if err == nil {
		err = b.Apply(ctx, former)
	}
	if err == nil {
		_, err = readBack(ctx, b, former)
	}
	if err != nil {
		return fmt.Errorf("%w; and the former state could not be restored: %v", cause, err)
	}
	return cause
}

// Settings returns the settings that make outputs what they are.
func Settings(outputs []*pb.DisplayOutput) []*pb.DisplaySetting {
	settings := make([]*pb.DisplaySetting, 0, len(outputs))
	for _, o := range outputs {
		enabled := o.Enabled
		s := &pb.DisplaySetting{Name: o.Name, Enabled: &enabled}
		if enabled {
			x, y := o.X, o.Y
			s.Width, s.Height, s.Refresh, s.Scale, s.Primary = o.Width, o.Height, o.Refresh, o.Scale, o.Primary
			s.X, s.Y = &x, &y
		}
		settings = append(settings, s)
	}
	return settings
}

// Differs returns an error that says in what an output is not as the settings say; nil: all are.
func Differs(outputs []*pb.DisplayOutput, settings []*pb.DisplaySetting) error {
	for _, s := range settings {
		at := slices.IndexFunc(outputs, func(o *pb.DisplayOutput) bool { return o.Name == s.Name })
		if at < 0 {
			return fault.Wrapf(fault.ErrBusy, "%s is gone", s.Name)
		}
		if what := differs(outputs[at], s); what != "" {
			return fault.On(s.Name, errors.New(what))
		}
	}
	return nil
}

// differs says in what an output is not as a setting says; empty: in nothing.
func differs(o *pb.DisplayOutput, s *pb.DisplaySetting) string {
	switch {
	case o.Enabled != s.GetEnabled():
		return fmt.Sprintf("it is enabled: %v", o.Enabled)
	case !o.Enabled:
		return ""
	case o.Width != s.Width || o.Height != s.Height:
		return fmt.Sprintf("it is %dx%d, not %dx%d", o.Width, o.Height, s.Width, s.Height)
	case s.X != nil && o.X != *s.X || s.Y != nil && o.Y != *s.Y:
		return fmt.Sprintf("it is at %d,%d, not %d,%d", o.X, o.Y, s.GetX(), s.GetY())
	case s.Refresh != 0 && o.Refresh != 0 && math.Abs(o.Refresh-s.Refresh) > refreshTolerance:
		return fmt.Sprintf("it has %.2f Hz, not %.2f", o.Refresh, s.Refresh)
	case s.Scale != 0 && math.Abs(o.Scale-s.Scale) > scaleTolerance:
		return fmt.Sprintf("its scale is %g, not %g", o.Scale, s.Scale)
	case s.Primary && !o.Primary:
		return "it is not the primary one"
	}
	return ""
}

const (
	// refreshTolerance is within what two refresh rates are one, in Hz: many screens report 59.94 and 60 as one.
	refreshTolerance = 0.5
	// scaleTolerance is half of a step of the protocols' fixed numbers of 1/120.
	scaleTolerance = 1.0 / 120
)

// FindMode returns the mode of a size that is nearest to a refresh rate; for 0, the current one, else the fastest. Nil: there
// is none within the tolerance.
func FindMode(modes []*pb.DisplayMode, width, height uint32, refresh float64) (best *pb.DisplayMode) {
	for _, m := range modes {
		switch {
		case m.Width != width || m.Height != height:
		case refresh != 0 && math.Abs(m.Refresh-refresh) > refreshTolerance:
		case best == nil:
			best = m
		case refresh != 0 && math.Abs(m.Refresh-refresh) < math.Abs(best.Refresh-refresh):
			best = m
		case refresh == 0 && !best.Current && (m.Current || m.Refresh > best.Refresh):
			best = m
		}
	}
	return best
}

// Sort puts outputs in the order from left to right, those that are off last.
func Sort(outputs []*pb.DisplayOutput) {
	slices.SortStableFunc(outputs, func(a, b *pb.DisplayOutput) int {
		if a.Enabled != b.Enabled {
			if a.Enabled {
				return -1
			}
			return 1
		}
		if d := int(a.X) - int(b.X); d != 0 {
			return d
		}
		if d := int(a.Y) - int(b.Y); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// NoModeError returns the error about a mode that an output does not have where it takes no others, with the sizes that it has.
func NoModeError(system string, modes []*pb.DisplayMode, set *pb.DisplaySetting) error {
	var sizes []string
	for _, m := range modes {
		size := fmt.Sprintf("%dx%d", m.Width, m.Height)
		if set.Refresh != 0 {
			size = fmt.Sprintf("%s@%.4g", size, m.Refresh)
		}
		if !slices.Contains(sizes, size) && len(sizes) < maxSizesTold {
			sizes = append(sizes, size)
		}
	}
	wanted := fmt.Sprintf("%dx%d", set.Width, set.Height)
	if set.Refresh != 0 {
		wanted = fmt.Sprintf("%s@%.4g", wanted, set.Refresh)
	}
	if len(sizes) == 0 {
		return fault.Unsupported("%s takes no size that the output does not list, such as %s, and it lists none", system, wanted)
	}
	return fault.Unsupported("%s takes no size that the output does not list, such as %s; it lists %s",
		system, wanted, strings.Join(sizes, ", "))
}

// maxSizesTold is how many sizes an error lists at most.
const maxSizesTold = 40
