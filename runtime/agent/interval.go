package agent

import (
	"sync"
	"time"
)

// Interval is a period that may change while something goes by it. It is safe for concurrent use.
type Interval struct {
	mu      sync.Mutex
	every   time.Duration
	changed chan struct{} // closed at the next change
}

// NewInterval returns an interval of a period, which must be more than 0.
func NewInterval(every time.Duration) *Interval {
	return &Interval{every: every, changed: make(chan struct{})}
}

// Set changes the period, for hosts that are there as well.
func (i *Interval) Set(every time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.changed)
	i.every, i.changed = every, make(chan struct{})
}

// get returns the period, and what is closed when it changes.
func (i *Interval) get() (time.Duration, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.every, i.changed
}
