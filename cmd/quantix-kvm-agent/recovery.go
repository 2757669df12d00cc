package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// recovery takes back what an earlier agent left, while ping is answered already. All else is refused until it is done.
type recovery struct {
	done   chan struct{} // closed when it is
	events []*pb.ErrorEvent
	ended  time.Time
}

// patience is how long a request waits for a recovery, which mostly has nothing to do.
const patience = time.Second

func newRecovery() *recovery { return &recovery{done: make(chan struct{})} }

func (r *recovery) run(ctx context.Context, inside *core.Core, log *zap.Logger) {
	events, err := inside.Recover(ctx)
	for _, e := range events {
		log.Warn(e.Message, zap.Any("details", e.Details))
	}
	if err != nil && ctx.Err() != nil {
		log.Info("the recovery was stopped; the next start goes on with it")
	} else if err != nil {
		log.Error("recovery failed", zap.Error(err))
		events = append(events, &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: "recovery", Message: err.Error()})
	}
	r.events, r.ended = events, time.Now()
	close(r.done)
}

// gate refuses requests until the recovery is done.
func (r *recovery) gate(ctx context.Context) error {
	select {
	case <-r.done: // as nearly always: a timer would cost more than all the rest of this
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fault.Wrapf(fault.ErrBusy, "busy: recovering from an interruption")
	}
}

// notices are what hosts are told of it.
func (r *recovery) notices() []*pb.ErrorEvent {
	events, _ := r.result()
	return events
}

// result is what became of it, if it is done.
func (r *recovery) result() (events []*pb.ErrorEvent, done bool) {
	select {
	case <-r.done:
		return r.events, true
	default:
		return nil, false
	}
}
