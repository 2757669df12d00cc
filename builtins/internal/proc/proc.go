// Package proc runs a child process really to its end.
//
//	          session, cgroup, credentials
//	Spec ───► child ─┬─► stdout ─► capped ─┐
//	            ▲    └─► stderr ─► capped ─┴─► Result
//	            └── at its end, or when time is up: TERM, grace, KILL to the whole tree
//
// A command is one of two kinds. A tied one belongs to the agent: it and all that it started end with the call, and at
// the latest with the agent. Any other one belongs to the guest: what it leaves running lives on, and it survives the
// agent, also while somebody waits for it.
//
// The tree of a command is a control group of its own. Where there is no cgroup v2 that the agent may write, it is the
// session of the command and whatever carries its mark in the environment; a process that leaves the session and
// clears its environment is then lost sight of.
//
// Not here: what a command means, who may run it, and how its result is told.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Config says how a Runner works. The zero value works.
type Config struct {
	// Name is what control groups and marks of this agent begin with; empty: quantix-kvm. Two agents on one machine
	// need two names.
	Name string
	// Cgroup is the cgroup v2 directory under which tied commands get theirs; empty: the agent's own; "none": none.
	Cgroup string
	// JobCgroup is the cgroup v2 directory for commands that are not tied; empty: Name-jobs at the top of the
	// hierarchy, which is outside of the agent's unit, so that stopping the unit does not stop them; "none": none.
	JobCgroup string
	// Grace is the time between TERM and KILL; 0: 2 s.
	Grace time.Duration
	// Drain is how long output is still read after the command ended while something it started holds it open;
	// 0: 500 ms.
	Drain time.Duration
	// MaxOutput bounds what is kept of each stream whatever a Spec asks for; 0: 8 MiB.
	MaxOutput int64
	// Reexec says that main calls ChildMain before anything else. Without it there is no confinement, no root
	// directory, and nobody who reads the output of commands that outlive the agent.
	Reexec bool
}

// Spec is one command.
type Spec struct {
	// Argv is the program and its arguments. A program without a slash is looked for in PATH of Env.
	Argv []string
	// Path is the file to run where Argv[0] is no more than its name; empty: Argv[0] says it.
	Path string
	// Dir is where it starts, inside Root; empty: "/".
	Dir string
	// Env is its whole environment; nil: LoginEnv of User.
	Env []string
	// Stdin is what it reads; nil: the null device.
	Stdin []byte
	// User is who it runs as; nil: as the agent.
	User *User
	// Root is a directory that is "/" for the command; empty: the agent's own. It needs root.
	Root string
	// Confine makes the file system read-only for the command; nil: it is as for the agent. It needs root.
	Confine *Confine
	// Tied makes the command end, with all that it started, when the call returns or the agent dies.
	Tied bool
	// Timeout bounds the time until the command ends; 0: only ctx does.
	Timeout time.Duration
	// MaxOutput bounds what is kept of each stream, in bytes; 0: 1 MiB. The rest is read and dropped.
	MaxOutput int64

	served   bool // by Serve: it ends with the agent
	terminal bool // its streams are a terminal, which becomes its controlling one
}

// Confine is what a confined command may write.
type Confine struct {
	// Writable are absolute paths, inside Root, that stay writable: a tree where it is a directory; else the name,
	// there or not, with new names beside it, since files are replaced by renaming.
	Writable []string
}

// Result is what a command did.
type Result struct {
	// Code is the exit code; 128+n where signal n ended it, as a shell says it.
	Code int
	// Signal is what ended it; 0 where it exited.
	Signal syscall.Signal
	// Stdout and Stderr are the beginnings of what it wrote.
	Stdout, Stderr []byte
	// Tail is the last of what it wrote to stderr, at most 512 bytes, also beyond the bound.
	Tail []byte
	// Truncated says that output is missing: beyond the bound, or still to come from what the command left running.
	Truncated bool
	// TimedOut says that Timeout ended it.
	TimedOut bool
	// Duration is the time from the start to the end of the command.
	Duration time.Duration
}

// StartError says why nothing was started.
type StartError struct {
	// Stage is what could not be had: "program", "directory", "user", "confinement" or "process".
	Stage string
	// Object is its name.
	Object string
	// Err is the cause.
	Err error
}

// Error names stage, object and cause.
func (e *StartError) Error() string {
	if e.Object == "" {
		return e.Stage + ": " + e.Err.Error()
	}
	return e.Stage + " " + e.Object + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *StartError) Unwrap() error { return e.Err }

// ErrReleased is the error of a command that outlives its Runner.
var ErrReleased = errors.New("the agent is stopping; the command runs on")

// Confined is what Runner.Confinement says where Spec.Confine works.
const Confined = "mount-namespace"

