package outputs

import (
	"context"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
)

// The interfaces by which every client sees the outputs that are on: wl_output of the core protocol, and
// xdg-output-unstable-v1, which knows their names and where they are.
var (
	outputType = &wayland.Interface{Name: "wl_output", Version: 2, Events: []wayland.EventType{
		{Name: "geometry", Args: "iiiiissi"}, {Name: "mode", Args: "uiii"}, {Name: "done"}, {Name: "scale", Args: "i"},
	}}
	xdgOutputManagerType = &wayland.Interface{Name: "zxdg_output_manager_v1", Version: 3}
	xdgOutputType        = &wayland.Interface{Name: "zxdg_output_v1", Version: 3, Events: []wayland.EventType{
		{Name: "logical_position", Args: "ii"}, {Name: "logical_size", Args: "ii"}, {Name: "done"},
		{Name: "name", Args: "s"}, {Name: "description", Args: "s"},
	}}
)

const (
	outputModeCurrent = 1 // a flag of wl_output.mode
	getXDGOutput      = 1 // an opcode of zxdg_output_manager_v1
)

// shownOutput is an output that is on.
type shownOutput struct {
	global        uint32
	name          string
	x, y          int32
	width, height uint32 // pixels of the mode
	refresh       float64
	transform     int32
	logicalWidth  uint32 // after scale and transform
}

// scale returns by how much things are drawn larger; 0: not known.
func (o *shownOutput) scale() float64 {
	width := o.width
	if o.transform%2 == 1 { // 90 and 270 degrees
		width = o.height
	}
	if o.logicalWidth == 0 {
		return 0
	}
	return float64(width) / float64(o.logicalWidth)
}

// shownOutputs follows the outputs that are on.
type shownOutputs struct {
	conn    *wayland.Conn
	manager *wayland.Object
	list    []*shownOutput
}

// refresh brings the list up to date.
func (s *shownOutputs) refresh(ctx context.Context) error {
	if err := s.conn.Roundtrip(ctx); err != nil {
		return err
	}
	if s.manager == nil {
		manager, err := s.conn.Bind(xdgOutputManagerType, nil)
		if err != nil {
			return err
		}
		s.manager = manager
	}
	globals := s.conn.Globals()
	s.list = slices.DeleteFunc(s.list, func(o *shownOutput) bool {
		return !slices.ContainsFunc(globals, func(g wayland.Global) bool { return g.Name == o.global })
	})
	added := false
	for _, g := range globals {
		if g.Interface != outputType.Name || slices.ContainsFunc(s.list, func(o *shownOutput) bool { return o.global == g.Name }) {
			continue
		}
		o := &shownOutput{global: g.Name}
		object, err := s.conn.BindGlobal(g, outputType, o.event)
		if err != nil {
			return err
		}
		xdg := s.manager.New(xdgOutputType, o.xdgEvent)
		if err := s.manager.Request(getXDGOutput, xdg, object); err != nil {
			return err
		}
		s.list, added = append(s.list, o), true
	}
	if !added {
		return nil
	}
	return s.conn.Roundtrip(ctx)
}

// named returns the output of a name; nil: it is off.
func (s *shownOutputs) named(name string) *shownOutput {
	for _, o := range s.list {
		if o.name == name && o.width != 0 {
			return o
		}
	}
	return nil
}

func (o *shownOutput) event(e *wayland.Event) {
	switch e.Opcode {
	case 0:
		o.transform = e.Int(7)
	case 1:
		if e.Uint(0)&outputModeCurrent != 0 {
			o.width, o.height, o.refresh = positive(e.Int(1)), positive(e.Int(2)), float64(e.Int(3))/1000
		}
	}
}

func (o *shownOutput) xdgEvent(e *wayland.Event) {
	switch e.Opcode {
	case 0:
		o.x, o.y = e.Int(0), e.Int(1)
	case 1:
		o.logicalWidth = positive(e.Int(0))
	case 3:
		o.name = e.String(0)
	}
}
