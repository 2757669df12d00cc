package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a runner where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case sandbox.Arg:
			os.Exit(lua.Main(os.Args[2:]))
		case hostileArg:
			os.Exit(hostileRunner(os.Args[2]))
		default:
			otherMain(os.Args[1])
		}
	}
	os.Exit(m.Run())
}

// newPool returns a pool that the test closes.
func newPool(t testing.TB, cfg sandbox.Config) *sandbox.Pool {
	t.Helper()
	pool := sandbox.New(cfg)
	t.Cleanup(pool.Close)
	return pool
}

// script returns a job without builtins.
func script(source string) sandbox.Job {
	return sandbox.Job{Start: &pb.RunnerStart{Name: "test.lua", Source: []byte(source)}}
}

// functions returns builtins by name.
func functions(names ...string) []*pb.RunnerFunction {
	var list []*pb.RunnerFunction
	for _, name := range names {
		list = append(list, &pb.RunnerFunction{Name: name})
	}
	return list
}

// mustRun runs a job that must end well.
func mustRun(t testing.TB, pool *sandbox.Pool, job sandbox.Job) sandbox.Outcome {
	t.Helper()
	out := pool.Run(context.Background(), job)
	if out.Error != nil {
		t.Fatalf("script failed: %v", out.Error)
	}
	return out
}

// mustFail runs a job that must end with an error of a kind, and returns it.
func mustFail(t testing.TB, pool *sandbox.Pool, job sandbox.Job, kind, words string) *pb.ScriptError {
	t.Helper()
	out := pool.Run(context.Background(), job)
	if out.Error == nil {
		t.Fatalf("script gave %v, want an error of kind %s", out.Result, kind)
	}
	if out.Error.GetKind() != kind || !strings.Contains(out.Error.GetMessage(), words) {
		t.Fatalf("error is %v, want kind %s and a message with %q", out.Error, kind, words)
	}
	return out.Error
}

func TestTrivialResult(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	for range 3 { // cold, then warm
		out := mustRun(t, pool, script(`return {answer = 6 * 7, list = {1, 2, "x"}, ["\255"] = true}`))
		value := out.Result.GetTable()
		if len(value.GetFields()) != 3 || value.GetFields()[0].GetValue().GetNumber() != 42 {
			t.Errorf("result is %v", out.Result)
		}
		if out.Stats.GetPeakMemoryBytes() < 1<<20 {
			t.Errorf("peak memory is %d bytes", out.Stats.GetPeakMemoryBytes())
		}
	}
}

func TestRunsBesideOneAnother(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	var runs sync.WaitGroup
	for i := range 8 {
		runs.Go(func() {
			job := script(fmt.Sprintf("local sum = 0 for i = 1, 50 do sum = sum + file.read('%d') end return sum", i))
			job.Start.Functions = functions("file.read")
			job.Call = func(_ context.Context, call *pb.RunnerCall) *pb.RunnerReply {
				if string(call.GetArgs()[0].GetString_()) != fmt.Sprint(i) {
					t.Errorf("run %d got a call of another: %v", i, call)
				}
				return &pb.RunnerReply{Value: number(float64(i))}
			}
			if out := pool.Run(t.Context(), job); out.Error != nil || out.Result.GetNumber() != float64(50*i) {
				t.Errorf("run %d gives %v, %v", i, out.Result, out.Error)
			}
		})
	}
	runs.Wait()
}

// No more scripts than Runners run at a time. One more waits within its time; one that changes the guest, or is only
// read, does not wait for them.
func TestRunnersAreBounded(t *testing.T) {
	pool := newPool(t, sandbox.Config{Runners: 1})
	began, end := make(chan struct{}), make(chan struct{})
	job := script("file.read('x')")
	job.Start.Functions = functions("file.read")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		close(began)
		<-end
		return &pb.RunnerReply{}
	}
	var runs sync.WaitGroup
	runs.Go(func() {
		if out := pool.Run(t.Context(), job); out.Error != nil {
			t.Error(out.Error)
		}
	})
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if out := pool.Run(ctx, script("return 1")); out.Error.GetKind() != "busy" {
		t.Errorf("one more script: %v, %v", out.Result, out.Error)
	}
	writer := script("return 1")
	writer.Writer = true
	if out := pool.Run(t.Context(), writer); out.Error != nil {
		t.Errorf("the one that changes the guest: %v", out.Error)
	}
	read := script(`return script {name = "x", run = function() end}`)
	read.Start.Describe = true
	if out := pool.Run(t.Context(), read); out.Error != nil || out.Declaration.GetName() != "x" {
		t.Errorf("one that is only read: %v, %v", out.Declaration, out.Error)
	}
	runs.Go(func() { mustRun(t, pool, script("return 1")) })
	close(end)
	runs.Wait()
}
