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
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// A detached command has a supervisor: another process of this program, outside of the agent's unit, which survives the end
// of the agent and of the unit.
//
//	agent ── spec ──► supervisor ─┬─ proc.Serve ─► command
//	  ◄── reply ────┘             └─► DIR/ID/: job (pb.Job), lock (held by the supervisor), stdout.N, stderr.N (from offset N on)
//
// The agent reads the state of a job from these files. A job whose state is running but whose lock is free is lost.

// Bounds of jobs.
const (
	maxRunningJobs    = 64                  // that run
	maxEndedJobs      = 50                  // that ended
	endedJobAge       = 14 * 24 * time.Hour // since they began
	maxJobWait        = 25 * time.Second    // for an end: hosts give requests 30 s
	maxJobOutput      = 4 << 20             // bytes of each stream in a reply
	staleDirAge       = time.Minute         // a directory without a job that is older than this is rubbish
	supervisorTimeout = 30 * time.Second    // for the start of a supervisor
	minPoll           = 20 * time.Millisecond
	maxPoll           = 250 * time.Millisecond
	maxJobPause       = 2 * time.Second // between looks whether a job has ended that nobody waits for
)

// The names of the files in the directory of a job.
const (
	jobFile  = "job"
	lockName = "lock"
)

var errNoJob = fault.Wrapf(fs.ErrNotExist, "there is no such job")

// jobs are the detached commands of a room.
type jobs struct {
	dir string // empty: there are none
	mu  sync.Mutex

	ids  sync.Mutex
	last string // the latest id
}

// kept reports whether detached commands become jobs.
func (j *jobs) kept() bool { return j.dir != "" }

// detach serves exec_start for a detached command.
func (r *Room) detach(ctx context.Context, call *builtins.Call, in *pb.ExecStartRequest) (*pb.ExecStartResponse, error) {
	switch {
	case in.GetStdin() || in.GetTerminal() != nil:
		return nil, fault.Invalid("a detached command has neither stdin nor terminal")
	case !r.jobs.kept():
		return nil, fault.Unsupported("this agent keeps no jobs")
	}
	spec, err := r.streamSpec(in)
	if err != nil {
		return nil, onStart(err)
	}
	job, err := r.startJob(ctx, call, spec, commandLine(in, spec), in.GetRunAsUser(), in.GetName())
	if err != nil {
		return nil, onStart(err)
	}
	return &pb.ExecStartResponse{Pid: job.Pid, JobId: job.Id}, nil
}

// commandLine is the command of a request as people read it.
func commandLine(in *pb.ExecStartRequest, spec proc.Spec) string {
	if len(in.GetArgs()) > 0 || in.GetProgram() {
		return Quote(spec.Argv)
	}
	return in.GetCommand()
}

func (j *jobs) newJob(call *builtins.Call, spec proc.Spec, line, user, name string) *pb.Job {
	job := &pb.Job{Id: j.newID(time.Now()), State: pb.JobState_JOB_STATE_RUNNING, Command: printable(line),
		Directory: printable(spec.Dir), User: user, RequestId: call.ID, Port: call.Port, Name: name}
	if job.BootId = facts.BootID(); job.BootId != "" {
		job.UptimeMs = uint64(sinceBoot().Milliseconds())
	}
	return job
}

// maxJobName is the length of the longest name of a job.
const maxJobName = 64

// checkJobName refuses what is no name of a job.
func checkJobName(name string) error {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)
	}
	if len(name) > maxJobName || strings.ContainsFunc(name, func(c rune) bool { return !plain(c) }) {
		const words = "the name %q has other characters than letters, digits, dot, hyphen and underscore, or more than %d"
		return fault.Invalid(words, name, maxJobName)
	}
	return nil
}

// startJob starts a supervisor and waits until its command runs.
func (r *Room) startJob(ctx context.Context, call *builtins.Call, spec proc.Spec, line, user, name string) (*pb.Job, error) {
	r.jobs.mu.Lock()
	defer r.jobs.mu.Unlock()
	list, err := r.jobs.list()
	if err != nil {
		return nil, err
	}
	running := 0
	for _, job := range r.jobs.prune(list) {
		if job.State == pb.JobState_JOB_STATE_RUNNING && !job.Attached {
			running++
		}
	}
	if running >= maxRunningJobs {
		return nil, fault.Wrapf(fault.ErrBusy, "busy: %d jobs run already", maxRunningJobs)
	}
	job := r.jobs.newJob(call, spec, line, user, name)
	dir := filepath.Join(r.jobs.dir, job.Id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), supervisorTimeout)
	defer cancel()
	after := r.watchFreezes(call)
	if err := r.startSupervisor(ctx, dir, job, spec); err != nil {
		after()
		os.RemoveAll(dir)
		return nil, err
	}
	go r.afterJob(job.Id, after)
	return job, nil
}

