package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/windows/svc"
)

const (
	// accepted is what the service control manager sends the agent. Preshutdown comes before Windows ends other processes, and
	// waits for the agent; shutdown comes where there was no preshutdown.
	accepted = svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown | svc.AcceptSessionChange | svc.AcceptParamChange
	// stepEvery is how often the manager gets to know that the agent is still ending: a rollback can take long. It gives up on
	// a service that says nothing within stepHint.
	stepEvery = time.Second
	stepHint  = 10 * time.Second
	// failedStatus is the exit status of an agent that ended by itself, upon which the recovery actions follow.
	failedStatus = 1
)

var errServiceStop = errors.New("the service control manager wants the agent to end")

// serviceHandler is the agent as the service control manager sees it: what it asks for ends the context of run, and what run
// does meanwhile is reported.
type serviceHandler struct {
	run      func(ctx context.Context) error
	sessions func(event uint32) // a user logged on or off, or the console was switched: WTS_… of wtsapi32.h; nil: ignored
	reload   func()             // the configuration is to be read again; nil: ignored
	tick     func(time.Duration) (<-chan time.Time, func())
	err      error // of run
}

// Execute implements svc.Handler.
func (h *serviceHandler) Execute(
	_ []string, requests <-chan svc.ChangeRequest, changes chan<- svc.Status,
) (specific bool, status uint32) {
	now := svc.Status{State: svc.StartPending, WaitHint: uint32(stepHint / time.Millisecond)}
	changes <- now
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	ended := make(chan error, 1)
	go func() { ended <- h.run(ctx) }()
	now = svc.Status{State: svc.Running, Accepts: accepted}
	changes <- now
	tick := h.tick
	if tick == nil {
		tick = ticker
	}
	var steps <-chan time.Time
	for {
		select {
		case h.err = <-ended:
			if now.State != svc.StopPending || h.err != nil && !errors.Is(h.err, errServiceStop) && !errors.Is(h.err, context.Canceled) {
				return true, failedStatus
			}
			h.err = nil
			return false, 0
		case <-steps:
			now.CheckPoint++
			changes <- now
		case r, ok := <-requests:
			switch {
			case !ok:
				requests = nil
			case r.Cmd == svc.Interrogate:
				changes <- now
			case r.Cmd == svc.SessionChange && h.sessions != nil:
				h.sessions(r.EventType)
			case r.Cmd == svc.ParamChange && h.reload != nil:
				h.reload()
				changes <- now
			case r.Cmd == svc.Stop, r.Cmd == svc.Shutdown, r.Cmd == svc.PreShutdown:
				if now.State == svc.StopPending {
					break
				}
				now = svc.Status{State: svc.StopPending, CheckPoint: 1, WaitHint: uint32(stepHint / time.Millisecond)}
				changes <- now
				stop(errServiceStop)
				every, halt := tick(stepEvery)
				defer halt()
				steps = every
			}
		}
	}
}

func ticker(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}
