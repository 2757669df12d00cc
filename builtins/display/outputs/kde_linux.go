package outputs

import (
	"context"
	"math"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The interfaces of kde-output-device-v2, kde-output-management-v2, kde-output-order-v1 and kde-primary-output-v1, in the
// versions of Plasma 5.27. The event with the reason of a failure is that of Plasma 6.
var (
	kdeModeType = &wayland.Interface{Name: "kde_output_device_mode_v2", Version: 1, Events: []wayland.EventType{
		{Name: "size", Args: "ii"}, {Name: "refresh", Args: "i"}, {Name: "preferred"}, {Name: "removed"},
	}}
	kdeDeviceType = &wayland.Interface{Name: "kde_output_device_v2", Version: 2, Events: []wayland.EventType{
		{Name: "geometry", Args: "iiiiissi"}, {Name: "current_mode", Args: "o"}, {Name: "mode", Args: "n", New: kdeModeType},
		{Name: "done"}, {Name: "scale", Args: "f"}, {Name: "edid", Args: "s"}, {Name: "enabled", Args: "i"},
		{Name: "uuid", Args: "s"}, {Name: "serial_number", Args: "s"}, {Name: "eisa_id", Args: "s"},
		{Name: "capabilities", Args: "u"},
		{Name: "overscan", Args: "u"}, {Name: "vrr_policy", Args: "u"}, {Name: "rgb_range", Args: "u"}, {Name: "name", Args: "s"},
	}}
	kdeManagementType    = &wayland.Interface{Name: "kde_output_management_v2", Version: 12}
	kdeConfigurationType = &wayland.Interface{Name: "kde_output_configuration_v2", Version: 12, Events: []wayland.EventType{
		{Name: "applied"}, {Name: "failed"}, {Name: "failure_reason", Args: "s"},
	}}
	kdeOrderType = &wayland.Interface{Name: "kde_output_order_v1", Version: 1, Events: []wayland.EventType{
		{Name: "output", Args: "s"}, {Name: "done"},
	}}
	kdePrimaryType = &wayland.Interface{Name: "kde_primary_output_v1", Version: 1, Events: []wayland.EventType{
		{Name: "primary_output", Args: "s"},
	}}
)

// Opcodes of the requests, and since which version some are there.
const (
	kdeCreateConfiguration = 0

	kdeEnable   = 0
	kdeSetMode  = 1
	kdePosition = 3
	kdeScale    = 4
	kdeApply    = 5
	kdeDestroy  = 6
	kdePrimary  = 10
	kdePriority = 11

	kdePrimarySince  = 2
	kdePrioritySince = 3
)

// kdeBackend sets the outputs of KWin, as KScreen does.
type kdeBackend struct {
	conn       *wayland.Conn
	management *wayland.Object
	devices    []*kdeDevice
	order      []string // of outputs, the primary one first
	ordering   []string // what has come of the next order
}

type kdeDevice struct {
	global  uint32
	object  *wayland.Object
	output  pb.DisplayOutput
	modes   []*kdeMode
	current *wayland.Object
}

type kdeMode struct {
	object *wayland.Object
	mode   pb.DisplayMode
}

func openKDE(ctx context.Context, conn *wayland.Conn) (Backend, error) {
	b := &kdeBackend{conn: conn}
	var err error
	if b.management, err = conn.Bind(kdeManagementType, nil); err != nil {
		return nil, err
	}
	for _, g := range conn.Globals() {
		switch g.Interface {
		case kdeOrderType.Name:
			_, err = conn.BindGlobal(g, kdeOrderType, b.orderEvent)
		case kdePrimaryType.Name:
			_, err = conn.BindGlobal(g, kdePrimaryType, func(e *wayland.Event) {
				if len(b.order) < 2 { // the order says more
					b.order = []string{e.String(0)}
				}
			})
		}
		if err != nil {
			return nil, err
		}
	}
	if err := b.refresh(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// Close ends the connection.
func (b *kdeBackend) Close() error { return b.conn.Close() }

// refresh brings what is known of the outputs up to date: each is a global.
func (b *kdeBackend) refresh(ctx context.Context) error {
	if err := b.conn.Roundtrip(ctx); err != nil {
		return err
	}
	globals := b.conn.Globals()
	b.devices = slices.DeleteFunc(b.devices, func(d *kdeDevice) bool {
		return !slices.ContainsFunc(globals, func(g wayland.Global) bool { return g.Name == d.global })
	})
	added := false
	for _, g := range globals {
		known := slices.ContainsFunc(b.devices, func(d *kdeDevice) bool { return d.global == g.Name })
		if known || g.Interface != kdeDeviceType.Name {
			continue
		}
		d := &kdeDevice{global: g.Name}
		d.output.Scale = 1
		var err error
		if d.object, err = b.conn.BindGlobal(g, kdeDeviceType, d.event); err != nil {
			return err
		}
		b.devices, added = append(b.devices, d), true
	}
	if !added {
		return nil
	}
	return b.conn.Roundtrip(ctx)
}

func (b *kdeBackend) orderEvent(e *wayland.Event) {
	switch e.Opcode {
	case 0:
		b.ordering = append(b.ordering, e.String(0))
	case 1:
		b.order, b.ordering = b.ordering, nil
	}
}

func (d *kdeDevice) event(e *wayland.Event) {
	o := &d.output
	switch e.Opcode {
	case 0:
		o.X, o.Y, o.WidthMm, o.HeightMm = e.Int(0), e.Int(1), positive(e.Int(2)), positive(e.Int(3))
		o.Make, o.Model, o.Transform = e.String(5), e.String(6), transformName(e.Int(7))
	case 1:
		d.current = e.Of(0)
	case 2:
		mode := &kdeMode{object: e.Of(0)}
		mode.object.Handle = func(e *wayland.Event) {
			switch e.Opcode {
			case 0:
				mode.mode.Width, mode.mode.Height = positive(e.Int(0)), positive(e.Int(1))
			case 1:
				mode.mode.Refresh = float64(e.Int(0)) / 1000
			case 2:
				mode.mode.Preferred = true
			case 3:
				d.modes = slices.DeleteFunc(d.modes, func(m *kdeMode) bool { return m == mode })
				mode.object.Forget()
			}
		}
		d.modes = append(d.modes, mode)
	case 4:
		o.Scale = e.Fixed(0).Float()
	case 6:
		o.Enabled = e.Int(0) != 0
	case 8:
		o.Serial = e.String(0)
	case 14:
		o.Name = e.String(0)
	}
}

// Outputs returns the outputs of KWin.
func (b *kdeBackend) Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	if err := b.refresh(ctx); err != nil {
		return nil, err
	}
	list := &pb.ListDisplaysResponse{Success: true, System: "kde", Compositor: b.conn.Compositor(), Scaled: true, CanScale: true}
	for _, d := range b.devices {
		o := d.describe()
		o.Primary = len(b.order) > 0 && o.Name == b.order[0]
		list.Outputs = append(list.Outputs, o)
	}
	Sort(list.Outputs)
	return list, nil
}

func (d *kdeDevice) describe() *pb.DisplayOutput {
	o := &pb.DisplayOutput{
		Name: d.output.Name, Enabled: d.output.Enabled, Scale: d.output.Scale, Transform: d.output.Transform, Make: d.output.Make,
		Model: d.output.Model, Serial: d.output.Serial, WidthMm: d.output.WidthMm, HeightMm: d.output.HeightMm,
	}
	for _, m := range d.modes {
		current := o.Enabled && m.object == d.current
		if current {
			o.Width, o.Height, o.Refresh = m.mode.Width, m.mode.Height, m.mode.Refresh
		}
		o.Modes = append(o.Modes, &pb.DisplayMode{
			Width: m.mode.Width, Height: m.mode.Height, Refresh: m.mode.Refresh, Current: current, Preferred: m.mode.Preferred,
		})
	}
	if o.Enabled {
		o.X, o.Y = d.output.X, d.output.Y
	}
	return o
}

// Apply sends one configuration. KWin takes the modes that it lists, and no others.
func (b *kdeBackend) Apply(ctx context.Context, settings []*pb.DisplaySetting) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Timeout, b.conn.Silent())
	defer cancel()
	if err := b.refresh(ctx); err != nil {
		return err
	}
	outcome, reason := -1, ""
	configuration := b.management.New(kdeConfigurationType, func(e *wayland.Event) {
		if e.Opcode == 2 {
			reason = ": " + e.String(0)
			return
		}
		outcome = int(e.Opcode)
	})
	if err := b.management.Request(kdeCreateConfiguration, configuration); err != nil {
		return err
	}
	defer configuration.Destroy(kdeDestroy)
	primary := ""
	for _, set := range settings {
		at := slices.IndexFunc(b.devices, func(d *kdeDevice) bool { return d.output.Name == set.Name })
		if at < 0 {
			return fault.Wrapf(fault.ErrBusy, "%s is gone", set.Name)
		}
		if err := b.devices[at].configure(configuration, set); err != nil {
			return fault.On(set.Name, err)
		}
		if set.GetEnabled() && set.Primary {
			primary = set.Name
		}
	}
	if err := b.setPrimary(configuration, settings, primary); err != nil {
		return err
	}
	if err := configuration.Request(kdeApply); err != nil {
		return err
	}
	if err := b.conn.DispatchUntil(ctx, func() bool { return outcome >= 0 }); err != nil {
		return err
	}
	if outcome != 0 {
		return fault.Refuse("%s refuses this configuration of its outputs%s", b.conn.Compositor(), reason)
	}
	return nil
}

