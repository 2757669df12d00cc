package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/wire/port"
)

// Pauses before a port is opened, or a host is accepted, once more.
const (
	firstReopen      = 100 * time.Millisecond
	longestReopen    = 5 * time.Second
	longestAnnounced = time.Minute // where ports are announced
)

// ports opens the ports and runs one goroutine for each. It belongs to the goroutine of run.
type ports struct {
	config  PortsConfig
	log     *zap.Logger
	tracker *tracker
	// session serves one host. It returns when the session has ended.
	session func(ctx context.Context, p *openPort, conn io.ReadWriteCloser)

	served    map[string]bool
	ended     chan string // names of ports whose goroutine is about to return
	announced <-chan struct{}
	pause     backoff
	lastError string
	work      sync.WaitGroup
}

// openPort is a port that is served.
type openPort struct {
	port.Port
	log     *zap.Logger
	limiter *limiter // of all its sessions: a host that comes again and again must not fill the log either
	state   *portState
}

func newPorts(c PortsConfig, log *zap.Logger, t *tracker, session func(context.Context, *openPort, io.ReadWriteCloser)) *ports {
	p := &ports{
		config: c, log: log, tracker: t, session: session, served: map[string]bool{}, ended: make(chan string),
		announced: c.Announced, pause: newBackoff(longestReopen),
	}
	if c.Announced != nil {
		p.pause = newBackoff(longestAnnounced)
	}
	return p
}

// run serves the ports that are there, and those that come, until ctx ends. After an error it opens again and again, ever
// less often: where ports are announced that is only for links and rights that come a little later than the device.
func (p *ports) run(ctx context.Context) {
	defer p.work.Wait()
	for {
		again := p.open(ctx)
		select {
		case <-ctx.Done():
			return
		case name := <-p.ended:
			delete(p.served, name)
			p.log.Info("port gone", zap.String("port", name))
		case _, ok := <-p.announced:
			p.pause.reset()
			if !ok {
				p.announced, p.pause = nil, newBackoff(longestReopen)
			}
		case <-again:
		}
	}
}

// open serves the ports that are not served yet. It returns what has a value when it is to be called once more; nil: only an
// announcement, or the end of a port, is a reason.
func (p *ports) open(ctx context.Context) (again <-chan time.Time) {
	opened, err := p.config.Open(func(name string) bool { return p.served[name] })
	p.tracker.looked()
	for _, one := range opened {
		p.served[one.Name()] = true
		p.work.Go(func() {
			p.serve(ctx, one)
			select {
			case p.ended <- one.Name():
			case <-ctx.Done():
			}
		})
	}
	if err == nil {
		p.lastError = ""
		return nil
	}
	if text := err.Error(); text != p.lastError {
		p.log.Warn("cannot open port", zap.Error(err))
		p.pause.reset()
		p.lastError = text
	}
	return time.After(p.pause.next())
}

// serve serves one host after the other, or beside each other where the port has room, until the port is gone or ctx ends.
// Then it closes the port.
func (p *ports) serve(ctx context.Context, one port.Port) {
	log := p.log.With(zap.String("port", one.Name()))
	log.Info("serving port")
	served := &openPort{Port: one, log: log, limiter: &limiter{log: log}, state: p.tracker.open(one.Name())}
	var sessions sync.WaitGroup
	defer one.Close()
	defer p.tracker.close(one.Name())
	defer sessions.Wait()
	for pause := newBackoff(longestReopen); ; {
		conn, err := one.Accept(ctx)
		if ctx.Err() != nil || errors.Is(err, port.ErrGone) {
			return
		}
		if err != nil {
			log.Warn("accept failed", zap.Error(err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause.next()):
			}
			continue
		}
		pause.reset()
		sessions.Go(func() { p.session(ctx, served, conn) })
	}
}

// backoff is ever longer pauses.
type backoff struct{ pause, longest time.Duration }

func newBackoff(longest time.Duration) backoff { return backoff{firstReopen, longest} }

func (b *backoff) reset() { b.pause = firstReopen }

// next returns the pause that is due. The following one is twice as long.
func (b *backoff) next() time.Duration {
	pause := b.pause
	b.pause = min(2*pause, b.longest)
	return pause
}
