package exec

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A streamed command that outlives the agent has a supervisor as a job has. Output goes by a channel, so that a slow host
// still holds the command up:
//
//	command ──pipe──► supervisor ──channel─► agent ──window──► host
//	                      └─ the agent is gone: DIR/ID, as of any job, from the oldest output on that may not have arrived
//
// The agent ends the command with its connection. It is the end of the channel that makes a job of the command.

// keptOutput is how much of each stream a supervisor keeps, in bytes, while the agent takes it: more than the largest window
// and what is in the channel.
const keptOutput = 2 << 20

// attachedEvent is what a supervisor sends the agent: output, or the end.
type attachedEvent struct {
	FD   int
	Data []byte
	End  []byte // pb.ExecEnd
}

// attachedRequest is what the agent sends a supervisor.
type attachedRequest struct {
	Signal int    // for the process group; 0: none
	End    string // ends the command, for this reason; empty: does not
	Done   bool   // the host has received the end
}

// relay is the output of a job whose agent takes it. It is used by the goroutines of both streams and of requests.
type relay struct {
	dir  string
	from *gob.Decoder

	mu       sync.Mutex
	to       *gob.Encoder
	job      *pb.Job
	detached bool // the agent is gone
	recent   [2]recent
	spools   [2]spool
	done     chan struct{} // closed when the agent needs nothing more, or is gone
}

// recent is the end of a stream.
type recent struct {
	data  []byte
	begin uint64 // the offset of data in the stream
}

func (r *recent) write(p []byte) {
	r.data = append(r.data, p...)
	if surplus := len(r.data) - keptOutput; surplus > keptOutput/2 { // not each time: it is copied
		r.begin += uint64(surplus)
		r.data = append(r.data[:0], r.data[surplus:]...)
	}
}

func (r *relay) started(live *proc.Live, job *pb.Job, end context.CancelCauseFunc) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job, r.done = proto.CloneOf(job), make(chan struct{})
	raw, err := writeJobFile(r.dir, r.job, false)
	reply := supervisorReply{Job: raw}
	if err != nil {
		reply = errorReply(err)
	}
	if r.to.Encode(reply) != nil {
		r.detach()
	}
	go r.serve(live, end) // ends with the agent, or with the process
	return err
}

// serve does what the agent asks for, until that is gone.
func (r *relay) serve(live *proc.Live, end context.CancelCauseFunc) {
	defer close(r.done)
	for {
		var request attachedRequest
		if err := r.from.Decode(&request); err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.detach()
			return
		}
		if request.Signal != 0 {
			_ = live.Signal(syscall.Signal(request.Signal)) // it has just ended, which the agent learns
		}
		if request.End != "" {
			end(errors.New(request.End))
		}
		if request.Done {
			return
		}
	}
}

func (r *relay) write(fd int, data []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.detached {
		r.spools[fd-1].Write(data)
		return true
	}
	r.recent[fd-1].write(data)
	if r.to.Encode(attachedEvent{FD: fd, Data: data}) != nil {
		r.detach()
	}
	return true
}

// detach makes a job of the command: the agent is gone.
func (r *relay) detach() {
	if r.detached {
		return
	}
	r.detached = true
	for i, name := range []string{"stdout", "stderr"} {
		r.spools[i] = spool{dir: r.dir, name: name, total: r.recent[i].begin}
		r.spools[i].Write(r.recent[i].data)
		r.recent[i] = recent{}
	}
	r.job.Attached = false
	if _, err := writeJob(r.dir, r.job); err == nil {
		_ = reserveJob(r.dir) // without it the end is written where the disk has room
	}
}

func (r *relay) ended(job *pb.Job) {
	r.mu.Lock()
	raw, err := proto.Marshal(job.Exit)
	if !r.detached && (err != nil || r.to.Encode(attachedEvent{End: raw}) != nil) {
		r.detach()
	}
	r.mu.Unlock()
	<-r.done
	if !r.detached {
		os.RemoveAll(r.dir)
		return
	}
	for i := range r.spools {
		r.spools[i].close()
	}
	job.Attached = false
	job.StdoutBytes, job.StderrBytes = r.spools[0].total, r.spools[1].total
	writeJob(r.dir, job)
}

// attached is a command that outlives the agent, seen from there.
type attached struct {
	pid     int
	channel proc.Channel
	from    *gob.Decoder

	mu    sync.Mutex // for to
	to    *gob.Encoder
	ended bool
}

