package display

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	layoutOp  = "display.layout"
	restoreOp = "display.restore"
)

// inOrder has requests that set outputs served one after the other, as they came: the last size counts.
func inOrder(proto.Message) string { return kind }

// scriptRows are the operations as scripts call them.
func (r *Room) scriptRows() []builtins.Op {
	return []builtins.Op{
		{
			Name: "display.list", Usage: "()", Summary: "the outputs of the desktop in front",
			Handler: builtins.Handle(r.scriptList),
		},
		{
			Name: "display.set", Usage: "(width, height, [output]) changed", Summary: "set the size of an output",
			Mutates: true, Predictable: true, Inverse: restoreOp,
			Access:  builtins.Of(func(in *pb.DisplaySetArgs) builtins.Access { return accessOf(in.Output) }),
			Handler: builtins.Handle(r.scriptSet),
		},
		{
			Name: layoutOp, Usage: "(outputs) changed", Summary: "set several outputs at once",
			Mutates: true, Predictable: true, Inverse: restoreOp,
			Access: builtins.Of(func(in *pb.DisplayLayoutArgs) builtins.Access {
				return layoutAccess(&pb.DisplayLayoutRequest{Outputs: in.Outputs})
			}),
			Handler: builtins.Handle(r.scriptLayout),
		},
		{
			Name: restoreOp, Usage: "(outputs)", Summary: "bring back the former layout",
			Mutates: true, Internal: true,
			Access: builtins.Of(func(in *pb.DisplayLayoutArgs) builtins.Access {
				return layoutAccess(&pb.DisplayLayoutRequest{Outputs: in.Outputs})
			}),
			Handler: builtins.Handle(r.restore),
		},
	}
}

// pretended returns the outputs as a dry run pretends them; nil: as they are.
func pretended(call *builtins.Call) *pb.ListDisplaysResponse {
	if call.DryRun == nil {
		return nil
	}
	list, _ := call.DryRun.Pretended[kind].(*pb.ListDisplaysResponse)
	return list
}

func (r *Room) scriptList(ctx context.Context, call *builtins.Call, _ *pb.DisplayListArgs) (*pb.DisplayList, error) {
	list := pretended(call)
	if list == nil {
		var err error
		if list, err = r.outputs(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.DisplayList{Outputs: list.Outputs, System: list.System, Compositor: list.Compositor}, nil
}

func (r *Room) scriptSet(ctx context.Context, call *builtins.Call, in *pb.DisplaySetArgs) (*pb.Changed, error) {
	on := true
	setting := &pb.DisplaySetting{
		Name: in.Output, Enabled: &on, Width: in.Width, Height: in.Height, Refresh: in.Refresh, Scale: in.Scale,
	}
	return r.scripted(ctx, call, "display.set", []*pb.DisplaySetting{setting})
}

func (r *Room) scriptLayout(ctx context.Context, call *builtins.Call, in *pb.DisplayLayoutArgs) (*pb.Changed, error) {
	return r.scripted(ctx, call, layoutOp, proto.CloneOf(in).Outputs)
}

// scripted changes outputs for a script. The layout before it is what takes it back.
func (r *Room) scripted(
	ctx context.Context, call *builtins.Call, op string, settings []*pb.DisplaySetting,
) (*pb.Changed, error) {
	c := change{settings: settings}
	if call.DryRun != nil {
		return r.predict(ctx, call, op, c)
	}
	var made *pb.Change
	c.announce = func(before *pb.ListDisplaysResponse, settings []*pb.DisplaySetting) error {
		made = report(op, before, settings)
		if call.Tx == nil {
			return nil
		}
		return call.Tx.Undo(ctx, restoreOp, &pb.DisplayLayoutArgs{Outputs: outputs.Settings(before.Outputs)})
	}
	_, changed, err := r.set(ctx, c)
	if err != nil {
		return nil, err
	}
	if changed {
		call.ReportApplied(made)
	}
	return &pb.Changed{Changed: changed}, nil
}

// restore brings outputs back to what they were. A layout that is gone with its session, or its output, is not missed.
func (r *Room) restore(ctx context.Context, _ *builtins.Call, in *pb.DisplayLayoutArgs) (*pb.Nothing, error) {
	_, _, err := r.set(ctx, change{settings: proto.CloneOf(in).Outputs, undo: true})
	if errors.Is(err, errors.ErrUnsupported) && r.desktop.Present(true) == "" {
		err = nil
	}
	return &pb.Nothing{}, err
}

// predict is what scripted would do. That the display server takes it is presumed.
func (r *Room) predict(ctx context.Context, call *builtins.Call, op string, c change) (*pb.Changed, error) {
	before := pretended(call)
	if before == nil {
		var err error
		if before, err = r.outputs(ctx); err != nil {
			return nil, err
		}
	}
	settings, changed, err := c.plan(before)
	if err != nil || !changed {
		return &pb.Changed{}, err
	}
	if call.DryRun.Pretended == nil {
		call.DryRun.Pretended = map[string]any{}
	}
	call.DryRun.Pretended[kind] = planned(before, settings)
	call.ReportApplied(report(op, before, settings))
	return &pb.Changed{Changed: true}, nil
}

// report is the change of all outputs that are not as they were.
func report(op string, before *pb.ListDisplaysResponse, settings []*pb.DisplaySetting) *pb.Change {
	var names, lines []string
	for i, now := range outputs.Settings(before.Outputs) {
		if outputs.Differs(before.Outputs[i:i+1], settings[i:i+1]) == nil && settings[i].Dpi == 0 {
			continue
		}
		names = append(names, now.Name)
		lines = append(lines, fmt.Sprintf("-%s: %s\n+%s: %s\n", now.Name, text(now), now.Name, text(settings[i])))
	}
	return &pb.Change{Op: op, Target: strings.Join(names, ", "), Action: "set", Diff: strings.Join(lines, "")}
}

// text describes a setting.
func text(s *pb.DisplaySetting) string {
	if !s.GetEnabled() {
		return "off"
	}
	words := []string{fmt.Sprintf("%dx%d", s.Width, s.Height)}
	if s.Refresh != 0 {
		words = append(words, fmt.Sprintf("%.4g Hz", s.Refresh))
	}
	if s.Scale != 0 && s.Scale != 1 {
		words = append(words, fmt.Sprintf("scale %g", s.Scale))
	}
	if s.Dpi != 0 {
		words = append(words, fmt.Sprintf("%d dpi", s.Dpi))
	}
	words = append(words, fmt.Sprintf("at %d,%d", s.GetX(), s.GetY()))
	if s.Primary {
		words = append(words, "primary")
	}
	return strings.Join(words, ", ")
}