// afterJob calls after when a job has ended, or the agent stops.
func (r *Room) afterJob(id string, after func()) {
	defer after()
	for pause := minPoll; !r.freezes.stopped(); pause = min(2*pause, maxJobPause) {
		if job, err := r.jobs.load(id); err != nil || job.State != pb.JobState_JOB_STATE_RUNNING {
			return
		}
		time.Sleep(pause)
	}
}

// printable returns a text as valid UTF-8, of at most 4096 bytes.
func printable(s string) string {
	out, _ := text.ToValidUTF8Max(s, 4096)
	return out
}

// idTime is the time in the id of a job.
const idTime = "20060102-150405"

// newID returns an id that sorts behind all others, and by time if nobody sets the clock back, and is a valid file name.
func (j *jobs) newID(now time.Time) string {
	j.ids.Lock()
	defer j.ids.Unlock()
	if j.kept() {
		entries, _ := os.ReadDir(j.dir) // sorted; where it cannot be read no job is begun
		for _, e := range slices.Backward(entries) {
			if validJobID(e.Name()) {
				j.last = max(j.last, e.Name())
				break
			}
		}
	}
	id := func(at time.Time) string { return at.UTC().Format(idTime) + "-" + strings.ToLower(rand.Text()[:6]) }
	next := id(now)
	if len(j.last) > len(idTime) && next[:len(idTime)] <= j.last[:len(idTime)] {
		if last, err := time.Parse(idTime, j.last[:len(idTime)]); err == nil && last.Year() < 9999 {
			next = id(last.Add(time.Second))
		}
	}
	j.last = next
	return next
}

// validJobID reports whether an id of a request has the form of newID, and so is no path.
func validJobID(id string) bool {
	return len(id) == len(idTime)+len("-abcdef") && !strings.ContainsFunc(id, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-'
	})
}

