package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The two hosts that there are, each with its own rules for what it reads. Neither knows the other framing, or the fields of
// this project.

// errGaveUp is the end of a host that closes its channel.
var errGaveUp = errors.New("the host gives up")

// readPlain reads as a host of the plain framing does: a length, and as many bytes, whatever they are. left is what of the
// stream it still waits with, for more to come.
func readPlain(stream []byte) (messages []*pb.AgentMessage, left int, err error) {
	for len(stream) >= 4 {
		length := int(binary.BigEndian.Uint32(stream))
		if length > MaxFrame {
			return messages, len(stream), errGaveUp
		}
		if len(stream) < 4+length {
			break
		}
		messages = appendDecoded(messages, stream[4:4+length])
		stream = stream[4+length:]
	}
	return messages, len(stream), nil
}

// readQTX1 reads as a host of the qtx1 framing does: it looks for the magic byte by byte, and gives up on a mismatch more than
// 65,536 bytes after the last one. A length of 0, of a magic or over the bound is charged to that, and it looks on after it.
// Nothing interrupts it within a payload.
func readQTX1(stream []byte) (messages []*pb.AgentMessage, left int, err error) {
	scanned, matched := 0, 0
	for i := 0; i < len(stream); {
		b := stream[i]
		i++
		scanned++
		switch {
		case b == magic[matched]:
			matched++
		case scanned > 65536:
			return messages, len(stream) - i, errGaveUp
		case b == magic[0]:
			matched = 1
		default:
			matched = 0
		}
		if matched < len(magic) {
			continue
		}
		scanned, matched = 0, 0
		if len(stream)-i < 4 {
			return messages, len(stream) - i, nil
		}
		length := int(binary.BigEndian.Uint32(stream[i:]))
		i += 4
		switch {
		case length == 0 || length > MaxFrame && string(stream[i-4:i]) != magic:
			scanned = 8
		case length > MaxFrame:
			scanned = 4
		case len(stream)-i < length:
			return messages, len(stream) - i, nil
		default:
			messages = appendDecoded(messages, stream[i:i+length])
			i += length
		}
	}
	return messages, matched, nil
}

// appendDecoded adds what a payload decodes to; what does not is dropped, as hosts do.
func appendDecoded(to []*pb.AgentMessage, payload []byte) []*pb.AgentMessage {
	m := &pb.AgentMessage{}
	if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, m) != nil {
		return to
	}
	return append(to, m)
}

// hosts are both, by the framing that each writes.
var hosts = map[Framing]func([]byte) ([]*pb.AgentMessage, int, error){Plain: readPlain, QTX1: readQTX1}

func ids(messages []*pb.AgentMessage) (list []string) {
	for _, m := range messages {
		list = append(list, m.MessageId)
	}
	return list
}

// unasked returns what an agent writes to a host that is silent, until so many messages have come.
func (h *host) unasked(messages int) (stream []byte) {
	h.t.Helper()
	for h.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); ; {
		got, left, err := readPlain(stream)
		if err != nil || len(got) > messages {
			h.t.Fatal(ids(got), err)
		}
		if len(got) == messages && left == 0 {
			return stream
		}
		n, err := h.conn.Read(h.buf)
		if err != nil {
			h.t.Fatal(err, ids(got))
		}
		stream = append(stream, h.buf[:n]...)
	}
}

func greeter(c *Config) {
	c.Greet = func(_ context.Context, conn *Conn) {
		conn.Send("ready", &pb.AgentReadyEvent{Version: "1", Hostname: "web"})
		conn.Send("fault", &pb.ErrorEvent{Message: strings.Repeat("x", 5000)})
		conn.Send("report", &pb.TelemetryReport{CpuUsagePercent: 12, Disks: []*pb.DiskUsage{{MountPoint: "/"}}})
	}
}

var greeted = []string{"ready", "fault", "report"}

// A host that is silent has the whole greeting, whichever framing it knows, and each message once. So it has that of the next
// agent on the same port, also where the previous one stopped within a frame, if its framing has a magic.
func TestSilentHostsAreGreeted(t *testing.T) {
	first, _ := guest(t, greeter)
	second, _ := guest(t, greeter)
	one, two := first.unasked(len(greeted)), second.unasked(len(greeted))
	rest := frameOf(QTX1, envelopeOf(t, "a reply", &pb.ExecuteResponse{Stdout: strings.Repeat("x", 40_000)}))[500:]
	for name, c := range map[string]struct {
		stream []byte
		hosts  []Framing
		want   []string
	}{
		"an agent":                 {one, []Framing{Plain, QTX1}, greeted},
		"its successor":            {concat(one, two), []Framing{Plain, QTX1}, append(slices.Clone(greeted), greeted...)},
		"behind the rest of frame": {concat(rest, one), []Framing{QTX1}, greeted},
	} {
		for _, framing := range c.hosts {
			got, left, err := hosts[framing](c.stream)
			if fmt.Sprint(ids(got)) != fmt.Sprint(c.want) || left != 0 || err != nil {
				t.Errorf("%s: a %v host has %v and waits within %d bytes, %v", name, framing, ids(got), left, err)
			}
			for _, m := range got {
				if m.Session != "the-session" || m.MessageId == "report" && m.GetTelemetry().GetDisks()[0].GetMountPoint() != "/" {
					t.Errorf("%s: a %v host reads %v", name, framing, m)
				}
			}
		}
	}
}

