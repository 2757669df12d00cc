package exec

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// keeperArg is the hidden first argument of this program for a keeper.
const keeperArg = "exec-job"

const canKeep = true

// keeperPlan is what a keeper is told on its standard input.
type keeperPlan struct {
	Dir       string
	Job       []byte // pb.Job
	Argv      []string
	WorkDir   string
	Env       []string
	Root      string
	User      *proc.User
	Timeout   time.Duration
	Name      string
	JobCgroup string
	Grace     time.Duration
}

// keeperReply is what it says on its standard output, once.
type keeperReply struct {
	Job                       []byte // pb.Job; empty: nothing was started
	Stage, Object, Text, Code string
}

// keep starts the keeper of a job, and fills in what it tells.
func (r *Room) keep(ctx context.Context, dir string, job *pb.Job, spec proc.Spec) error {
	if !r.config.Reexec {
		return fault.Unsupported("this program does not serve as its own child")
	}
	raw, err := proto.Marshal(job)
	if err != nil {
		return err
	}
	in, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer tell.Close()
	hear, out, err := os.Pipe()
	if err != nil {
		in.Close()
		return err
	}
	defer hear.Close()
	_, err = r.run.SpawnOn(proc.Spec{Path: "/proc/self/exe", Argv: []string{os.Args[0], keeperArg, job.Id},
		Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}}, in, out)
	in.Close()
	out.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { tell.SetWriteDeadline(time.Now()); hear.SetReadDeadline(time.Now()) })
	defer stop()
	plan := keeperPlan{Dir: dir, Job: raw, Argv: spec.Argv, WorkDir: spec.Dir, Env: spec.Env, Root: spec.Root, User: spec.User,
		Timeout: spec.Timeout, Name: r.config.Name, JobCgroup: r.config.JobCgroup, Grace: r.config.Grace}
	if err := gob.NewEncoder(tell).Encode(plan); err != nil {
		return &proc.StartError{Stage: "process", Err: fault.Cause(err)}
	}
	tell.Close()
	var reply keeperReply
	if err := gob.NewDecoder(hear).Decode(&reply); err != nil {
		return &proc.StartError{Stage: "process", Err: fmt.Errorf("the keeper of the job does not answer: %w", fault.Cause(err))}
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

// jobMain is the keeper.
func jobMain() bool {
	if len(os.Args) < 2 || os.Args[1] != keeperArg {
		return false
	}
	pipes := make(chan os.Signal, 1)
	ossignal.Notify(pipes, unix.SIGPIPE) // an agent that is gone does not hear the reply
	var plan keeperPlan
	if err := gob.NewDecoder(os.Stdin).Decode(&plan); err != nil {
		return true
	}
	os.Stdin.Close()
	if err := plan.keep(); err != nil {
		answer(failed(err))
	}
	return true
}

func answer(reply keeperReply) {
	gob.NewEncoder(os.Stdout).Encode(reply) // nobody to tell that it fails
	os.Stdout.Close()
}

func failed(err error) keeperReply {
	reply := keeperReply{Text: err.Error(), Code: fault.Code(err)}
	var start *proc.StartError
	if errors.As(err, &start) {
		reply.Stage, reply.Object, reply.Text = start.Stage, start.Object, start.Err.Error()
	}
	return reply
}

// keep runs the command to its end. The error is that of a command which did not start.
func (p *keeperPlan) keep() error {
	lock, err := os.OpenFile(filepath.Join(p.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and with it, at the latest with this process, the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil {
		return err
	}
	job := &pb.Job{}
	if err := proto.Unmarshal(p.Job, job); err != nil {
		return err
	}
	return p.run(job)
}

func (p *keeperPlan) run(job *pb.Job) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	told := make(chan os.Signal, 1)
	ossignal.Notify(told, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	go func() { // ends with the process
		<-told
		cancel(errEnded)
	}()
	runner := proc.New(proc.Config{Name: p.Name, JobCgroup: p.JobCgroup, Grace: p.Grace, Reexec: true})
	spools := [2]spool{{dir: p.Dir, name: "stdout"}, {dir: p.Dir, name: "stderr"}}
	begun := false
	spec := proc.Spec{Argv: p.Argv, Dir: p.WorkDir, Env: p.Env, Root: p.Root, User: p.User, Timeout: p.Timeout}
	result, err := runner.Serve(ctx, spec, proc.Serving{
		Output: func(fd int, b []byte) bool { spools[fd-1].Write(b); return true },
		Started: func(live *proc.Live) {
			begun = true
			job.Pid, job.Started = uint32(live.PID()), timestamppb.Now()
			raw, err := record(p.Dir, job)
			if err != nil { // it runs, and can only be ended again: a job that nobody knows is none
				cancel(err)
				answer(failed(err))
				return
			}
			answer(keeperReply{Job: raw})
		}})
	if !begun {
		return err
	}
	for i := range spools {
		spools[i].close()
	}
	job.State, job.Ended, job.Exit = pb.JobState_JOB_STATE_ENDED, timestamppb.Now(), ended(result, err)
	record(p.Dir, job) // where that fails the job counts as lost, which says the same: nobody knows
	runner.Release()
	return nil
}

// record writes what is known of a job, all of it or nothing.
func record(dir string, job *pb.Job) ([]byte, error) {
	raw, err := proto.Marshal(job)
	if err != nil {
		return nil, err
	}
	temp := filepath.Join(dir, jobFile+".new")
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(raw)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, jobFile))
	}
	return raw, err
}

// held says whether the keeper of a job lives.
func held(dir string) bool {
	file, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// tellJob sends a signal to the command of a job, or tells its keeper to end it.
func tellJob(dir string, job *pb.Job, signal syscall.Signal, end bool) error {
	if signal != 0 {
		if err := unix.Kill(-int(job.Pid), signal); err != nil {
			return gone(err)
		}
	}
	if !end {
		return nil
	}
	file, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, 32))
	if err != nil {
		return err
	}
	keeper, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || keeper <= 1 || !held(dir) {
		return os.ErrProcessDone
	}
	return gone(unix.Kill(keeper, unix.SIGTERM))
}

func gone(err error) error {
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	return err
}
