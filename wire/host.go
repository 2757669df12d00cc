package wire

import (
	"errors"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A virtio-serial port tells late that one host left and another came, or not at all: what the next host asks for may be
// read before the end of the one before it. So a host says in each request who it is, and that is what counts:
//
//	a request ─► named as those before it  ─► this session
//	         └─► another name, or none now ─► this session ends, and the channel has the bytes back for the next one
//	no host   ─► a named one that is back at once, and nothing half read ─► this session goes on
//	         └─► all else                                                ─► this session ends
type speaker struct {
	heard bool
	name  uint64 // of all that was heard; 0: it says none
}

// shared is a channel on which one host follows the other.
type shared interface {
	// Back waits a little until a host is there again; false: none is, or the session is closed.
	Back() bool
	// Unread gives back bytes that Read gave, for the next session.
	Unread(p []byte)
}

// errAnotherHost ends the session of a host because another one speaks.
var errAnotherHost = errors.New("another host is there")

// another says that a request is not from the host of those before it. The place where it was found must be a boundary.
func (c *Conn) another(m *pb.AgentMessage) bool {
	if _, can := c.channel.(shared); !can {
		return false
	}
	if !c.speaker.heard {
		c.speaker = speaker{true, m.Host}
	}
	return m.Host != c.speaker.name
}

// unread gives a frame back with all that came behind it.
func (c *Conn) unread(frame Frame) {
	bytes := appendHeader(nil, frame.Framing, len(frame.Payload))
	bytes = append(bytes, frame.Payload...)
	c.channel.(shared).Unread(append(bytes, c.decoder.Rest()...))
}

// back says that no host was there for a moment, and that the one which is there now may well be the same. If it is not, its
// first request tells.
func (c *Conn) back() bool {
	channel, can := c.channel.(shared)
	return can && c.speaker.name != 0 && !c.decoder.Pending() && channel.Back()
}

// Unknown gives those of the ids that name no request which is served or whose reply waits to be sent.
func (c *Conn) Unknown(ids []string) (unknown []string) {
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	for _, id := range ids {
		if _, served := c.flight[id]; !served {
			unknown = append(unknown, id)
		}
	}
	return unknown
}
