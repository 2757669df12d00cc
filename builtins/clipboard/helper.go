package clipboard

import (
	"context"
	"os"
	"sync"

	"github.com/quantix-kvm/guest-agent/builtins/internal/clip"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// server is the room's part of the helper in the session.
type server struct {
	emit func(*pb.ClipChange) error

	mu      sync.Mutex
	backend clip.Backend // nil: not opened, or it has ended
	limit   int          // of what events of changes hold; 0: there are none
	changes chan struct{}
}

// Serve registers what the helper does for the room.
func Serve(r *helper.Registry) {
	s := &server{emit: func(c *pb.ClipChange) error { return r.Emit(c) }, changes: make(chan struct{}, 1)}
	helper.Handle(r, s.read)
	helper.Handle(r, s.write)
	helper.Handle(r, s.watch)
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { s.tell(ctx) })
	r.OnClose(func() error {
		stop()
		work.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.backend == nil {
			return nil
		}
		return s.backend.Close()
	})
}

// open returns the clipboard of the session, which it opens where that is not done or its display has ended.
func (s *server) open(ctx context.Context) (clip.Backend, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend != nil {
		select {
		case <-s.backend.Done():
			s.backend.Close()
			s.backend = nil
		default:
			return s.backend, nil
		}
	}
	b, err := clip.Open(ctx, os.Getenv)
	if err != nil {
		return nil, err
	}
	if s.limit > 0 {
		if err := b.Watch(s.changed); err != nil {
			b.Close()
			return nil, err
		}
	}
	s.backend = b
	return b, nil
}

func (s *server) read(ctx context.Context, in *pb.ClipReadRequest) (*pb.ClipReadReply, error) {
	b, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return read(ctx, b, in)
}

func read(ctx context.Context, b clip.Backend, in *pb.ClipReadRequest) (*pb.ClipReadReply, error) {
	var kinds []clip.Kind
	for _, k := range in.Kinds {
		kinds = append(kinds, clip.Kind(k))
	}
	content, offered, err := clip.Get(ctx, b, in.Primary, kinds, int(in.Limit))
	out := &pb.ClipReadReply{Content: &pb.ClipContent{Kind: string(content.Kind), Data: content.Data}}
	for _, k := range offered {
		out.Offered = append(out.Offered, string(k))
	}
	return out, err
}

func (s *server) write(ctx context.Context, in *pb.ClipWriteRequest) (*pb.ClipWriteReply, error) {
	b, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	var list []clip.Content
	for _, c := range in.Contents {
		list = append(list, clip.Content{Kind: clip.Kind(c.Kind), Data: c.Data})
	}
	return &pb.ClipWriteReply{}, clip.Set(ctx, b, in.Primary, list)
}

func (s *server) watch(ctx context.Context, in *pb.ClipWatchRequest) (*pb.ClipWatchReply, error) {
	s.mu.Lock()
	first, open := s.limit == 0, s.backend
	s.limit = int(in.Limit)
	s.mu.Unlock()
	if first && open != nil {
		if err := open.Watch(s.changed); err != nil {
			return nil, err
		}
	}
	_, err := s.open(ctx)
	return &pb.ClipWatchReply{}, err
}

// changed has tell look at what changed.
func (s *server) changed() {
	select {
	case s.changes <- struct{}{}:
	default: // it is about to look anyway
	}
}

// tell sends an event after each change, and one for several that come while it reads.
func (s *server) tell(ctx context.Context) {
	for {
		select {
		case <-s.changes:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		b, limit := s.backend, s.limit
		s.mu.Unlock()
		if b == nil {
			continue
		}
		if s.emit(change(ctx, b, limit)) != nil {
			return // the agent is gone
		}
	}
}

// change reads what there is now.
func change(ctx context.Context, b clip.Backend, limit int) *pb.ClipChange {
	ctx, cancel := context.WithTimeout(ctx, transfer)
	defer cancel()
	out, err := read(ctx, b, &pb.ClipReadRequest{
		Kinds: []string{string(clip.Text), string(clip.Files), string(clip.PNG), string(clip.HTML)}, Limit: uint32(limit),
	})
	event := &pb.ClipChange{Offered: out.GetOffered()}
	if err != nil {
		event.Reason = err.Error()
		return event
	}
	event.Content = out.Content
	return event
}
