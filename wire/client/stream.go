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
	// Outlive: where the agent ends before the command, that goes on as a job; see Stream.Job. Without Stdin and Terminal
	// alone.
	Outlive bool
}

// Stream is a command that runs in the guest, with its output as it comes:
//
//	s, err := c.Stream(ctx, client.Command{Argv: []string{"journalctl", "-f"}}, client.StreamOptions{})
//	for {
//		out, err := s.Next(ctx)      // io.EOF after the last one; then s.End returns how it ended
//	}
//
// A command whose output is not read blocks in its writes. It ends with the connection, and with Close. Next is for one
// goroutine; the other methods may be called from several.
type Stream struct {
	c      *Client
	id     string
	window uint64

	mu       sync.Mutex
	queue    []*pb.ExecOutputEvent
	buffered uint64        // bytes in queue
	wake     chan struct{} // has a token when there may be something new in queue
	end      *pb.ExecEnd
	seq      uint64 // the last that came
	err      error  // a violation of the protocol by the agent, or ErrLost
	started  bool
	job      string    // empty: the command does not outlive its agent
	returned [2]uint64 // bytes of each stream that Next returned

	consumed, acked uint64        // by Next; of that, what was acknowledged to the agent
	acks            chan uint64   // to sendAcks
	closed          chan struct{} // closed by Close
	acking          sync.WaitGroup
	closeOnce       sync.Once

	writeMu sync.Mutex
}

// inputChunk is how much input travels at a time, in bytes.
const inputChunk = 16 << 10

// streamWindow is how much output may be on its way, in bytes.
const streamWindow = 256 << 10

// Output is a piece of what a command wrote. Exactly one is not empty.
type Output struct{ Stdout, Stderr []byte }

// Stream starts a command. Of cmd, MaxOutput is not used, and Timeout may be any. The error wraps errors.ErrUnsupported
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
	s := &Stream{c: c, id: NewID(), window: streamWindow, wake: make(chan struct{}, 1), acks: make(chan uint64, 1), closed: make(chan struct{})}
	c.mu.Lock()
	if c.streams == nil {
		c.streams = map[string]*Stream{}
	}
	c.streams[s.id] = s
	c.mu.Unlock()
	reply, err := CallID[*pb.ExecStartResponse](ctx, c, s.id, &pb.ExecStartRequest{
		Command: plain.Command, Args: plain.Args, Program: program, WorkingDirectory: plain.WorkingDirectory, Environment: plain.Environment,
		RunAsUser: plain.RunAsUser, RunAsGroup: plain.RunAsGroup, IncludeSupplementaryGroups: true, TimeoutSeconds: plain.TimeoutSeconds,
		Stdin: o.Stdin, Terminal: o.Terminal, Window: streamWindow,
		Outlive: o.Outlive, Name: cmd.Name, MemoryLimitBytes: plain.MemoryLimitBytes, ProcessorLimitMs: plain.ProcessorLimitMs,
	})
	if err != nil {
		s.unregister()
		if ctx.Err() != nil {
			c.endLater(s.id)
		}
		return nil, err
	}
	s.mu.Lock()
	s.started, s.job = true, reply.GetJobId()
	s.mu.Unlock()
	s.acking.Go(s.sendAcks)
	return s, nil
}

