package outputs

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"math"
	"path/filepath"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Mutter's service on the session bus (org.gnome.Mutter.DisplayConfig.xml in Mutter's source).
const (
	mutterService = "org.gnome.Mutter.DisplayConfig"
	mutterPath    = "/org/gnome/Mutter/DisplayConfig"

	// The configuration lasts as long as the session: a permanent one asks the user to keep it.
	mutterTemporary = uint32(1)
	// Positions count scaled pixels, and not those of the modes.
	mutterLogical = uint32(1)

	mutterAttempts = 5
)

// gnomeBackend sets the outputs of GNOME Shell, and of Mutter alone, by its service.
type gnomeBackend struct {
	bus        *sysbus.Conn
	wayland    *wayland.Conn // to be closed with it
	compositor string
}

// The types of GetCurrentState and ApplyMonitorsConfig.
type (
	mutterSpec struct{ Connector, Vendor, Product, Serial string }
	mutterMode struct {
		ID             string
		Width, Height  int32
		Refresh        float64
		PreferredScale float64
		Scales         []float64
		Properties     map[string]dbus.Variant
	}
	mutterMonitor struct {
		Spec       mutterSpec
		Modes      []mutterMode
		Properties map[string]dbus.Variant
	}
	mutterLogicalMonitor struct {
		X, Y       int32
		Scale      float64
		Transform  uint32
		Primary    bool
		Monitors   []mutterSpec
		Properties map[string]dbus.Variant
	}
	mutterMonitorConfig struct {
		Connector, Mode string
		Properties      map[string]dbus.Variant
	}
	mutterLogicalConfig struct {
		X, Y      int32
		Scale     float64
		Transform uint32
		Primary   bool
		Monitors  []mutterMonitorConfig
	}
	mutterState struct {
		serial     uint32
		monitors   []mutterMonitor
		logical    []mutterLogicalMonitor
		properties map[string]dbus.Variant
	}
)

// openGNOME is the last way that is tried with a compositor: its error names it.
func openGNOME(ctx context.Context, conn *wayland.Conn, getenv func(string) string) (Backend, error) {
	b := &gnomeBackend{wayland: conn, compositor: conn.Compositor()}
	ctx, cancel := b.limit(ctx)
	defer cancel()
	none := fault.Unsupported("%s has no way to set its outputs: it speaks neither wlr-output-management nor "+
		"kde-output-management, and is no GNOME", b.compositor)
	address := getenv("DBUS_SESSION_BUS_ADDRESS")
	if address == "" {
		address = "unix:path=" + filepath.Join(getenv("XDG_RUNTIME_DIR"), "bus")
	}
	if err := b.open(ctx, address); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, none
		}
		return nil, err
	}
	if _, err := b.state(ctx); err != nil {
		b.bus.Close()
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, none
		}
		return nil, err
	}
	return b, nil
}

// open connects to the bus. The connection lasts longer than ctx.
func (b *gnomeBackend) open(ctx context.Context, address string) (err error) {
	lasting, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	b.bus, err = sysbus.OpenSession(lasting, address)
	if !stop() && err == nil {
		b.bus.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end(nil)
	}
	return err
}

// Close ends the connections.
func (b *gnomeBackend) Close() error {
	return errors.Join(b.bus.Close(), b.wayland.Close())
}

func (b *gnomeBackend) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, Timeout, b.wayland.Silent())
}

func (b *gnomeBackend) state(ctx context.Context) (*mutterState, error) {
	s := &mutterState{}
	err := b.bus.Call(ctx, mutterService, mutterPath, mutterService+".GetCurrentState",
		[]any{&s.serial, &s.monitors, &s.logical, &s.properties})
	return s, err
}

// Outputs returns the monitors of Mutter.
func (b *gnomeBackend) Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	ctx, cancel := b.limit(ctx)
	defer cancel()
	s, err := b.state(ctx)
	if err != nil {
		return nil, err
	}
	list := &pb.ListDisplaysResponse{Success: true, System: "gnome", Compositor: b.compositor, CanScale: true}
	mode, _ := s.properties["layout-mode"].Value().(uint32)
	list.Scaled = mode == mutterLogical
	for i := range s.monitors {
		list.Outputs = append(list.Outputs, s.describe(&s.monitors[i]))
	}
	Sort(list.Outputs)
	return list, nil
}

// logicalOf returns what a monitor shows; nil: it is off.
func (s *mutterState) logicalOf(spec mutterSpec) *mutterLogicalMonitor {
	for i := range s.logical {
		if slices.Contains(s.logical[i].Monitors, spec) {
			return &s.logical[i]
		}
	}
	return nil
}

