package display

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// listLimit and setLimit bound a request to the helper: each conversation with a display server ends by itself after 2 s,
	// with an error that names it, and a change may need one more to be taken back.
	listLimit = 5 * time.Second
	setLimit  = 10 * time.Second
	// presentLimit is how long it may take to say whether there is a desktop, and presentFor how long that is not asked again.
	presentLimit = 500 * time.Millisecond
	presentFor   = time.Second
)

// session is the desktop in front, by the helper in its session.
type session struct {
	desktop *desktop.Desktop

	mu      sync.Mutex
	present string
	asked   time.Time
}

// InSession returns the desktop in front of a guest.
func InSession(d *desktop.Desktop) Desktop { return &session{desktop: d} }

func (s *session) Outputs(ctx context.Context) (*pb.ListDisplaysResponse, error) {
	request := desktop.Request{Message: &pb.ListDisplaysRequest{}, Limit: listLimit}
	return desktop.Do[*pb.ListDisplaysResponse](ctx, s.desktop, request)
}

func (s *session) Set(ctx context.Context, settings []*pb.DisplaySetting) (*pb.ListDisplaysResponse, error) {
	request := desktop.Request{Message: &pb.DisplayLayoutRequest{Outputs: settings}, Limit: setLimit}
	return desktop.Do[*pb.ListDisplaysResponse](ctx, s.desktop, request)
}

func (s *session) Present(now bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now && time.Since(s.asked) < presentFor {
		return s.present
	}
	ctx, cancel := context.WithTimeout(context.Background(), presentLimit)
	defer cancel()
	s.present = ""
	if front, err := s.desktop.Front(ctx); err == nil {
		s.present = fmt.Sprintf("%s %d %v", front.ID, front.User.UID, front)
	}
	s.asked = time.Now()
	return s.present
}
