package wire

import (
	"context"
	"sync"
	"time"
)

// The reader has a small buffer of its own. A frame that does not fit into it gets one for itself alone, which is counted in
// Config.Memory from its header on, and stays with its request:
//
//	header ─► memory ─► a buffer ─► complete ─► request ─► served ─► memory given back
//	             └► none within memoryWait ─► refused by its id at once, and skipped

// ownsBuffer reports whether the frame that is taken has a buffer of its own.
func (c *Conn) ownsBuffer() bool { return c.reserved > 0 && !c.salvaging }

// reserveBuffer provides the buffer for the frame that has begun, or refuses and skips it. It reports whether there may be
// frames in what has been read.
func (c *Conn) reserveBuffer(ctx, session context.Context, work *sync.WaitGroup) (again bool) {
	begun, size := c.decoder.Incomplete()
	n := (size + 2*minReadSize - 1) &^ (minReadSize - 1) // rounded up, so that buffers fit for frames of about the same size
	if n <= freeBuffer || n <= c.reserved || len(begun.Payload) < maxHead {
		return false
	}
	id := beginningID(begun.Payload)
	switch {
	case c.reserved == 0 && c.takeMemory(ctx, n):
		buf := c.largePool.Get(n)
		if cap(buf) < n {
			buf = make([]byte, 0, n)
		}
		c.spare, c.reserved = c.decoder.Grow(buf[:0:n]), n
		return false
	case id == "": // bytes that look like a header are none, if no id follows
		c.decoder.NotAFrame()
	default:
		c.noteFrame(session, work, begun)
		c.warn("request refused", errMemory)
		c.reply(id, nil, errMemory)
		c.decoder.Discard(size)
	}
	return true
}

// takeMemory takes n bytes of Config.Memory, and waits for them. All frames of one read together wait for memoryWait at most,
// and those that are found in one that is given up, whose buffer is held meanwhile, do not wait.
func (c *Conn) takeMemory(ctx context.Context, n int) bool {
	switch {
	case c.salvaging:
		_, taken := c.config.Memory.tryTake(n)
		return taken
	case c.memoryUntil.IsZero():
		c.memoryUntil = time.Now().Add(memoryWait)
	}
	return c.config.Memory.take(ctx, n, c.memoryUntil)
}

// detachBuffer returns the buffer of the frame that was taken, which is the caller's from now on, as its memory is. The reader
// goes on in its small one.
func (c *Conn) detachBuffer() []byte {
	buf := c.decoder.Detach(c.spare)
	c.spare, c.reserved = nil, 0
	return buf
}

// dropBuffer gives a buffer back that nothing refers to any more.
func (c *Conn) dropBuffer() {
	if n := c.reserved; n > 0 {
		buf := c.detachBuffer()
		collected := isCollected(buf)
		c.reuse(buf)
		c.config.Memory.reclaim(n, collected)
	}
}

// reuse keeps a buffer for another frame, unless it is large.
func (c *Conn) reuse(buf []byte) {
	switch {
	case cap(buf) == 0 || cap(buf) > maxReusedBuffer:
	case cap(buf) > freeBuffer:
		c.largePool.Put(buf)
	default:
		c.smallPool.Put(buf)
	}
}

// BufferPool keeps buffers for a while. The zero value is ready. It is safe for concurrent use.
type BufferPool struct {
	full, empty sync.Pool // of *[]byte: with a buffer, and for the next one that is kept
}

// Get returns a buffer that was kept, of n bytes at least; nil where there is none.
func (p *BufferPool) Get(n int) []byte {
	kept, ok := p.full.Get().(*[]byte)
	if !ok {
		return nil
	}
	buf := *kept
	*kept = nil
	p.empty.Put(kept)
	if cap(buf) < n {
		return nil
	}
	return buf
}

// Put keeps a buffer, which is the pool's from then on.
func (p *BufferPool) Put(buf []byte) {
	kept, ok := p.empty.Get().(*[]byte)
	if !ok {
		kept = new([]byte)
	}
	*kept = buf
	p.full.Put(kept)
}