// The defaults of Config and Spec.
const (
	defaultGrace  = 2 * time.Second
	defaultDrain  = 500 * time.Millisecond
	defaultHard   = 8 << 20
	defaultOutput = 1 << 20
	killWait      = 10 * time.Second // what outlives SIGKILL for that long hangs in the kernel
	tailSize      = 512
)

// Runner runs commands. It is safe for concurrent use; Release ends its use.
type Runner struct {
	config Config

	mu       sync.Mutex
	released chan struct{}
	going    sync.WaitGroup
	left     map[*stream]bool // output of commands that ended, held open by what they left running
	system   runnerSystem
}

// New makes a Runner. It starts nothing.
func New(config Config) *Runner {
	if config.Name == "" {
		config.Name = "quantix-kvm"
	}
	if config.Grace == 0 {
		config.Grace = defaultGrace
	}
	if config.Drain == 0 {
		config.Drain = defaultDrain
	}
	if config.MaxOutput == 0 {
		config.MaxOutput = defaultHard
	}
	r := &Runner{config: config, released: make(chan struct{}), left: map[*stream]bool{}}
	r.system.init(&r.config)
	return r
}

// Run runs a command and returns when it ended. The error is a *StartError where it was not started. It is the cause
// of ctx where that ended it, and ErrReleased where the Runner went first; the result then holds what was captured. Any
// other end of a started command is a result alone.
func (r *Runner) Run(ctx context.Context, spec Spec) (*Result, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !r.enter() {
		return nil, ErrReleased
	}
	defer r.going.Done()
	if spec.Tied {
		// The kernel sends the death signal when the thread that started the child ends, not the process. While this
		// goroutine holds its thread, nothing can end that but the end of the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	var streams [2]*stream
	for i := range streams {
		s, err := newStream(r.bound(spec.MaxOutput))
		if err != nil {
			if i > 0 {
				streams[0].discard()
			}
			return nil, &StartError{Stage: "process", Err: err}
		}
		streams[i] = s
	}
	stdin, feed, err := openStdin(spec.Stdin)
	if err == nil {
		var c *child
		begin := time.Now()
		c, err = r.start(&spec, stdin, streams[0].write, streams[1].write)
		stdin.Close()
		if err == nil {
			return r.follow(ctx, &spec, c, begin, feed, streams)
		}
	}
	if feed != nil {
		feed.Close()
	}
	streams[0].discard()
	streams[1].discard()
	return nil, err
}

// Spawn starts a command and leaves it to itself: it reads and writes the null device, and outlives the agent. Of Spec,
// Stdin, Tied, Timeout and MaxOutput have no meaning. The error is a *StartError.
func (r *Runner) Spawn(spec Spec) (pid int, err error) { return r.SpawnOn(spec, nil, nil) }

// SpawnOn is Spawn of a command that reads stdin and writes stdout; nil: the null device. The files stay the caller's.
func (r *Runner) SpawnOn(spec Spec, stdin, stdout *os.File) (pid int, err error) {
	if !r.enter() {
		return 0, ErrReleased
	}
	spec.Tied = false
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		r.going.Done()
		return 0, &StartError{Stage: "process", Err: err}
	}
	defer null.Close()
	if stdin == nil {
		stdin = null
	}
	if stdout == nil {
		stdout = null
	}
	c, err := r.start(&spec, stdin, stdout, null)
	if err != nil {
		r.going.Done()
		return 0, err
	}
	go func() { // takes note of its death, so that no zombie stays
		defer r.going.Done()
		select {
		case <-c.exited:
			c.reap()
			r.forget(c)
		case <-r.released:
		}
		c.close()
	}()
	return c.pid(), nil
}

// Output runs a tool of the system as the agent, tied, and gives what it wrote to stdout. A non-zero exit is an error as
// of Result.Err.
func (r *Runner) Output(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	result, err := r.Run(ctx, Spec{Argv: argv, Stdin: stdin, Tied: true, MaxOutput: r.config.MaxOutput})
	if err != nil {
		return nil, err
	}
	return result.Stdout, result.Err()
}

// Release lets go of everything that does not end with the agent: calls that wait for such commands return ErrReleased,
// and a process that reads on what they write takes the agent's place, so that nothing dies of a broken pipe. Tied
// commands are not touched: end them by their ctx. Release waits until no call is left, and no later call starts anything.
func (r *Runner) Release() error {
	r.mu.Lock()
	select {
	case <-r.released:
		r.mu.Unlock()
		return nil
	default:
	}
	close(r.released)
	r.mu.Unlock()
	r.going.Wait()
	var files []*os.File
	for s := range r.left {
		s.read.SetReadDeadline(time.Now())
		<-s.done
		files = append(files, s.read)
	}
	var err error
	if len(files) > 0 && r.config.Reexec {
		err = r.drainElsewhere(files)
	}
	for _, file := range files {
		file.Close()
	}
	return err
}

