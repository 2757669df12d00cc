package exec

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A detached command has a keeper: this program again, outside of the agent's unit, so that neither the end of the agent nor
// that of its unit matters to it.
//
//	agent ── plan ──► keeper ─┬─ proc.Run ─► command
//	  ◄── started ──┘         └─► DIR/ID/: job (pb.Job), lock (held while it lives), stdout.N, stderr.N (from offset N on)
//
// The agent knows of jobs only what lies there. A job that says it runs, and whose lock nobody holds, is lost.

// Bounds of jobs.
const (
	maxJobs      = 64                  // that run
	keptJobs     = 50                  // that ended
	keptFor      = 14 * 24 * time.Hour // since they began
	maxJobWait   = 25 * time.Second    // for an end: hosts give requests 30 s
	maxJobOutput = 4 << 20             // bytes of each stream in a reply
	unborn       = time.Minute         // a directory without a job that is older than this is rubbish
	startWait    = 30 * time.Second    // for a keeper
	firstLook    = 20 * time.Millisecond
	longestLook  = 250 * time.Millisecond
)

// Names in the directory of a job.
const (
	jobFile  = "job"
	lockName = "lock"
)

// jobs are the detached commands of a room.
type jobs struct {
	dir string // empty: none
	mu  sync.Mutex
}

func (j *jobs) kept() bool { return j.dir != "" && canKeep }

// detach is exec_start of a command that nobody waits for.
func (r *Room) detach(ctx context.Context, call *builtins.Call, in *pb.ExecStartRequest) (*pb.ExecStartResponse, error) {
	switch {
	case in.GetStdin() || in.GetTerminal() != nil:
		return nil, fault.Invalid("a command that is left to itself has neither stdin nor terminal")
	case !r.jobs.kept():
		return nil, fault.Unsupported("this agent keeps no jobs")
	}
	spec, err := r.streamSpec(in)
	if err != nil {
		return nil, onStart(err)
	}
	r.beforeFreeze(call, spec.Argv)
	line := in.GetCommand()
	if len(in.GetArgs()) > 0 || in.GetProgram() {
		line = Quote(spec.Argv)
	}
	job, err := r.startJob(ctx, call, spec, line, in.GetRunAsUser())
	if err != nil {
		return nil, onStart(err)
	}
	return &pb.ExecStartResponse{Pid: job.Pid, JobId: job.Id}, nil
}

// startJob starts a keeper and waits until its command runs.
func (r *Room) startJob(ctx context.Context, call *builtins.Call, spec proc.Spec, line, user string) (*pb.Job, error) {
	r.jobs.mu.Lock()
	defer r.jobs.mu.Unlock()
	list, err := r.jobs.list()
	if err != nil {
		return nil, err
	}
	running := 0
	for _, job := range r.jobs.prune(list, time.Now()) {
		if job.State == pb.JobState_JOB_STATE_RUNNING {
			running++
		}
	}
	if running >= maxJobs {
		return nil, fault.Wrapf(fault.ErrBusy, "busy: %d jobs run already", maxJobs)
	}
	job := &pb.Job{Id: newJobID(time.Now()), State: pb.JobState_JOB_STATE_RUNNING, Command: printable(line), Directory: printable(spec.Dir),
		User: user, RequestId: call.ID}
	dir := filepath.Join(r.jobs.dir, job.Id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startWait)
	defer cancel()
	if err := r.keep(ctx, dir, job, spec); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return job, nil
}

// printable makes any text fit for a string field.
func printable(s string) string {
	out, _ := text([]byte(s), false, 4096)
	return out
}

// newJobID makes an id that sorts by time and is fit for a file name.
func newJobID(now time.Time) string {
	return now.UTC().Format("20060102-150405") + "-" + strings.ToLower(rand.Text()[:6])
}

// isJobID keeps ids of requests from being paths.
func isJobID(id string) bool {
	return len(id) == len("20060102-150405-abcdef") && !strings.ContainsFunc(id, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-'
	})
}

