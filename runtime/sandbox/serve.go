package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/link"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// stopGrace is the time that a runner has to say where its script was when it is stopped, before it is killed.
	stopGrace = 500 * time.Millisecond
	// deathGrace is the time between the end of a runner's connection and its own.
	deathGrace = 2 * time.Second
	// Bounds on texts of a runner, in bytes.
	maxStep, maxMessage, maxTraceback, maxName = 1 << 10, 16 << 10, 16 << 10, 256
)

var (
	errWall = errors.New("the script took too long")
	errCPU  = errors.New("the script used up its processor time")
)

// run is one conversation with a runner. Its fields belong to serve's goroutine, but for what mu guards.
type run struct {
	r      *runner
	job    Job
	limits Limits
	known  map[string]bool // names of builtins

	calls    int
	logLines int
	logBytes int
	steps    int
	out      Outcome
	// Where the last call came from: what is known of a script that dies without a word.
	script string
	line   uint32

	mu      sync.Mutex
	stopped error // why the run must end
	inCall  bool  // the runner waits for a reply and cannot be asked
}

// serve has one runner run one job, and kills it. spoilt says that the runner never got the job, or never said a word
// about it. start is the job's first message.
func serve(ctx context.Context, r *runner, job Job, start []byte, limits Limits) (out Outcome, spoilt bool) {
	began := time.Now()
	s := &run{r: r, job: job, limits: limits, known: map[string]bool{}, script: job.Start.GetName()}
	for _, f := range job.Start.GetFunctions() {
		s.known[f.GetName()] = true
	}
	cpu0, _ := r.cpu()
	over, gone := make(chan struct{}), make(chan struct{})
	go func() { defer close(gone); s.watch(ctx, over, cpu0) }()

	words := 0
	_, err := r.conn.Write(start)
	for done := false; err == nil && !done; {
		var m *pb.RunnerMessage
		if m, err = r.in.Read(); err == nil {
			words++
			done, err = s.handle(ctx, m)
		}
	}
	if err != nil {
		s.out.Error = s.failed(err)
	}
	cpu, known := r.cpu()
	s.out.Stats = &pb.ScriptStats{Calls: uint32(s.calls), PeakMemoryBytes: r.peak()}
	close(over)
	<-gone
	r.close()
	if !known { // it is dead, and its rusage is complete
		cpu = r.used()
	}
	s.out.Stats.CpuMs = uint64(max(cpu-cpu0, 0).Milliseconds())
	s.out.Stats.DurationMs = uint64(time.Since(began).Milliseconds())
	return s.out, words == 0 && s.why() == nil && err != nil
}

// watch stops the run when its time or its processor time is over.
func (s *run) watch(ctx context.Context, over <-chan struct{}, cpu0 time.Duration) {
	for {
		left := s.limits.CPU
		if used, ok := s.r.cpu(); ok {
			left -= used - cpu0
		}
		if left <= 0 {
			s.stop(errCPU, over)
			return
		}
		// A runner that was taken over may have threads, which use it up faster than time goes.
		timer := time.NewTimer(max(left/2, 5*time.Millisecond))
		select {
		case <-over:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			s.stop(context.Cause(ctx), over)
			return
		case <-timer.C:
		}
	}
}

// stop ends the run: softly where the runner can still say where it is, and then for certain.
func (s *run) stop(why error, over <-chan struct{}) {
	s.mu.Lock()
	s.stopped = why
	waits := s.inCall
	s.mu.Unlock()
	if !waits {
		s.r.interrupt()
		timer := time.NewTimer(stopGrace)
		defer timer.Stop()
		select {
		case <-over:
			return
		case <-timer.C:
		}
	}
	s.r.kill()
}

// why is the reason that the run was stopped for; nil while it goes on.
func (s *run) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// broken is what a runner said that an honest one never says.
type broken struct{ what string }

func (b *broken) Error() string { return "the script's process broke the protocol: " + b.what }

// handle takes one message. The conversation ends with done or an error.
func (s *run) handle(ctx context.Context, m *pb.RunnerMessage) (done bool, err error) {
	switch m := m.Kind.(type) {
	case *pb.RunnerMessage_Call:
		return false, s.call(ctx, m.Call)
	case *pb.RunnerMessage_Log:
		s.log(m.Log)
	case *pb.RunnerMessage_Progress:
		s.progress(m.Progress)
	case *pb.RunnerMessage_Done:
		return true, s.done(m.Done)
	default:
		return false, &broken{fmt.Sprintf("unexpected %T", m)}
	}
	return false, nil
}

// call has a builtin done.
func (s *run) call(ctx context.Context, call *pb.RunnerCall) error {
	if !s.known[call.GetName()] || len(call.GetScript()) > maxName || s.job.Call == nil {
		return &broken{"call of a function that it was not given"}
	}
	s.script, s.line = call.GetScript(), call.GetLine()
	if s.calls++; s.calls > s.limits.Calls {
		return errCalls
	}
	s.mu.Lock()
	stopped := s.stopped
	s.inCall = stopped == nil
	s.mu.Unlock()
	if stopped != nil {
		return stopped
	}
	reply := s.job.Call(ctx, call)
	s.mu.Lock()
	s.inCall = false
	if s.stopped == nil { // the end may have come in the call; then the script is not to go on
		s.stopped = context.Cause(ctx)
	}
	stopped = s.stopped
	s.mu.Unlock()
	if stopped != nil {
		return stopped
	}
	_, err := s.r.conn.Write(encodeReply(call.GetName(), reply))
	return err
}

