package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

const (
	// interruptGrace is the time between the request to stop and the kill, in which a runner reports where its script was.
	interruptGrace = 500 * time.Millisecond
	// exitGrace is the time that a runner has to exit after its connection ended.
	exitGrace = 2 * time.Second
	// smallCall is up to how many bytes a large call has one of smallPlaces, so that those which take long do not stop all
	// others. A larger one has the one place for such: of each byte the agent has about three at a time.
	smallCall, smallPlaces = 1 << 20, 2
	// collectAfter is how large a call is after which memory is collected at once.
	collectAfter = 2 << 20
	// Bounds on texts from a runner, in bytes.
	maxStep, maxMessage, maxTraceback, maxName = 1 << 10, 16 << 10, 16 << 10, 256
)

var (
	errTimeout = errors.New("the script took too long")
	errCPU     = errors.New("the script used up its processor time")
)

// run is the conversation with a runner about one job. Its fields belong to serve's goroutine, except those that mu
// guards.
type run struct {
	runner    *runner
	job       Job
	limits    Limits
	functions map[string]bool // names of builtins

	calls    int
	logLines int
	logBytes int
	steps    int
	out      Outcome
	// Where the last call came from: the position of a script whose runner dies without reporting one.
	script string
	line   uint32

	mu        sync.Mutex
	stopCause error // why the run must end
	inCall    bool  // the runner waits for a reply and does not notice an interrupt
}

// largeCalls has a place for each call that may hold much.
type largeCalls struct{ one, small chan struct{} }

func newLargeCalls() *largeCalls {
	return &largeCalls{make(chan struct{}, 1), make(chan struct{}, smallPlaces)}
}

// serve has a runner run one job, and kills it. start is the job's first message. retryable is true where the runner
// sent nothing at all, so that the job can be run by another one.
//
// large has the places for large calls of all scripts: who has sent one, or asks for a large answer, waits for one.
func serve(
	ctx context.Context, r *runner, job Job, start []byte, limits Limits, large *largeCalls,
) (out Outcome, retryable bool) {
	began := time.Now()
	s := &run{runner: r, job: job, limits: limits, functions: map[string]bool{}, script: job.Start.GetName()}
	for _, f := range job.Start.GetFunctions() {
		s.functions[f.GetName()] = true
	}
	cpu0, _ := r.cpuTime()
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() { defer close(watched); s.watch(ctx, ended, cpu0) }()

	most := int64(0)
	var held []chan struct{} // the places that it has: one that is larger than it was thought keeps that of a smaller one
	take := func(ctx context.Context, size int64) error {
		most = max(most, size)
		place := large.small
		if size > smallCall {
			place = large.one
		}
		if slices.Contains(held, place) || slices.Contains(held, large.one) {
			return nil
		}
		select {
		case place <- struct{}{}:
			held = append(held, place)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	leave := func() {
		if most >= collectAfter {
			runtime.GC() // what it held is still counted when the next one begins
		}
		for _, place := range held {
			<-place
		}
		most, held = 0, nil
	}
	defer leave()
	calls := builtins.WithLarge(ctx, take)
	r.messages.Announced = func(size int64) error { return builtins.Large(calls, size) }

	received := 0
	_, err := r.conn.Write(start)
	for done := false; err == nil && !done; {
		var m *pb.RunnerMessage
		if m, err = r.messages.Read(); err == nil {
			received++
			done, err = s.handle(calls, m)
		}
		leave()
	}
	if err != nil {
		s.out.Error = s.abnormalEnd(err)
	}
	cpu, known := r.cpuTime()
	s.out.Stats = &pb.ScriptStats{Calls: uint32(s.calls), PeakMemoryBytes: r.peakMemory()}
	close(ended)
	<-watched
	r.close()
	if !known { // it has ended, and its rusage is complete
		cpu = r.cpuUsed()
	}
	s.out.Stats.CpuMs = uint64(max(cpu-cpu0, 0).Milliseconds())
	s.out.Stats.DurationMs = uint64(time.Since(began).Milliseconds())
	return s.out, received == 0 && s.cause() == nil && err != nil
}

// watch stops the run when its context is done or its processor time is used up.
func (s *run) watch(ctx context.Context, ended <-chan struct{}, cpu0 time.Duration) {
	for {
		left := s.limits.CPU
		if used, ok := s.runner.cpuTime(); ok {
			left -= used - cpu0
		}
		if left <= 0 {
			s.stop(errCPU, ended)
			return
		}
		// A runner that was taken over may have threads, which use processor time faster than wall time passes.
		timer := time.NewTimer(max(left/2, 5*time.Millisecond))
		select {
		case <-ended:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			s.stop(context.Cause(ctx), ended)
			return
		case <-timer.C:
		}
	}
}

// stop ends the run. A runner that does not wait for a reply is first asked to stop, so that it can report where its script
// was, and killed after interruptGrace; another one is killed at once.
func (s *run) stop(cause error, ended <-chan struct{}) {
	s.mu.Lock()
	s.stopCause = cause
	inCall := s.inCall
	s.mu.Unlock()
	if !inCall {
		s.runner.interrupt()
		timer := time.NewTimer(interruptGrace)
		defer timer.Stop()
		select {
		case <-ended:
			return
		case <-timer.C:
		}
	}
	s.runner.kill()
}

// cause returns why the run was stopped; nil while it goes on.
func (s *run) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopCause
}

// protocolError is a message that no honest runner sends.
type protocolError struct{ violation string }

func (b *protocolError) Error() string {
	return "the script's process broke the protocol: " + b.violation
}

// handle processes one message. The conversation ends with done or an error.
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
		return false, &protocolError{fmt.Sprintf("unexpected %T", m)}
	}
	return false, nil
}