// The host's first frame decides what it is written from then on, the greeting once more.
func TestGreetingAfterTheFirstFrame(t *testing.T) {
	for framing, read := range hosts {
		h, _ := guest(t, greeter)
		stream := h.unasked(len(greeted))
		h.send(framing, "ping", &pb.PingRequest{})
		want := append(slices.Clone(greeted), append([]string{"ping"}, greeted...)...)
		for {
			got, _, err := read(stream)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) < len(want) {
				n, err := h.conn.Read(h.buf)
				if err != nil {
					t.Fatal(err, ids(got))
				}
				stream = append(stream, h.buf[:n]...)
				continue
			}
			if list := ids(got); fmt.Sprint(sorted(list)) != fmt.Sprint(sorted(want)) { // the pong may come anywhere in the second greeting
				t.Errorf("a %v host has %v", framing, list)
			}
			break
		}
	}
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// What is said before the host's first frame is within the budget. What would be too large twice is said once, plainly; what
// may be taken for a frame by a host that looks for a magic is not said.
func TestGreetingsThatDoNotFit(t *testing.T) {
	sent := make(chan []bool, 1)
	h, _ := guest(t, func(c *Config) {
		c.Greet = func(_ context.Context, conn *Conn) {
			text := func(size int) *pb.ErrorEvent { return &pb.ErrorEvent{Message: strings.Repeat("x", size)} }
			list := []bool{conn.Send("large", text(25_000)), conn.Send("magic", &pb.ErrorEvent{Message: "a" + magic + "b"}), conn.Send("too-much", text(25_000))}
			sent <- append(list, conn.Send("small", text(10_000)))
		}
	})
	stream := h.unasked(2)
	if got := <-sent; !slices.Equal(got, []bool{true, false, false, true}) {
		t.Error(got)
	}
	if len(stream) > unsolicitedBudget {
		t.Error(len(stream), "bytes before the host's first frame")
	}
	for framing, want := range map[Framing]string{Plain: "[large small]", QTX1: "[small]"} {
		if got, left, err := hosts[framing](stream); fmt.Sprint(ids(got)) != want || left != 0 || err != nil {
			t.Errorf("a %v host has %v, %d, %v", framing, ids(got), left, err)
		}
	}
}

// A configuration that pins a framing has the greeting in it, once.
func TestGreetingInAPinnedFraming(t *testing.T) {
	for framing, read := range hosts {
		h, _ := guest(t, func(c *Config) { greeter(c); c.Framing = framing })
		var stream []byte
		for {
			if got, left, _ := read(stream); len(got) == len(greeted) && left == 0 {
				break
			}
			n, err := h.conn.Read(h.buf)
			if err != nil {
				t.Fatal(err)
			}
			stream = append(stream, h.buf[:n]...)
		}
		if n := bytes.Count(stream, []byte("ready")); n != 1 {
			t.Errorf("%v: the greeting is there %d times", framing, n)
		}
	}
}

// A greeting of any message is that message, once, to a host of either framing, and leaves both at a boundary: what the host
// reads next, in its own framing, is there. This project's decoder finds it as well.
func FuzzGreeting(f *testing.F) {
	for _, g := range golden(f) {
		f.Add(g.payload)
	}
	f.Add([]byte("\x0a\x04abcd\x52\x04\x51\x54\x58\x01"))
	f.Add([]byte("\x0a\x03QTX"))
	f.Add([]byte("\x0a\x01Q\x51\x51\x51\x51"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := decode(payload)
		if err != nil || proto.Size(m) == 0 {
			return
		}
		envelope, err := marshal(m, newBuffer)
		if err != nil {
			t.Fatal(err)
		}
		greeting, ok := appendGreeting(nil, envelope)
		if ok == bytes.Contains(envelope[headerSpace:], []byte(magic)) {
			t.Fatal(ok)
		}
		if !ok || len(greeting) > unsolicitedBudget {
			return
		}
		if len(greeting) > greetingSize(len(envelope)) {
			t.Fatalf("%d bytes of %d", len(greeting), len(envelope))
		}
		frame := bytes.Clone(prependHeader(Plain, greeting))
		for framing, read := range hosts {
			got, left, err := read(concat(frame, frame, frameOf(framing, envelopeOf(t, "next", &pb.PongResponse{}))))
			if len(got) != 3 || !proto.Equal(got[0], m) || !proto.Equal(got[1], m) || got[2].MessageId != "next" || left != 0 || err != nil {
				t.Fatalf("a %v host reads %v, %d, %v", framing, got, left, err)
			}
		}
		var d Decoder
		d.Feed(frame)
		if got, ok := d.Next(); !ok || !got.Aligned || d.Pending() {
			t.Fatal("no frame")
		} else if again, err := decode(got.Payload); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%v became %v (%v)", m, again, err)
		}
	})
}
