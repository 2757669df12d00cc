package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// mustInvoke invokes the operation of a request.
func mustInvoke[Out proto.Message](t *testing.T, table *table, in proto.Message) Out {
	t.Helper()
	out, err := table.Invoke(context.Background(), &builtins.Call{ID: "request"}, table.Native(in), in)
	if err != nil {
		t.Fatal(err)
	}
	return out.(Out)
}

func jobOf(t *testing.T, table *table, id string, wait uint32) *pb.Job {
	t.Helper()
	out := mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{JobId: id, WaitSeconds: wait})
	if len(out.Jobs) != 1 || out.Jobs[0].Id != id {
		t.Fatalf("job %s: %v", id, out)
	}
	return out.Jobs[0]
}

// waitForFile returns a shell command that waits for a file.
func waitForFile(path string) string { return "while [ ! -e " + path + " ]; do sleep 0.01; done; " }

func TestJobSurvivesAgentRestart(t *testing.T) {
	dir, files := filepath.Join(t.TempDir(), "jobs"), t.TempDir()
	first, table := room(t, Config{Jobs: dir})
	id := mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true,
		Command: "echo begun; echo bad >&2; " + waitForFile(files+"/go") + "echo done; exit 9"}).JobId
	if job := jobOf(t, table, id, 0); job.State != pb.JobState_JOB_STATE_RUNNING || job.RequestId != "request" || !alive(int(job.Pid)) {
		t.Fatalf("%v", job)
	}
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	_, table = room(t, Config{Jobs: dir})
	list := mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{})
	if len(list.Jobs) != 1 || list.Jobs[0].State != pb.JobState_JOB_STATE_RUNNING {
		t.Fatalf("%v", list)
	}
	out := &pb.ListJobsResponse{}
	eventually(t, "the first output", func() bool { // stderr may come first
		out = mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{JobId: id, MaxBytes: 100, WaitSeconds: 20})
		return string(out.Stdout) == "begun\n"
	})
	if err := os.WriteFile(files+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	job := jobOf(t, table, id, 20)
	if job.State != pb.JobState_JOB_STATE_ENDED || job.Exit.GetExitCode() != 9 || job.StdoutBytes != 11 || job.StderrBytes != 4 || job.Ended == nil {
		t.Errorf("%v", job)
	}
	out = mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{JobId: id, MaxBytes: 100, StdoutOffset: 6})
	if string(out.Stdout) != "done\n" || out.StdoutOffset != 6 || string(out.Stderr) != "bad\n" {
		t.Errorf("%v", out)
	}
}

func TestUnawaitedCommandIsJob(t *testing.T) {
	_, table := room(t, Config{Jobs: filepath.Join(t.TempDir(), "jobs")})
	reply := native(t, table, &pb.ExecuteRequest{Command: "echo", Args: []string{"a b", "c"}})
	if reply.Error != "" || reply.JobId == "" {
		t.Fatalf("%v", reply)
	}
	if job := jobOf(t, table, reply.JobId, 20); job.Exit.GetExitCode() != 0 || job.Command != "echo 'a b' c" || job.StdoutBytes != 6 {
		t.Errorf("%v", job)
	}
	if reply = native(t, table, &pb.ExecuteRequest{Command: "/no/such", Args: []string{"x"}}); reply.ExitCode != -1 ||
		!strings.Contains(reply.Error, "/no/such: program: no such file") {
		t.Errorf("%v", reply)
	}
	if list := mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{}); len(list.Jobs) != 1 {
		t.Errorf("what never ran is listed: %v", list)
	}
}

func TestEndJobWithItsTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	_, table := room(t, Config{Jobs: dir, Commands: proc.Config{Grace: 100 * time.Millisecond}})
	file := filepath.Join(t.TempDir(), "pid")
	id := mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true, Command: "sh -c 'echo $$ > " + file + "; exec sleep 60' & wait"}).JobId
	child := pidIn(t, file)
	mustInvoke[*pb.ExecInputResponse](t, table, &pb.ExecInputRequest{JobId: id, End: true})
	if job := jobOf(t, table, id, 20); job.Exit.GetSignal() != 15 || alive(child) {
		t.Errorf("%v, the child lives: %v", job, alive(child))
	}
	id = mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true, Command: "sleep", Args: []string{"60"}}).JobId
	mustInvoke[*pb.ExecInputResponse](t, table, &pb.ExecInputRequest{JobId: id, Signal: "USR1"})
	if job := jobOf(t, table, id, 20); job.Exit.GetSignal() != uint32(syscall.SIGUSR1) {
		t.Errorf("%v", job)
	}
	in := &pb.ExecInputRequest{JobId: id, End: true}
	if _, err := table.Invoke(context.Background(), &builtins.Call{}, table.Native(in), in); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a job that has ended is ended: %v", err)
	}
}

func TestJobWithoutSupervisorIsLost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	_, table := room(t, Config{Jobs: dir})
	reply := mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true, Command: "sleep", Args: []string{"60"}})
	defer syscall.Kill(-int(reply.Pid), syscall.SIGKILL)
	syscall.Kill(pidIn(t, filepath.Join(dir, reply.JobId, lockName)), syscall.SIGKILL)
	eventually(t, "the loss", func() bool { return jobOf(t, table, reply.JobId, 0).State == pb.JobState_JOB_STATE_LOST })
}

