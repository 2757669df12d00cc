package wire

import (
	"errors"
	"slices"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The guest learns late that one host of a virtio-serial port left and another connected, or never: requests of the next host
// may be read before the disconnect of the one before. So each request carries the number of its host, and a change of it ends
// the session:
//
//	request    ─► the same number as before  ─► this session
//	          └─► another number, or none    ─► this session ends; the bytes go back to the channel, for the next session
//	no host    ─► a numbered one is back at once, and no frame is half read ─► this session goes on
//	          └─► otherwise                                                 ─► this session ends; a ping whose pong was not
//	                                                                           written goes back too, where a host is connected
//
// peer is the host of a session, as its first request names it.
type peer struct {
	known bool   // a request has come
	host  uint64 // the host field of its requests; 0: it sends none
}

// persistentChannel is a channel that stays open while one host disconnects and the next one connects.
type persistentChannel interface {
	// AwaitHost waits for a short time until a host is connected; false: none is, or the session is closed.
	AwaitHost() bool
	// Unread puts bytes that Read returned back, for the next session.
	Unread(p []byte)
}

// errPeerChanged ends a session because a request of another host has come.
var errPeerChanged = errors.New("request of another host")

// peerChanged reports whether a request is from another host than those before it. It must have been found at a frame boundary.
func (c *Conn) peerChanged(m *pb.AgentMessage) bool {
	if _, can := c.channel.(persistentChannel); !can {
		return false
	}
	if !c.peer.known {
		c.peer = peer{true, m.Host}
	}
	return m.Host != c.peer.host
}

// unreadFrame puts a frame back into the channel, with all bytes behind it.
func (c *Conn) unreadFrame(frame Frame) {
	bytes := appendHeader(nil, frame.Framing, len(frame.Payload))
	bytes = append(bytes, frame.Payload...)
	c.channel.(persistentChannel).Unread(append(bytes, c.decoder.Rest()...))
}

// peerReturned reports whether a host is connected again that may be the same one. If it is another, peerChanged finds that at
// its first request.
func (c *Conn) peerReturned() bool {
	channel, can := c.channel.(persistentChannel)
	return can && c.peer.host != 0 && !c.decoder.Pending() && channel.AwaitHost()
}

// mayBeAnothers returns the frame of a request where another host than the session's may have sent it, to be put back if its
// answer cannot be written; nil where it is certain. A host that numbers its requests asks again.
func (c *Conn) mayBeAnothers(frame Frame) []byte {
	if _, can := c.channel.(persistentChannel); !can || !frame.Aligned || len(frame.Payload) > freeRequest {
		return nil
	}
	return append(appendHeader(nil, frame.Framing, len(frame.Payload)), frame.Payload...)
}

// owesAnother reports, at the end of a session, whether an answer was not written, and a host is connected that may wait for
// it.
func (c *Conn) owesAnother() bool {
	channel, can := c.channel.(persistentChannel)
	return can && c.queue.owes() && channel.AwaitHost()
}

// unreadUnanswered puts the requests back whose answers were not written.
func (c *Conn) unreadUnanswered() {
	if bytes := slices.Concat(c.queue.unanswered...); len(bytes) > 0 {
		c.channel.(persistentChannel).Unread(bytes)
	}
}

// Unknown returns those of the ids that are not in flight: no request of that id is being served or has a reply queued.
func (c *Conn) Unknown(ids []string) (unknown []string) {
	c.inFlightMu.Lock()
	defer c.inFlightMu.Unlock()
	for _, id := range ids {
		if _, served := c.inFlight[id]; !served {
			unknown = append(unknown, id)
		}
	}
	return unknown
}
