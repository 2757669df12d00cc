package wire

import "time"

// Heard tells when the host's last frame came; the zero time: none has.
func (c *Conn) Heard() time.Time {
	ns := c.last.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Framing is the framing that is written to the host.
func (c *Conn) Framing() Framing { return Framing(c.writes.Load()) }

// Busy tells how long the reader has been dealing with what it read last; 0 while it reads, or waits for a host that does
// not read its replies. What it does takes microseconds: a reader that is busy for seconds is stuck.
func (c *Conn) Busy() time.Duration {
	since := c.busy.Load()
	if since == 0 || c.queue.isFull() {
		return 0
	}
	return max(0, time.Since(time.Unix(0, since)))
}

// isFull says that a sender of either lane would wait.
func (q *queue) isFull() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.full(true) || q.full(false)
}
