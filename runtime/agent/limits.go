package agent

import (
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/wire"
)

// Log lines about one port.
const (
	warnings    = 10 // per warningsPer
	warningsPer = time.Minute
)

// limiter keeps a noisy port from filling the log.
type limiter struct {
	log *zap.Logger

	mu         sync.Mutex
	since      time.Time // when the present period began
	logged     int
	suppressed int
}

// warn logs a warning, or counts it where the period has had its share.
func (l *limiter) warn(text string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.since) > warningsPer {
		if l.suppressed > 0 {
			l.log.Warn("channel warnings suppressed", zap.Int("count", l.suppressed))
		}
		l.since, l.logged, l.suppressed = time.Now(), 0, 0
	}
	if l.logged++; l.logged > warnings {
		l.suppressed++
		return
	}
	if errors.Is(err, wire.ErrHostGone) {
		l.log.Debug(text, zap.Error(err))
		return
	}
	l.log.Warn(text, zap.Error(err))
}
