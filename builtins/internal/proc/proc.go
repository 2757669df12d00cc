// Package proc runs child processes, and ends all that they started.
//
//	          session, cgroup, credentials
//	Spec ───► child ─┬─► stdout, limited ─┐
//	            ▲    └─► stderr, limited ─┴─► Result
//	            └── at its end, or when time is up: TERM, grace, KILL to the whole tree
//
// A command is one of two kinds. A tied one belongs to the agent: it and all that it started end with the call, or with
// the agent. Any other one belongs to the guest: it and what it started survive the agent, also while a call waits for it.
//
// The process tree of a command is a control group. Without a cgroup v2 that the agent may write it is the command's
// session, and all processes that carry its mark in the environment; a process that leaves the session and clears its
// environment escapes.
//
// Not here: what a command means, who may run it, and how its result is reported.
package proc

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Config configures a Runner. Every field is optional.
type Config struct {
	// Name is the prefix of this agent's control groups and marks; empty: quantix-kvm. Two agents on one machine need two
	// names.
	Name string
	// Cgroup is the cgroup v2 directory in which each tied command gets its group; empty: the agent's own; "none": no groups.
	Cgroup string
	// JobCgroup is that of all other commands; empty: Name-jobs at the top of the hierarchy, outside of the agent's unit, so
	// that stopping the unit does not stop them; "none": no groups.
	JobCgroup string
	// Secret returns what later agents have too, and nobody else: by it Sweep knows the commands without a control group that
	// a former one left. Nil, or while it returns nothing: it knows none.
	Secret func() []byte
	// Grace is the time between TERM and KILL; 0: 2 s.
	Grace time.Duration
	// Drain is how long output is still read after the end of the command while another process holds it open; 0: 500 ms.
	Drain time.Duration
	// MaxOutput bounds the captured bytes of each stream, whatever a Spec asks for; 0: 8 MiB.
	MaxOutput int64
	// Reexec says that main calls ChildMain before anything else. Without it there is no Spec.Confine and no Spec.Root, and
	// commands that outlive the agent write into a broken pipe.
	Reexec bool
	// Admit returns why no command may be started at present, such as while the root is frozen; nil: it may. Nil: always.
	Admit func() error
	// Spool is where output is kept that is long. The zero value: in memory.
	Spool Spool
	// Burst is called with true when many commands are run at once, and with false when no further ones have come for a
	// while. It may not block. Optional.
	Burst func(many bool)
}

// Spec is one command.
type Spec struct {
	// Argv is the program and its arguments. A program without a slash is searched in PATH of Env. Required.
	Argv []string
	// Path is the file to execute; empty: Argv[0].
	Path string
	// Dir is the working directory, inside Root; empty: "/".
	Dir string
	// Env is the whole environment; nil: LoginEnv of User.
	Env []string
	// Stdin is the standard input; nil: the null device.
	Stdin []byte
	// User is the identity to run as; nil: the agent's.
	User *User
	// Root is the root directory of the command; empty: the agent's. It needs root privileges.
	Root string
	// Confine makes the file system read-only for the command; nil: it is not. It needs root privileges.
	Confine *Confine
	// Tied ends the command, and all that it started, when the call returns or the agent dies.
	Tied bool
	// Timeout bounds the run time of the command; 0: only ctx does.
	Timeout time.Duration
	// Limits bound what the command uses.
	Limits Limits
	// MaxOutput bounds the captured bytes of each stream; 0: 1 MiB. The rest is read and dropped.
	MaxOutput int64
	// Hold is asked before output that was spooled is read into memory; size is that of all output, in bytes. Where it fails
	// the output is its first 64 KiB, and truncated. Nil: nothing is asked.
	Hold func(size int64) error
	// Owner is whose command it is, which OwnerOf returns while it runs. Optional.
	Owner string

	streamed bool            // started by Serve: it dies with the agent
	terminal *pseudoTerminal // its streams are this terminal, which becomes the controlling one; nil: it has none
}

// Confine says what a confined command may write.
type Confine struct {
	// Writable are absolute paths, inside Root, that stay writable: a directory with all that is in it; of anything else the
	// name, which need not exist, and new names in the same directory, since files are replaced by renaming.
	Writable []string
	// Inodes says what stands at paths of Writable that are resolved: the inode, 0 where nothing does. Where another object is
	// there when the mounts are made, or a link on the way, the command is not started: somebody has exchanged it. Optional.
	Inodes map[string]uint64
	// Private lets the command write below /run, /tmp and /var, and throws that away when the command has ended; nobody else
	// sees it. It goes with no Writable. Where the kernel cannot do that the command is read-only there, too.
	Private bool
}

// ErrReleased is the error of a call whose command outlives the Runner, and of every call after Release.
var ErrReleased = errors.New("the agent is stopping; the command runs on")