func (d *kdeDevice) configure(configuration *wayland.Object, set *pb.DisplaySetting) error {
	if !set.GetEnabled() {
		return configuration.Request(kdeEnable, d.object, int32(0))
	}
	listed := d.describe().Modes
	mode := FindMode(listed, set.Width, set.Height, set.Refresh)
	if mode == nil {
		return NoModeError("KWin", listed, set)
	}
	err := configuration.Request(kdeEnable, d.object, int32(1))
	if err == nil {
		err = configuration.Request(kdeSetMode, d.object, d.modes[slices.Index(listed, mode)].object)
	}
	if err == nil {
		err = configuration.Request(kdePosition, d.object, set.GetX(), set.GetY())
	}
	if err == nil && set.Scale != 0 {
		err = configuration.Request(kdeScale, d.object, wayland.Fixed(math.Round(set.Scale*256)))
	}
	return err
}

// setPrimary puts an output first; the others keep their order.
func (b *kdeBackend) setPrimary(configuration *wayland.Object, settings []*pb.DisplaySetting, name string) error {
	if name == "" || configuration.Version < kdePrimarySince {
		return nil
	}
	off := func(d *kdeDevice) bool {
		return slices.ContainsFunc(settings, func(s *pb.DisplaySetting) bool { return s.Name == d.output.Name && !s.GetEnabled() })
	}
	rank := func(d *kdeDevice) int {
		if d.output.Name == name {
			return -1
		}
		if at := slices.Index(b.order, d.output.Name); at >= 0 {
			return at
		}
		return len(b.order)
	}
	devices := slices.DeleteFunc(slices.Clone(b.devices), off)
	slices.SortStableFunc(devices, func(x, y *kdeDevice) int { return rank(x) - rank(y) })
	if configuration.Version < kdePrioritySince {
		return configuration.Request(kdePrimary, devices[0].object)
	}
	for i, d := range devices {
		if err := configuration.Request(kdePriority, d.object, uint32(i+1)); err != nil {
			return err
		}
	}
	return nil
}
