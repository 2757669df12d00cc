package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Pool starts runners and keeps one warm, and two while scripts come one after the other. Its methods may be called from any
// goroutine.
type Pool struct {
	cfg     Config
	closing chan struct{} // closed by Close: ends runs and the spawner thread
	spawns  chan func()   // what the spawner thread is to call
	// A runner has a place in one of these: those that run a script, one that changes the guest, which must not wait while it
	// keeps all other writers waiting, and those that only read a script, which are quick.
	runs, writes, reads chan struct{}
	large               *largeCalls // see serve
	running             sync.WaitGroup
	spawner             sync.WaitGroup

	mu       sync.Mutex
	limits   Limits
	closed   bool
	spawning bool          // the spawner thread has been started
	standbys []standby     // the oldest first
	starting int           // standbys that are being started
	started  chan struct{} // closed, and made anew, when the start of a standby has ended
	taken    time.Time     // when a standby was asked for last
	busy     bool          // that was soon after the time before: two are kept
	relax    *time.Timer   // ends busy
}

// standby is a runner that is sealed and has no job, and the limits that it was started with.
type standby struct {
	runner *runner
	limits Limits
}

// What comes in a row.
const (
	// rowGap is how soon after another a script comes in a row with it. A standby takes milliseconds to start, which those
	// that come so soon would wait for each time.
	rowGap = 100 * time.Millisecond
	// rowEnd is how long after the last one of a row a second standby is kept.
	rowEnd = time.Second
)

// New returns a pool. No process is started before the first Run.
func New(cfg Config) *Pool {
	setDefault(&cfg.Path, ownProgram())
	if cfg.Args == nil {
		cfg.Args = []string{Arg}
	}
	setDefault(&cfg.Runners, 4)
	return &Pool{
		cfg: cfg, limits: cfg.Limits.withDefaults(), closing: make(chan struct{}), spawns: make(chan func()),
		runs: make(chan struct{}, max(cfg.Runners-1, 1)), writes: make(chan struct{}, 1),
		reads: make(chan struct{}, cfg.Runners), started: make(chan struct{}), large: newLargeCalls(),
	}
}

// Limits returns the limits of each run, with the defaults filled in.
func (p *Pool) Limits() Limits {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits
}

// SetLimits changes the limits of the runs that begin from now on. Zero fields mean the default.
func (p *Pool) SetLimits(limits Limits) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = limits.withDefaults()
}

// Close cancels every run with ErrClosed as its cause, kills the standbys, and returns when no process is left. It may
// be called more than once.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	standbys := p.standbys
	p.standbys = nil
	if p.relax != nil {
		p.relax.Stop()
	}
	p.mu.Unlock()
	for _, s := range standbys {
		s.runner.close()
	}
	p.running.Wait()
	p.spawner.Wait()
}

// Run runs one script and returns when its process is gone. Whatever goes wrong is in Outcome.Error.
func (p *Pool) Run(ctx context.Context, job Job) Outcome {
	if !p.begin() {
		return refusedOutcome("cancelled", ErrClosed.Error())
	}
	defer p.running.Done()
	limits := p.Limits()
	if n := job.Start.GetMemoryLimit(); n != 0 {
		limits.Memory = n
	}
	start, err := encodeStart(job.Start, limits)
	if err != nil {
		return Outcome{Error: err, Stats: &pb.ScriptStats{}}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limits.Wall, errTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	release := p.onClose(func() { stop(ErrClosed) })
	defer release()

	places := p.runs
	if s := job.Start; s.GetDescribe() || s.GetDescribeAll() || s.GetCheck() {
		places = p.reads
	} else if job.Writer {
		places = p.writes
	}
	select {
	case places <- struct{}{}: // which it gets where there is one, even if its time has ended
	default:
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return p.crowded(ctx, limits)
		}
	}
	defer func() { <-places }()
	out, retryable := p.runOnce(ctx, job, start, limits, true)
	if retryable { // the standby was dead: nothing of the script has run
		out, _ = p.runOnce(ctx, job, start, limits, false)
	}
	p.ensureStandbys()
	return out
}

// crowded returns the outcome of a run that got no place.
func (p *Pool) crowded(ctx context.Context, limits Limits) Outcome {
	cause := context.Cause(ctx)
	if errors.Is(cause, errTimeout) || errors.Is(cause, context.DeadlineExceeded) {
		return refusedOutcome("busy", "busy: as many scripts are running as may, and none of them ended in time")
	}
	return startFailedOutcome(ctx, cause, limits)
}

// runOnce runs the job in one runner: the standby if warm is set and there is one, else a new one. retryable is true
// where the standby turned out to be dead, so that nothing of the script has run.
func (p *Pool) runOnce(ctx context.Context, job Job, start []byte, limits Limits, warm bool) (out Outcome, retryable bool) {
	var r *runner
	if warm {
		r = p.takeStandby(ctx, limits)
	}
	warm = r != nil
	if warm {
		p.ensureStandbys() // for the next run, while this one runs
	}
	if r == nil {
		var err error
		if r, err = p.start(ctx, limits); err != nil {
			return startFailedOutcome(ctx, err, limits), false
		}
	}
	out, retryable = serve(ctx, r, job, start, limits, p.large)
	return out, retryable && warm
}

// begin registers work that Close waits for, with running. It returns false when the pool is closed.
func (p *Pool) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Add(1)
	return true
}

// onClose calls f when the pool is closed, unless release was called before. release waits for f.
func (p *Pool) onClose(f func()) (release func()) {
	released, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-p.closing:
			f()
		case <-released:
		}
	}()
	return func() { close(released); <-done }
}

