package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// StreamOptions are all optional.
type StreamOptions struct {
	// Stdin: the command reads what Write brings. Otherwise it has no input.
	Stdin bool
	// Terminal is one for the command; nil: none.
	Terminal *pb.Terminal
}

// Stream is a command that runs in the guest, with its output as it comes:
//
//	s, err := c.Stream(ctx, client.Command{Argv: []string{"journalctl", "-f"}}, client.StreamOptions{})
//	for {
//		out, err := s.Next(ctx)      // io.EOF behind the last one: then s.End tells how it ended
//	}
//
// A command whose output is not taken waits. It ends with the connection, and with Close. Next is for one goroutine; the other
// methods may be called from several.
type Stream struct {
	c      *Client
	id     string
	window uint64

	mu      sync.Mutex
	queue   []*pb.ExecOutputEvent
	held    uint64        // bytes in queue
	more    chan struct{} // has a token when there may be something new in queue
	end     *pb.ExecEnd
	seq     uint64 // the last that came
	broken  error  // what the agent did that it must not, or that it forgot the command
	started bool

	taken, told uint64        // by Next; what the agent knows of that
	acks        chan uint64   // to the goroutine that tells
	over        chan struct{} // closed by Close
	telling     sync.WaitGroup
	once        sync.Once

	writing sync.Mutex
}

// inputPiece is how much input travels at a time, in bytes.
const inputPiece = 16 << 10

// streamWindow is how much output may be on its way, in bytes.
const streamWindow = 256 << 10

// Output is a piece of what a command wrote. Exactly one is not empty.
type Output struct{ Stdout, Stderr []byte }

// Stream starts a command. Of cmd, MaxOutput has no meaning, and Timeout may be any. The error wraps errors.ErrUnsupported
// where the agent knows no such commands.
func (c *Client) Stream(ctx context.Context, cmd Command, o StreamOptions) (*Stream, error) {
	plain, err := cmd.request(true)
	if err != nil {
		return nil, err
	}
	program := len(cmd.Argv) > 0
	if program {
		plain.Command = cmd.Argv[0] // here a lone program needs no shell
	}
	s := &Stream{c: c, id: NewID(), window: streamWindow, more: make(chan struct{}, 1), acks: make(chan uint64, 1), over: make(chan struct{})}
	c.mu.Lock()
	if c.streams == nil {
		c.streams = map[string]*Stream{}
	}
	c.streams[s.id] = s
	c.mu.Unlock()
	_, err = CallID[*pb.ExecStartResponse](ctx, c, s.id, &pb.ExecStartRequest{
		Command: plain.Command, Args: plain.Args, Program: program, WorkingDirectory: plain.WorkingDirectory, Environment: plain.Environment,
		RunAsUser: plain.RunAsUser, RunAsGroup: plain.RunAsGroup, IncludeSupplementaryGroups: true, TimeoutSeconds: plain.TimeoutSeconds,
		Stdin: o.Stdin, Terminal: o.Terminal, Window: streamWindow,
	})
	if err != nil {
		s.forget()
		if ctx.Err() != nil {
			c.endLater(s.id)
		}
		return nil, err
	}
	s.mu.Lock()
	s.started = true
	s.mu.Unlock()
	s.telling.Go(s.tell)
	return s, nil
}

// put takes an event; it never waits. What the agent sends is bounded by the window.
func (s *Stream) put(e *pb.ExecOutputEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	s.held += uint64(len(e.Stdout) + len(e.Stderr))
	switch {
	case s.broken != nil || s.end != nil:
		return
	case e.Seq != s.seq:
		s.broken = fmt.Errorf("output of the command is missing: event %d came after %d", e.Seq, s.seq-1)
	case s.held > 2*s.window:
		s.broken = errors.New("the agent sends more output than it was asked for")
	default:
		s.end = e.End
		if len(e.Stdout)+len(e.Stderr) > 0 {
			s.queue = append(s.queue, e)
		}
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// lives says that its command was started and that its end has not come.
func (s *Stream) lives() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started && s.end == nil && s.broken == nil
}

// fail ends the waiting for output that will not come.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil || s.broken != nil {
		return
	}
	s.broken = err
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// Next gives the next piece of output, io.EOF when the command has ended and all was given.
func (s *Stream) Next(ctx context.Context) (Output, error) {
	for {
		out, ok, err := s.next()
		if ok || err != nil {
			return out, err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return Output{}, context.Cause(ctx)
		case <-s.over:
			return Output{}, io.ErrClosedPipe
		case <-s.c.done:
			if out, ok, err := s.next(); ok || err != nil { // it may have come last
				return out, err
			}
			return Output{}, s.c.cause()
		}
	}
}

