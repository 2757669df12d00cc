package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// fakeClock stands for the clock of the machine, which a test must not set.
type fakeClock struct{ ahead time.Duration }

func (f *fakeClock) room() *Room {
	r := New(&guest.Guest{Live: true}, Config{Machine: true})
	r.system.why = func() error { return nil }
	r.system.now = func() time.Time { return time.Now().Add(f.ahead) }
	r.system.step = func(by time.Duration) error { f.ahead += by; return nil }
	return r
}

// A time that is set is set by one step, in whatever way the guest writes dates, and what is measured afterwards is told.
func TestSetTime(t *testing.T) {
	for _, off := range []time.Duration{-90 * time.Minute, 100 * time.Millisecond, 40 * time.Hour} {
		f := &fakeClock{}
		out, err := f.room().sync(t.Context(), &builtins.Call{}, &pb.SyncTimeRequest{SetTime: timestamppb.New(time.Now().Add(off))})
		if err != nil || out.Method != pb.ClockMethod_CLOCK_METHOD_STEP || (f.ahead-off).Abs() > 50*time.Millisecond ||
			out.TimeSource != sourceManual {
			t.Errorf("%v: %v, the clock is %v ahead: %v", off, out, f.ahead, err)
		}
	}
}

// reply is what a server answers to a request, whose clock is ahead.
func reply(request []byte, ahead time.Duration) []byte {
	now := ntpTime(time.Now().Add(ahead))
	reply := make([]byte, 48)
	reply[0], reply[1] = 4<<3|4, 2
	copy(reply[24:], request[40:48])
	binary.BigEndian.PutUint64(reply[32:], now)
	binary.BigEndian.PutUint64(reply[40:], now)
	return reply
}

// The offset of the servers that the guest has is measured, and what the service made of it is measured again.
func TestTimeService(t *testing.T) {
	ahead := 5 * time.Second
	restarted := 0
	s := newTimeService()
	s.running = func() (bool, error) { return true, nil }
	s.servers = func() ([]string, error) { return []string{"dead", "good"}, nil }
	s.offset = func(_ context.Context, server string) (time.Duration, error) {
		if server == "dead" {
			return 0, context.DeadlineExceeded
		}
		return ahead, nil
	}
	s.restart = func(context.Context) error { restarted++; ahead = 3 * time.Millisecond; return nil }
	done, err := s.correct(t.Context(), false, true)
	if err != nil || restarted != 0 || done.before != 5*time.Second {
		t.Fatal(done, restarted, err)
	}
	done, err = s.correct(t.Context(), false, false)
	if err != nil || restarted != 1 || done.method != pb.ClockMethod_CLOCK_METHOD_STEP || done.after != 3*time.Millisecond {
		t.Fatal(done, restarted, err)
	}
	ahead = 5 * time.Second
	s.restart = func(context.Context) error { return nil }
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if done, err := s.correct(ctx, false, false); err == nil {
		t.Error("a clock that was not corrected is told as correct:", done)
	}
	s.running = func() (bool, error) { return false, nil }
	if _, err := s.correct(t.Context(), false, false); !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
}

// Only a reply to this request, of a server that knows the time, is one.
func TestReply(t *testing.T) {
	request := make([]byte, 48)
	binary.BigEndian.PutUint64(request[40:], ntpTime(time.Now()))
	good := reply(request, time.Hour)
	now := time.Now()
	if offset, ok := parseReply(good, request[40:], now, now); !ok || (offset-time.Hour).Abs() > time.Second {
		t.Error(offset, ok)
	}
	for what, spoil := range map[string]func([]byte){
		"another request's":  func(r []byte) { r[31]++ },
		"not synchronised":   func(r []byte) { r[0] |= 3 << 6 },
		"a kiss of death":    func(r []byte) { r[1] = 0 },
		"a client's request": func(r []byte) { r[0] = 4<<3 | 3 },
	} {
		bad := slices.Clone(good)
		spoil(bad)
		if _, ok := parseReply(bad, request[40:], now, now); ok {
			t.Error(what, "is taken for a reply")
		}
	}
	for n := range good {
		parseReply(good[:n], request[40:], now, now)
	}
}

// A server is asked over the network.
func TestAskServer(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Skip("Wine 8 does not know an option that the Go library sets on UDP sockets: ", err)
	}
	defer conn.Close()
	go func() {
		request := make([]byte, 512)
		n, from, err := conn.ReadFrom(request)
		if err != nil || n < 48 {
			return
		}
		conn.WriteTo([]byte("not a reply"), from)
		conn.WriteTo(reply(request, time.Hour), from)
	}()
	if offset, err := askServer(t.Context(), conn.LocalAddr().String()); err != nil || (offset-time.Hour).Abs() > time.Second {
		t.Error(offset, err)
	}
}

// Without a time service the request is unsupported by name, and nothing is done.
func TestWithoutTimeService(t *testing.T) {
	if _, err := serviceRuns(); !errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there is a service W32Time, unlike under Wine: ", err)
	}
	_, err := (&fakeClock{}).room().sync(t.Context(), &builtins.Call{}, &pb.SyncTimeRequest{})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "not supported") {
		t.Error(err)
	}
}

func TestServers(t *testing.T) {
	if got := parseServers(" time.windows.com,0x9  192.0.2.1 ,x "); !slices.Equal(got, []string{"time.windows.com", "192.0.2.1"}) {
		t.Error(got)
	}
}

func TestNTPTime(t *testing.T) {
	for _, at := range []time.Time{time.Unix(1e9, 999999999), time.Date(2037, 1, 2, 3, 4, 5, 6e8, time.UTC), time.Date(2040, 1,
		1, 0, 0, 0, 0, time.UTC)} {
		if got := fromNTP(ntpTime(at), at.Add(time.Hour)); got.Sub(at).Abs() > time.Microsecond {
			t.Error(got, at)
		}
	}
}

// What may not be set is refused by Windows with an error; under Wine this runs as a user who may.
func TestMaySet(t *testing.T) {
	if err := maySet(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
