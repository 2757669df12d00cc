package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// monitor plays QEMU: it answers each line by the function's text, with %d for the id in order of arrival.
func monitor(t *testing.T, answers ...string) *Conn {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer far.Close()
		fmt.Fprintln(far, `{"QMP": {"version": {}}}`)
		lines := bufio.NewScanner(far)
		for i, answer := range append([]string{`{"return": {}, "id": %d}`}, answers...) {
			if !lines.Scan() {
				return
			}
			fmt.Fprintf(far, answer+"\n", i+1)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	c, err := New(ctx, near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-served })
	return c
}

func TestExecute(t *testing.T) {
	c := monitor(t, `{"event": "STOP"} {"return": {"status": "paused"}, "id": %d}`, `{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`)
	var got struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &got); err != nil || got.Status != "paused" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if e, err := c.Wait(t.Context(), func(e Event) bool { return e.Name == "STOP" }); err != nil || e.Name != "STOP" {
		t.Fatalf("event before the wait: %v, %v", e, err)
	}
	var refusal *Error
	if err := c.Execute(t.Context(), "device_add", nil, nil); !errors.As(err, &refusal) || refusal.Class != "GenericError" {
		t.Fatalf("got %v, want QEMU's refusal", err)
	}
}

func TestEndReleasesWaiters(t *testing.T) {
	c := monitor(t) // closes after the greeting
	if err := c.Execute(t.Context(), "cont", nil, nil); err == nil {
		t.Fatal("a command to a dead QEMU succeeded")
	}
	if _, err := c.Wait(t.Context(), func(Event) bool { return true }); err == nil {
		t.Fatal("an event came from a dead QEMU")
	}
}

func TestContextEndsCall(t *testing.T) {
	c := monitor(t, `{"event": "NOISE", "data": {"n": %d}}`, "never asked for: %d")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}
