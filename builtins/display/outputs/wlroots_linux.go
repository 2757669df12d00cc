package outputs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The interfaces of wlr-output-management-unstable-v1, version 4.
var (
	wlrModeType = &wayland.Interface{Name: "zwlr_output_mode_v1", Version: 3, Events: []wayland.EventType{
		{Name: "size", Args: "ii"}, {Name: "refresh", Args: "i"}, {Name: "preferred"}, {Name: "finished"},
	}}
	wlrHeadType = &wayland.Interface{Name: "zwlr_output_head_v1", Version: 4, Events: []wayland.EventType{
		{Name: "name", Args: "s"}, {Name: "description", Args: "s"}, {Name: "physical_size", Args: "ii"},
		{Name: "mode", Args: "n", New: wlrModeType}, {Name: "enabled", Args: "i"}, {Name: "current_mode", Args: "o"},
		{Name: "position", Args: "ii"}, {Name: "transform", Args: "i"}, {Name: "scale", Args: "f"}, {Name: "finished"},
		{Name: "make", Args: "s"}, {Name: "model", Args: "s"}, {Name: "serial_number", Args: "s"}, {Name: "adaptive_sync", Args: "u"},
	}}
	wlrManagerType = &wayland.Interface{Name: "zwlr_output_manager_v1", Version: 4, Events: []wayland.EventType{
		{Name: "head", Args: "n", New: wlrHeadType}, {Name: "done", Args: "u"}, {Name: "finished"},
	}}
	wlrConfigurationType = &wayland.Interface{Name: "zwlr_output_configuration_v1", Version: 4, Events: []wayland.EventType{
		{Name: "succeeded"}, {Name: "failed"}, {Name: "cancelled"},
	}}
	wlrConfigurationHeadType = &wayland.Interface{Name: "zwlr_output_configuration_head_v1", Version: 4}
)

// Opcodes of the requests.
const (
	wlrCreateConfiguration = 0

	wlrEnableHead           = 0
	wlrDisableHead          = 1
	wlrApply                = 2
	wlrTest                 = 3
	wlrDestroyConfiguration = 4

	wlrSetMode       = 0
	wlrSetCustomMode = 1
	wlrSetPosition   = 2
	wlrSetScale      = 4
)

// wlrAttempts is how often a configuration is tried that the compositor cancels, since its outputs changed meanwhile.
const wlrAttempts = 5

// wlrBackend sets the outputs of sway and other compositors that speak wlr-output-management.
type wlrBackend struct {
	conn    *wayland.Conn
	manager *wayland.Object
	heads   []*wlrHead
	shown   shownOutputs // what is on indeed: sway before 1.8 reports heads with a custom mode as off
	serial  uint32
	told    bool // the first done event came
}

type wlrHead struct {
	object  *wayland.Object
	output  pb.DisplayOutput
	modes   []*wlrMode
	current *wayland.Object
}

type wlrMode struct {
	object    *wayland.Object
	width     uint32
	height    uint32
	refresh   float64
	preferred bool
}

func openWlroots(ctx context.Context, conn *wayland.Conn) (Backend, error) {
	b := &wlrBackend{conn: conn, shown: shownOutputs{conn: conn}}
	var err error
	if b.manager, err = conn.Bind(wlrManagerType, b.managerEvent); err != nil {
		return nil, err
	}
	return b, b.shown.refresh(ctx)
}

// Close ends the connection.
func (b *wlrBackend) Close() error { return b.conn.Close() }

func (b *wlrBackend) managerEvent(e *wayland.Event) {
	switch e.Opcode {
	case 0:
		head := &wlrHead{object: e.Of(0)}
		head.output.Scale = 1
		head.object.Handle = func(e *wayland.Event) { b.headEvent(head, e) }
		b.heads = append(b.heads, head)
	case 1:
		b.serial, b.told = e.Uint(0), true
	}
}

func (b *wlrBackend) headEvent(head *wlrHead, e *wayland.Event) {
	o := &head.output
	switch e.Opcode {
	case 0:
		o.Name = e.String(0)
	case 2:
		o.WidthMm, o.HeightMm = positive(e.Int(0)), positive(e.Int(1))
	case 3:
		mode := &wlrMode{object: e.Of(0)}
		mode.object.Handle = func(e *wayland.Event) {
			switch e.Opcode {
			case 0:
				mode.width, mode.height = positive(e.Int(0)), positive(e.Int(1))
			case 1:
				mode.refresh = float64(e.Int(0)) / 1000
			case 2:
				mode.preferred = true
			case 3:
				head.modes = slices.DeleteFunc(head.modes, func(m *wlrMode) bool { return m == mode })
				mode.object.Forget()
			}
		}
		head.modes = append(head.modes, mode)
	case 4:
		o.Enabled = e.Int(0) != 0
	case 5:
		head.current = e.Of(0)
	case 8:
		o.Scale = e.Fixed(0).Float()
	case 9:
		b.heads = slices.DeleteFunc(b.heads, func(h *wlrHead) bool { return h == head })
		head.object.Forget()
	case 10:
		o.Make = e.String(0)
	case 11:
		o.Model = e.String(0)
	case 12:
		o.Serial = e.String(0)
	}
}

func positive(n int32) uint32 { return uint32(max(n, 0)) }