// Confined is the result of Runner.Confinement where Spec.Confine works.
const Confined = "mount-namespace"

// The defaults of Config and Spec.
const (
	defaultGrace     = 2 * time.Second
	defaultDrain     = 500 * time.Millisecond
	defaultMaxOutput = 8 << 20
	defaultOutput    = 1 << 20
	killWait         = 10 * time.Second // what outlives SIGKILL for that long hangs in the kernel
	tailSize         = 512
	shortWord        = 128 // bytes
)

// Runner runs commands. It is safe for concurrent use; Release ends its use.
type Runner struct {
	config Config

	mu          sync.Mutex
	released    chan struct{}
	calls       sync.WaitGroup
	openStreams map[*stream]bool  // output of commands that ended, held open by what they left running
	running     map[*child]string // with their owners
	login       login
	buffers     sync.Pool // of *[]byte of outputBuffer
	burst       burst
	platform    platform
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
		config.MaxOutput = defaultMaxOutput
	}
	r := &Runner{config: config, released: make(chan struct{}), openStreams: map[*stream]bool{}, running: map[*child]string{}}
	r.burst.report = func(many bool) {
		if !many {
			r.platform.endSpares(1)
		}
		if config.Burst != nil {
			config.Burst(many)
		}
	}
	r.platform.init(&r.config)
	return r
}

// Run runs a command and returns when it has ended. The error is a *StartError if it was not started; then the result is
// nil. It is the cause of ctx if that ended the command, and ErrReleased after Release; the result then holds what was
// captured. Any other end of a started command is no error.
func (r *Runner) Run(ctx context.Context, spec Spec) (*Result, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := r.admit(); err != nil {
		return nil, err
	}
	defer r.calls.Done()
	defer r.burst.enter()()
	if spec.Tied {
		// The kernel sends the death signal when the thread that started the child ends, not the process. While this
		// goroutine holds its thread, nothing can end that but the end of the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	var streams [2]*stream
	for i := range streams {
		s, err := newStream(r.outputLimit(spec.MaxOutput), r.config.Spool)
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
			disown := r.own(c, spec.Owner)
			result, err := r.waitAndCapture(ctx, &spec, c, begin, feed, streams)
			disown() // before another command may have its group
			r.finish(c, err != ErrReleased)
			return result, err
		}
	}
	if feed != nil {
		feed.Close()
	}
	streams[0].discard()
	streams[1].discard()
	return nil, err
}

// Spawn starts a command and does not wait for it: its streams are the null device, and it outlives the agent. Stdin, Tied,
// Timeout and MaxOutput of spec are ignored. The error is a *StartError, or ErrReleased.
func (r *Runner) Spawn(spec Spec) (pid int, err error) { return r.SpawnOn(spec, nil, nil) }

// SpawnOn is Spawn with files for stdin and stdout; nil: the null device. The caller closes the files.
func (r *Runner) SpawnOn(spec Spec, stdin, stdout *os.File) (pid int, err error) {
	if err := r.admit(); err != nil {
		return 0, err
	}
	spec.Tied = false
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		r.calls.Done()
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
		r.calls.Done()
		return 0, err
	}
	go func() { // reaps it, so that no zombie stays
		defer r.calls.Done()
		select {
		case <-c.exited:
			c.reap()
			r.removeGroup(c)
		case <-r.released:
		}
		c.close()
	}()
	return c.pid(), nil
}

// Output runs a program as the agent's user, tied, and returns its stdout. The error of a program that exits with another
// code than 0 is that of Result.Err.
func (r *Runner) Output(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	result, err := r.Run(ctx, Spec{Argv: argv, Stdin: stdin, Tied: true, MaxOutput: r.config.MaxOutput})
	if err != nil {
		return nil, err
	}
	return result.Stdout, result.Err()
}

// Release ends the use of the Runner. Calls that wait for commands that are not tied return ErrReleased; these run on, and
// another process reads their output, so that none dies of a broken pipe. Tied commands must be ended by their ctx. Release
// waits until no call is left; later calls start nothing.
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
	r.calls.Wait()
	r.platform.endSpares(0)
	var files []*os.File
	for s := range r.openStreams {
		s.read.SetReadDeadline(time.Now())
		<-s.done
		files = append(files, s.read)
	}
	var err error
	if len(files) > 0 && r.config.Reexec {
		err = r.startDrain(files)
	}
	for _, file := range files {
		file.Close()
	}
	return err
}

func (r *Runner) outputLimit(asked int64) int64 {
	if asked == 0 {
		asked = defaultOutput
	}
	return min(asked, r.config.MaxOutput)
}

