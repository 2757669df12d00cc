package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// recovery takes back what an earlier agent left, and later what a script left whose rollback took too long or waits for a
// mount. Ping is answered meanwhile, and all else once the gate is open; the journal refuses what needs a transaction.
type recovery struct {
	journal  *journal.Journal
	gateOpen chan struct{} // closed after the first pass, or when that takes long
	open     func()
	done     chan struct{} // closed after the first pass
	changed  func()        // called when the state may have changed

	mu     sync.Mutex
	events []notice // the last of each transaction
	failed bool     // the last pass could not even begin, or not go on
}

// notice is an event, and when it was.
type notice struct {
	*pb.ErrorEvent
	at time.Time
}

const (
	patience  = time.Second            // how long a request waits for the gate: mostly there is nothing to recover
	gateTime  = 2 * time.Second        // how long the gate is closed: what takes longer goes on in the background
	retryTime = time.Minute            // a disk may get a name, or a server come back, without a change of the mounts
	calmTime  = 100 * time.Millisecond // between two passes, since some guests mount all the time
)

// newRecovery returns a recovery that has not begun. changed is called when its state may have changed.
func newRecovery(j *journal.Journal, changed func()) *recovery {
	r := &recovery{journal: j, gateOpen: make(chan struct{}), done: make(chan struct{}), changed: changed}
	r.open = sync.OnceFunc(func() { close(r.gateOpen) })
	if e := r.unusable(); e != nil {
		r.events = append(r.events, notice{e, time.Now()})
	}
	return r
}

// unusable returns an event that says why the state directory cannot be used; nil if it can.
func (r *recovery) unusable() *pb.ErrorEvent {
	err := r.journal.Unusable()
	if err == nil {
		return nil
	}
	return &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: stateCode, Message: err.Error()}
}

const (
	stateCode  = "state"    // of the event that unusable returns
	failedCode = "recovery" // of the event of a pass that failed
)

// run recovers now, and again when there is more to do, until ctx ends.
func (r *recovery) run(ctx context.Context, agentCore *core.Core, log *zap.Logger) {
	late := time.AfterFunc(gateTime, r.open)
	r.pass(ctx, agentCore.Recover, log)
	late.Stop()
	r.open()
	close(r.done)
	r.changed()
	for r.await(ctx, log) {
		r.pass(ctx, agentCore.Recover, log)
		r.changed()
	}
}

// pass recovers once.
func (r *recovery) pass(ctx context.Context, recover func(context.Context) ([]*pb.ErrorEvent, error), log *zap.Logger) {
	events, err := recover(ctx)
	if err != nil && ctx.Err() != nil {
		log.Info("the recovery was stopped; the next start goes on with it")
	} else if err != nil {
		log.Error("recovery failed", zap.Error(err))
		events = append(events, &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: failedCode, Message: err.Error()})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = err != nil
	if err == nil {
		r.events = slices.DeleteFunc(r.events, func(e notice) bool { return e.Code == failedCode })
	}
	if e := r.unusable(); e != nil {
		events = append(events, e)
	} else if i := slices.IndexFunc(r.events, func(e notice) bool { return e.Code == stateCode }); i >= 0 {
		log.Info("the state directory can be used again")
		r.events = slices.Delete(r.events, i, i+1)
	}
	for _, e := range events {
		r.add(e, log)
	}
}

// add remembers an event in place of an older one about the same. The caller holds mu.
func (r *recovery) add(e *pb.ErrorEvent, log *zap.Logger) {
	about := func(old notice) bool {
		return old.Code == e.Code && old.Details["transaction_id"] == e.Details["transaction_id"]
	}
	if i := slices.IndexFunc(r.events, about); i < 0 || r.events[i].Message != e.Message {
		log.Warn(e.Message, zap.Any("details", e.Details))
	}
	r.events = append(slices.DeleteFunc(r.events, about), notice{e, time.Now()})
	r.events = r.events[max(len(r.events)-maxEvents, 0):]
}

// unconfirmed remembers that a transaction was taken back since nobody confirmed it.
func (r *recovery) unconfirmed(e *pb.ErrorEvent, log *zap.Logger) {
	r.mu.Lock()
	r.add(e, log)
	r.mu.Unlock()
	r.changed()
}

// maxEvents bounds the events of recoveries that a host gets when it connects.
const maxEvents = 100

// await waits until another pass may get further; false: ctx has ended.
func (r *recovery) await(ctx context.Context, log *zap.Logger) bool {
	var mounts <-chan struct{}
	var retry <-chan time.Time
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	r.mu.Lock()
	failed := r.failed
	r.mu.Unlock()
	if failed || r.journal.Status().Error != "" {
		var err error
		if mounts, err = fsys.WatchMounts(waiting); err != nil {
			log.Warn("cannot watch mounts; the recovery is tried again from time to time", zap.Error(err))
		}
		calm := time.NewTimer(calmTime)
		defer calm.Stop()
		select {
		case <-calm.C:
		case <-ctx.Done():
			return false
		}
		timer := time.NewTimer(retryTime)
		defer timer.Stop()
		retry = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-r.journal.Unrecovered():
	case <-mounts:
	case <-retry:
	}
	return true
}

// gate refuses requests until the recovery is done, or goes on in the background.
func (r *recovery) gate(ctx context.Context) error {
	select {
	case <-r.gateOpen: // as nearly always: a timer would cost more than all the rest of this
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.gateOpen:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fault.Wrapf(fault.ErrBusy, "busy: recovering from an interruption")
	}
}

// notices are the events of it for hosts that connect.
func (r *recovery) notices() []*pb.ErrorEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*pb.ErrorEvent
	for _, e := range r.events {
		list = append(list, e.ErrorEvent)
	}
	return list
}

// describe adds to a status what became of it. The journal's error is there already.
func (r *recovery) describe(s *pb.GetStatusResponse) {
	err := r.journal.Unusable()
	select {
	case <-r.done:
		if err != nil {
			s.State, s.Reason = pb.AgentState_AGENT_STATE_REFUSING, err.Error()
		} else if s.Journal.Error != "" {
			s.State, s.Reason = pb.AgentState_AGENT_STATE_RECOVERING, strings.TrimPrefix(s.Journal.Error, "busy: recovering: ")
		}
	default:
		s.State, s.Reason = pb.AgentState_AGENT_STATE_RECOVERING, "taking back what an interruption left"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		s.Journal.Recovered = append(s.Journal.Recovered, statusLine(e.at, e.ErrorEvent))
	}
}
