package proc

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	crowdSize = 8                      // commands that run at once
	crowdTime = 500 * time.Millisecond // after the start of the last of them
)

// crowd notices when many commands are run at once.
type crowd struct {
	tell    func(many bool)
	running atomic.Int64

	mu   sync.Mutex
	many bool
	end  *time.Timer
}

// enter notes that a command is being started, until leave is called.
func (c *crowd) enter() (leave func()) {
	if c.running.Add(1) >= crowdSize {
		c.set()
	}
	return func() { c.running.Add(-1) }
}

// set reports that there are many, for a time from now on.
func (c *crowd) set() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		c.end = time.AfterFunc(crowdTime, c.unset)
	} else {
		c.end.Reset(crowdTime)
	}
	if !c.many {
		c.many = true
		c.tell(true)
	}
}

// unset reports that there are not many any more.
func (c *crowd) unset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.many {
		c.many = false
		c.tell(false)
	}
}
