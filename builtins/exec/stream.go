package exec

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Output flows as fast as the host takes it:
//
//	command ──pipe──► output ──window──► exec_output ──► host
//	                    ▲                                 │ exec_input: consumed
//	                    └──────────── room ◄──────────────┘
//
// At most a window of bytes is on its way. Then nobody reads the pipe, and the command waits.

// The bounds of a started command.
const (
	defaultWindow = 256 << 10
	leastWindow   = 32 << 10 // a piece and some more
	mostWindow    = 1 << 20
	maxStreams    = 64  // at a time
	maxExecID     = 128 // bytes: the id stands in each piece, whose frame is small
	// sendAgain is the pause before an event is sent again that found the lane full.
	sendAgain = 10 * time.Millisecond
	// stopPatience is how long an agent that stops waits for commands to end and their last output to be taken.
	stopPatience = 4 * time.Second
)

// The causes of a command's end that is brought about.
var (
	errHostLeft = errors.New("the host has left")
	errEnded    = fault.Wrapf(context.Canceled, "cancelled by the host")
)

// streamKey names a started command: only the connection that started it knows it.
type streamKey struct{ port, session, id string }

// streams are the commands that run with their output sent. The zero value is ready.
type streams struct {
	mu      sync.Mutex
	running map[streamKey]*streamed
	stopped bool
	work    sync.WaitGroup
}

// streamed is one of them.
type streamed struct {
	key    streamKey
	event  func(*pb.ExecOutputEvent) bool
	ctx    context.Context // ends the command
	end    context.CancelCauseFunc
	gone   context.Context // ends when nobody takes output any more
	leave  context.CancelFunc
	window uint64

	outlives bool    // the agent, as a job
	job      *pb.Job // what is listed of one that has a name; else nil

	started chan struct{} // closed when live is set
	live    live
	done    chan struct{} // closed when all is over, also where nothing was started

	mu             sync.Mutex
	room           sync.Cond // for output
	sent, consumed uint64
	sending        sync.Mutex // keeps seq and the order of events together
	seq            uint64
}

// live is a command that runs; see proc.Live.
type live interface {
	PID() int
	Signal(syscall.Signal) error
	Resize(rows, cols uint16) error
	Write(ctx context.Context, p []byte) (int, error)
	CloseInput(ctx context.Context) error
}

// execStart is the native operation.
func (r *Room) execStart(ctx context.Context, call *builtins.Call, in *pb.ExecStartRequest) (*pb.ExecStartResponse, error) {
	if err := checkJobName(in.GetName()); err != nil {
		return nil, err
	}
	if in.GetDetach() {
		return r.detach(ctx, call, in)
	}
	if call.Event == nil {
		return nil, fault.Unsupported("nobody would hear the output")
	}
	if call.ID == "" || len(call.ID) > maxExecID {
		return nil, fault.Invalid("the message id, which names the command, has 1 to %d bytes", maxExecID)
	}
	spec, err := r.streamSpec(in)
	if err != nil {
		return nil, onStart(err)
	}
	spec.Owner = call.Port
	s := newStreamed(call, in.GetWindow())
	s.job = r.named(call, spec, in)
	if err := r.streams.enter(s); err != nil {
		return nil, err
	}
	if in.GetOutlive() && !in.GetStdin() && in.GetTerminal() == nil && r.jobs.kept() && r.config.Commands.Reexec {
		reply, err := r.startOutliving(ctx, call, s, spec, in)
		if !errors.Is(err, errNoPlace) {
			return reply, err
		} // a host that repairs a guest whose disk is full, or read-only, needs commands
	}
	after := r.watchFreezes(call)
	failed := make(chan error, 1)
	go func() {
		defer r.streams.leave(s)
		serving := proc.Serving{Input: in.GetStdin(), Output: s.output, Started: func(l *proc.Live) { s.live = l; close(s.started) }}
		if t := in.GetTerminal(); t != nil {
			serving.Terminal = &proc.Terminal{Rows: uint16(t.GetRows()), Cols: uint16(t.GetCols())}
		}
		result, err := r.guest.Runner.Serve(s.ctx, spec, serving)
		if result == nil {
			after()
			failed <- err
			return
		}
		after()
		s.send(&pb.ExecOutputEvent{End: ended(result, err)})
	}()
	select {
	case err := <-failed:
		return nil, onStart(err)
	case <-s.started:
	}
	if err := context.Cause(ctx); err != nil { // who asked has taken it back
		s.end(err)
	}
	return &pb.ExecStartResponse{ExecId: call.ID, Pid: uint32(s.live.PID()), Window: uint32(s.window)}, nil
}

