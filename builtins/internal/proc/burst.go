package proc

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	burstSize = 8                      // commands that run at once
	burstTime = 500 * time.Millisecond // after the start of the last of them
)

// burst notices when many commands are run at once.
type burst struct {
	report  func(many bool)
	running atomic.Int64

	mu   sync.Mutex
	many bool
	end  *time.Timer
}

// enter notes that a command is being started, until leave is called.
func (b *burst) enter() (leave func()) {
	if b.running.Add(1) >= burstSize {
		b.set()
	}
	return func() { b.running.Add(-1) }
}

// set reports that there are many, for a time from now on.
func (b *burst) set() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end == nil {
		b.end = time.AfterFunc(burstTime, b.unset)
	} else {
		b.end.Reset(burstTime)
	}
	if !b.many {
		b.many = true
		b.report(true)
	}
}

// unset reports that there are not many any more.
func (b *burst) unset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.many {
		b.many = false
		b.report(false)
	}
}
