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

// Terminal asks for a pseudo-terminal for a command.
type Terminal struct {
	// Rows and Cols are its size; 0: 24 and 80.
	Rows, Cols uint16
}

// Serving configures the streams of a command of Serve.
type Serving struct {
	// Input lets the command read what Live.Write writes; else it reads the null device, or a terminal without input.
	Input bool
	// Terminal makes a pseudo-terminal the controlling terminal and all three streams of the command; nil: pipes.
	Terminal *Terminal
	// Started is called when the command runs, before Output. Required.
	Started func(*Live)
	// Output is called with what the command writes to descriptor 1 or 2, at most OutputPiece bytes, which it may not keep.
	// While it does not return, the command's writes block. If it returns false further output is dropped. Each descriptor
	// has its own goroutine. Required.
	Output func(fd int, data []byte) bool
}

// OutputPiece is the maximum of bytes in a call of Serving.Output: with its envelope it fits into a frame of 32,000 bytes.
const OutputPiece = 24 << 10

// maxTrailingOutput bounds the bytes that are read of a stream after the command's end: a pipe holds no more, so the rest is
// another process's.
const maxTrailingOutput = 1 << 20

// Live is a running command of Serve. Its methods are safe for concurrent use, also after the command's end.
type Live struct {
	c        *child
	terminal *pseudoTerminal // nil: none

	writeMu  sync.Mutex // one at a time
	mu       sync.Mutex
	input    *os.File // nil: none, or closed
	hadInput bool     // it was started with one
	ended    bool     // the command has ended
}

// The errors of Live.
var (
	errNoInput     = fault.Invalid("the command was started without an input")
	errClosedInput = fault.Invalid("its input is closed")
	errNoReader    = fault.Refuse("its input has no reader any more")
	errEnded       = fault.Wrapf(fs.ErrNotExist, "the command has ended")
	errNoTerminal  = fault.Invalid("the command has no terminal")
)

// Serve runs a command, passes its output on as it comes, and returns when the command has ended and all of its output was
// passed on. Processes that it leaves running live on. If ctx or Timeout ends it, all that it started ends too. It dies with
// the agent; what it started then gets SIGHUP or SIGPIPE. Stdin, Tied and MaxOutput of spec are ignored. Result and error
// are those of Run; Result.LeftOpen is set as there.
func (r *Runner) Serve(ctx context.Context, spec Spec, s Serving) (*Result, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := r.admit(); err != nil {
		return nil, err
	}
	defer r.calls.Done()
	runtime.LockOSThread() // the death signal depends on the thread, as in Run
	defer runtime.UnlockOSThread()
	spec.Tied, spec.streamed = false, true
	e, err := openStreamEnds(&spec, s)
	if err != nil {
		return nil, &StartError{Stage: "process", Err: err}
	}
	spec.terminal = e.terminal
	begin := time.Now()
	c, err := r.start(&spec, e.childFiles[0], e.childFiles[1], e.childFiles[2])
	e.closeChildFiles()
	if err != nil {
		e.closeOwnFiles()
		return nil, err
	}
	defer r.own(c, spec.Owner)()
	l := &Live{c: c, input: e.input, hadInput: e.input != nil, terminal: e.terminal}
	s.Started(l)
	for _, t := range e.outputs {
		go t.run(s.Output, r.config.Drain)
	}
	result := &Result{}
	err = r.waitExit(ctx, &spec, c, result)
	result.Duration = time.Since(begin)
	l.markEnded()
	if e.terminal != nil {
		e.terminal.hangUp()
	}
	for _, t := range e.outputs {
		t.commandEnded(r.config.Drain)
	}
	for _, t := range e.outputs {
		<-t.done
		result.LeftOpen = result.LeftOpen || t.open
		r.releaseOutput(t, e.terminal != nil)
	}
	e.closeInput()
	r.removeGroup(c)
	c.close()
	return result, err
}

// releaseOutput ends the use of an output. A pipe that is still open is read on, as after Run; a terminal is hung up.
func (r *Runner) releaseOutput(t *outputReader, terminal bool) {
	if !t.open || terminal {
		t.file.Close()
		return
	}
	r.stopCapture(&stream{read: t.file, done: t.done}, 0)
}

// outputReader reads one output stream of a command.
type outputReader struct {
	fd    int
	file  *os.File
	ended atomic.Bool // the command has
	done  chan struct{}
	open  bool // after done: another process still holds it open
}

