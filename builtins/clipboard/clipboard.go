// Package clipboard reads, sets and watches the clipboard of the desktop in front.
//
//	clipboard_get, clipboard_update ─► allowed? locked? ─► helper in the session ─► X11, Wayland or Windows
//	a change in the guest ─► helper ─► clipboard_changed ─► the hosts that asked for it by clipboard_watch
//
// Scripts call clipboard.get and clipboard.set. What the helper does in the session is in Serve.
//
// Not here: how a display is spoken to (builtins/internal/clip), and which session is in front (builtins/internal/desktop).
package clipboard

import (
	"context"
	"runtime"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/clip"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the one object in Access.
const kind = "clipboard"

const (
	// transfer bounds the time of one request: content of 15 MiB of a slow program. A silent one is given up earlier, see
	// clip.Silence.
	transfer = 20 * time.Second
	// DefaultMaxEvent is the default of Config.MaxEvent.
	DefaultMaxEvent = 1 << 20
)

// WatchCapability is what clipboard_watch announces. A connection to which it is not announced gets no events.
const WatchCapability = "clipboard_watch"

// Config says who may use the clipboard. The zero value allows all that is asked for.
type Config struct {
	// DenyGuest keeps hosts and scripts from setting the clipboard of the guest, and DenyHost from reading it.
	DenyGuest, DenyHost bool
	// Changes sends clipboard_changed also to hosts that did not ask for it.
	Changes bool
	// MaxEvent is the most bytes of content in a clipboard_changed; 0: DefaultMaxEvent. An event about more has none.
	MaxEvent int
	// Warn is called with a message when a change was too large for an event. Optional.
	Warn func(message string)
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	desktop *desktop.Desktop
	config  Config
	watches watches
}

// New makes the room for a desktop.
func New(d *desktop.Desktop, c Config) *Room {
	if c.MaxEvent == 0 {
		c.MaxEvent = DefaultMaxEvent
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	r := &Room{desktop: d, config: c}
	desktop.OnEvent(d, r.changed)
	return r
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	get, update, watch := "clipboard", "clipboard", WatchCapability
	if r.config.DenyHost {
		get, watch = "", ""
	}
	if r.config.DenyGuest {
		update = ""
	}
	return builtins.Room{
		Name: "clipboard", Scope: builtins.ScopeNone, SessionClosed: r.sessionClosed, Features: r.features,
		Ops: append(r.scriptRows(), []builtins.Op{
			{
				Name: "clipboard_get", Capability: get, Available: r.desktop.Available, Summary: "the content of the clipboard",
				Access: builtins.Of(getAccess), Handler: builtins.Handle(r.get),
			},
			{
				Name: "clipboard_update", Capability: update, Available: r.desktop.Available, Summary: "set the clipboard",
				Mutates: true, Transient: true, Access: builtins.Of(updateAccess), Handler: builtins.Handle(r.update),
			},
			{
				Name: "clipboard_watch", Capability: watch, Available: r.desktop.Available,
				Summary: "be told of changes of the clipboard", Access: builtins.Of(watchAccess), Handler: builtins.Handle(r.watch),
			},
		}...),
	}
}

// features says in which directions the clipboard may be used, and in which types.
func (r *Room) features() map[string]string {
	var list []string
	if !r.config.DenyGuest {
		list = append(list, "to_guest")
	}
	if !r.config.DenyHost {
		list = append(list, "from_guest")
	}
	if r.config.Changes && !r.config.DenyHost {
		list = append(list, "changes")
	}
	types := "text,html,png,files"
	if runtime.GOOS == "windows" { // whose lists of files are of another kind
		types = "text,html,png"
	}
	return map[string]string{"clipboard": strings.Join(list, ","), "clipboard_types": types}
}

func selection(primary bool) builtins.Access {
	name := "clipboard"
	if primary {
		name = "primary"
	}
	return builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: name}}}
}

func getAccess(in *pb.ClipboardGetRequest) builtins.Access { return selection(in.Primary) }

func updateAccess(in *pb.ClipboardUpdateRequest) builtins.Access { return selection(in.Primary) }

func watchAccess(*pb.ClipboardWatchRequest) builtins.Access { return selection(false) }

// errDenied is the error about a direction that the configuration forbids.
func errDenied(key string) error {
	return fault.Wrapf(builtins.ErrPolicy, "refused: clipboard.%s is false in the configuration", key)
}

func (r *Room) mayRead() error {
	if r.config.DenyHost {
		return errDenied("from_guest")
	}
	return nil
}

func (r *Room) mayWrite() error {
	if r.config.DenyGuest {
		return errDenied("to_guest")
	}
	return nil
}

// unlocked refuses a session whose screen is locked: nobody who may use its clipboard is there.
func unlocked(s *desktop.Session) error {
	if s.Locked {
		return fault.Refuse("the %v is locked", s)
	}
	return nil
}

