package client

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (c *Client) read() {
	err := c.receive()
	c.mu.Lock()
	c.err = err
	c.check.Stop()
	c.mu.Unlock()
	close(c.done)
}

// receive delivers what the agent sends until the channel ends.
func (c *Client) receive() error {
	var decoder wire.Decoder
	for {
		start := time.Now()
		space := c.space(&decoder)
		n, err := c.channel.Read(space)
		if time.Since(start) >= wire.PayloadTimeout {
			decoder.Silence()
			decoder.Feed(space[:n])
		} else {
			decoder.Add(n)
		}
		for {
			frame, ok := decoder.Next()
			if !ok {
				break
			}
			m, content, err := c.replies.Decode(frame.Payload)
			if err != nil {
				decoder.Resync()
				continue
			}
			var buf []byte
			if content != nil { // which lies in the decoder's buffer
				buf = decoder.Detach(c.largeBuffer())
			}
			c.deliver(m, buf)
		}
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the connection to the agent ended: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return fault.Wrapf(err, "the connection to the agent ended: %v", fault.Cause(unwrapNet(err)))
		}
	}
}

// space returns the room for the next read. A large frame has a buffer that it fits into, up to its end, so that it is not
// copied.
func (c *Client) space(decoder *wire.Decoder) []byte {
	begun, size := decoder.Incomplete()
	if size <= readSize || size > largeBuffer {
		return decoder.Space(readSize)
	}
	left := size - len(begun.Payload)
	space := decoder.Space(min(left, readSize))
	if len(space) < left {
		c.reuse(decoder.Grow(c.largeBuffer()))
		space = decoder.Space(readSize)
	}
	return space[:min(len(space), left)]
}

// largeBuffer is the size of a buffer for a large frame, in bytes.
const largeBuffer = wire.SocketChunk + readSize

// largeBuffer returns an empty buffer for a large frame.
func (c *Client) largeBuffer() []byte {
	if kept := c.buffers.Get(largeBuffer); kept != nil {
		return kept[:0]
	}
	return make([]byte, 0, largeBuffer)
}

// reuse keeps a buffer for another large frame.
func (c *Client) reuse(buf []byte) {
	if cap(buf) == largeBuffer {
		c.buffers.Put(buf)
	}
}

// deliver passes a message on. buf is the buffer in which a part of it lies, and nothing else; nil: none.
func (c *Client) deliver(m *pb.AgentMessage, buf []byte) {
	c.mu.Lock()
	if m.Session != "" {
		c.session = m.Session
	}
	p := c.pending[m.MessageId]
	if p != nil {
		delete(c.pending, m.MessageId)
		p.buf = buf
		p.wait <- m
	}
	c.received = true
	payload := wire.Payload(m)
	if ready, ok := payload.(*pb.AgentReadyEvent); ok {
		if c.ready == nil {
			close(c.readySet)
		}
		c.ready = ready
	}
	if output, ok := payload.(*pb.ExecOutputEvent); ok && c.streams[output.ExecId] != nil {
		c.streams[output.ExecId].put(output)
		payload = nil
	}
	asks := p != nil && p.asks
	c.mu.Unlock()
	if pong, ok := payload.(*pb.PongResponse); ok && asks {
		c.failUnknown(pong.Unknown)
	}
	if p == nil && payload != nil && c.options.Event != nil {
		c.options.Event(m.MessageId, payload)
	}
}