// errNoPlace is why a command cannot outlive the agent that could run otherwise: what is known of it, and its output, would be
// nowhere.
var errNoPlace = errors.New("the directory of jobs cannot be written")

// startOutliving starts a command that outlives the agent. The error is errNoPlace where it can only be started as another one.
func (r *Room) startOutliving(
	ctx context.Context, call *builtins.Call, s *streamed, spec proc.Spec, in *pb.ExecStartRequest,
) (*pb.ExecStartResponse, error) {
	after := r.watchFreezes(call)
	command, job, err := r.attach(ctx, call, spec, commandLine(in, spec), in)
	if errors.Is(err, errNoPlace) {
		after()
		return nil, err
	}
	if err != nil {
		after()
		r.streams.leave(s)
		return nil, onStart(err)
	}
	s.outlives, s.live = true, command
	close(s.started)
	go func() {
		defer r.streams.leave(s)
		end := command.follow(s)
		after()
		switch {
		case end == nil:
		case s.send(&pb.ExecOutputEvent{End: end}) || !errors.Is(context.Cause(s.ctx), builtins.ErrStopping):
			command.told()
		default: // the host asks the next agent
			command.release()
		}
	}()
	if err := context.Cause(ctx); err != nil { // who asked has taken it back
		s.end(err)
	}
	return &pb.ExecStartResponse{ExecId: call.ID, Pid: uint32(command.PID()), Window: uint32(s.window), JobId: job}, nil
}

// streamSpec makes a command of a request.
func (r *Room) streamSpec(in *pb.ExecStartRequest) (proc.Spec, error) {
	env := in.GetEnvironment()
	if t := in.GetTerminal(); t != nil {
		if t.GetRows() > math.MaxUint16 || t.GetCols() > math.MaxUint16 {
			return proc.Spec{}, fault.Invalid("a terminal of %d rows and %d columns", t.GetRows(), t.GetCols())
		}
		if _, given := env["TERM"]; !given {
			with := map[string]string{"TERM": t.GetTerm()}
			if t.GetTerm() == "" {
				with["TERM"] = "xterm"
			}
			for name, value := range env {
				with[name] = value
			}
			env = with
		}
	}
	spec, err := r.nativeSpec(&pb.ExecuteRequest{
		Command: in.GetCommand(), Args: in.GetArgs(), WorkingDirectory: in.GetWorkingDirectory(), Environment: env,
		RunAsUser: in.GetRunAsUser(), RunAsGroup: in.GetRunAsGroup(), IncludeSupplementaryGroups: in.GetIncludeSupplementaryGroups(),
		MemoryLimitBytes: in.GetMemoryLimitBytes(), ProcessorLimitMs: in.GetProcessorLimitMs(),
	})
	spec.Argv = nativeArgv(in) // what a policy was asked about
	spec.Timeout = time.Duration(in.GetTimeoutSeconds()) * time.Second
	return spec, err
}

// onlyFeeds reports whether an exec_input only carries input, a window size or an acknowledgement of output: it neither sends a signal
// nor ends the input.
func onlyFeeds(in proto.Message) bool {
	input := in.(*pb.ExecInputRequest)
	return input.GetSignal() == "" && !input.GetEnd()
}

