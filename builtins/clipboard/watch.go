package clipboard

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/clip"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxWatchers bounds the connections that get changes.
const maxWatchers = 64

// watches are the subscriptions to changes of the clipboard. The zero value has none.
type watches struct {
	mu    sync.Mutex
	kept  bool                                 // helpers report changes
	hosts map[watcher]func(proto.Message) bool // the connections that asked
	all   map[chan proto.Message]bool          // those that get them anyway
}

// watcher names a connection.
type watcher struct{ port, session string }

// sessionClosed drops a connection.
func (r *Room) sessionClosed(port, session string) {
	r.watches.mu.Lock()
	defer r.watches.mu.Unlock()
	delete(r.watches.hosts, watcher{port, session})
	r.follow()
}

func (r *Room) watch(_ context.Context, call *builtins.Call, in *pb.ClipboardWatchRequest) (*pb.ClipboardWatchResponse, error) {
	if err := r.mayRead(); err != nil {
		return nil, err
	}
	w, name := &r.watches, watcher{call.Port, call.Session}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case in.Stop:
		delete(w.hosts, name)
		r.follow()
		return &pb.ClipboardWatchResponse{Success: true}, nil
	case call.Event == nil:
		return nil, errNoEvents
	case len(w.hosts) >= maxWatchers:
		return nil, errManyWatchers
	}
	if w.hosts == nil {
		w.hosts = map[watcher]func(proto.Message) bool{}
	}
	w.hosts[name] = call.Event
	r.follow()
	return &pb.ClipboardWatchResponse{Success: true}, nil
}

// Events returns the events for a connection that did not ask for them, until ctx ends; nil: it gets none.
func (r *Room) Events(ctx context.Context) <-chan proto.Message {
	if !r.config.Changes || r.config.DenyHost {
		return nil
	}
	events := make(chan proto.Message, 1)
	r.watches.mu.Lock()
	defer r.watches.mu.Unlock()
	if r.watches.all == nil {
		r.watches.all = map[chan proto.Message]bool{}
	}
	r.watches.all[events] = true
	r.follow()
	context.AfterFunc(ctx, func() {
		r.watches.mu.Lock()
		defer r.watches.mu.Unlock()
		delete(r.watches.all, events)
		r.follow()
	})
	return events
}

// follow has helpers report changes while somebody wants to know. The lock of watches is held.
func (r *Room) follow() {
	request := &pb.ClipWatchRequest{Limit: uint32(r.config.MaxEvent)}
	wanted := len(r.watches.hosts) > 0 || len(r.watches.all) > 0
	switch {
	case wanted == r.watches.kept:
	case wanted:
		r.desktop.Keep(request)
	default:
		r.desktop.Drop(request) // the helper that runs goes on to report, and nobody is sent it
	}
	r.watches.kept = wanted
}

// changed passes a change on. It comes from the helper, and is not believed.
func (r *Room) changed(s *desktop.Session, in *pb.ClipChange) {
	if s.Locked || r.config.DenyHost {
		return
	}
	event := &pb.ClipboardChangedEvent{Offered: typesOf(in.Offered)}
	switch err := checkContent(in.Content, kindNames()); {
	case in.Content == nil:
		event.Reason = fmt.Sprintf("%.200s", in.Reason)
	case len(in.Content.Data) > r.config.MaxEvent:
		event.Reason = "the helper sent more than it may"
	case err != nil:
		event.Reason = err.Error()
	default:
		event.Data = in.Content.Data
		event.Type, event.MimeType, _ = typeOf(in.Content.Kind)
	}
	if event.Reason != "" {
		r.config.Warn("clipboard_changed without content: " + event.Reason)
	}
	if event.Data == nil && len(event.Offered) > 0 {
		event.Type = event.Offered[0]
	}
	r.watches.mu.Lock()
	defer r.watches.mu.Unlock()
	for _, send := range r.watches.hosts {
		send(event)
	}
	for events := range r.watches.all {
		select {
		case <-events: // an older one, which nobody needs any more
		default:
		}
		events <- event
	}
}

func kindNames() (names []string) {
	for _, k := range clip.Kinds() {
		names = append(names, string(k))
	}
	return names
}
