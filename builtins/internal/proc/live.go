package proc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Terminal asks for one of its own for a command.
type Terminal struct {
	// Rows and Cols are its size; 0: 24 and 80.
	Rows, Cols uint16
}

// Serving says what a command that is served while it runs has instead of a Result's Stdout and Stderr.
type Serving struct {
	// Input lets the command read what Live.Write brings; else it reads the null device, or a terminal where nobody types.
	Input bool
	// Terminal is the command's controlling terminal and all three of its streams; nil: none.
	Terminal *Terminal
	// Started is told when the command runs, and before Output. Required.
	Started func(*Live)
	// Output is given what the command writes to its descriptor 1 or 2, at most OutputPiece bytes, which it may not keep. As
	// long as it does not return the command is held up. False: nobody wants more. It is called from a goroutine for each
	// descriptor. Required.
	Output func(fd int, data []byte) bool
}

// OutputPiece is the most that Serving.Output is given at once, in bytes: with its envelope it fits a frame of 32,000.
const OutputPiece = 24 << 10

// lastOutput bounds what is read of a stream after the command's end, in bytes: more than a pipe can hold is what something
// else writes.
const lastOutput = 1 << 20

// Live is a running command of Serve. Its methods may be called from several goroutines, also after the command's end.
type Live struct {
	c        *child
	terminal *os.File // the master; nil: none

	writing sync.Mutex // one at a time
	mu      sync.Mutex
	input   *os.File // nil: none, or closed
	had     bool     // there was one
	over    bool     // the command has ended
}

// What an input cannot do.
var (
	errNoInput     = fault.Invalid("the command was started without an input")
	errClosedInput = fault.Invalid("its input is closed")
	errNoReader    = fault.Refuse("nobody reads its input any more")
	errOver        = fault.Wrapf(fs.ErrNotExist, "the command has ended")
	errNoTerminal  = fault.Invalid("the command has no terminal")
)

// Serve runs a command whose output goes out as it comes, and returns when it has ended and all it wrote was taken. What it
// leaves running lives on; where ctx, Timeout or the death of the agent ends it, all it started ends too, but for the last
// case, where that is up to SIGHUP and the broken pipes. Of Spec, Stdin, Tied and MaxOutput have no meaning. Result and error
// are as of Run; Result.Truncated says that something still holds its output open.
func (r *Runner) Serve(ctx context.Context, spec Spec, s Serving) (*Result, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !r.enter() {
		return nil, ErrReleased
	}
	defer r.going.Done()
	runtime.LockOSThread() // the death signal is that of the thread, as in Run
	defer runtime.UnlockOSThread()
	spec.Tied, spec.served, spec.terminal = false, true, s.Terminal != nil
	e, err := openEnds(&spec, s)
	if err != nil {
		return nil, &StartError{Stage: "process", Err: err}
	}
	begin := time.Now()
	c, err := r.start(&spec, e.theirs[0], e.theirs[1], e.theirs[2])
	e.closeTheirs()
	if err != nil {
		e.closeOurs()
		return nil, err
	}
	l := &Live{c: c, input: e.input, had: e.input != nil, terminal: e.terminal}
	s.Started(l)
	for _, t := range e.taps {
		go t.run(s.Output, r.config.Drain)
	}
	result := &Result{}
	err = r.await(ctx, &spec, c, result)
	result.Duration = time.Since(begin)
	l.end()
	for _, t := range e.taps {
		t.finish(r.config.Drain)
	}
	for _, t := range e.taps {
		<-t.done
		result.Truncated = result.Truncated || t.open
		r.let(t, e.terminal != nil)
	}
	e.closeInput()
	r.forget(c)
	c.close()
	return result, err
}

// let ends the use of an output. A pipe that is held open is read on, as after Run; a terminal is hung up.
func (r *Runner) let(t *tap, terminal bool) {
	if !t.open || terminal {
		t.file.Close()
		return
	}
	r.leave(&stream{read: t.file, done: t.done}, 0)
}

// tap is one output of a command.
type tap struct {
	fd    int
	file  *os.File
	ended atomic.Bool // the command has
	done  chan struct{}
	open  bool // after done: somebody still writes
}