// ended reports how a command ended. cause is why it was ended before its time; nil for none.
func ended(result *proc.Result, cause error) *pb.ExecEnd {
	end := &pb.ExecEnd{
		ExitCode: int32(result.Code), Signal: uint32(result.Signal), TimedOut: result.TimedOut,
		DurationMs: uint64(result.Duration.Milliseconds()), LeftOpen: result.LeftOpen,
	}
	switch {
	case cause != nil:
		end.Error = cause.Error() + ": " + result.How()
		if end.ExitCode == 0 { // it exited in peace, but did not do its work, or does not die
			end.ExitCode = -1
		}
	case result.TimedOut || result.Signal != 0 || result.Exceeded:
		end.Error = result.How()
	}
	return end
}

func newStreamed(call *builtins.Call, window uint32) *streamed {
	if window == 0 {
		window = defaultWindow
	}
	s := &streamed{
		key:     streamKey{call.Port, call.Session, call.ID},
		event:   func(e *pb.ExecOutputEvent) bool { return call.Event(e) },
		window:  uint64(min(max(window, leastWindow), mostWindow)),
		started: make(chan struct{}), done: make(chan struct{}),
	}
	s.room.L = &s.mu
	s.ctx, s.end = context.WithCancelCause(context.Background())
	s.gone, s.leave = context.WithCancel(context.Background())
	context.AfterFunc(s.gone, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.room.Broadcast()
	})
	return s
}

// output sends what the command wrote, as far as there is room for it. False: nobody takes it any more.
func (s *streamed) output(fd int, data []byte) bool {
	for len(data) > 0 {
		n := s.reserve(len(data))
		if n == 0 {
			return false
		}
		e := &pb.ExecOutputEvent{Stdout: data[:n]}
		if fd == 2 {
			e = &pb.ExecOutputEvent{Stderr: data[:n]}
		}
		if !s.send(e) {
			return false
		}
		data = data[n:]
	}
	return true
}

// reserve waits for room and takes some of it, n bytes at most; 0: nobody takes output any more.
func (s *streamed) reserve(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.sent-s.consumed >= s.window && s.gone.Err() == nil {
		s.room.Wait()
	}
	if s.gone.Err() != nil {
		return 0
	}
	n = min(n, int(s.window-(s.sent-s.consumed)))
	s.sent += uint64(n)
	return n
}

// took notes what the host is done with.
func (s *streamed) took(consumed uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if consumed > s.sent {
		return fault.Invalid("%d bytes of output were consumed, but %d were sent", consumed, s.sent)
	}
	if consumed > s.consumed { // requests may overtake each other
		s.consumed = consumed
		s.room.Broadcast()
	}
	return nil
}

// send queues an event. Where replies of others fill the lane it tries again. False: nobody hears it.
func (s *streamed) send(e *pb.ExecOutputEvent) bool {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.seq++
	e.ExecId, e.Seq = s.key.id, s.seq
	for !s.event(e) {
		select {
		case <-s.gone.Done():
			return false
		case <-time.After(sendAgain):
		}
	}
	return true
}

