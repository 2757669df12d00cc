package clock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// ownClock is a clock that a test may set: the real one, and what was added to it.
type ownClock struct {
	added, slewing time.Duration
	stuck          bool // a step does nothing
	rtc            time.Time
	host           func() (time.Duration, error)
}

func newRoom(c *ownClock) *Room {
	r := New(&guest.Guest{Live: true}, Config{Machine: true})
	if c.host == nil {
		c.host = func() (time.Duration, error) { return 0, fault.Unsupported("no clock of a host") }
	}
	r.system = system{
		why: func() error { return nil },
		now: func() time.Time { return time.Now().Add(c.added) },
		step: func(by time.Duration) error {
			if !c.stuck {
				c.added += by
			}
			return nil
		},
		slew:       func(by time.Duration) (time.Duration, error) { c.slewing = by; return by, nil },
		setRTC:     func(at time.Time) (bool, error) { c.rtc = at; return true, nil },
		hostOffset: func(context.Context, bool) (time.Duration, error) { return c.host() },
		daemon: func(context.Context, bool, bool) (corrected, error) {
			return corrected{}, noSource(fault.Unsupported("none"))
		},
	}
	return r
}

func ask(t *testing.T, r *Room, call *builtins.Call, in *pb.SyncTimeRequest) *pb.SyncTimeResponse {
	t.Helper()
	out, err := r.sync(t.Context(), call, in)
	if err != nil || !out.Success {
		t.Fatal(out, err)
	}
	return out
}

// near reports whether a clock is as far from a time as can be explained by a busy machine.
func near(a, b time.Time) bool { return a.Sub(b).Abs() < 5*time.Second }

func TestSetTime(t *testing.T) {
	for _, zone := range []string{"UTC", "Asia/Tokyo"} { // the zone means nothing to it
		t.Setenv("TZ", zone)
		c := &ownClock{}
		r := newRoom(c)
		target := time.Now().Add(1000*time.Hour + 123456789)
		out := ask(t, r, &builtins.Call{}, &pb.SyncTimeRequest{SetTime: timestamppb.New(target)})
		if !near(r.system.now(), target) || out.Method != pb.ClockMethod_CLOCK_METHOD_STEP || out.TimeSource != "manual" || !out.RtcWritten ||
			!near(c.rtc, target) || !near(out.CurrentTime.AsTime(), target) {
			t.Error(zone, out, c)
		}
		if out.OffsetSeconds < 3599000 || out.RemainingSeconds > 0.1 || out.RemainingSeconds < -0.1 {
			t.Error(zone, out)
		}
	}
}

