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

// notifier tells the service manager how the agent is, by the protocol of sd_notify(3). Without one it does nothing.
type notifier struct {
	path     string        // of the manager's socket; empty: nobody asks
	watchdog time.Duration // within which a sign of life is wanted; 0: none is
	changed  chan struct{} // has a token when the status may be another
}

// statusPace is the least time between two status lines: hosts may come and go a thousand times a second.
const statusPace = 200 * time.Millisecond

// newNotifier takes from the environment whom to tell. getenv is os.Getenv but in tests.
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

// send gives the manager some assignments, one a line.
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

// change is told that the status may be another. It never blocks.
func (n *notifier) change() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// run tells the manager of a that it is ready, how it is, and that it is alive, until ctx ends.
func (n *notifier) run(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	if n.path == "" {
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { n.tell(ctx, a, log) })
	if n.watchdog > 0 {
		work.Go(func() { n.feed(ctx, a, log) })
	}
}

// tell sends the status whenever it is another. The first one, when the agent has looked for its channels, says that it is
// ready: a guest whose port comes late must not hang at boot.
func (n *notifier) tell(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	said, ready := "", false
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		state := ""
		if line := statustext.Line(a.Status()); line != said {
			said, state = line, "STATUS="+line
		}
		if !ready && a.Looked() {
			ready, state = true, "READY=1\nSTATUS="+said
		}
		if state == "" {
			continue
		}
		if err := n.send(state); err != nil {
			log.Warn("the service manager does not listen", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusPace):
		}
	}
}

// feed gives signs of life for as long as the agent answers itself. What the manager does when they end is its matter: the
// unit has it kill the agent with the signal that makes it tell where each of its goroutines is.
func (n *notifier) feed(ctx context.Context, a *agent.Agent, log *zap.Logger) {
	every := time.NewTicker(n.watchdog / 4)
	defer every.Stop()
	for {
		asked, done := context.WithTimeoutCause(ctx, n.watchdog/2, fmt.Errorf("no answer within %v", n.watchdog/2))
		err := a.Alive(asked)
		done()
		if err == nil {
			err = n.send("WATCHDOG=1")
		}
		if err != nil && ctx.Err() == nil {
			log.Error("no sign of life for the service manager", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// stopping says that the end has begun.
func (n *notifier) stopping() error { return n.send("STOPPING=1\nSTATUS=stopping") }

// reloading says that the configuration is read again; reloaded that this is over.
func (n *notifier) reloading() error {
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds()))
}

func (n *notifier) reloaded() error { return n.send("READY=1") }
