// Package agent is the daemon between the ports and the operations.
//
//	                 ports.go             session.go         native.go                dispatch.go
//	PortsConfig.Open ──► one goroutine ──► Session ──► Protocol: frames ──► wire.Conn ─┐
//	       ▲             per port: Accept    │   └───► Protocol: another ──────────────┴─► gate ─► call.Executor ─► rooms
//	       └─ announced, gone, error         ▼                     ▲                         ping, cancel, get_capabilities
//	                                      tracker.go               └── agent_ready,          and get_status are answered
//	                                         │                         telemetry, notices    by the agent itself
//	                                         ▼
//	                 control.go: Status, Started, Alive, and the control socket in the guest
//
// A port has one protocol. The native one, of wire, is in this package; others are funcs that main chooses by the name of the
// port. config.go has everything that an agent is made of, limits.go keeps a noisy port from filling the log.
//
// Run stops in this order: no call starts any more; those that run are cancelled and waited for; each session writes its
// last replies and ends; ports are closed; the control socket is closed.
//
// Not here: flags, configuration files, and anything that touches the guest.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire"
)

// Agent serves hosts. Make it with New, run it once.
type Agent struct {
	config Config
	nonce  string // of this process, in every message to a host
	start  time.Time
	trim   *time.Timer // returns memory to the system a while after a session ended, and from time to time during one

	idleTimer *time.Timer // does so once no request has come for trimQuiet
	idle      atomic.Bool // no request has come since then

	// What changes; each locks itself.
	calls   wire.Calls
	memory  *wire.Memory // of all connections
	tracker *tracker
	ready   lastReady
}

// ErrStopping is the cause of what ends because the agent stops.
var ErrStopping = builtins.ErrStopping

// New makes an agent.
func New(config Config) *Agent {
	config = config.withDefaults()
	var nonce [12]byte
	rand.Read(nonce[:])
	a := &Agent{
		config: config, nonce: hex.EncodeToString(nonce[:]), start: time.Now(), trim: time.AfterFunc(trimAfter, config.Trim),
		memory: wire.NewMemory(requestMemory), tracker: newTracker(config.Control.Changed),
	}
	a.idleTimer = time.AfterFunc(trimQuiet, func() {
		a.idle.Store(true)
		a.config.Trim()
	})
	a.config.Calls = a.config.Calls.WithRoom(builtins.Room{Name: "agent", Ops: a.ops()})
	return a
}

// Run serves until ctx ends. Then it lets no call start, cancels those that run with ErrStopping, waits for them, writes
// their replies, and returns nil.
func (a *Agent) Run(ctx context.Context) error {
	serve, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	var work sync.WaitGroup
	defer work.Wait()
	if control := a.config.Control.Port; control != nil {
		defer control.Close()
		work.Go(func() { a.serveControl(serve, control) })
	}
	work.Go(func() { newPorts(a.config.Ports, a.config.Log, a.tracker, a.serveSession).run(serve) })
	<-ctx.Done()
	a.tracker.stop()
	a.trim.Stop()
	a.idleTimer.Stop()
	a.drain()
	stop(ErrStopping) // sessions write what they still owe, and end
	work.Wait()
	return nil
}

// drain ends the calls, and lets none start.
func (a *Agent) drain() {
	limited, cancel := context.WithTimeout(context.Background(), a.config.StopTimeout)
	defer cancel()
	var releasing sync.WaitGroup
	defer releasing.Wait()
	releasing.Go(func() {
		if err := a.config.Hooks.Release(); err != nil {
			a.config.Log.Warn("cannot release running commands", zap.Error(err))
		}
	})
	if err := a.calls.Shutdown(limited, ErrStopping); err != nil {
		a.config.Log.Warn("calls still running after the stop timeout", zap.Int("calls", a.calls.Len()),
			zap.Duration("timeout", a.config.StopTimeout))
	}
}
