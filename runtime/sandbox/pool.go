package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/link"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Pool starts runners and keeps one warm. Its methods may be called from any goroutine.
type Pool struct {
	cfg     Config
	closing chan struct{} // closed by Close: ends runs and the keeper thread
	starts  chan func()   // what the keeper thread is to do
	work    sync.WaitGroup
	thread  sync.WaitGroup

	mu      sync.Mutex
	limits  Limits
	closed  bool
	keeper  bool          // the thread is there
	warming chan struct{} // closed when the standby that is being started is there; nil: none is
	standby *runner       // sealed, and not used yet
	sealed  Limits        // of the standby
}

// New makes a pool. No process is started before the first Run.
func New(cfg Config) *Pool {
	pick(&cfg.Path, "/proc/self/exe")
	if cfg.Args == nil {
		cfg.Args = []string{Arg}
	}
	pick(&cfg.UID, 65534)
	pick(&cfg.GID, 65534)
	return &Pool{cfg: cfg, limits: cfg.Limits.withDefaults(), closing: make(chan struct{}), starts: make(chan func())}
}

// Limits are those of each run, with the defaults filled in.
func (p *Pool) Limits() Limits {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits
}

// SetLimits changes the limits of the runs that begin from now on.
func (p *Pool) SetLimits(limits Limits) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = limits.withDefaults()
}

// Close ends every run with ErrClosed as its cause, kills the standby, and returns when no process is left.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	standby := p.standby
	p.standby = nil
	p.mu.Unlock()
	if standby != nil {
		standby.close()
	}
	p.work.Wait()
	p.thread.Wait()
}

// Run runs one script and returns when its process is gone. It never fails but in Outcome.Error.
func (p *Pool) Run(ctx context.Context, job Job) Outcome {
	if !p.enter() {
		return refused("cancelled", ErrClosed.Error(), "")
	}
	defer p.work.Done()
	limits := p.Limits()
	if n := job.Start.GetMemoryLimit(); n != 0 {
		limits.Memory = n
	}
	start, err := encodeStart(job.Start, limits)
	if err != nil {
		return Outcome{Error: err, Stats: &pb.ScriptStats{}}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limits.Wall, errWall)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	unhook := p.whenClosing(func() { stop(ErrClosed) })
	defer unhook()

	out, spoilt := p.once(ctx, job, start, limits, true)
	if spoilt { // the standby had died while it waited: nothing of the script ran
		out, _ = p.once(ctx, job, start, limits, false)
	}
	p.warm()
	return out
}

// once runs the job in one runner. spoilt is that of serve, and only said of a standby.
func (p *Pool) once(ctx context.Context, job Job, start []byte, limits Limits, warm bool) (out Outcome, spoilt bool) {
	var r *runner
	if warm {
		r = p.takeStandby(ctx, limits)
	}
	warm = r != nil
	if r == nil {
		var err error
		if r, err = p.start(ctx, limits); err != nil {
			return startFailed(ctx, err, limits), false
		}
	}
	out, spoilt = serve(ctx, r, job, start, limits)
	return out, spoilt && warm
}

// enter registers a piece of work that Close waits for.
func (p *Pool) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.work.Add(1)
	return true
}

// whenClosing calls f once the pool closes, until the returned function was called.
func (p *Pool) whenClosing(f func()) (unhook func()) {
	over, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-p.closing:
			f()
		case <-over:
		}
	}()
	return func() { close(over); <-gone }
}

// takeStandby gives the warm runner, also one that is nearly there; nil where there is none that was sealed for these
// limits.
func (p *Pool) takeStandby(ctx context.Context, limits Limits) *runner {
	p.mu.Lock()
	warming := p.warming
	p.mu.Unlock()
	if warming != nil {
		select {
		case <-warming:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	r := p.standby
	fits := r != nil && p.sealed.Memory == limits.Memory && p.sealed.CPU == limits.CPU && p.sealed.Depth == limits.Depth
	outdated := r != nil && !fits && p.sealed != p.limits // the limits have changed since
	if fits || outdated {
		p.standby = nil
	}
	p.mu.Unlock()
	if outdated {
		r.close()
	}
	if !fits {
		return nil
	}
	return r
}

// warm starts a standby in the background where there is none.
func (p *Pool) warm() {
	p.mu.Lock()
	need := p.standby == nil && p.warming == nil && !p.closed
	if need {
		p.warming = make(chan struct{})
		p.work.Add(1)
	}
	p.mu.Unlock()
	if need {
		go p.standBy()
	}
}

// standBy makes the standby. One that cannot be had is not missed before the next run, which then says why.
func (p *Pool) standBy() {
	defer p.work.Done()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer p.whenClosing(cancel)()
	limits := p.Limits()
	r, err := p.start(ctx, limits)
	p.mu.Lock()
	keep := err == nil && !p.closed
	if keep {
		p.standby, p.sealed = r, limits
	}
	close(p.warming)
	p.warming = nil
	p.mu.Unlock()
	if err == nil && !keep {
		r.close()
	}
}

// startLimit bounds the time from fork to READY. A start takes milliseconds; a machine that swaps takes longer.
const startLimit = 30 * time.Second

// start makes a runner and waits until it is sealed.
func (p *Pool) start(ctx context.Context, limits Limits) (*runner, error) {
	var r *runner
	var err error
	done := make(chan struct{})
	if !p.onKeeper(func() { defer close(done); r, err = spawn(p.cfg, limits) }) {
		return nil, ErrClosed
	}
	<-done
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	unhook := context.AfterFunc(ctx, r.kill)
	m, err := r.in.Read()
	unhook()
	if err == nil && m.GetReady() == nil {
		err = errors.New("runner began with something else than ready")
	}
	if err == nil {
		return r, nil
	}
	r.close()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if said := r.said(); said != "" {
		return nil, fmt.Errorf("start runner: %s", said)
	}
	return nil, fmt.Errorf("start runner: %v (%v)", err, r.cmd.ProcessState)
}

// onKeeper has f done by the thread that is the runners' parent. The kernel kills a runner when the thread that forked
// it ends, not the process, so one thread forks them all and lives as long as the pool.
func (p *Pool) onKeeper(f func()) bool {
	p.mu.Lock()
	if !p.keeper && !p.closed {
		p.keeper = true
		p.thread.Add(1)
		go p.keep()
	}
	p.mu.Unlock()
	select {
	case p.starts <- f:
		return true
	case <-p.closing:
		return false
	}
}

// keep is the keeper thread. It goes last, when no work is left, and its end would kill what had been forgotten.
func (p *Pool) keep() {
	defer p.thread.Done()
	lockThread() // never unlocked: the thread ends with the goroutine
	for {
		select {
		case f := <-p.starts:
			f()
		case <-p.closing:
			p.work.Wait()
			return
		}
	}
}

// encodeStart makes the first message to a runner, and refuses what is over its limit before any process is bothered.
func encodeStart(start *pb.RunnerStart, limits Limits) ([]byte, *pb.ScriptError) {
	sources := map[string]int{start.GetName(): len(start.GetSource())}
	for name, source := range start.GetModules() {
		sources[name] = max(sources[name], len(source))
	}
	for name, size := range sources {
		if size > limits.Source {
			return nil, &pb.ScriptError{Kind: "source", Message: fmt.Sprintf("source has %d bytes", size), Script: name,
				Limit: limitText("script.max_source_bytes", limits.Source)}
		}
	}
	frame, err := link.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Start{Start: start}}, link.ToRunner)
	if err != nil {
		return nil, &pb.ScriptError{Kind: "params", Message: "script, modules and parameters together: " + err.Error()}
	}
	return frame, nil
}
