package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/windows/svc"
)

// manager is what the service control manager does to a handler.
type manager struct {
	t        *testing.T
	requests chan svc.ChangeRequest
	changes  chan svc.Status
	ended    chan uint32
	steps    chan time.Time
	stopped  chan error // the cause with which the agent's context ended
	finish   chan error // what the agent then returns
	sessions []uint32
	reloads  int
}

func manage(t *testing.T) *manager {
	m := &manager{
		t: t, requests: make(chan svc.ChangeRequest), changes: make(chan svc.Status), ended: make(chan uint32, 1),
		steps: make(chan time.Time), stopped: make(chan error, 1), finish: make(chan error),
	}
	h := &serviceHandler{
		run: func(ctx context.Context) error {
			context.AfterFunc(ctx, func() { m.stopped <- context.Cause(ctx) })
			return <-m.finish
		},
		sessions: func(event uint32) { m.sessions = append(m.sessions, event) },
		reload:   func() { m.reloads++ },
		tick:     func(time.Duration) (<-chan time.Time, func()) { return m.steps, func() {} },
	}
	go func() {
		_, status := h.Execute(nil, m.requests, m.changes)
		m.ended <- status
	}()
	if got := m.next(); got.State != svc.StartPending || got.WaitHint == 0 {
		t.Fatal(got)
	}
	if got := m.next(); got.State != svc.Running || got.Accepts != accepted {
		t.Fatal(got)
	}
	return m
}

// next returns the next status that the handler reports.
func (m *manager) next() svc.Status {
	m.t.Helper()
	select {
	case status := <-m.changes:
		return status
	case <-time.After(20 * time.Second):
		m.t.Fatal("the handler says nothing")
		return svc.Status{}
	}
}

func (m *manager) ends(want uint32) {
	m.t.Helper()
	select {
	case got := <-m.ended:
		if got != want {
			m.t.Errorf("exit status %d, want %d", got, want)
		}
	case <-time.After(20 * time.Second):
		m.t.Error("the handler goes on")
	}
}

// Each of the three ends the agent's context and says so, again and again with a higher checkpoint, until the agent has ended.
func TestServiceStops(t *testing.T) {
	for _, cmd := range []svc.Cmd{svc.Stop, svc.Shutdown, svc.PreShutdown} {
		m := manage(t)
		m.requests <- svc.ChangeRequest{Cmd: cmd}
		first := m.next()
		if first.State != svc.StopPending || first.WaitHint < uint32(2*stepEvery/time.Millisecond) {
			t.Error(cmd, first)
		}
		if cause := <-m.stopped; cause != errServiceStop {
			t.Error(cmd, cause)
		}
		for i := range 3 { // a rollback
			m.steps <- time.Time{}
			if now := m.next(); now.State != svc.StopPending || now.CheckPoint != first.CheckPoint+uint32(i)+1 {
				t.Error(cmd, now)
			}
			m.requests <- svc.ChangeRequest{Cmd: svc.Stop} // told once more
		}
		m.finish <- errServiceStop
		m.ends(0)
	}
}

// An agent that ends by itself, with an error or without, has failed, so that it is started again.
func TestServiceFails(t *testing.T) {
	for _, err := range []error{nil, errors.New("no memory")} {
		m := manage(t)
		m.finish <- err
		m.ends(failedStatus)
	}
	m := manage(t)
	m.requests <- svc.ChangeRequest{Cmd: svc.Stop}
	m.next()
	m.finish <- errors.New("the state cannot be written")
	m.ends(failedStatus)
}

// The manager is answered while the agent runs, and users' sessions and a change of the configuration are handed on.
func TestServiceIsAsked(t *testing.T) {
	m := manage(t)
	m.requests <- svc.ChangeRequest{Cmd: svc.Interrogate}
	if now := m.next(); now.State != svc.Running {
		t.Error(now)
	}
	m.requests <- svc.ChangeRequest{Cmd: svc.ParamChange}
	if now := m.next(); now.State != svc.Running {
		t.Error(now)
	}
	const logon, unlock = 5, 8 // WTS_SESSION_LOGON, WTS_SESSION_UNLOCK
	m.requests <- svc.ChangeRequest{Cmd: svc.SessionChange, EventType: logon}
	m.requests <- svc.ChangeRequest{Cmd: svc.SessionChange, EventType: unlock}
	m.requests <- svc.ChangeRequest{Cmd: svc.Stop}
	m.next()
	m.finish <- nil
	m.ends(0)
	if !slices.Equal(m.sessions, []uint32{logon, unlock}) || m.reloads != 1 {
		t.Error(m.sessions, m.reloads)
	}
}

// events is an event log.
type events []string

func (e *events) Error(_ uint32, text string) error   { *e = append(*e, "error "+text); return nil }
func (e *events) Warning(_ uint32, text string) error { *e = append(*e, "warning "+text); return nil }

// The event log gets what an administrator has to see, with all that the line says.
func TestWarningsGoToTheEventLog(t *testing.T) {
	var e events
	log := zap.New(newEventCore(&e)).With(zap.String("port", "a"))
	log.Info("serving port")
	log.Warn("cannot open port", zap.String("why", "held"))
	log.Error("no state")
	if len(e) != 2 || !strings.HasPrefix(e[0], "warning ") || !strings.HasPrefix(e[1], "error ") {
		t.Fatalf("%q", e)
	}
	for _, want := range []string{"cannot open port", `"port":"a"`, `"why":"held"`} {
		if !strings.Contains(e[0], want) {
			t.Errorf("%q lacks %s", e[0], want)
		}
	}
}
