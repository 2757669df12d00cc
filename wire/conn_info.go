package wire

import "time"

// Heard returns the time of the host's last frame; the zero time where none has come.
func (c *Conn) Heard() time.Time {
	ns := c.lastFrame.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Framing is the framing that is written to the host.
func (c *Conn) Framing() Framing { return Framing(c.writeFraming.Load()) }

// Busy returns how long the reader has been processing what it read last; 0 while it reads, or while it waits for a host that
// does not read its replies. Processing takes microseconds: a reader that is busy for seconds is stuck.
func (c *Conn) Busy() time.Duration {
	since := c.busySince.Load()
	if since == 0 || c.queue.isFull() {
		return 0
	}
	return max(0, time.Since(c.began)-time.Duration(since))
}

// isFull reports whether a sender would have to wait, in either lane.
func (q *queue) isFull() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.full(true) || q.full(false)
}