// run takes what comes until the end of the stream, or until nothing comes any more after the command's end.
func (t *tap) run(output func(int, []byte) bool, drain time.Duration) {
	defer close(t.done)
	buf := make([]byte, OutputPiece)
	for wanted, left := true, lastOutput; left > 0; {
		if t.ended.Load() {
			t.file.SetReadDeadline(time.Now().Add(drain))
		}
		n, err := t.file.Read(buf)
		if n > 0 && wanted {
			wanted = output(t.fd, buf[:n])
		}
		if t.ended.Load() {
			left -= n
		}
		if err != nil {
			t.open = errors.Is(err, os.ErrDeadlineExceeded)
			return
		}
	}
	t.open = true
}

// finish says that the command has ended.
func (t *tap) finish(drain time.Duration) {
	t.ended.Store(true)
	t.file.SetReadDeadline(time.Now().Add(drain))
}

// ends are the two sides of a command's streams.
type ends struct {
	theirs   [3]*os.File
	input    *os.File // ours, nil: none; the terminal, where there is one
	terminal *os.File
	taps     []*tap
}

func openEnds(spec *Spec, s Serving) (*ends, error) {
	e := &ends{}
	if s.Terminal != nil {
		master, slave, err := openTerminal(s.Terminal, spec.User)
		if err != nil {
			return nil, err
		}
		e.terminal, e.theirs = master, [3]*os.File{slave, slave, slave}
		if s.Input {
			e.input = master
		}
		e.taps = []*tap{{fd: 1, file: master, done: make(chan struct{})}}
		return e, nil
	}
	var content []byte // nil: the null device
	if s.Input {
		content = []byte{}
	}
	var err error
	if e.theirs[0], e.input, err = openStdin(content); err != nil {
		return nil, err
	}
	for fd := 1; fd <= 2; fd++ {
		read, write, err := os.Pipe()
		if err != nil {
			e.closeTheirs()
			e.closeOurs()
			return nil, err
		}
		e.theirs[fd] = write
		e.taps = append(e.taps, &tap{fd: fd, file: read, done: make(chan struct{})})
	}
	return e, nil
}

func (e *ends) closeTheirs() {
	for _, f := range e.theirs {
		if f != nil {
			f.Close() // the second time it is the same terminal, which does no harm
		}
	}
}

func (e *ends) closeInput() {
	if e.input != nil {
		e.input.Close()
	}
}

func (e *ends) closeOurs() {
	e.closeInput()
	for _, t := range e.taps {
		t.file.Close()
	}
}

// PID is the number of the process.
func (l *Live) PID() int { return l.c.pid() }

// past is a deadline for what is to end now.
func past() time.Time { return time.Unix(1, 0) }

// end unblocks whoever writes: the command has ended.
func (l *Live) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.input != nil {
		l.input.SetWriteDeadline(past())
	}
}

// open gives the input for a write.
func (l *Live) open() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.had:
		return nil, errNoInput
	case l.input == nil:
		return nil, errClosedInput
	case l.over:
		return nil, errOver
	}
	l.input.SetWriteDeadline(time.Time{})
	return l.input, nil
}

// Write gives the command input, and waits until it has taken it, ctx ends, or the command does. n is what it was given.
func (l *Live) Write(ctx context.Context, p []byte) (n int, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	input, err := l.open()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		input.SetWriteDeadline(past())
	})
	n, err = input.Write(p)
	if !stop() {
		<-stopped // it must not hit the next one
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		err = errOver
	case errors.Is(err, syscall.EPIPE), l.terminal != nil && errors.Is(err, syscall.EIO):
		err = errNoReader
	}
	return n, err
}

// endOfInput is what Ctrl-D types.
const endOfInput = 4

// CloseInput ends the input. Closing it twice does no harm. On a terminal it types Ctrl-D, and the input stays open.
func (l *Live) CloseInput(ctx context.Context) error {
	if l.terminal != nil {
		_, err := l.Write(ctx, []byte{endOfInput})
		return err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.had:
		return errNoInput
	case l.input == nil:
		return nil
	}
	err := l.input.Close()
	l.input = nil
	return err
}

// Signal sends a signal to the process group of the command.
func (l *Live) Signal(signal syscall.Signal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errOver
	}
	return l.c.signal(signal)
}

// Resize sets the size of the terminal, of which the command is told; 0 stays as it was.
func (l *Live) Resize(rows, cols uint16) error {
	if l.terminal == nil {
		return errNoTerminal
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errOver
	}
	return resizeTerminal(l.terminal, rows, cols)
}