// takeStandby returns a standby, and waits for one that is being started; where another run takes that, it does not wait for
// the next one. It returns nil where there is none with the memory, CPU and depth limits wanted.
func (p *Pool) takeStandby(ctx context.Context, limits Limits) *runner {
	p.mu.Lock()
	p.noteRow()
	if len(p.standbys) == 0 && p.starting > 0 {
		started := p.started
		p.mu.Unlock()
		select {
		case <-started:
		case <-ctx.Done():
		}
		p.mu.Lock()
	}
	var found *runner
	var outdated []*runner
	p.standbys = slices.DeleteFunc(p.standbys, func(s standby) bool {
		switch {
		case found == nil && s.limits.Memory == limits.Memory && s.limits.CPU == limits.CPU && s.limits.Depth == limits.Depth:
			found = s.runner
		case s.limits != p.limits: // they have changed since
			outdated = append(outdated, s.runner)
		default:
			return false
		}
		return true
	})
	p.mu.Unlock()
	for _, r := range outdated {
		r.close()
	}
	return found
}

// noteRow notes that a standby is asked for, and whether scripts come in a row. p.mu is held.
func (p *Pool) noteRow() {
	now := time.Now()
	inRow := now.Sub(p.taken) < rowGap
	p.taken = now
	if !inRow || p.closed {
		return
	}
	p.busy = true
	if p.relax == nil {
		p.relax = time.AfterFunc(rowEnd, p.endRow)
	} else {
		p.relax.Reset(rowEnd)
	}
}

// endRow ends the standbys but one, since no scripts come in a row any more.
func (p *Pool) endRow() {
	if !p.begin() {
		return
	}
	defer p.running.Done()
	p.mu.Lock()
	p.busy = false
	var surplus []standby
	if len(p.standbys) > 1 {
		surplus, p.standbys = p.standbys[1:], p.standbys[:1:1]
	}
	p.mu.Unlock()
	for _, s := range surplus {
		s.runner.close()
	}
}

// wanted is how many standbys there are to be. p.mu is held.
func (p *Pool) wanted() int {
	switch {
	case p.closed:
		return 0
	case p.busy:
		return 2
	}
	return 1
}

// ensureStandbys starts standbys in the background where there are too few.
func (p *Pool) ensureStandbys() {
	p.mu.Lock()
	missing := max(p.wanted()-len(p.standbys)-p.starting, 0)
	p.starting += missing
	p.running.Add(missing)
	p.mu.Unlock()
	for range missing {
		go p.startStandby()
	}
}

// startStandby starts a standby. A failure is dropped: the next run starts a runner itself and reports why it cannot.
func (p *Pool) startStandby() {
	defer p.running.Done()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer p.onClose(cancel)()
	limits := p.Limits()
	r, err := p.start(ctx, limits)
	p.mu.Lock()
	p.starting--
	keep := err == nil && len(p.standbys) < p.wanted()
	if keep {
		p.standbys = append(p.standbys, standby{r, limits})
	}
	close(p.started)
	p.started = make(chan struct{})
	p.mu.Unlock()
	if err == nil && !keep {
		r.close()
	}
}

// startTimeout bounds the time from fork to READY. A start takes milliseconds; a machine that swaps takes longer.
const startTimeout = 30 * time.Second

// start starts a runner and waits until it is sealed.
func (p *Pool) start(ctx context.Context, limits Limits) (*runner, error) {
	var r *runner
	var err error
	done := make(chan struct{})
	if !p.onSpawner(func() { defer close(done); r, err = spawn(p.cfg, limits) }) {
		return nil, ErrClosed
	}
	<-done
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	release := context.AfterFunc(ctx, r.kill)
	m, err := r.messages.Read()
	if !release() && err == nil { // it is being killed, although it has begun
		err = context.Cause(ctx)
	}
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
	if stderr := r.stderrText(); stderr != "" {
		return nil, fmt.Errorf("start runner: %s", stderr)
	}
	return nil, fmt.Errorf("start runner: %v (%v)", err, r.cmd.ProcessState)
}

// onSpawner hands f to the spawner thread. It returns false when the pool is closed, and f is not called then. The
// kernel kills a runner when the thread that forked it ends, not the process (prctl(2), PR_SET_PDEATHSIG), so one
// thread forks them all and lives as long as the pool.
func (p *Pool) onSpawner(f func()) bool {
	p.mu.Lock()
	if !p.spawning && !p.closed {
		p.spawning = true
		p.spawner.Add(1)
		go p.runSpawner()
	}
	p.mu.Unlock()
	select {
	case p.spawns <- f:
		return true
	case <-p.closing:
		return false
	}
}

// runSpawner is the spawner thread. It ends after all runs; its end kills any runner that is left.
func (p *Pool) runSpawner() {
	defer p.spawner.Done()
	lockThread() // never unlocked: the thread ends with the goroutine
	for {
		select {
		case f := <-p.spawns:
			f()
		case <-p.closing:
			p.running.Wait()
			return
		}
	}
}

// encodeStart encodes the first message to a runner. What is over its limit is refused here, before a process is
// started.
func encodeStart(start *pb.RunnerStart, limits Limits) ([]byte, *pb.ScriptError) {
	sources := map[string]int{start.GetName(): len(start.GetSource())}
	for name, source := range start.GetModules() {
		sources[name] = max(sources[name], len(source))
	}
	for name, size := range sources {
		if size > limits.Source {
			return nil, &pb.ScriptError{Kind: "source", Message: fmt.Sprintf("source has %d bytes", size), Script: name,
				Limit: formatLimit("script.max_source_bytes", limits.Source)}
		}
	}
	frame, err := framing.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Start{Start: start}}, framing.MaxToRunner)
	if err != nil {
		return nil, &pb.ScriptError{Kind: "params", Message: "script, modules and parameters together: " + err.Error()}
	}
	return frame, nil
}