func TestJobIDIsNoPath(t *testing.T) {
	_, table := room(t, Config{Jobs: filepath.Join(t.TempDir(), "jobs")})
	for _, id := range []string{"..", "../../etc", "20260101-000000/abcdef", "20260101-000000-abcdef", "/etc/passwd"} {
		in := &pb.ListJobsRequest{JobId: id}
		if _, err := table.Invoke(context.Background(), &builtins.Call{}, table.Native(in), in); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestPruneJobs(t *testing.T) {
	j := &jobs{dir: t.TempDir()}
	const now = 100 * 24 * time.Hour
	var list []*pb.Job
	for i := range maxEndedJobs + 5 {
		began := now - time.Duration(i)*time.Hour
		if i == maxEndedJobs+3 { // the oldest of those that ended
			began = now - endedJobAge - time.Hour
		}
		job := &pb.Job{Id: j.newID(time.Now()), State: pb.JobState_JOB_STATE_ENDED, BootId: "boot", UptimeMs: uint64(began.Milliseconds())}
		if err := os.Mkdir(filepath.Join(j.dir, job.Id), 0o700); err != nil {
			t.Fatal(err)
		}
		list = append(list, job)
	}
	few := slices.Clone(list[maxEndedJobs:])
	if left := j.pruneAt(few, "boot", now); len(left) != 4 {
		t.Errorf("%d of five are left, of which one is too old", len(left))
	}
	list = slices.Delete(list, maxEndedJobs+3, maxEndedJobs+4)
	list[maxEndedJobs+3].State = pb.JobState_JOB_STATE_RUNNING // the oldest of all
	left := j.pruneAt(list, "boot", now)
	entries, err := os.ReadDir(j.dir)
	if err != nil || len(left) != maxEndedJobs+1 || len(entries) != maxEndedJobs+1 {
		t.Errorf("%d are listed, %d are there, %v", len(left), len(entries), err)
	}
	if last := left[len(left)-1]; last.State != pb.JobState_JOB_STATE_RUNNING {
		t.Errorf("a running job was dropped")
	}
}

// The order of jobs does not hang on a clock that is set back, nor on one that was far ahead once, also for another agent.
func TestJobIDsGoOn(t *testing.T) {
	dir := t.TempDir()
	ahead := time.Date(2099, 12, 31, 23, 59, 59, 0, time.UTC)
	var ids []string
	for _, at := range []time.Time{time.Now(), ahead, time.Now(), time.Now().Add(-time.Hour)} {
		for range 2 {
			j := &jobs{dir: dir}
			for range 3 {
				ids = append(ids, j.newID(at))
				if err := os.Mkdir(filepath.Join(dir, ids[len(ids)-1]), 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if !slices.IsSorted(ids) || slices.ContainsFunc(ids, func(id string) bool { return !validJobID(id) }) {
		t.Error(ids)
	}
	last := &jobs{dir: t.TempDir(), last: "99991231-235959-abcdef"}
	if id := last.newID(time.Now()); !validJobID(id) {
		t.Error(id)
	}
}

// The age of jobs is by the clock of the boot, whatever the wall clock was: of earlier boots it is at least what is known of
// them.
func TestAgesOfJobs(t *testing.T) {
	job := func(boot string, up time.Duration) *pb.Job {
		return &pb.Job{BootId: boot, UptimeMs: uint64(up.Milliseconds()), Started: timestamppb.New(time.Now().AddDate(-50, 0, 0))}
	}
	h := time.Hour
	list := []*pb.Job{{}, job("c", 5*h), {}, job("c", 2*h), job("b", 7*h), job("b", 3*h), job("a", h), {}}
	want := []time.Duration{0, 5 * h, 5 * h, 8 * h, 10 * h, 14 * h, 17 * h, 17 * h}
	if got := agesOf(list, "c", 10*h); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := agesOf(list[4:], "c", 10*h); !slices.Equal(got, []time.Duration{10 * h, 14 * h, 17 * h, 17 * h}) {
		t.Errorf("none of this boot: %v", got)
	}
}

func TestSpoolKeepsTail(t *testing.T) {
	dir := t.TempDir()
	s := spool{dir: dir, name: "stdout"}
	var all bytes.Buffer
	for i := 0; all.Len() < 3*segmentBytes+1000; i++ {
		line := strconv.Itoa(i) + "\n"
		all.WriteString(line)
		s.Write([]byte(line))
	}
	s.close()
	if got := spoolSize(dir, "stdout"); got != uint64(all.Len()) {
		t.Errorf("%d bytes came, %d are told", all.Len(), got)
	}
	data, begin, err := readSpool(dir, "stdout", 5, 4*segmentBytes)
	if err != nil || begin != 2*segmentBytes || !bytes.Equal(data, all.Bytes()[begin:]) {
		t.Errorf("%d bytes from %d, %v", len(data), begin, err)
	}
	data, begin, err = readSpool(dir, "stdout", 3*segmentBytes-10, 20)
	if err != nil || begin != 3*segmentBytes-10 || !bytes.Equal(data, all.Bytes()[begin:begin+20]) {
		t.Errorf("%q from %d, %v", data, begin, err)
	}
}

// What a job wrote before the disk was full stays, what it wrote meanwhile is a gap that shows, and its end is known.
func TestJobOutputOnFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Skip("needs a tmpfs: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	_, table := room(t, Config{Jobs: dir + "/jobs"})
	out := mustInvoke[*pb.ExecStartResponse](t, table, &pb.ExecStartRequest{Detach: true, Command: "cd " + dir + `
		fill() { dd if=/dev/zero of=fill bs=4k 2>/dev/null; }
		full() { for i in 1 2 3; do head -c 5000 /dev/zero; sleep 0.1; done; }
		kept() { until cat jobs/*/stdout* 2>/dev/null | grep -aq $1; do sleep 0.05; done; }
		echo first; kept first; fill; full; rm fill; echo second; kept second; fill; full`})
	job := jobOf(t, table, out.JobId, 20)
	if job.State != pb.JobState_JOB_STATE_ENDED || job.Exit.GetError() != "" || job.StdoutBytes != 6+15000+7+15000 {
		t.Errorf("%v", job)
	}
	var texts []string
	for offset := uint64(0); ; {
		part := mustInvoke[*pb.ListJobsResponse](t, table, &pb.ListJobsRequest{JobId: out.JobId, MaxBytes: 100_000, StdoutOffset: offset})
		offset = part.StdoutOffset + uint64(len(part.Stdout))
		if len(part.Stdout) == 0 {
			if offset != job.StdoutBytes {
				t.Errorf("the gap at the end is not told: %d", offset)
			}
			break
		}
		texts = append(texts, strings.Trim(string(part.Stdout), "\x00"))
	}
	if got := strings.Join(texts, ""); got != "first\nsecond\n" {
		t.Errorf("%q", texts)
	}
}

// A job is its port's: others do not see it, nor can they end it.
func TestJobsBelongToTheirPort(t *testing.T) {
	_, table := room(t, Config{Jobs: filepath.Join(t.TempDir(), "jobs")})
	invoke := func(port string, in proto.Message) (proto.Message, error) {
		call := &builtins.Call{ID: "request", Port: port, Sees: func(owner string) bool { return owner == port }}
		return table.Invoke(context.Background(), call, table.Native(in), in)
	}
	started, err := invoke("a", &pb.ExecStartRequest{Detach: true, Command: "sleep 60"})
	if err != nil {
		t.Fatal(err)
	}
	id := started.(*pb.ExecStartResponse).JobId
	end := &pb.ExecInputRequest{JobId: id, End: true}
	for _, in := range []proto.Message{&pb.ListJobsRequest{JobId: id, MaxBytes: 10}, end} {
		if _, err := invoke("b", in); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("another port: %T: %v", in, err)
		}
	}
	for port, want := range map[string]int{"a": 1, "b": 0} {
		if list, err := invoke(port, &pb.ListJobsRequest{}); err != nil || len(list.(*pb.ListJobsResponse).Jobs) != want {
			t.Errorf("%s: %v, %v", port, list, err)
		}
	}
	if _, err := invoke("a", end); err != nil {
		t.Error(err)
	}
}

// Of a job, and of a command, it is known by which port it came, of all its processes, and by a later agent as well.
func TestOwner(t *testing.T) {
	dir, files := filepath.Join(t.TempDir(), "jobs"), t.TempDir()
	first, table := room(t, Config{Jobs: dir})
	in := &pb.ExecStartRequest{Detach: true, Command: "cd " + files + "; setsid sleep 300 & echo $! >child; echo >go; wait"}
	out, err := table.Invoke(t.Context(), &builtins.Call{ID: "request", Port: "mine"}, table.Native(in), in)
	if err != nil {
		t.Fatal(err)
	}
	pid := int(out.(*pb.ExecStartResponse).Pid)
	eventually(t, "its child", func() bool { _, err := os.Stat(files + "/go"); return err == nil })
	text, _ := os.ReadFile(files + "/child")
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	supervisor := parentOf(pid)
	defer func() {
		unix.Kill(child, unix.SIGKILL)
		unix.Kill(pid, unix.SIGKILL)
		eventually(t, "the end of the job, which is written down", func() bool {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", supervisor))
			return len(line) == 0 // it is gone, or nobody has asked for its end yet
		})
	}()
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	second, _ := room(t, Config{Jobs: dir})
	for _, r := range []*Room{first, second} {
		for _, p := range []int{pid, child, parentOf(pid)} {
			if port, known := r.Owner(p); port != "mine" || !known {
				t.Errorf("%d: %q %v", p, port, known)
			}
		}
		for _, p := range []int{os.Getpid(), os.Getppid(), 1} {
			if port, known := r.Owner(p); known {
				t.Errorf("%d: %q", p, port)
			}
		}
	}
}
