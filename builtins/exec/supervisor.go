package exec

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// supervisorArg is the hidden first argument of this program for a supervisor.
const supervisorArg = "exec-job"

// supervisorSpec is what a supervisor reads from its standard input.
type supervisorSpec struct {
	Dir       string
	Job       []byte // pb.Job
	Argv      []string
	WorkDir   string
	Env       []string
	Root      string
	User      *proc.User
	Timeout   time.Duration
	Limits    proc.Limits
	Name      string
	JobCgroup string
	Grace     time.Duration
	// Attached: the output goes to the agent by the channel, as long as that lives.
	Attached bool
}

// supervisorReply is what a supervisor writes to its standard output, once.
type supervisorReply struct {
	Job                       []byte // pb.Job; empty: nothing was started
	Stage, Object, Text, Code string
}

// startSupervisor starts the supervisor of a job, and updates job from its reply.
func (r *Room) startSupervisor(ctx context.Context, dir string, job *pb.Job, spec proc.Spec) error {
	request, err := r.supervisorSpec(dir, job, spec)
	if err != nil {
		return err
	}
	channel, err := r.spawnSupervisor(job.Id)
	if err != nil {
		return err
	}
	defer channel.Close()
	stop := context.AfterFunc(ctx, func() { channel.SetDeadline(time.Now()) })
	defer stop()
	if err := gob.NewEncoder(channel).Encode(request); err != nil {
		return &proc.StartError{Stage: "process", Err: fault.Cause(err)}
	}
	return readReply(gob.NewDecoder(channel), job)
}

// supervisorSpec returns the input of a job's supervisor.
func (r *Room) supervisorSpec(dir string, job *pb.Job, spec proc.Spec) (supervisorSpec, error) {
	if !r.config.Commands.Reexec {
		return supervisorSpec{}, fault.Unsupported("this program does not execute itself")
	}
	raw, err := proto.Marshal(job)
	return supervisorSpec{Dir: dir, Job: raw, Argv: spec.Argv, WorkDir: spec.Dir, Env: spec.Env, Root: spec.Root, User: spec.User,
		Timeout: spec.Timeout, Limits: spec.Limits, Name: r.config.Commands.Name,
		JobCgroup: r.config.Commands.JobCgroup, Grace: r.config.Commands.Grace}, err
}

// spawnSupervisor starts the process of a supervisor, and returns the channel to it.
func (r *Room) spawnSupervisor(id string) (proc.Channel, error) {
	path, err := selfPath()
	if err != nil {
		return nil, err
	}
	channel, stdin, stdout, err := proc.NewChannel()
	if err != nil {
		return nil, err
	}
	_, err = r.guest.Runner.SpawnOn(proc.Spec{Path: path, Argv: []string{os.Args[0], supervisorArg, id},
		Env: append(supervisorEnv(), "GOMAXPROCS=1", "GOTRACEBACK=none")}, stdin, stdout)
	stdin.Close()
	stdout.Close()
	if err != nil {
		channel.Close()
		return nil, err
	}
	return channel, nil
}

// readReply takes the reply of a supervisor, with which it updates job.
func readReply(from *gob.Decoder, job *pb.Job) error {
	var reply supervisorReply
	if err := from.Decode(&reply); err != nil {
		return &proc.StartError{Stage: "process", Err: fmt.Errorf("no reply from the job's supervisor: %w", fault.Cause(err))}
	}
	if len(reply.Job) > 0 {
		return proto.Unmarshal(reply.Job, job)
	}
	cause := fault.FromDetail(&pb.ErrorDetail{Code: reply.Code, Message: reply.Text})
	if reply.Stage == "" {
		return cause
	}
	return &proc.StartError{Stage: reply.Stage, Object: reply.Object, Err: cause}
}

// jobMain is the main function of the supervisor. It returns false if this process is none.
func jobMain() bool {
	if len(os.Args) < 2 || os.Args[1] != supervisorArg {
		return false
	}
	ignoreBrokenPipe() // the agent may be gone before the reply
	var spec supervisorSpec
	from := gob.NewDecoder(os.Stdin)
	if err := from.Decode(&spec); err != nil {
		return true
	}
	to := gob.NewEncoder(os.Stdout)
	var out output = &spools{stdout: spool{dir: spec.Dir, name: "stdout"}, stderr: spool{dir: spec.Dir, name: "stderr"}, reply: to}
	if spec.Attached {
		out = &relay{dir: spec.Dir, from: from, to: to}
	} else {
		os.Stdin.Close()
	}
	if err := spec.supervise(out); err != nil {
		to.Encode(errorReply(err))
	}
	return true
}

