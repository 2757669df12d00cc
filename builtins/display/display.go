// Package display lists and sets the outputs of the desktop in front: sizes, scales, places, and which one is the primary one.
//
//	display_resize, display_layout ─► plan: the state of all outputs ─► Desktop.Set ─► read back, or as before
//	list_displays ─► Desktop.Outputs
//
// Scripts call them as display.list, display.set and display.layout.
//
// Not here: how a display server is spoken to (package outputs, in the desktop's session), and which session is in front.
package display

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are those of outputs. primaryName stands for the one that is not named,
// and everyName for all.
const (
	kind        = "display"
	primaryName = "primary"
	everyName   = "*"
)

// Desktop is the desktop in front. It is safe for concurrent use.
type Desktop interface {
	// Outputs returns its outputs. Without a desktop the error is unsupported, and says so.
	Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error)
	// Set sets outputs as the settings say, each of which is complete (see outputs.Set), and returns what was read back. After
	// an error they are as before.
	Set(ctx context.Context, settings []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error)
	// Present identifies this desktop, so that the next one has another value; empty: there is none. It does not wait long.
	// Unless it is to look now, the value may be a second old.
	Present(now bool) string
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest   *guest.Guest
	desktop Desktop
	turn    chan struct{}          // holds a value while nobody sets outputs
	failing atomic.Pointer[string] // the desktop that has no way to set outputs
}

// New makes the room for a desktop. A tree that is not booted has none.
func New(g *guest.Guest, d Desktop) *Room {
	r := &Room{guest: g, desktop: d, turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	return r
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{Name: "display", Scope: kind, Ops: append(r.scriptRows(), []builtins.Op{
		{
			Name: "display_resize", Capability: "display_resize", Available: r.available, Summary: "set the size of an output",
			Mutates: true, Order: inOrder,
			Access: builtins.Of(resizeAccess), Handler: builtins.Handle(r.resize),
		},
		{
			Name: "list_displays", Capability: "list_displays", Available: r.available, Summary: "the outputs of the desktop in front",
			Handler: builtins.Handle(r.list),
		},
		{
			Name: "display_layout", Capability: "display_layout", Available: r.available, Summary: "set several outputs at once",
			Mutates: true, Order: inOrder,
			Access: builtins.Of(layoutAccess), Handler: builtins.Handle(r.layout),
		},
	}...), Features: r.features}
}

// features says which fields of display_resize this agent honours.
func (r *Room) features() map[string]string {
	if !r.available() {
		return nil
	}
	if runtime.GOOS == "windows" { // whose user alone sets how large things are drawn
		return map[string]string{"display_resize": "display_id"}
	}
	return map[string]string{"display_resize": "display_id,dpi"}
}

// available reports whether there is a desktop, and no request has found yet that it has no way to set outputs.
func (r *Room) available() bool {
	if !r.guest.Live {
		return false
	}
	present := r.desktop.Present(false)
	failing := r.failing.Load()
	return present != "" && (failing == nil || *failing != present)
}

func resizeAccess(in *pb.DisplayResizeRequest) builtins.Access { return accessOf(in.DisplayId) }

func layoutAccess(in *pb.DisplayLayoutRequest) builtins.Access {
	names := make([]string, 0, len(in.Outputs))
	for _, o := range in.Outputs {
		names = append(names, o.GetName())
	}
	return accessOf(names...)
}

func accessOf(names ...string) (access builtins.Access) {
	if len(names) == 0 {
		names = []string{everyName}
	}
	for _, name := range names {
		if name == "" {
			name = primaryName
		}
		access.Objects = append(access.Objects, builtins.Object{Kind: kind, Name: name})
	}
	return access
}

// outputs returns the outputs of the desktop, and notes whether it lists them.
func (r *Room) outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("there is no desktop in a tree that is not booted")
	}
	list, err := r.desktop.Outputs(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		if present := r.desktop.Present(true); present != "" {
			r.failing.Store(&present)
		}
	} else if err == nil {
		r.failing.Store(nil)
	}
	return list, err
}

func (r *Room) list(ctx context.Context, _ *builtins.Call, _ *pb.ListDisplaysRequest) (*pb.ListDisplaysResponse, error) {
	return r.outputs(ctx)
}

