package policy

import (
	"sync"
	"time"
)

// bucket lets n things pass per so many seconds. It holds n at most, so that at no time more than n pass at once.
type bucket struct {
	size float64
	rate float64 // per second

	mu   sync.Mutex
	left float64
	at   time.Time
	now  func() time.Time
}

// newBucket makes a full one; n of 0 is no limit.
func newBucket(n int, seconds float64) *bucket {
	return &bucket{size: float64(n), rate: float64(n) / seconds, left: float64(n), now: time.Now, at: time.Now()}
}

// take reports whether one more may pass, and counts it if so.
func (b *bucket) take() bool { return b.takeAll(1) }

// maxDebt is for how many seconds those behind a large request wait at most: clients try again for a minute.
const maxDebt = 5

// takeAll reports whether n more may pass together, and counts them if so: as soon as one may, so that those behind wait the
// longer, but no longer than maxDebt seconds where more than one passes in that time. So requests for many things at once, of
// which the protocol says how many these are at most, get through more than the limit says where it is smaller than a fifth of
// them.
func (b *bucket) takeAll(n int) bool {
	if b.size == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.left = min(b.size, b.left+b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left = max(b.left-float64(n), min(0, 1-maxDebt*b.rate))
	return true
}