// listJobs serves list_jobs: of what the caller's port began, and what else it may see.
func (r *Room) listJobs(ctx context.Context, call *builtins.Call, in *pb.ListJobsRequest) (*pb.ListJobsResponse, error) {
	if !r.jobs.kept() {
		return nil, fault.Unsupported("this agent keeps no jobs")
	}
	if in.GetJobId() == "" {
		list, err := r.jobs.list()
		list = slices.DeleteFunc(r.jobs.prune(list), func(job *pb.Job) bool { return !call.MaySee(job.Port) })
		if running := r.streams.named(call); len(running) > 0 {
			list = append(list, running...)
			slices.SortFunc(list, newerJob)
		}
		return &pb.ListJobsResponse{Jobs: list}, err
	}
	if command := r.streams.find(call, in.GetJobId()); command != nil {
		if out, err := command.watched(ctx, in); out != nil || err != nil {
			return out, err
		}
	}
	deadline := time.Now().Add(min(time.Duration(in.GetWaitSeconds())*time.Second, maxJobWait))
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		out, ready, err := r.jobs.read(call, in)
		if err != nil || ready || !time.Now().Before(deadline) {
			return out, fault.On(in.GetJobId(), err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// read returns one job and its output. ready: the job has ended, or there is output.
func (j *jobs) read(call *builtins.Call, in *pb.ListJobsRequest) (out *pb.ListJobsResponse, ready bool, err error) {
	job, err := j.seen(call, in.GetJobId()) // before the output, which is then complete if the job has ended
	if err != nil {
		return nil, false, err
	}
	out = &pb.ListJobsResponse{Jobs: []*pb.Job{job}}
	ready = job.State != pb.JobState_JOB_STATE_RUNNING
	if in.GetMaxBytes() == 0 {
		return out, ready, nil
	}
	dir, limit := filepath.Join(j.dir, job.Id), int(min(in.GetMaxBytes(), maxJobOutput))
	out.Stdout, out.StdoutOffset, err = readSpool(dir, "stdout", in.GetStdoutOffset(), limit)
	if err == nil {
		out.Stderr, out.StderrOffset, err = readSpool(dir, "stderr", in.GetStderrOffset(), limit)
	}
	if job.State == pb.JobState_JOB_STATE_ENDED { // a gap at the end: nothing is stored after it
		if len(out.Stdout) == 0 {
			out.StdoutOffset = max(out.StdoutOffset, job.StdoutBytes)
		}
		if len(out.Stderr) == 0 {
			out.StderrOffset = max(out.StderrOffset, job.StderrBytes)
		}
	}
	return out, ready || len(out.Stdout)+len(out.Stderr) > 0, err
}

// list returns all jobs, newest first.
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

// load reads one job. The error wraps fs.ErrNotExist if there is none of that id.
func (j *jobs) load(id string) (*pb.Job, error) {
	if !validJobID(id) {
		return nil, errNoJob
	}
	dir := filepath.Join(j.dir, id)
	job, err := readJob(dir)
	if err == nil && job.State == pb.JobState_JOB_STATE_RUNNING && !supervisorAlive(dir) {
		job, err = readJob(dir) // it may have ended between the two checks
		if err == nil && job.State == pb.JobState_JOB_STATE_RUNNING {
			job.State = pb.JobState_JOB_STATE_LOST
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoJob
	}
	if err != nil {
		return nil, err
	}
	// The file of a job that ended also counts what was lost at the end.
	job.StdoutBytes = max(job.StdoutBytes, spoolSize(dir, "stdout"))
	job.StderrBytes = max(job.StderrBytes, spoolSize(dir, "stderr"))
	return job, nil
}

// seen reads one job that the caller may see; any other is not there.
func (j *jobs) seen(call *builtins.Call, id string) (*pb.Job, error) {
	job, err := j.load(id)
	if err == nil && !call.MaySee(job.Port) {
		return nil, errNoJob
	}
	return job, err
}

func readJob(dir string) (*pb.Job, error) {
	raw, err := readReplaced(filepath.Join(dir, jobFile))
	if err != nil {
		return nil, err
	}
	job := &pb.Job{}
	if err := proto.Unmarshal(raw, job); err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "job file is damaged")
	}
	return job, nil
}

// prune removes jobs that ended and began too long ago or are too many, and returns the rest. The list has the newest first.
func (j *jobs) prune(list []*pb.Job) []*pb.Job { return j.pruneAt(list, facts.BootID(), sinceBoot()) }

func (j *jobs) pruneAt(list []*pb.Job, boot string, now time.Duration) []*pb.Job {
	known, ended := map[string]bool{}, 0
	left := list[:0]
	ages := agesOf(list, boot, now)
	for i, job := range list {
		known[job.Id] = true
		if job.State != pb.JobState_JOB_STATE_RUNNING {
			if ended++; ended > maxEndedJobs || ages[i] > endedJobAge {
				os.RemoveAll(filepath.Join(j.dir, job.Id))
				continue
			}
		}
		left = append(left, job)
	}
	entries, _ := os.ReadDir(j.dir)
	for _, e := range entries { // directories whose supervisor died before it wrote the job
		info, err := e.Info()
		dir := filepath.Join(j.dir, e.Name())
		stale := err == nil && time.Since(info.ModTime()) > staleDirAge
		if stale && !known[e.Name()] && validJobID(e.Name()) && !supervisorAlive(dir) {
			os.RemoveAll(dir)
		}
	}
	return left
}

// agesOf returns how long ago jobs began, the newest of which is the first, by the clock of this boot, which began now ago.
// Between two boots it counts no time: how long the guest was off only the wall clock knows, which may be wrong by years. So a
// job may look younger than it is. One that says nothing of its boot counts as young as the newer one beside it.
func agesOf(list []*pb.Job, boot string, now time.Duration) []time.Duration {
	ages := make([]time.Duration, len(list))
	start, age := time.Duration(0), time.Duration(0)
	for i, job := range list {
		if job.BootId != "" {
			up := time.Duration(job.UptimeMs) * time.Millisecond
			if job.BootId != boot {
				boot, start = job.BootId, start-up
			}
			age = now - start - up
		}
		ages[i] = age
	}
	return ages
}

// signalJob serves exec_input for a job.
func (r *Room) signalJob(call *builtins.Call, in *pb.ExecInputRequest) error {
	if len(in.GetData()) > 0 || in.GetCloseStdin() || in.GetRows()+in.GetCols() > 0 || in.GetExecId() != "" {
		return fault.Invalid("a job takes only signal and end")
	}
	signal, err := signalOf(in)
	if err != nil {
		return err
	}
	if !r.jobs.kept() {
		return fault.Unsupported("this agent keeps no jobs")
	}
	if command := r.streams.find(call, in.GetJobId()); command != nil {
		if signal != 0 {
			err = command.live.Signal(signal)
		}
		if in.GetEnd() {
			command.end(errEnded)
		}
		return err
	}
	job, err := r.jobs.seen(call, in.GetJobId())
	if err != nil {
		return err
	}
	if job.State != pb.JobState_JOB_STATE_RUNNING {
		return fault.Wrapf(fs.ErrNotExist, "the job has ended")
	}
	err = signalProcess(filepath.Join(r.jobs.dir, job.Id), job, signal, in.GetEnd())
	if errors.Is(err, os.ErrProcessDone) {
		return fault.Wrapf(fs.ErrNotExist, "the job has ended")
	}
	return err
}

// segment is a file with a part of a stream.
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

// readSpool returns at most limit bytes from an offset on, and the offset where they begin, which is later if the output at
// offset was dropped, or never stored because the disk was full.
func readSpool(dir, name string, offset uint64, limit int) (data []byte, begin uint64, err error) {
	begin = offset
	for _, s := range segmentsOf(dir, name) {
		at := begin + uint64(len(data))
		if s.end <= at {
			continue
		}
		if s.begin > at {
			if len(data) > 0 {
				break // the next reply begins after the gap
			}
			begin, at = s.begin, s.begin
		}
		part := make([]byte, min(uint64(limit-len(data)), s.end-at))
		file, err := os.Open(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the supervisor removed it for a newer one
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