// admit counts a call, which must end with calls.Done. After Release the error is ErrReleased, and else that of Config.Admit.
func (r *Runner) admit() error {
	if r.config.Admit != nil {
		if err := r.config.Admit(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.released:
		return ErrReleased
	default:
		r.calls.Add(1)
		return nil
	}
}

// waitAndCapture feeds a started command its input, and captures its output until its end.
func (r *Runner) waitAndCapture(ctx context.Context, spec *Spec, c *child, begin time.Time, feed *os.File, streams [2]*stream) (*Result, error) {
	fed := make(chan struct{})
	if feed != nil {
		go func() {
			defer close(fed)
			feed.Write(spec.Stdin) // a command need not read all of it
			feed.Close()
		}()
	}
	for _, s := range streams {
		s.start(&r.buffers)
	}
	result := &Result{}
	err := r.waitExit(ctx, spec, c, result)
	if feed != nil {
		feed.SetWriteDeadline(time.Now())
		<-fed
	}
	result.Duration = time.Since(begin)
	if err == ErrReleased {
		for _, s := range streams {
			r.stopCapture(s, 0)
		}
	} else {
		deadline := time.Now().Add(r.config.Drain)
		for _, s := range streams {
			if r.stopCapture(s, time.Until(deadline)) {
				result.LeftOpen = true
				result.Truncated = result.Truncated || time.Until(s.last) > -r.config.Drain/2
			}
		}
	}
	hold := sync.OnceValue(func() error {
		if spec.Hold == nil {
			return nil
		}
		return spec.Hold(streams[0].kept.size() + streams[1].kept.size())
	})
	for i, to := range []*[]byte{&result.Stdout, &result.Stderr} {
		all, cut := streams[i].kept.take(hold)
		*to = c.text(all)
		result.Truncated = result.Truncated || streams[i].truncated || cut
	}
	result.Tail = c.text(streams[1].tail)
	return result, err
}

// finish closes the files of a command, and is done with its group where it has ended, behind the back of whoever waits for the
// result. Release waits for it.
func (r *Runner) finish(c *child, ended bool) {
	r.calls.Add(1)
	go func() {
		defer r.calls.Done()
		if ended {
			r.leaveGroup(c)
		}
		c.close()
	}()
}

// waitExit waits for the end of a command, and ends it when its time is up or ctx ends.
func (r *Runner) waitExit(ctx context.Context, spec *Spec, c *child, result *Result) (err error) {
	var timeout <-chan time.Time
	if spec.Timeout > 0 {
		timer := time.NewTimer(spec.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	released := r.released
	if spec.Tied || spec.streamed {
		released = nil
	}
	kill := spec.Tied
	select {
	case <-c.exited:
	case <-timeout:
		result.TimedOut, result.Limit, kill = true, spec.Timeout, true
	case <-ctx.Done():
		err, kill = context.Cause(ctx), true
	case <-released:
		return ErrReleased
	}
	if kill {
		if endErr := c.terminate(r.config.Grace, killWait); endErr != nil {
			return errors.Join(err, endErr)
		}
	}
	select {
	case <-c.exited:
		result.Exceeded = !kill && c.exceeded(spec.Limits)
		result.Code, result.Signal = c.reap()
	case <-time.After(killWait):
		return errors.Join(err, fault.Wrapf(fault.ErrBusy, "process %d outlives SIGKILL", c.pid()))
	}
	return err
}

// stopCapture stops capturing a stream within a time. If another process still holds it open, that must not get SIGPIPE: the
// stream is read on and dropped, until its end or Release.
func (r *Runner) stopCapture(s *stream, within time.Duration) (open bool) {
	s.read.SetReadDeadline(time.Now().Add(within))
	<-s.done
	if s.eof {
		s.read.Close()
		return false
	}
	s.read.SetReadDeadline(time.Time{})
	s.done = make(chan struct{})
	done := s.done
	r.mu.Lock()
	r.openStreams[s] = true
	r.mu.Unlock()
	go func() {
		defer close(done)
		io.Copy(io.Discard, s.read)
		select {
		case <-r.released: // Release uses the file
		default:
			r.mu.Lock()
			defer r.mu.Unlock()
			select {
			case <-r.released:
			default:
				delete(r.openStreams, s)
				s.read.Close()
			}
		}
	}()
	return true
}

// own notes whose command a child is, until done is called.
func (r *Runner) own(c *child, owner string) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner != "" {
		r.running[c] = owner
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, c)
	}
}

// openStdin returns the file that the child reads, and the one that the agent writes; the latter is nil for the null device.
func openStdin(content []byte) (read, write *os.File, err error) {
	if content == nil {
		read, err = openNull()
	} else {
		read, write, err = inputPipe()
	}
	if err != nil {
		return nil, nil, &StartError{Stage: "process", Err: err}
	}
	return read, write, nil
}
