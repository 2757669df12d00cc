package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/cmd/internal/statustext"
	"github.com/quantix-kvm/guest-agent/runtime/agent"
)

// notifier reports the state of the agent to the service manager, by the protocol of sd_notify(3). Without one it does nothing.
type notifier struct {
	path     string        // of the manager's socket; empty: there is no manager
	watchdog time.Duration // the manager wants WATCHDOG=1 at least this often; 0: never
	changed  chan struct{} // has a value when the status may have changed
}

// statusInterval is the least time between two status lines: hosts may come and go a thousand times a second.
const statusInterval = 200 * time.Millisecond

// newNotifier returns a notifier for the manager that the environment names. getenv is os.Getenv but in tests.
func newNotifier(getenv func(string) string) *notifier {
	n := &notifier{path: getenv("NOTIFY_SOCKET"), changed: make(chan struct{}, 1)}
	if pid := getenv("WATCHDOG_PID"); n.path == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n
	}
	if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		n.watchdog = time.Duration(us) * time.Microsecond
	}
	return n
}

// send sends the manager some assignments, one a line.
func (n *notifier) send(state string) error {
	if n.path == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", n.path) // Go understands the @ of an abstract name
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	conn.Close()
	return err
}

// change says that the status may have changed. It never blocks.
func (n *notifier) change() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// run reports to the manager that the agent is ready, its status, and that it is alive, until ctx ends.
func (n *notifier) run(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	if n.path == "" {
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { n.sendStatus(ctx, a, log) })
	if n.watchdog > 0 {
		work.Go(func() { n.feedWatchdog(ctx, a, log) })
	}
}

// sendStatus sends the status whenever it changes. Once the agent has looked for its ports it also says that it is ready,
// whether it found one or not: a guest whose port comes late must not hang at boot.
func (n *notifier) sendStatus(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	sent, ready := "", false
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		state := ""
		if line := statustext.Line(a.Status()); line != sent {
			sent, state = line, "STATUS="+line
		}
		if !ready && a.Started() {
			ready, state = true, "READY=1\nSTATUS="+sent
		}
		if state == "" {
			continue
		}
		if err := n.send(state); err != nil {
			log.Warn("sd_notify failed", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusInterval):
		}
	}
}

// feedWatchdog sends WATCHDOG=1 as long as the agent answers itself. The manager then decides what to do when they stop: the
// unit has it kill the agent with SIGABRT, which makes the agent print the stacks of its goroutines.
func (n *notifier) feedWatchdog(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	every := time.NewTicker(n.watchdog / 4)
	defer every.Stop()
	for {
		asked, done := context.WithTimeoutCause(ctx, n.watchdog/2, fmt.Errorf("no answer within %v", n.watchdog/2))
		err := a.Alive(asked)
		done()
		message := "watchdog check failed"
		if err == nil {
			message, err = "sd_notify WATCHDOG=1 failed", n.send("WATCHDOG=1")
		}
		if err != nil && ctx.Err() == nil {
			log.Error(message, zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// stopping says that the agent has begun to stop.
func (n *notifier) stopping() error { return n.send("STOPPING=1\nSTATUS=stopping") }

// reloading says that the configuration is being read again; reloaded that this is done.
func (n *notifier) reloading() error {
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds()))
}

func (n *notifier) reloaded() error { return n.send("READY=1") }