// call executes a builtin for the script and sends the reply.
func (s *run) call(ctx context.Context, call *pb.RunnerCall) error {
	if !s.functions[call.GetName()] || len(call.GetScript()) > maxName || s.job.Call == nil {
		return &protocolError{"call of a function that it was not given"}
	}
	s.script, s.line = call.GetScript(), call.GetLine()
	if s.calls++; s.calls > s.limits.Calls {
		return errCalls
	}
	s.mu.Lock()
	stopped := s.stopCause
	s.inCall = stopped == nil
	s.mu.Unlock()
	if stopped != nil {
		return stopped
	}
	reply := s.job.Call(ctx, call)
	s.mu.Lock()
	s.inCall = false
	if s.stopCause == nil { // the run may have ended during the call; then the script must not go on
		s.stopCause = context.Cause(ctx)
	}
	stopped = s.stopCause
	s.mu.Unlock()
	if stopped != nil {
		return stopped
	}
	_, err := s.runner.conn.Write(encodeReply(call.GetName(), reply))
	return err
}

// encodeReply encodes the reply to a call. A reply that cannot be sent becomes an error that the script can catch.
func encodeReply(name string, reply *pb.RunnerReply) []byte {
	encode := func(reply *pb.RunnerReply) ([]byte, error) {
		return framing.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Reply{Reply: reply}}, framing.MaxToRunner)
	}
	if reply == nil {
		reply = &pb.RunnerReply{}
	}
	frame, err := encode(reply)
	if err == nil {
		return frame
	}
	failed := &pb.RunnerError{Op: name, Code: "internal", Message: text.ToValidUTF8(err.Error())}
	if errors.Is(err, framing.ErrTooLarge) {
		failed.Code, failed.Message = "too_large", "the answer is too large for a script"
		failed.Hint = fmt.Sprintf("an answer has at most %d bytes and %d values", framing.MaxBytes, framing.MaxToRunner/2)
	}
	frame, err = encode(&pb.RunnerReply{Error: failed})
	if err != nil {
		panic("reply of fixed size: " + err.Error()) // nothing of it can be too large or not UTF-8
	}
	return frame
}

var errCalls = errors.New("the script calls too many builtins")