// The time that the request took is taken off: on the way to the operation, and from the look at the clock to the sending.
func TestTransitIsTakenOff(t *testing.T) {
	c := &ownClock{}
	r := newRoom(c)
	target := time.Now().Add(time.Hour)
	call := &builtins.Call{Received: time.Now().Add(-7 * time.Second), Sent: target.Add(2 * time.Second)}
	ask(t, r, call, &pb.SyncTimeRequest{SetTime: timestamppb.New(target)})
	if got := c.added - time.Hour; (got - 9*time.Second).Abs() > time.Second {
		t.Errorf("%v were taken off, want 9 s", got)
	}
	for name, sent := range map[string]time.Time{"not said": {}, "before": target.Add(-time.Second), "of another clock": target.Add(time.Hour)} {
		if got, err := setTime(timestamppb.New(target), sent); err != nil || !got.Equal(target) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

func TestTimesThatAreNone(t *testing.T) {
	c := &ownClock{}
	r := newRoom(c)
	for _, wrong := range []*timestamppb.Timestamp{
		{Seconds: -1}, {Seconds: 1 << 62}, {Seconds: -1 << 62}, {Seconds: 1700000000, Nanos: -1}, {Seconds: 1700000000, Nanos: 1e9}, {}, {Seconds: 5e9},
	} {
		if out, err := r.sync(t.Context(), &builtins.Call{}, &pb.SyncTimeRequest{SetTime: wrong}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v: %v %v", wrong, out, err)
		}
	}
	if c.added != 0 || !c.rtc.IsZero() {
		t.Error("the clock was set")
	}
}

// A small offset is slewed, unless a step is asked for; a tiny one stays.
func TestSlewOrStep(t *testing.T) {
	c := &ownClock{host: func() (time.Duration, error) { return 300 * time.Millisecond, nil }}
	r := newRoom(c)
	out := ask(t, r, &builtins.Call{}, &pb.SyncTimeRequest{})
	if out.Method != pb.ClockMethod_CLOCK_METHOD_SLEW || c.slewing != 300*time.Millisecond || c.added != 0 || out.TimeSource != "kvm-ptp" || !out.RtcWritten {
		t.Error(out, c)
	}
	c = &ownClock{}
	c.host = func() (time.Duration, error) { return 300*time.Millisecond - c.added, nil }
	r = newRoom(c)
	out = ask(t, r, &builtins.Call{}, &pb.SyncTimeRequest{Force: true})
	if out.Method != pb.ClockMethod_CLOCK_METHOD_STEP || c.added != 300*time.Millisecond || c.slewing != 0 || out.RemainingSeconds != 0 {
		t.Error(out, c)
	}
	out = ask(t, r, &builtins.Call{}, &pb.SyncTimeRequest{Force: true})
	if out.Method != pb.ClockMethod_CLOCK_METHOD_NONE || c.added != 300*time.Millisecond {
		t.Error(out, c)
	}
	c = &ownClock{host: func() (time.Duration, error) { return time.Hour, nil }}
	out = ask(t, newRoom(c), &builtins.Call{}, &pb.SyncTimeRequest{Measure: true, Force: true})
	if out.OffsetSeconds != 3600 || c.added != 0 || !c.rtc.IsZero() || out.Method != pb.ClockMethod_CLOCK_METHOD_NONE {
		t.Error(out, c)
	}
}

// A clock that is no nearer afterwards is an error, whatever the kernel said.
func TestSuccessOnlyWhereTheOffsetShrank(t *testing.T) {
	c := &ownClock{stuck: true}
	out, err := newRoom(c).sync(t.Context(), &builtins.Call{}, &pb.SyncTimeRequest{SetTime: timestamppb.New(time.Now().Add(time.Hour))})
	if err == nil || out != nil || !strings.Contains(err.Error(), "still is") {
		t.Error(out, err)
	}
	lying := corrected{source: sourceChrony, before: time.Second, after: time.Second}
	if lying.shrank() == nil {
		t.Error("an offset that stayed counts as corrected")
	}
}

// Without any source nothing is guessed; a second agent and a tree have no clock to set.
func TestWhereNoClockIsSet(t *testing.T) {
	r := newRoom(&ownClock{})
	if _, err := r.sync(t.Context(), &builtins.Call{}, &pb.SyncTimeRequest{Force: true}); !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "not supported without set_time: ") {
		t.Error(err)
	}
	if r.Room().Ops[0].Capability != "sync_time" {
		t.Error("it is not announced")
	}
	for name, r := range map[string]*Room{
		"a tree": New(&guest.Guest{}, Config{Machine: true}), "a second agent": New(&guest.Guest{Live: true}, Config{}),
	} {
		r.system.step = func(time.Duration) error { t.Error(name, "has its clock set"); return nil }
		in := &pb.SyncTimeRequest{SetTime: timestamppb.New(time.Now().Add(time.Hour))}
		if _, err := r.sync(t.Context(), &builtins.Call{}, in); !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "not supported: ") {
			t.Error(name, err)
		}
		if r.Room().Ops[0].Capability != "" {
			t.Error(name, "announces it")
		}
	}
}

func TestParseTracking(t *testing.T) {
	const line = "A29FC87B,162.159.200.123,4,1700000000.123456789,-1.500000000,0.000012,0.000020,-1.2,0.001,0.03,0.01,0.001,64.3,Normal\n"
	if got, err := parseTracking(line); err != nil || got.offset != -1500*time.Millisecond || !got.synced || got.reference != "1700000000.123456789" {
		t.Error(got, err)
	}
	if got, err := parseTracking(strings.ReplaceAll(line, "Normal", "Not synchronised")); err != nil || got.synced {
		t.Error(got, err)
	}
	for _, wrong := range []string{"", "506 Cannot talk to daemon\n", strings.ReplaceAll(line, "-1.500000000", "x"), "1,2,3"} {
		if got, err := parseTracking(wrong); !errors.Is(err, fault.ErrOutput) {
			t.Errorf("%q: %v %v", wrong, got, err)
		}
	}
}