// execInput is the native operation.
func (r *Room) execInput(ctx context.Context, call *builtins.Call, in *pb.ExecInputRequest) (*pb.ExecInputResponse, error) {
	if in.GetJobId() != "" {
		return &pb.ExecInputResponse{}, fault.On("job "+in.GetJobId(), r.signalJob(call, in))
	}
	s := r.streams.get(streamKey{call.Port, call.Session, in.GetExecId()})
	if s == nil {
		return nil, fault.On("command "+in.GetExecId(), fault.Wrapf(fs.ErrNotExist, "none of that id runs on this connection"))
	}
	select {
	case <-s.started:
	case <-s.done:
		return nil, fault.On("command "+in.GetExecId(), fault.Wrapf(fs.ErrNotExist, "it was not started"))
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	taken, err := s.input(ctx, in)
	if err != nil {
		return nil, fault.On("command "+in.GetExecId(), err)
	}
	return &pb.ExecInputResponse{Taken: uint64(taken)}, nil
}

// input does what a request says, what waits for nothing first.
func (s *streamed) input(ctx context.Context, in *pb.ExecInputRequest) (taken int, err error) {
	if err := s.took(in.GetConsumed()); err != nil {
		return 0, err
	}
	if in.GetRows() > math.MaxUint16 || in.GetCols() > math.MaxUint16 {
		return 0, fault.Invalid("a terminal of %d rows and %d columns", in.GetRows(), in.GetCols())
	}
	if in.GetRows()+in.GetCols() > 0 {
		if err := s.live.Resize(uint16(in.GetRows()), uint16(in.GetCols())); err != nil {
			return 0, err
		}
	}
	signal, err := signalOf(in)
	if err != nil {
		return 0, err
	}
	if signal != 0 {
		if err := s.live.Signal(signal); err != nil {
			return 0, err
		}
	}
	if in.GetEnd() {
		s.end(errEnded)
	}
	if len(in.GetData()) > 0 {
		if taken, err = s.live.Write(ctx, in.GetData()); err != nil {
			if taken > 0 {
				err = fault.Wrapf(err, "%v, after %d bytes", err, taken)
			}
			return taken, err
		}
	}
	if in.GetCloseStdin() {
		err = s.live.CloseInput(ctx)
	}
	return taken, err
}

// signalOf gives the signal that a request names; 0: it names none.
func signalOf(in *pb.ExecInputRequest) (syscall.Signal, error) {
	if in.GetSignal() == "" {
		return 0, nil
	}
	signal := signalNumber("SIG" + strings.TrimPrefix(strings.ToUpper(in.GetSignal()), "SIG"))
	if signal == 0 {
		return 0, fault.Invalid("no signal is called %q", in.GetSignal())
	}
	return signal, nil
}

// inputOrder keeps input in order. What is no input must not wait after it: the command may not read.
func inputOrder(request proto.Message) string {
	in := request.(*pb.ExecInputRequest)
	if len(in.GetData()) == 0 && !in.GetCloseStdin() {
		return ""
	}
	return "exec " + in.GetExecId()
}

// enter takes a command into the list.
func (l *streams) enter(s *streamed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped:
		return builtins.ErrStopping
	case l.running[s.key] != nil:
		return fault.Invalid("a command of the id %s runs already", s.key.id)
	case len(l.running) >= maxStreams:
		return fault.Wrapf(fault.ErrBusy, "%d commands are running with their output sent", maxStreams)
	}
	if l.running == nil {
		l.running = map[streamKey]*streamed{}
	}
	l.running[s.key] = s
	l.work.Add(1)
	return nil
}

// leave takes one out that is over.
func (l *streams) leave(s *streamed) {
	l.mu.Lock()
	delete(l.running, s.key)
	l.mu.Unlock()
	s.end(nil)
	s.leave()
	close(s.done)
	l.work.Done()
}

func (l *streams) get(key streamKey) *streamed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running[key]
}

// sessionClosed ends those of a connection. It does not wait for that.
func (l *streams) sessionClosed(port, session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range l.running {
		if key.port == port && key.session == session {
			s.end(errHostLeft)
			s.leave()
		}
	}
}

// stop ends all, but for those that outlive the agent, and waits for that.
func (l *streams) stop() {
	l.mu.Lock()
	l.stopped = true
	var all []*streamed
	for _, s := range l.running {
		s.end(builtins.ErrStopping)
		if s.outlives {
			s.leave()
		}
		all = append(all, s)
	}
	l.mu.Unlock()
	timer := time.AfterFunc(stopPatience, func() {
		for _, s := range all {
			s.leave()
		}
	})
	defer timer.Stop()
	l.work.Wait()
}