// listJobs is list_jobs.
func (r *Room) listJobs(ctx context.Context, _ *builtins.Call, in *pb.ListJobsRequest) (*pb.ListJobsResponse, error) {
	if !r.jobs.kept() {
		return nil, fault.Unsupported("this agent keeps no jobs")
	}
	if in.GetJobId() == "" {
		list, err := r.jobs.list()
		return &pb.ListJobsResponse{Jobs: r.jobs.prune(list, time.Now())}, err
	}
	deadline := time.Now().Add(min(time.Duration(in.GetWaitSeconds())*time.Second, maxJobWait))
	for pause := firstLook; ; pause = min(2*pause, longestLook) {
		out, news, err := r.jobs.show(in)
		if err != nil || news || !time.Now().Before(deadline) {
			return out, fault.On(in.GetJobId(), err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// show gives one job and what it wrote; news: there is what was waited for.
func (j *jobs) show(in *pb.ListJobsRequest) (out *pb.ListJobsResponse, news bool, err error) {
	job, err := j.load(in.GetJobId()) // first: what it wrote until its end is then complete
	if err != nil {
		return nil, false, err
	}
	out = &pb.ListJobsResponse{Jobs: []*pb.Job{job}}
	news = job.State != pb.JobState_JOB_STATE_RUNNING
	if in.GetMaxBytes() == 0 {
		return out, news, nil
	}
	dir, limit := filepath.Join(j.dir, job.Id), int(min(in.GetMaxBytes(), maxJobOutput))
	out.Stdout, out.StdoutOffset, err = readSpool(dir, "stdout", in.GetStdoutOffset(), limit)
	if err == nil {
		out.Stderr, out.StderrOffset, err = readSpool(dir, "stderr", in.GetStderrOffset(), limit)
	}
	return out, news || len(out.Stdout)+len(out.Stderr) > 0, err
}

// list gives all jobs, newest first.
func (j *jobs) list() ([]*pb.Job, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []*pb.Job
	for _, e := range slices.Backward(entries) {
		if job, err := j.load(e.Name()); err == nil {
			list = append(list, job)
		}
	}
	return list, nil
}

// load reads one job. The error wraps fs.ErrNotExist where there is none of that id.
func (j *jobs) load(id string) (*pb.Job, error) {
	if !isJobID(id) {
		return nil, fault.Wrapf(fs.ErrNotExist, "there is no such job")
	}
	dir := filepath.Join(j.dir, id)
	job, err := readJob(dir)
	if err == nil && job.State == pb.JobState_JOB_STATE_RUNNING && !held(dir) {
		job, err = readJob(dir) // it may have ended between the two looks
		if err == nil && job.State == pb.JobState_JOB_STATE_RUNNING {
			job.State = pb.JobState_JOB_STATE_LOST
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrapf(fs.ErrNotExist, "there is no such job")
	}
	if err != nil {
		return nil, err
	}
	job.StdoutBytes, job.StderrBytes = spoolSize(dir, "stdout"), spoolSize(dir, "stderr")
	return job, nil
}

func readJob(dir string) (*pb.Job, error) {
	raw, err := os.ReadFile(filepath.Join(dir, jobFile))
	if err != nil {
		return nil, err
	}
	job := &pb.Job{}
	if err := proto.Unmarshal(raw, job); err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "the record of the job is damaged")
	}
	return job, nil
}

// prune drops what ended long ago, and the oldest of too many, and gives what is left.
func (j *jobs) prune(list []*pb.Job, now time.Time) []*pb.Job {
	known, ended := map[string]bool{}, 0
	left := list[:0]
	for _, job := range list {
		known[job.Id] = true
		if job.State != pb.JobState_JOB_STATE_RUNNING {
			if ended++; ended > keptJobs || now.Sub(job.Started.AsTime()) > keptFor {
				os.RemoveAll(filepath.Join(j.dir, job.Id))
				continue
			}
		}
		left = append(left, job)
	}
	entries, _ := os.ReadDir(j.dir)
	for _, e := range entries { // what a keeper never got to
		info, err := e.Info()
		dir := filepath.Join(j.dir, e.Name())
		if err == nil && !known[e.Name()] && isJobID(e.Name()) && now.Sub(info.ModTime()) > unborn && !held(dir) {
			os.RemoveAll(dir)
		}
	}
	return left
}

// signalJob serves an exec_input for a job.
func (r *Room) signalJob(in *pb.ExecInputRequest) error {
	if len(in.GetData()) > 0 || in.GetCloseStdin() || in.GetRows()+in.GetCols() > 0 || in.GetExecId() != "" {
		return fault.Invalid("a job takes a signal, or end")
	}
	signal, err := signalOf(in)
	if err != nil {
		return err
	}
	if !r.jobs.kept() {
		return fault.Unsupported("this agent keeps no jobs")
	}
	job, err := r.jobs.load(in.GetJobId())
	if err != nil {
		return err
	}
	if job.State != pb.JobState_JOB_STATE_RUNNING {
		return fault.Wrapf(fs.ErrNotExist, "the job has ended")
	}
	err = tellJob(filepath.Join(r.jobs.dir, job.Id), job, signal, in.GetEnd())
	if errors.Is(err, os.ErrProcessDone) {
		return fault.Wrapf(fs.ErrNotExist, "the job has ended")
	}
	return err
}

// segment is a part of a stream as it lies on the disk.
type segment struct {
	path       string
	begin, end uint64
}

func segmentsOf(dir, name string) []segment {
	entries, _ := os.ReadDir(dir)
	var list []segment
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), name+".")
		begin, err := strconv.ParseUint(rest, 10, 64)
		info, infoErr := e.Info()
		if !ok || err != nil || infoErr != nil {
			continue
		}
		list = append(list, segment{filepath.Join(dir, e.Name()), begin, begin + uint64(info.Size())})
	}
	slices.SortFunc(list, func(a, b segment) int { return int(int64(a.begin) - int64(b.begin)) })
	return list
}

func spoolSize(dir, name string) uint64 {
	list := segmentsOf(dir, name)
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].end
}

// readSpool gives at most limit bytes from an offset on, and where they begin: later, where nothing is kept from there.
func readSpool(dir, name string, offset uint64, limit int) (data []byte, begin uint64, err error) {
	begin = offset
	for _, s := range segmentsOf(dir, name) {
		at := begin + uint64(len(data))
		if s.end <= at {
			continue
		}
		if s.begin > at {
			if len(data) > 0 {
				break // a gap is told by the next reply
			}
			begin, at = s.begin, s.begin
		}
		part := make([]byte, min(uint64(limit-len(data)), s.end-at))
		file, err := os.Open(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile, for a newer one
		}
		if err != nil {
			return nil, 0, err
		}
		n, err := file.ReadAt(part, int64(at-s.begin))
		file.Close()
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		data = append(data, part[:n]...)
		if len(data) >= limit || n < len(part) {
			break
		}
	}
	return data, begin, nil
}