// transformName returns the name of a transform of wl_output.
func transformName(transform int32) string {
	names := []string{"normal", "90", "180", "270", "flipped-normal", "flipped-90", "flipped-180", "flipped-270"}
	if transform < 0 || int(transform) >= len(names) {
		return fmt.Sprint(transform)
	}
	return names[transform]
}

// Outputs returns the compositor's heads.
func (b *wlrBackend) Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	if err := b.shown.refresh(ctx); err != nil {
		return nil, err
	}
	if !b.told {
		return nil, fault.Wrapf(fault.ErrBusy, "%s has listed no outputs yet", b.conn.Compositor())
	}
	list := &pb.ListDisplaysResponse{
		Success: true, System: "wlroots", Compositor: b.conn.Compositor(), Scaled: true, CanScale: true,
	}
	for _, head := range b.heads {
		list.Outputs = append(list.Outputs, b.describe(head))
	}
	Sort(list.Outputs)
	return list, nil
}

func (b *wlrBackend) describe(h *wlrHead) *pb.DisplayOutput {
	o := &pb.DisplayOutput{
		Name: h.output.Name, Scale: h.output.Scale, Transform: transformName(0), Make: h.output.Make, Model: h.output.Model,
		Serial: h.output.Serial, WidthMm: h.output.WidthMm, HeightMm: h.output.HeightMm, AnySize: true,
	}
	shown := b.shown.named(h.output.Name)
	if shown != nil {
		o.Enabled, o.X, o.Y, o.Transform = true, shown.x, shown.y, transformName(shown.transform)
		o.Width, o.Height, o.Refresh = shown.width, shown.height, shown.refresh
		if !h.output.Enabled && shown.scale() != 0 {
			o.Scale = shown.scale()
		}
	}
	for _, m := range h.listed() {
		o.Modes = append(o.Modes, &pb.DisplayMode{
			Width: m.width, Height: m.height, Refresh: m.refresh, Current: shown != nil && m.object == h.current, Preferred: m.preferred,
		})
	}
	return o
}

// listed are the modes that the head has of its own: a custom one may be among those that the compositor lists, with no size.
func (h *wlrHead) listed() (list []*wlrMode) {
	for _, m := range h.modes {
		if m.width != 0 && m.height != 0 {
			list = append(list, m)
		}
	}
	return list
}

// errCancelled says that the outputs changed between what was read and what was asked for.
var errCancelled = errors.New("cancelled")

// Apply has the compositor test the configuration, and then apply it.
func (b *wlrBackend) Apply(ctx context.Context, settings []*pb.DisplaySetting) error {
	for range wlrAttempts {
		err := b.configure(ctx, settings, wlrTest)
		if err == nil {
			err = b.configure(ctx, settings, wlrApply)
		}
		if !errors.Is(err, errCancelled) {
			return err
		}
		if err := b.shown.refresh(ctx); err != nil { // the next serial
			return err
		}
	}
	return fault.Wrapf(fault.ErrBusy, "the outputs of %s change all the time", b.conn.Compositor())
}

// configure sends a configuration of all heads, and the request that tests or applies it.
func (b *wlrBackend) configure(ctx context.Context, settings []*pb.DisplaySetting, request uint16) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Timeout, b.conn.Silent())
	defer cancel()
	outcome := -1
	configuration := b.manager.New(wlrConfigurationType, func(e *wayland.Event) { outcome = int(e.Opcode) })
	if err := b.manager.Request(wlrCreateConfiguration, configuration, b.serial); err != nil {
		return err
	}
	for _, head := range b.heads {
		if err := b.configureHead(head, configuration, settings); err != nil {
			configuration.Destroy(wlrDestroyConfiguration)
			return fault.On(head.output.Name, err)
		}
	}
	if err := configuration.Request(request); err != nil {
		return err
	}
	if err := b.conn.DispatchUntil(ctx, func() bool { return outcome >= 0 }); err != nil {
		return err
	}
	if err := configuration.Destroy(wlrDestroyConfiguration); err != nil {
		return err
	}
	switch outcome {
	case 0:
		return nil
	case 1:
		return fault.Refuse("%s refuses this configuration of its outputs", b.conn.Compositor())
	default:
		return errCancelled
	}
}

// configureHead says what a head shall be. One that no setting names stays as it is.
func (b *wlrBackend) configureHead(h *wlrHead, configuration *wayland.Object, settings []*pb.DisplaySetting) error {
	now := b.describe(h)
	set := Settings([]*pb.DisplayOutput{now})[0]
	if at := slices.IndexFunc(settings, func(s *pb.DisplaySetting) bool { return s.Name == now.Name }); at >= 0 {
		set = settings[at]
	}
	if !set.GetEnabled() {
		return configuration.Request(wlrDisableHead, h.object)
	}
	head := configuration.New(wlrConfigurationHeadType, nil)
	err := configuration.Request(wlrEnableHead, head, h.object)
	if err != nil {
		return err
	}
	if mode := FindMode(now.Modes, set.Width, set.Height, set.Refresh); mode != nil {
		err = head.Request(wlrSetMode, h.listed()[slices.Index(now.Modes, mode)].object)
	} else {
		err = head.Request(wlrSetCustomMode, int32(set.Width), int32(set.Height), int32(math.Round(set.Refresh*1000)))
	}
	if err == nil {
		err = head.Request(wlrSetPosition, set.GetX(), set.GetY())
	}
	if err == nil && set.Scale != 0 {
		err = head.Request(wlrSetScale, wayland.Fixed(math.Round(set.Scale*256)))
	}
	return err
}