func isSet(properties map[string]dbus.Variant, name string) bool {
	set, _ := properties[name].Value().(bool)
	return set
}

func (s *mutterState) describe(m *mutterMonitor) *pb.DisplayOutput {
	o := &pb.DisplayOutput{
		Name: m.Spec.Connector, Make: m.Spec.Vendor, Model: m.Spec.Product, Serial: m.Spec.Serial, Scale: 1,
		Transform: transformName(0),
	}
	logical := s.logicalOf(m.Spec)
	if logical != nil {
		o.Enabled, o.X, o.Y, o.Scale, o.Primary = true, logical.X, logical.Y, logical.Scale, logical.Primary
		o.Transform = transformName(int32(logical.Transform))
	}
	for _, mode := range m.Modes {
		current := logical != nil && isSet(mode.Properties, "is-current")
		if current {
			o.Width, o.Height, o.Refresh = positive(mode.Width), positive(mode.Height), mode.Refresh
		}
		o.Modes = append(o.Modes, &pb.DisplayMode{
			Width: positive(mode.Width), Height: positive(mode.Height), Refresh: mode.Refresh, Current: current,
			Preferred: isSet(mode.Properties, "is-preferred"), Scales: mode.Scales,
		})
	}
	return o
}

// Apply sets all monitors by one call. Mutter takes the modes that it lists, and no others. What it refuses it leaves as it
// was.
func (b *gnomeBackend) Apply(ctx context.Context, settings []*pb.DisplaySetting) error {
	ctx, cancel := b.limit(ctx)
	defer cancel()
	for range mutterAttempts {
		s, err := b.state(ctx)
		if err != nil {
			return err
		}
		config, err := s.configuration(settings)
		if err != nil {
			return err
		}
		err = b.bus.Call(ctx, mutterService, mutterPath, mutterService+".ApplyMonitorsConfig", nil,
			s.serial, mutterTemporary, config, map[string]dbus.Variant{})
		if !errors.Is(err, fs.ErrPermission) { // the serial is of a former state
			return err
		}
		if now, again := b.state(ctx); again != nil || now.serial == s.serial {
			return err // it does not let its configuration be changed
		}
	}
	return fault.Wrapf(fault.ErrBusy, "the outputs of %s change all the time", b.compositor)
}

// configuration returns the logical monitors that the settings ask for. Those that no setting names stay as they are.
func (s *mutterState) configuration(settings []*pb.DisplaySetting) ([]mutterLogicalConfig, error) {
	config := []mutterLogicalConfig{}
	for i := range s.monitors {
		m := &s.monitors[i]
		at := slices.IndexFunc(settings, func(set *pb.DisplaySetting) bool { return set.Name == m.Spec.Connector })
		now := s.describe(m)
		set := Settings([]*pb.DisplayOutput{now})[0]
		if at >= 0 {
			set = settings[at]
		}
		if !set.GetEnabled() {
			continue
		}
		mode := FindMode(now.Modes, set.Width, set.Height, set.Refresh)
		if mode == nil {
			return nil, fault.On(set.Name, NoModeError("GNOME", now.Modes, set))
		}
		listed := m.Modes[slices.Index(now.Modes, mode)]
		want := mutterLogicalConfig{
			X: set.GetX(), Y: set.GetY(), Primary: set.Primary, Scale: nearest(listed.Scales, set.Scale, listed.PreferredScale),
			Monitors: []mutterMonitorConfig{{m.Spec.Connector, listed.ID, map[string]dbus.Variant{}}},
		}
		if logical := s.logicalOf(m.Spec); logical != nil {
			want.Transform = logical.Transform
		}
		same := slices.IndexFunc(config, func(c mutterLogicalConfig) bool { return c.X == want.X && c.Y == want.Y })
		if same < 0 {
			config = append(config, want)
			continue
		}
		if c := &config[same]; c.Scale != want.Scale || c.Transform != want.Transform {
			return nil, fault.On(set.Name, fault.Invalid("outputs at one place have one scale and one transform"))
		}
		config[same].Monitors = append(config[same].Monitors, want.Monitors...)
		config[same].Primary = config[same].Primary || want.Primary
	}
	if !slices.ContainsFunc(config, func(c mutterLogicalConfig) bool { return c.Primary }) && len(config) > 0 {
		config[0].Primary = true
	}
	return config, nil
}

// nearest returns the listed scale that is nearest to the one wanted; for 0, the usual one.
func nearest(listed []float64, wanted, usual float64) float64 {
	if wanted == 0 {
		wanted = usual
	}
	if len(listed) == 0 {
		return wanted
	}
	return slices.MinFunc(listed, func(a, b float64) int {
		return cmp.Compare(math.Abs(a-wanted), math.Abs(b-wanted))
	})
}