func (s *Stream) next() (Output, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.queue) > 0:
	case s.broken != nil:
		return Output{}, false, s.broken
	case s.end != nil:
		return Output{}, false, io.EOF
	default:
		return Output{}, false, nil
	}
	e := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	n := uint64(len(e.Stdout) + len(e.Stderr))
	s.held -= n
	if s.taken += n; s.taken-s.told >= s.window/4 {
		s.told = s.taken
		select {
		case <-s.acks: // an older one
		default:
		}
		s.acks <- s.taken
	}
	return Output{e.Stdout, e.Stderr}, true, nil
}

// tell tells the agent what was taken.
func (s *Stream) tell() {
	ctx, stop := context.WithCancel(context.Background())
	closed := make(chan struct{})
	defer func() { stop(); <-closed }()
	go func() {
		defer close(closed)
		select {
		case <-s.over:
			stop()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-s.over:
			return
		case <-s.c.done:
			return
		case n := <-s.acks:
			s.input(ctx, &pb.ExecInputRequest{Consumed: n}) // where that fails the command has ended, or the connection
		}
	}
}

// End tells how the command ended; nil before Next gave io.EOF.
func (s *Stream) End() *pb.ExecEnd {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 || s.broken != nil {
		return nil
	}
	return s.end
}

func (s *Stream) input(ctx context.Context, request *pb.ExecInputRequest) (*pb.ExecInputResponse, error) {
	request.ExecId = s.id
	return Call[*pb.ExecInputResponse](ctx, s.c, request)
}

// Write gives the command input and waits until it has taken it.
func (s *Stream) Write(ctx context.Context, p []byte) (n int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for len(p) > 0 {
		piece := p[:min(len(p), inputPiece)]
		if _, err := s.input(ctx, &pb.ExecInputRequest{Data: piece}); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

// CloseInput ends the command's input; on a terminal it types Ctrl-D.
func (s *Stream) CloseInput(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err := s.input(ctx, &pb.ExecInputRequest{CloseStdin: true})
	return err
}

// Signal sends a signal, such as "INT", to the command's process group.
func (s *Stream) Signal(ctx context.Context, name string) error {
	_, err := s.input(ctx, &pb.ExecInputRequest{Signal: name})
	return err
}

// Resize sets the size of the command's terminal.
func (s *Stream) Resize(ctx context.Context, rows, cols uint32) error {
	_, err := s.input(ctx, &pb.ExecInputRequest{Rows: rows, Cols: cols})
	return err
}

// Terminate ends the command with all that it started: TERM, a while later KILL. Next gives what it still writes, and its end.
func (s *Stream) Terminate(ctx context.Context) error {
	_, err := s.input(ctx, &pb.ExecInputRequest{End: true})
	return err
}

// Close ends the use of the stream, and the command if it still runs, without waiting for that.
func (s *Stream) Close() {
	s.once.Do(func() {
		s.forget()
		s.mu.Lock()
		runs := s.end == nil
		s.mu.Unlock()
		close(s.over)
		s.telling.Wait()
		if runs {
			s.c.endLater(s.id)
		}
	})
}

func (s *Stream) forget() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.streams, s.id)
}

// endLater asks the agent to end a command, when the channel takes that.
func (c *Client) endLater(id string) { c.sendLater(&pb.ExecInputRequest{ExecId: id, End: true}) }

// RunLive runs a command and gives its output as it comes; take may block, which holds the command up. When ctx ends first
// the command is ended in the guest, and its end is awaited for at most patience. The error is that of a command that was not
// started, of take, or of the connection.
func (c *Client) RunLive(ctx context.Context, cmd Command, o StreamOptions, patience time.Duration, begun func(*Stream), take func(Output) error) (*pb.ExecEnd, error) {
	s, err := c.Stream(ctx, cmd, o)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	begun(s)
	waiting, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	ended := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(ended)
		limited, cancel := context.WithTimeout(waiting, patience)
		defer cancel()
		if s.Terminate(limited) == nil {
			<-limited.Done() // also when the caller has seen the end
		}
		stop(context.Cause(ctx))
	})
	defer func() {
		stop(nil)
		if !unhook() {
			<-ended
		}
	}()
	for {
		out, err := s.Next(waiting)
		if err == io.EOF {
			return s.End(), nil
		}
		if err == nil {
			err = take(out)
		}
		if err != nil {
			return nil, err
		}
	}
}