// primary returns the output that a request without a name is about: the primary one, else the first that is on, else the
// first.
func primary(list *pb.ListDisplaysResponse) (string, error) {
	if len(list.Outputs) == 0 {
		return "", fault.Wrapf(fs.ErrNotExist, "the desktop has no output")
	}
	at := slices.IndexFunc(list.Outputs, func(o *pb.DisplayOutput) bool { return o.Primary && o.Enabled })
	if at < 0 {
		at = slices.IndexFunc(list.Outputs, func(o *pb.DisplayOutput) bool { return o.Enabled })
	}
	return list.Outputs[max(at, 0)].Name, nil
}

func (r *Room) resize(ctx context.Context, _ *builtins.Call, in *pb.DisplayResizeRequest) (*pb.DisplayResizeResponse, error) {
	on := true
	setting := &pb.DisplaySetting{Name: in.DisplayId, Enabled: &on, Width: in.Width, Height: in.Height, Dpi: in.Dpi}
	if in.Width == 0 && in.Height == 0 { // elsewhere that leaves the size as it is
		return nil, fault.Invalid("0x0 is no size from %dx%d to %dx%d", minSize, minSize, maxSize, maxSize)
	}
	after, _, err := r.set(ctx, change{settings: []*pb.DisplaySetting{setting}})
	if err != nil {
		return nil, err
	}
	for _, o := range after.Outputs {
		if o.Name == setting.Name {
			return &pb.DisplayResizeResponse{Success: true, ActualWidth: o.Width, ActualHeight: o.Height}, nil
		}
	}
	return nil, fault.On(setting.Name, fault.Wrapf(fault.ErrBusy, "it is gone"))
}

func (r *Room) layout(ctx context.Context, _ *builtins.Call, in *pb.DisplayLayoutRequest) (*pb.DisplayLayoutResponse, error) {
	after, changed, err := r.set(ctx, change{settings: proto.CloneOf(in).Outputs})
	if err != nil {
		return nil, err
	}
	return &pb.DisplayLayoutResponse{Success: true, Changed: changed, Outputs: after.Outputs}, nil
}

// change is a change of outputs.
type change struct {
	// settings are what is asked for, the caller's own: an empty name is filled in.
	settings []*pb.DisplaySetting
	// announce is called before anything is changed, with what was before and what is set. Optional.
	announce func(before *pb.ListDisplaysResponse, settings []*pb.DisplaySetting) error
	// undo leaves out outputs that are gone, and what a desktop that is gone had.
	undo bool
}

// set plans a change and makes it, one at a time. It returns all outputs as they are then, and whether anything was changed.
func (r *Room) set(ctx context.Context, c change) (after *pb.ListDisplaysResponse, changed bool, err error) {
	select {
	case <-r.turn:
		defer func() { r.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	before, settings, changed, err := r.prepare(ctx, c)
	if err != nil || !changed {
		return before, false, err
	}
	if c.announce != nil {
		if err := c.announce(before, settings); err != nil {
			return nil, false, err
		}
	}
	after, err = r.desktop.Set(ctx, settings)
	return after, err == nil, err
}

// prepare reads the outputs and plans a change of them.
func (r *Room) prepare(ctx context.Context, c change) (
	before *pb.ListDisplaysResponse, settings []*pb.DisplaySetting, changed bool, err error,
) {
	if before, err = r.outputs(ctx); err != nil {
		return nil, nil, false, err
	}
	settings, changed, err = c.plan(before)
	return before, settings, changed, err
}

func (c change) plan(before *pb.ListDisplaysResponse) (settings []*pb.DisplaySetting, changed bool, err error) {
	asked := c.settings
	if c.undo {
		asked = slices.DeleteFunc(slices.Clone(asked), func(s *pb.DisplaySetting) bool {
			return !slices.ContainsFunc(before.Outputs, func(o *pb.DisplayOutput) bool { return o.Name == s.Name })
		})
	}
	for _, s := range asked {
		if s.Name == "" {
			if s.Name, err = primary(before); err != nil {
				return nil, false, err
			}
		}
	}
	return plan(before, asked, c.undo)
}