// put queues an event and never blocks. What the agent may send is bounded by the window.
func (s *Stream) put(e *pb.ExecOutputEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	s.buffered += uint64(len(e.Stdout) + len(e.Stderr))
	switch {
	case s.err != nil || s.end != nil:
		return
	case e.Seq != s.seq:
		s.err = fmt.Errorf("output of the command is missing: event %d came after %d", e.Seq, s.seq-1)
	case s.buffered > 2*s.window:
		s.err = errors.New("the agent sends more output than it was asked for")
	default:
		s.end = e.End
		if len(e.Stdout)+len(e.Stderr) > 0 {
			s.queue = append(s.queue, e)
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// running reports whether the command was started and its end has not come.
func (s *Stream) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started && s.end == nil && s.err == nil
}

// fail ends the stream with an error, unless its end has come.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil || s.err != nil {
		return
	}
	s.err = err
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next returns the next piece of output, and io.EOF when the command has ended and all output was returned.
func (s *Stream) Next(ctx context.Context) (Output, error) {
	for {
		out, ok, err := s.next()
		if ok || err != nil {
			return out, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Output{}, context.Cause(ctx)
		case <-s.closed:
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
	case s.err != nil:
		return Output{}, false, s.err
	case s.end != nil:
		return Output{}, false, io.EOF
	default:
		return Output{}, false, nil
	}
	e := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	n := uint64(len(e.Stdout) + len(e.Stderr))
	s.buffered -= n
	s.returned[0] += uint64(len(e.Stdout))
	s.returned[1] += uint64(len(e.Stderr))
	if s.consumed += n; s.consumed-s.acked >= s.window/4 {
		s.acked = s.consumed
		select {
		case <-s.acks: // an older one
		default:
		}
		s.acks <- s.consumed
	}
	return Output{e.Stdout, e.Stderr}, true, nil
}

// sendAcks sends the agent how much output was consumed.
func (s *Stream) sendAcks() {
	ctx, stop := context.WithCancel(context.Background())
	closed := make(chan struct{})
	defer func() { stop(); <-closed }()
	go func() {
		defer close(closed)
		select {
		case <-s.closed:
			stop()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-s.closed:
			return
		case <-s.c.done:
			return
		case n := <-s.acks:
			s.input(ctx, &pb.ExecInputRequest{Consumed: n}) // where that fails the command has ended, or the connection
		}
	}
}

// Job returns the job that the command goes on as where its agent ends first, and from where on Link.Follow gives the output
// that Next did not return; an empty id: it ends with the agent.
func (s *Stream) Job() (id string, stdout, stderr uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.job, s.returned[0], s.returned[1]
}

// End returns how the command ended; nil before Next returned io.EOF.
func (s *Stream) End() *pb.ExecEnd {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 || s.err != nil {
		return nil
	}
	return s.end
}

func (s *Stream) input(ctx context.Context, request *pb.ExecInputRequest) (*pb.ExecInputResponse, error) {
	request.ExecId = s.id
	return Call[*pb.ExecInputResponse](ctx, s.c, request)
}

// Write sends input to the command and waits until that has taken it.
func (s *Stream) Write(ctx context.Context, p []byte) (n int, err error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	for len(p) > 0 {
		piece := p[:min(len(p), inputChunk)]
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
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
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

// Terminate ends the command with all that it started: TERM, a while later KILL. Next returns what it still writes, and its
// end.
func (s *Stream) Terminate(ctx context.Context) error {
	_, err := s.input(ctx, &pb.ExecInputRequest{End: true})
	return err
}

// Close ends the use of the stream, and the command if it still runs, without waiting for that.
func (s *Stream) Close() {
	s.closeOnce.Do(func() {
		s.unregister()
		s.mu.Lock()
		runs := s.end == nil
		s.mu.Unlock()
		close(s.closed)
		s.acking.Wait()
		if runs {
			s.c.endLater(s.id)
		}
	})
}

func (s *Stream) unregister() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.streams, s.id)
}

// endLater asks the agent to end a command, when the channel takes that.
func (c *Client) endLater(id string) { c.sendLater(&pb.ExecInputRequest{ExecId: id, End: true}) }

// RunStream runs a command and calls take with its output as it comes; take may block, which blocks the command's writes.
// started is called once, with the stream, before that. When ctx ends first
// the command is ended in the guest, and its end is awaited for at most wait. The error is that of a command that was not
// started, of take, or of the connection.
func (c *Client) RunStream(ctx context.Context, cmd Command, o StreamOptions, wait time.Duration, started func(*Stream), take func(Output) error) (*pb.ExecEnd, error) {
	s, err := c.Stream(ctx, cmd, o)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	started(s)
	waiting, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	ended := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(ended)
		limited, cancel := context.WithTimeout(waiting, wait)
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