// attach starts the supervisor of a command that outlives the agent.
func (r *Room) attach(
	ctx context.Context, call *builtins.Call, spec proc.Spec, line string, in *pb.ExecStartRequest,
) (*attached, string, error) {
	job := r.jobs.newJob(call, spec, line, in.GetRunAsUser(), in.GetName())
	job.Attached = true
	dir := filepath.Join(r.jobs.dir, job.Id)
	if err := makePlace(dir); err != nil {
		return nil, "", fmt.Errorf("%w: %v", errNoPlace, err)
	}
	a, err := r.startAttached(ctx, dir, job, spec)
	if err != nil {
		os.RemoveAll(dir)
		return nil, "", err
	}
	return a, job.Id, nil
}

// makePlace makes the directory of a command, and looks whether something can be written there.
func makePlace(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return err
	}
	probe := filepath.Join(dir, "probe")
	if err = os.WriteFile(probe, make([]byte, 4<<10), 0o600); err == nil {
		err = os.Remove(probe)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return err
}

func (r *Room) startAttached(ctx context.Context, dir string, job *pb.Job, spec proc.Spec) (*attached, error) {
	request, err := r.supervisorSpec(dir, job, spec)
	if err != nil {
		return nil, err
	}
	request.Attached = true
	ours, err := r.spawnSupervisor(job.Id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), supervisorTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ours.SetDeadline(time.Now()) })
	a := &attached{channel: ours, from: gob.NewDecoder(ours), to: gob.NewEncoder(ours)}
	if err = a.to.Encode(request); err != nil {
		err = &proc.StartError{Stage: "process", Err: fault.Cause(err)}
	} else {
		err = readReply(a.from, job)
	}
	stop()
	if err != nil {
		ours.Close()
		return nil, err
	}
	a.pid = int(job.Pid)
	return a, ours.SetDeadline(time.Time{})
}

// follow passes the output on, and returns how the command ended; nil: the agent has let go of it.
func (a *attached) follow(s *streamed) *pb.ExecEnd {
	unhook := context.AfterFunc(s.ctx, func() {
		if cause := context.Cause(s.ctx); errors.Is(cause, builtins.ErrStopping) {
			a.release()
		} else {
			a.tell(attachedRequest{End: cause.Error()})
		}
	})
	defer unhook()
	for {
		var e attachedEvent
		if err := a.from.Decode(&e); err != nil {
			if errors.Is(context.Cause(s.ctx), builtins.ErrStopping) {
				return nil
			}
			return &pb.ExecEnd{ExitCode: -1, Error: fmt.Sprintf("the supervisor of the command has ended: %v", err)}
		}
		if len(e.Data) > 0 {
			s.output(e.FD, e.Data) // nobody takes it any more where that fails; the end is waited for all the same
		}
		if e.End == nil {
			continue
		}
		a.mu.Lock()
		a.ended = true
		a.mu.Unlock()
		end := &pb.ExecEnd{}
		if err := proto.Unmarshal(e.End, end); err != nil {
			end = &pb.ExecEnd{ExitCode: -1, Error: err.Error()}
		}
		return end
	}
}

// told sends the supervisor that the host has received the exit status. It then exits.
func (a *attached) told() {
	a.tell(attachedRequest{Done: true})
	a.channel.Close()
}

// release leaves the command to its supervisor.
func (a *attached) release() { a.channel.Close() }

func (a *attached) tell(request attachedRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.to.Encode(request) // a supervisor that is gone needs nothing
}

// PID returns the process ID of the command.
func (a *attached) PID() int { return a.pid }

// Signal sends a signal to the process group of the command.
func (a *attached) Signal(signal syscall.Signal) error {
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	if ended {
		return fault.Wrapf(os.ErrNotExist, "the command has ended")
	}
	a.tell(attachedRequest{Signal: int(signal)})
	return nil
}

// Resize fails: there is no terminal.
func (a *attached) Resize(uint16, uint16) error { return fault.Invalid("the command has no terminal") }

// Write fails: there is no input.
func (a *attached) Write(context.Context, []byte) (int, error) { return 0, errWithoutInput }

// CloseInput fails: there is no input.
func (a *attached) CloseInput(context.Context) error { return errWithoutInput }

var errWithoutInput = fault.Invalid("the command was started without an input")