// output is where the output of a job goes.
type output interface {
	// started reports that the command runs. It returns why that cannot be kept, so that the command is ended.
	started(live *proc.Live, job *pb.Job, end context.CancelCauseFunc) error
	// write takes what the command wrote to descriptor 1 or 2, and false where nobody wants more.
	write(fd int, data []byte) bool
	// ended reports how the command ended.
	ended(job *pb.Job)
}

// spools is the output of a job that was detached from the start.
type spools struct {
	stdout, stderr spool
	reply          *gob.Encoder // to the agent, which may be gone
}

func (s *spools) started(_ *proc.Live, job *pb.Job, _ context.CancelCauseFunc) error {
	raw, err := writeJob(s.stdout.dir, job)
	if err == nil {
		err = reserveJob(s.stdout.dir)
	}
	reply := supervisorReply{Job: raw}
	if err != nil {
		reply = errorReply(err)
	}
	s.reply.Encode(reply)
	os.Stdout.Close()
	return err
}

func (s *spools) write(fd int, data []byte) bool {
	if fd == 1 {
		s.stdout.Write(data)
	} else {
		s.stderr.Write(data)
	}
	return true
}

func (s *spools) ended(job *pb.Job) {
	s.stdout.close()
	s.stderr.close()
	job.StdoutBytes, job.StderrBytes = s.stdout.total, s.stderr.total
	writeJob(s.stdout.dir, job) // if that fails the job is lost
}

func errorReply(err error) supervisorReply {
	reply := supervisorReply{Text: err.Error(), Code: fault.Code(err)}
	var start *proc.StartError
	if errors.As(err, &start) {
		reply.Stage, reply.Object, reply.Text = start.Stage, start.Object, start.Err.Error()
	}
	return reply
}

// supervise runs the command to its end. The error is that of a command that did not start.
func (p *supervisorSpec) supervise(out output) error {
	lock, wanted, err := lockSupervisor(p.Dir)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock, as the end of the process does
	job := &pb.Job{}
	if err := proto.Unmarshal(p.Job, job); err != nil {
		return err
	}
	return p.runCommand(job, out, wanted)
}

// runCommand runs the command until it ends, or its end is wanted.
func (p *supervisorSpec) runCommand(job *pb.Job, out output, wanted <-chan struct{}) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() { // ends with the process
		<-wanted
		cancel(errEnded)
	}()
	runner := proc.New(proc.Config{Name: p.Name, JobCgroup: p.JobCgroup, Grace: p.Grace, Reexec: true})
	started := false
	spec := proc.Spec{Argv: p.Argv, Dir: p.WorkDir, Env: p.Env, Root: p.Root, User: p.User, Timeout: p.Timeout, Limits: p.Limits}
	result, err := runner.Serve(ctx, spec, proc.Serving{
		Output: out.write,
		Started: func(live *proc.Live) {
			started = true
			job.Pid, job.Started = uint32(live.PID()), timestamppb.Now()
			if err := out.started(live, job, cancel); err != nil { // no agent would find the job, so the command is ended
				cancel(err)
			}
		}})
	if !started {
		return err
	}
	job.State, job.Ended, job.Exit = pb.JobState_JOB_STATE_ENDED, timestamppb.Now(), ended(result, err)
	out.ended(job)
	runner.Release()
	return nil
}

// jobNew is the file beside jobFile that takes its place.
const jobNew = jobFile + ".new"

// jobRoom is the size of the file that is kept ready for the end of a job: more than a job takes, whose texts are
// bounded.
const jobRoom = 16 << 10

// reserveJob makes the file that writeJob will use, so that the end of a job can be written to a full disk.
func reserveJob(dir string) error {
	return os.WriteFile(filepath.Join(dir, jobNew), make([]byte, jobRoom), 0o600)
}

// writeJob replaces the file of a job, durably, and returns its content.
func writeJob(dir string, job *pb.Job) ([]byte, error) { return writeJobFile(dir, job, true) }

func writeJobFile(dir string, job *pb.Job, durable bool) ([]byte, error) {
	raw, err := proto.Marshal(job)
	if err != nil {
		return nil, err
	}
	temp := filepath.Join(dir, jobNew)
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE, 0o600) // not O_TRUNC: it would give the room away
	if err != nil {
		return nil, err
	}
	_, err = file.Write(raw)
	err = errors.Join(err, file.Truncate(int64(len(raw))))
	if durable {
		err = errors.Join(err, file.Sync())
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = replaceFile(temp, filepath.Join(dir, jobFile))
	}
	return raw, err
}