// log passes on a line of the log, within the limits.
func (s *run) log(log *pb.RunnerLog) {
	text := text.ToValidUTF8(string(log.GetMessage()))
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

// progress passes on the script's progress, at most as often as it may log.
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
	s.job.Progress(fraction, text.ToValidUTF8(text.Truncate(string(p.GetStep()), maxStep)))
}

// done processes the runner's last message.
func (s *run) done(done *pb.RunnerDone) error {
	cause := s.cause()
	if failure := done.GetError(); failure != nil {
		if cause != nil { // it can only add where the script was
			if failure.GetScript() != "" {
				s.script, s.line = text.Truncate(failure.GetScript(), maxName), failure.GetLine()
				s.out.Error = stoppedError(cause, s.limits)
				s.out.Error.Traceback = text.Truncate(text.ToValidUTF8(failure.GetTraceback()), maxTraceback)
				s.addPosition(s.out.Error)
				return nil
			}
			return cause
		}
		s.out.Error = scriptError(failure, s.limits)
		s.addPosition(s.out.Error)
		return nil
	}
	if size := proto.Size(done.GetResult()); size > s.limits.Result {
		s.out.Error = &pb.ScriptError{
			Kind: "result", Message: fmt.Sprintf("result has %d bytes", size),
			Limit: formatLimit("script.max_result_bytes", s.limits.Result), Script: s.job.Start.GetName(),
		}
		return nil
	}
	if e := s.checkDeclaration(s.job.Start.GetName(), done.GetDeclaration()); e != nil {
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
		description := Description{Declaration: d.GetDeclaration()}
		if d.GetError() != nil {
			description = Description{Error: scriptError(d.GetError(), s.limits)}
		} else if e := s.checkDeclaration(name, d.GetDeclaration()); e != nil {
			description = Description{Error: e}
		}
		s.out.Descriptions[name] = description
	}
	for _, f := range done.GetFindings() {
		s.out.Findings = append(s.out.Findings, &pb.RunnerFinding{Line: f.GetLine(), Column: f.GetColumn(), Message: text.ToValidUTF8(text.Truncate(f.GetMessage(), maxMessage))})
	}
	return nil
}

// maxDeclaration is the size limit of a declaration, in bytes: it goes into lists of scripts and into every reply.
const maxDeclaration = 64 << 10

// checkDeclaration returns an error for a declaration over maxDeclaration.
func (s *run) checkDeclaration(script string, d *pb.ScriptDeclaration) *pb.ScriptError {
	if size := proto.Size(d); size > maxDeclaration {
		return &pb.ScriptError{Kind: "syntax", Message: fmt.Sprintf("the declaration has %d bytes, more than %d", size, maxDeclaration), Script: script}
	}
	return nil
}

// abnormalEnd returns the error of a script whose conversation broke off with err.
func (s *run) abnormalEnd(err error) *pb.ScriptError {
	var violation *protocolError
	var e *pb.ScriptError
	switch cause := s.cause(); {
	case cause != nil:
		e = stoppedError(cause, s.limits)
	case errors.Is(err, errCalls):
		e = &pb.ScriptError{Kind: "calls", Message: err.Error(), Limit: formatLimit("script.max_calls", s.limits.Calls)}
	case errors.As(err, &violation):
		e = &pb.ScriptError{Kind: "sandbox", Message: err.Error()}
	case errors.Is(err, framing.ErrMalformed):
		e = &pb.ScriptError{Kind: "sandbox", Message: (&protocolError{err.Error()}).Error()}
	case s.runner.exitedWithin(exitGrace):
		e = s.exitError()
	default:
		e = &pb.ScriptError{Kind: "sandbox", Message: (&protocolError{"it hung up and went on: " + err.Error()}).Error()}
	}
	s.addPosition(e)
	return e
}

// addPosition sets the last known line of the script on an error that has none.
func (s *run) addPosition(e *pb.ScriptError) {
	if e.Script == "" {
		e.Script, e.Line = s.script, s.line
	}
}
