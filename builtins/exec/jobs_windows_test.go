package exec

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a supervisor, a command that waits for a file, or an agent that starts a job.
func TestMain(m *testing.M) {
	if ChildMain() {
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "wait" {
		fmt.Println("begun")
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(os.Args[2]); err == nil {
				fmt.Println("done")
				os.Exit(9)
			}
		}
		os.Exit(1)
	}
	if len(os.Args) == 4 && os.Args[1] == "agent" {
		_, table := newRoom(os.Args[2])
		out, err := invoke(table, &builtins.Call{ID: "request"}, waiting(os.Args[3]))
		fmt.Println(out.(*pb.ExecStartResponse).GetJobId(), err)
		time.Sleep(time.Minute)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newRoom(jobs string) (*Room, *builtins.Table) {
	files, err := fsys.Open("")
	if err != nil {
		panic(err)
	}
	g := &guest.Guest{Files: files, Live: true, Runner: proc.New(proc.Config{Reexec: true})}
	r := New(g, Config{Jobs: jobs, Commands: proc.Config{Reexec: true}})
	return r, builtins.NewTable(r.Room())
}

func invoke(table *builtins.Table, call *builtins.Call, in proto.Message) (proto.Message, error) {
	return table.Native(in).Call(context.Background(), call, in)
}

// waiting starts a job that waits for a file.
func waiting(file string) *pb.ExecStartRequest {
	return &pb.ExecStartRequest{Detach: true, Command: os.Args[0], Args: []string{"wait", file}, Environment: map[string]string{}}
}

// job returns a job once it has ended, or is as asked for.
func job(t *testing.T, table *builtins.Table, id string, state pb.JobState) (*pb.Job, string) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := invoke(table, &builtins.Call{}, &pb.ListJobsRequest{JobId: id, MaxBytes: 1000})
		if err != nil {
			t.Fatal(err)
		}
		list := out.(*pb.ListJobsResponse)
		if got := list.Jobs[0]; got.State == state || time.Now().After(end) {
			if got.State != state {
				t.Fatalf("%v", got)
			}
			return got, string(list.Stdout)
		}
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A job goes on when the agent is killed: the next one sees it, its output and its end.
func TestJobOutlivesAKilledAgent(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "jobs"), filepath.Join(t.TempDir(), "go")
	t.Cleanup(func() { _ = os.WriteFile(file, nil, 0o600) })
	agent := osexec.Command(os.Args[0], "agent", dir, file)
	said, err := agent.StdoutPipe()
	if err == nil {
		err = agent.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	_ = agent.Process.Kill()
	_ = agent.Wait()
	id, result, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || result != "<nil>" || id == "" {
		t.Fatalf("%q, %v", line, err)
	}
	_, table := newRoom(dir)
	if running, _ := job(t, table, id, pb.JobState_JOB_STATE_RUNNING); running.RequestId != "request" {
		t.Errorf("%v", running)
	}
	touch(t, file)
	ended, out := job(t, table, id, pb.JobState_JOB_STATE_ENDED)
	if ended.Exit.GetExitCode() != 9 || out != "begun\ndone\n" || ended.StdoutBytes != uint64(len(out)) {
		t.Errorf("%v, %q", ended, out)
	}
}

// What is replaced again and again is read whole each time.
func TestFileIsReadWhileItIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 30 && err == nil; i++ {
			if err = os.WriteFile(path+".new", []byte("content"), 0o600); err == nil {
				err = replaceFile(path+".new", path)
			}
		}
		done <- err
	}()
	for {
		if got, err := readReplaced(path); err != nil || string(got) != "content" {
			t.Fatalf("%q, %v", got, err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(time.Millisecond): // else it could never be replaced
		}
	}
}

// A job is ended with its supervisor, on which nothing is left to wait for; what has ended is not there.
func TestJobIsEnded(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "jobs"), filepath.Join(t.TempDir(), "never")
	_, table := newRoom(dir)
	for _, in := range []*pb.ExecInputRequest{{End: true}, {Signal: "KILL"}} {
		out, err := invoke(table, &builtins.Call{}, waiting(file))
		if err != nil {
			t.Fatal(err)
		}
		id := out.(*pb.ExecStartResponse).JobId
		in.JobId = id
		if _, err := invoke(table, &builtins.Call{}, in); err != nil {
			t.Fatal(err)
		}
		if ended, _ := job(t, table, id, pb.JobState_JOB_STATE_ENDED); ended.Exit.GetExitCode() == 0 || ended.Exit.GetError() == "" {
			t.Errorf("%v", ended)
		}
		if _, err := invoke(table, &builtins.Call{}, in); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("once more: %v", err)
		}
	}
}

// A streamed command that outlives its agent becomes a job with all of its output.
func TestStreamedCommandOutlivesTheAgent(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "jobs"), filepath.Join(t.TempDir(), "go")
	t.Cleanup(func() { _ = os.WriteFile(file, nil, 0o600) })
	first, table := newRoom(dir)
	in := waiting(file)
	in.Detach, in.Outlive = false, true
	begun := make(chan struct{})
	var once sync.Once
	call := &builtins.Call{ID: "x", Session: "s", Event: func(proto.Message) bool {
		once.Do(func() { close(begun) })
		return true
	}}
	out, err := invoke(table, call, in)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-time.After(40 * time.Second):
		t.Fatal("no output")
	}
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	touch(t, file)
	_, table = newRoom(dir)
	id := out.(*pb.ExecStartResponse).JobId
	ended, said := job(t, table, id, pb.JobState_JOB_STATE_ENDED)
	if ended.Exit.GetExitCode() != 9 || said != "begun\ndone\n" || ended.Attached {
		t.Errorf("%v, %q", ended, said)
	}
}