func TestParseSources(t *testing.T) {
	const lines = "^,*,192.0.2.1,3,6,377,37,0.0001,0.0002,0.01\n^,-,192.0.2.2,3,6,377,5,0.0001,0.0002,0.01\n^,?,192.0.2.3,0,6,0,4294967295,0,0,0\n"
	if got, err := parseSources(lines); err != nil || got != (measured{true, 37 * time.Second, 5 * time.Second}) {
		t.Error(got, err)
	}
	for _, none := range []string{"", strings.ReplaceAll(lines, "*", "~")} {
		if got, err := parseSources(none); err != nil || got.follows {
			t.Errorf("%q: %v %v", none, got, err)
		}
	}
	for _, wrong := range []string{"506 Cannot talk to daemon\n", strings.ReplaceAll(lines, "37,0", "x,0")} {
		if got, err := parseSources(wrong); !errors.Is(err, fault.ErrOutput) {
			t.Errorf("%q: %v %v", wrong, got, err)
		}
	}
}

// The offset of an answer is the mean of the two ways (RFC 5905).
func TestOffsetOfAnAnswer(t *testing.T) {
	const second = 1e6
	m := ntpMessage{Originate: 100 * second, Receive: 3701 * second, Transmit: 3702 * second, Destination: 103 * second}
	if got := m.offset(); got != time.Hour {
		t.Error(got)
	}
	m = ntpMessage{Originate: 3701 * second, Receive: 100 * second, Transmit: 101 * second, Destination: 3702 * second}
	if got := m.offset(); got != -3601*time.Second {
		t.Error(got)
	}
}

// The hardware clock is in UTC unless adjtime says that it is as the clock on the wall.
func TestZoneOfTheHardwareClock(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	zone := func() string {
		t.Helper()
		z, err := rtcZone(root)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := time.Date(2026, 1, 1, 0, 0, 0, 0, z).Zone()
		return name
	}
	if got := zone(); got != "UTC" {
		t.Error(got)
	}
	write("etc/adjtime", "0.0 0 0.0\n0\nLOCAL\n")
	if got := zone(); got != "UTC" { // no zone is set, which is UTC
		t.Error(got)
	}
	data, err := os.ReadFile("/usr/share/zoneinfo/Asia/Tokyo")
	if err != nil {
		t.Skip("needs the package tzdata: ", err)
	}
	write("etc/localtime", string(data))
	if got := zone(); got != "JST" {
		t.Error(got)
	}
	write("etc/adjtime", "0.0 0 0.0\n0\nUTC\n")
	if got := zone(); got != "UTC" {
		t.Error(got)
	}
	if got := rtcTime(time.Date(2026, 11, 29, 23, 59, 58, 0, time.UTC)); got != (unix.RTCTime{Sec: 58, Min: 59, Hour: 23, Mday: 29, Mon: 10, Year: 126}) {
		t.Error(got)
	}
}

// The host's clock is known by its name; another one that the guest has is none of the host's.
func TestFindHostClock(t *testing.T) {
	dir := t.TempDir()
	h := &hostClock{dir: dir, devices: "/dev"}
	add := func(device, name string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, device), 0o755), os.WriteFile(filepath.Join(dir, device, "clock_name"), []byte(name+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.find(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	add("ptp0", "e1000e")
	if _, err := h.offset(t.Context(), true); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	add("ptp1", kvmClockName)
	if got, err := h.find(); err != nil || got != "/dev/ptp1" {
		t.Error(got, err)
	}
	h.devices = dir // where the device is a directory: no clock is read from it
	if _, err := h.offset(t.Context(), true); err == nil || !strings.Contains(err.Error(), "ptp1") {
		t.Error(err)
	}
}