// kindOf returns which kind a type of the contract is.
func kindOf(t pb.ClipboardType) (clip.Kind, error) {
	switch t {
	case pb.ClipboardType_CLIPBOARD_TYPE_TEXT:
		return clip.Text, nil
	case pb.ClipboardType_CLIPBOARD_TYPE_HTML:
		return clip.HTML, nil
	case pb.ClipboardType_CLIPBOARD_TYPE_IMAGE:
		return clip.PNG, nil
	case pb.ClipboardType_CLIPBOARD_TYPE_FILES:
		return clip.Files, nil
	}
	return "", fault.Unsupported("clipboard type %d; supported: text, html, image, files", t)
}

// typeOf is the inverse of kindOf; false: it is none of ours.
func typeOf(k string) (t pb.ClipboardType, mime string, ok bool) {
	switch clip.Kind(k) {
	case clip.Text:
		return pb.ClipboardType_CLIPBOARD_TYPE_TEXT, "text/plain", true
	case clip.HTML:
		return pb.ClipboardType_CLIPBOARD_TYPE_HTML, "text/html", true
	case clip.PNG:
		return pb.ClipboardType_CLIPBOARD_TYPE_IMAGE, "image/png", true
	case clip.Files:
		return pb.ClipboardType_CLIPBOARD_TYPE_FILES, "text/uri-list", true
	}
	return 0, "", false
}

func typesOf(kinds []string) (list []pb.ClipboardType) {
	for _, k := range kinds {
		if t, _, ok := typeOf(k); ok && len(list) < len(clip.Kinds()) {
			list = append(list, t)
		}
	}
	return list
}

// instead are the kinds that a host is sent in place of one that there is not.
var instead = map[clip.Kind]clip.Kind{clip.Text: clip.PNG, clip.PNG: clip.Text, clip.HTML: clip.Text}

func (r *Room) get(ctx context.Context, _ *builtins.Call, in *pb.ClipboardGetRequest) (*pb.ClipboardGetResponse, error) {
	want, err := kindOf(in.PreferredType)
	if err != nil {
		return nil, err
	}
	kinds := []string{string(want)}
	if other, ok := instead[want]; ok && !in.Exact {
		kinds = append(kinds, string(other))
	}
	reply, err := r.read(ctx, kinds, in.Primary)
	if err != nil {
		return nil, err
	}
	out := &pb.ClipboardGetResponse{Success: true, Data: reply.Content.GetData(), Offered: typesOf(reply.Offered)}
	out.Type, out.MimeType, _ = typeOf(reply.Content.GetKind())
	return out, nil
}

// read asks the helper for content in the first of some kinds, and does not believe it: it is the user's.
func (r *Room) read(ctx context.Context, kinds []string, primary bool) (*pb.ClipReadReply, error) {
	if err := r.mayRead(); err != nil {
		return nil, err
	}
	reply, err := desktop.Do[*pb.ClipReadReply](ctx, r.desktop, desktop.Request{
		Message: &pb.ClipReadRequest{Kinds: kinds, Primary: primary, Limit: clip.MaxContent}, Limit: transfer, Allow: unlocked,
	})
	if err != nil {
		return nil, err
	}
	return reply, checkContent(reply.Content, kinds)
}

// checkContent returns why content of the helper is not what was asked for.
func checkContent(c *pb.ClipContent, kinds []string) error {
	for _, k := range kinds {
		if c.GetKind() != k {
			continue
		}
		switch {
		case len(c.GetData()) > clip.MaxContent:
			return fault.Wrapf(fault.ErrTooLarge, "the content of the clipboard is larger than %d bytes", clip.MaxContent)
		case k == string(clip.PNG):
			return clip.CheckPNG(c.GetData())
		default:
			return clip.CheckText(c.GetData())
		}
	}
	return fault.Wrapf(fault.ErrInternal, "the session helper has read %.20q", c.GetKind())
}

func (r *Room) update(
	ctx context.Context, _ *builtins.Call, in *pb.ClipboardUpdateRequest,
) (*pb.ClipboardUpdateResponse, error) {
	k, err := kindOf(in.Type)
	if err != nil {
		return nil, err
	}
	if err := r.write(ctx, contents(k, in.Data, in.Text), in.Primary); err != nil {
		return nil, err
	}
	return &pb.ClipboardUpdateResponse{Success: true}, nil
}

// contents returns what is set: HTML has text beside it, if that was given.
func contents(k clip.Kind, data []byte, text *string) []clip.Content {
	if normal, err := clip.URIList(data); k == clip.Files && err == nil { // else it is refused later
		data = normal
	}
	list := []clip.Content{{Kind: k, Data: data}}
	if k == clip.HTML && text != nil {
		list = append(list, clip.Content{Kind: clip.Text, Data: []byte(*text)})
	}
	return list
}

// write has the helper set the clipboard. What cannot be set is refused before it comes to that.
func (r *Room) write(ctx context.Context, list []clip.Content, primary bool) error {
	if err := r.mayWrite(); err != nil {
		return err
	}
	request := &pb.ClipWriteRequest{Primary: primary}
	for _, c := range list {
		if err := clip.Check(c); err != nil {
			return err
		}
		request.Contents = append(request.Contents, &pb.ClipContent{Kind: string(c.Kind), Data: c.Data})
	}
	_, err := desktop.Do[*pb.ClipWriteReply](ctx, r.desktop, desktop.Request{Message: request, Limit: transfer, Allow: unlocked})
	return err
}
