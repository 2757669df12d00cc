package clipboard

import (
	"bytes"
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/clip"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The errors of clipboard_watch.
var (
	errNoEvents     = fault.Unsupported("this channel carries no events")
	errManyWatchers = fault.Wrapf(fault.ErrBusy, "%d connections watch the clipboard already", maxWatchers)
)

// scriptRows are the operations as scripts call them.
func (r *Room) scriptRows() []builtins.Op {
	return []builtins.Op{
		{
			Name: "clipboard.get", Usage: "([type]) content", Summary: "the content of the clipboard of the desktop in front",
			Access:  builtins.Of(func(in *pb.ClipboardGetArgs) builtins.Access { return selection(in.Primary) }),
			Handler: builtins.Handle(r.scriptGet),
		},
		{
			Name: "clipboard.set", Usage: "(content, [type]) changed",
			Summary: "set the clipboard of the desktop in front, which nothing takes back", Mutates: true, Predictable: true,
			Access:  builtins.Of(func(in *pb.ClipboardSetArgs) builtins.Access { return selection(in.Primary) }),
			Handler: builtins.Handle(r.scriptSet),
		},
	}
}

// kindNamed returns the kind that a script names.
func kindNamed(name string) (clip.Kind, error) {
	if name == "" {
		return clip.Text, nil
	}
	for _, k := range clip.Kinds() {
		if string(k) == name {
			return k, nil
		}
	}
	return "", fault.Invalid("type is %.40q, and none of text, html, png, files", name)
}

func (r *Room) scriptGet(ctx context.Context, _ *builtins.Call, in *pb.ClipboardGetArgs) (*pb.ClipboardText, error) {
	k, err := kindNamed(in.Type)
	if err != nil {
		return nil, err
	}
	reply, err := r.read(ctx, []string{string(k)}, in.Primary)
	if err != nil {
		return nil, err
	}
	return &pb.ClipboardText{Content: reply.Content.Data}, nil
}

// scriptSet sets the clipboard unless it is so already. A dry run ends here: a program may set it at any time, and what a later
// get reads is not known.
func (r *Room) scriptSet(ctx context.Context, call *builtins.Call, in *pb.ClipboardSetArgs) (*pb.Changed, error) {
	k, err := kindNamed(in.Type)
	if err != nil {
		return nil, err
	}
	var text *string
	if in.Text != "" {
		if k != clip.HTML {
			return nil, fault.Invalid("text is for type html")
		}
		text = &in.Text
	}
	list := contents(k, in.Content, text)
	for _, c := range list {
		if err := clip.Check(c); err != nil {
			return nil, err
		}
	}
	if err := r.mayWrite(); err != nil {
		return nil, err
	}
	if r.holds(ctx, list, in.Primary) {
		return &pb.Changed{}, nil
	}
	target := "clipboard"
	if in.Primary {
		target = "primary selection"
	}
	change := &pb.Change{Op: "clipboard.set", Target: target, Action: "set", State: pb.ChangeState_CHANGE_STATE_APPLIED}
	if call.DryRun != nil {
		return nil, call.DryRun.End(call, change)
	}
	if call.Tx != nil {
		if err := call.Tx.Irreversible(ctx, change); err != nil {
			return nil, err
		}
	}
	if err := r.write(ctx, list, in.Primary); err != nil {
		switch fault.Code(err) {
		case "unsupported", "refused", "invalid", "too_large": // it was not tried
			if call.Tx != nil {
				call.Tx.NotBegun()
			}
		}
		return nil, err
	}
	call.Report(change)
	return &pb.Changed{Changed: true}, nil
}

// holds reports whether the clipboard has all of some contents already. What cannot be read it has not.
func (r *Room) holds(ctx context.Context, list []clip.Content, primary bool) bool {
	for _, c := range list {
		reply, err := r.read(ctx, []string{string(c.Kind)}, primary)
		if err != nil || !bytes.Equal(reply.Content.Data, c.Data) {
			return false
		}
	}
	return true
}