// encodeReply makes the answer to a call; one that cannot be sent becomes an error that the script can catch.
func encodeReply(name string, reply *pb.RunnerReply) []byte {
	encode := func(reply *pb.RunnerReply) ([]byte, error) {
		return link.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Reply{Reply: reply}}, link.ToRunner)
	}
	if reply == nil {
		reply = &pb.RunnerReply{}
	}
	frame, err := encode(reply)
	if err == nil {
		return frame
	}
	failed := &pb.RunnerError{Op: name, Code: "internal", Message: printable(err.Error())}
	if errors.Is(err, link.ErrTooLarge) {
		failed.Code, failed.Message = "too_large", "the answer is too large for a script"
		failed.Hint = fmt.Sprintf("an answer has at most %d bytes and %d values", link.MaxBytes, link.ToRunner/2)
	}
	frame, err = encode(&pb.RunnerReply{Error: failed})
	if err != nil {
		panic("reply of fixed size: " + err.Error()) // nothing of it can be too large or not UTF-8
	}
	return frame
}

var errCalls = errors.New("the script calls too many builtins")

// log passes a line on, within the limits.
func (s *run) log(log *pb.RunnerLog) {
	text := printable(string(log.GetMessage()))
	if s.logLines++; s.logLines > s.limits.LogLines || s.logBytes+len(text) > s.limits.LogBytes {
		s.out.LogDropped++
		return
	}
	s.logBytes += len(text)
	level := log.GetLevel()
	switch level {
	case "debug", "info", "warn", "error":
	default:
		level = "info"
	}
	if s.job.Log != nil {
		s.job.Log(&pb.LogLine{At: timestamppb.Now(), Level: level, Message: text})
	}
}

// progress passes on what the script says of itself, as often as it may log.
func (s *run) progress(p *pb.RunnerProgress) {
	if s.steps++; s.steps > s.limits.LogLines || s.job.Progress == nil {
		return
	}
	fraction := p.Fraction
	if fraction != nil {
		f := min(max(*fraction, 0), 1)
		if math.IsNaN(f) {
			f = 0
		}
		fraction = &f
	}
	s.job.Progress(fraction, printable(cut(string(p.GetStep()), maxStep)))
}

// done takes the runner's last word.
func (s *run) done(done *pb.RunnerDone) error {
	why := s.why()
	if failure := done.GetError(); failure != nil {
		if why != nil { // where it was is all that it can add
			if failure.GetScript() != "" {
				s.script, s.line = cut(failure.GetScript(), maxName), failure.GetLine()
				s.out.Error = stoppedError(why, s.limits)
				s.out.Error.Traceback = cut(printable(failure.GetTraceback()), maxTraceback)
				s.place(s.out.Error)
				return nil
			}
			return why
		}
		s.out.Error = scriptError(failure, s.limits)
		s.place(s.out.Error)
		return nil
	}
	if size := proto.Size(done.GetResult()); size > s.limits.Result {
		s.out.Error = &pb.ScriptError{
			Kind: "result", Message: fmt.Sprintf("result has %d bytes", size),
			Limit: limitText("script.max_result_bytes", s.limits.Result), Script: s.job.Start.GetName(),
		}
		return nil
	}
	if e := s.tooLong(s.job.Start.GetName(), done.GetDeclaration()); e != nil {
		s.out.Error = e
		return nil
	}
	s.out.Result, s.out.Declaration = done.GetResult(), done.GetDeclaration()
	for name := range s.job.Start.GetModules() {
		d := done.GetDescriptions()[name]
		if d == nil || !s.job.Start.GetDescribeAll() {
			continue
		}
		if s.out.Descriptions == nil {
			s.out.Descriptions = map[string]Description{}
		}
		told := Description{Declaration: d.GetDeclaration()}
		if d.GetError() != nil {
			told = Description{Error: scriptError(d.GetError(), s.limits)}
		} else if e := s.tooLong(name, d.GetDeclaration()); e != nil {
			told = Description{Error: e}
		}
		s.out.Descriptions[name] = told
	}
	for _, f := range done.GetFindings() {
		s.out.Findings = append(s.out.Findings, &pb.RunnerFinding{Line: f.GetLine(), Column: f.GetColumn(), Message: printable(cut(f.GetMessage(), maxMessage))})
	}
	return nil
}

// mostDeclared is how many bytes a declaration may have: they go into lists of scripts and into every reply.
const mostDeclared = 64 << 10

// tooLong refuses a declaration over that.
func (s *run) tooLong(script string, d *pb.ScriptDeclaration) *pb.ScriptError {
	if size := proto.Size(d); size > mostDeclared {
		return &pb.ScriptError{Kind: "syntax", Message: fmt.Sprintf("the declaration has %d bytes, more than %d", size, mostDeclared), Script: script}
	}
	return nil
}

// failed names the end of a conversation that did not come to its own end.
func (s *run) failed(err error) *pb.ScriptError {
	var lie *broken
	var e *pb.ScriptError
	switch why := s.why(); {
	case why != nil:
		e = stoppedError(why, s.limits)
	case errors.Is(err, errCalls):
		e = &pb.ScriptError{Kind: "calls", Message: err.Error(), Limit: limitText("script.max_calls", s.limits.Calls)}
	case errors.As(err, &lie):
		e = &pb.ScriptError{Kind: "sandbox", Message: err.Error()}
	case errors.Is(err, link.ErrMalformed):
		e = &pb.ScriptError{Kind: "sandbox", Message: (&broken{err.Error()}).Error()}
	case s.r.gone(deathGrace):
		e = s.death()
	default:
		e = &pb.ScriptError{Kind: "sandbox", Message: (&broken{"it hung up and went on: " + err.Error()}).Error()}
	}
	s.place(e)
	return e
}

// place puts the last known place of the script on an error that has none.
func (s *run) place(e *pb.ScriptError) {
	if e.Script == "" {
		e.Script, e.Line = s.script, s.line
	}
}