// Err is nil for exit code 0, else an error of cause fault.ErrOutput (context.DeadlineExceeded where time was up) that
// says how the command ended and what it last wrote to stderr.
func (res *Result) Err() error {
	words := res.How()
	if tail := trimmed(res.Tail); tail != "" {
		words += ": " + tail
	}
	switch {
	case res.TimedOut:
		return fault.Wrapf(context.DeadlineExceeded, "%s", words)
	case res.Code != 0:
		return fault.Wrapf(fault.ErrOutput, "%s", words)
	}
	return nil
}

// How says in words how the command ended.
func (res *Result) How() string {
	end := fmt.Sprintf("exit code %d", res.Code)
	if res.Signal != 0 {
		end = fmt.Sprintf("ended by signal %d (%s)", int(res.Signal), res.Signal)
	}
	if res.TimedOut {
		return fmt.Sprintf("timed out after %s, then %s", res.Duration.Round(time.Millisecond), end)
	}
	return end
}

func (r *Runner) bound(asked int64) int64 {
	if asked == 0 {
		asked = defaultOutput
	}
	return min(asked, r.config.MaxOutput)
}

// enter counts a call in; false after Release.
func (r *Runner) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.released:
		return false
	default:
		r.going.Add(1)
		return true
	}
}

// follow stays with a started command until its end.
func (r *Runner) follow(ctx context.Context, spec *Spec, c *child, begin time.Time, feed *os.File, streams [2]*stream) (*Result, error) {
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if feed != nil {
			feed.Write(spec.Stdin) // a command need not read all of it
			feed.Close()
		}
	}()
	for _, s := range streams {
		s.start()
	}
	result := &Result{}
	err := r.await(ctx, spec, c, result)
	if feed != nil {
		feed.SetWriteDeadline(time.Now())
	}
	<-fed
	result.Duration = time.Since(begin)
	if err == ErrReleased {
		for _, s := range streams {
			r.leave(s, 0)
		}
	} else {
		deadline := time.Now().Add(r.config.Drain)
		for _, s := range streams {
			if r.leave(s, time.Until(deadline)) {
				result.Truncated = true
			}
		}
		r.forget(c)
	}
	c.close()
	result.Stdout, result.Stderr, result.Tail = streams[0].head, streams[1].head, streams[1].tail
	for _, s := range streams {
		result.Truncated = result.Truncated || s.over
	}
	return result, err
}

// await waits for the end of a command, and brings it about where its time is up.
func (r *Runner) await(ctx context.Context, spec *Spec, c *child, result *Result) (err error) {
	var timeout <-chan time.Time
	if spec.Timeout > 0 {
		timer := time.NewTimer(spec.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	released := r.released
	if spec.Tied || spec.served {
		released = nil
	}
	kill := spec.Tied
	select {
	case <-c.exited:
	case <-timeout:
		result.TimedOut, kill = true, true
	case <-ctx.Done():
		err, kill = context.Cause(ctx), true
	case <-released:
		return ErrReleased
	}
	if kill {
		if endErr := c.end(r.config.Grace, killWait); endErr != nil {
			return errors.Join(err, endErr)
		}
	}
	select {
	case <-c.exited:
		result.Code, result.Signal = c.reap()
	case <-time.After(killWait):
		return errors.Join(err, fault.Wrapf(fault.ErrBusy, "process %d outlives SIGKILL", c.pid()))
	}
	return err
}

// leave stops capturing a stream within a time. Where it is still open then, whoever holds it must not be hit by a broken
// pipe: it is read on and dropped, until its end or Release.
func (r *Runner) leave(s *stream, within time.Duration) (open bool) {
	s.read.SetReadDeadline(time.Now().Add(within))
	<-s.done
	if s.ended {
		s.read.Close()
		return false
	}
	s.read.SetReadDeadline(time.Time{})
	s.done = make(chan struct{})
	done := s.done
	r.mu.Lock()
	r.left[s] = true
	r.mu.Unlock()
	go func() {
		defer close(done)
		io.Copy(io.Discard, s.read)
		select {
		case <-r.released: // Release has it
		default:
			r.mu.Lock()
			defer r.mu.Unlock()
			select {
			case <-r.released:
			default:
				delete(r.left, s)
				s.read.Close()
			}
		}
	}()
	return true
}

// openStdin gives what the child reads, and where the agent writes that; the latter nil for the null device.
func openStdin(content []byte) (read, write *os.File, err error) {
	if content == nil {
		read, err = os.Open(os.DevNull)
	} else {
		read, write, err = os.Pipe()
	}
	if err != nil {
		return nil, nil, &StartError{Stage: "process", Err: err}
	}
	return read, write, nil
}