// run reads until the end of the stream, or after the command's end until no more output comes within drain.
func (t *outputReader) run(output func(int, []byte) bool, drain time.Duration) {
	defer close(t.done)
	buf := make([]byte, OutputPiece)
	for wanted, left := true, maxTrailingOutput; left > 0; {
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

// commandEnded notifies the reader that the command has ended.
func (t *outputReader) commandEnded(drain time.Duration) {
	t.ended.Store(true)
	t.file.SetReadDeadline(time.Now().Add(drain))
}

// streamEnds are the two ends of a command's streams.
type streamEnds struct {
	childFiles [3]*os.File
	input      *os.File        // ours, nil: none; the terminal, where there is one
	terminal   *pseudoTerminal // nil: none
	outputs    []*outputReader
}

func openStreamEnds(spec *Spec, s Serving) (*streamEnds, error) {
	e := &streamEnds{}
	if s.Terminal != nil {
		t, err := openTerminal(s.Terminal, spec.User)
		if err != nil {
			return nil, err
		}
		e.terminal, e.childFiles = t, t.streams
		if s.Input {
			e.input = t.in
		}
		e.outputs = []*outputReader{{fd: 1, file: t.out, done: make(chan struct{})}}
		return e, nil
	}
	var content []byte // nil: the null device
	if s.Input {
		content = []byte{}
	}
	var err error
	if e.childFiles[0], e.input, err = openStdin(content); err != nil {
		return nil, err
	}
	for fd := 1; fd <= 2; fd++ {
		read, write, err := outputPipe()
		if err != nil {
			e.closeChildFiles()
			e.closeOwnFiles()
			return nil, err
		}
		e.childFiles[fd] = write
		e.outputs = append(e.outputs, &outputReader{fd: fd, file: read, done: make(chan struct{})})
	}
	return e, nil
}

func (e *streamEnds) closeChildFiles() {
	for _, f := range e.childFiles {
		if f != nil {
			f.Close() // a terminal is closed three times, which is harmless
		}
	}
}

func (e *streamEnds) closeInput() {
	if e.input != nil {
		e.input.Close()
	}
}

func (e *streamEnds) closeOwnFiles() {
	e.closeInput()
	if e.terminal != nil {
		e.terminal.hangUp()
	}
	for _, t := range e.outputs {
		t.file.Close()
	}
}

// PID returns the process ID.
func (l *Live) PID() int { return l.c.pid() }

// expiredDeadline returns a deadline that ends an operation at once.
func expiredDeadline() time.Time { return time.Unix(1, 0) }

// markEnded notes the end of the command, and unblocks Write.
func (l *Live) markEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.input != nil {
		l.input.SetWriteDeadline(expiredDeadline())
	}
}

// inputForWrite returns the input for a write.
func (l *Live) inputForWrite() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.hadInput:
		return nil, errNoInput
	case l.input == nil:
		return nil, errClosedInput
	case l.ended:
		return nil, errEnded
	}
	l.input.SetWriteDeadline(time.Time{})
	return l.input, nil
}

// Write writes to the command's input, and blocks until the pipe has taken all of p, ctx ends, or the command ends. n is the
// number of bytes written.
func (l *Live) Write(ctx context.Context, p []byte) (n int, err error) {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	input, err := l.inputForWrite()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		input.SetWriteDeadline(expiredDeadline())
	})
	n, err = input.Write(p)
	if !stop() {
		<-stopped // its deadline must not hit the next write
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		err = errEnded
	case isBrokenPipe(err), l.terminal != nil && errors.Is(err, syscall.EIO):
		err = errNoReader
	}
	return n, err
}

// CloseInput closes the input; another call does nothing. On a terminal it types what ends an input there, Ctrl-D or on Windows
// Ctrl-Z and Enter, and the input stays open.
func (l *Live) CloseInput(ctx context.Context) error {
	if l.terminal != nil {
		_, err := l.Write(ctx, []byte(endOfInput))
		return err
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.hadInput:
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
	if l.ended {
		return errEnded
	}
	return l.c.signal(signal)
}

// Resize sets the size of the terminal, of which the command is notified; 0 leaves rows or columns as they are.
func (l *Live) Resize(rows, cols uint16) error {
	if l.terminal == nil {
		return errNoTerminal
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errEnded
	}
	return l.terminal.resize(rows, cols)
}
