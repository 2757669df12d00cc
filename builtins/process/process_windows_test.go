package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The test program is also the processes that are looked at: with this in the environment it waits until its input ends, and
// has one thread more that is busy if the value says so.
const roleEnv = "PROCESS_TEST_ROLE"

func TestMain(m *testing.M) {
	if role, ok := os.LookupEnv(roleEnv); ok {
		if role == "busy" {
			go func() {
				runtime.LockOSThread()
				for n := 0; ; n++ {
					_ = n
				}
			}()
		}
		fmt.Println("ready")
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start starts this program in a role, in a directory of its own. It ends with the test.
func start(t *testing.T, role string, args ...string) (cmd *exec.Cmd, dir string) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	cmd = exec.Command(program, args...)
	cmd.Env, cmd.Dir = append(os.Environ(), roleEnv+"="+role), dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		t.Fatal(line, err)
	}
	return cmd, dir
}

func call(ctx context.Context, c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	for _, op := range New(&guest.Guest{Live: true}, nil).Room().Ops {
		if op.Name == name {
			return op.Call(ctx, c, in)
		}
	}
	panic("there is no " + name)
}

// listed returns the entries of a list, of which the first is that of a pid.
func listed(t *testing.T, pid int, in *pb.ListProcessesRequest) *pb.ProcessInfo {
	t.Helper()
	out, err := call(t.Context(), &builtins.Call{}, "list_processes", in)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range out.(*pb.ListProcessesResponse).Processes {
		if p.Pid == uint32(pid) {
			return p
		}
	}
	t.Fatalf("process %d is not among %d", pid, len(out.(*pb.ListProcessesResponse).Processes))
	return nil
}

// What is told of a process is what it was started with, and what it does.
func TestListTellsOfAProcess(t *testing.T) {
	began := time.Now()
	cmd, dir := start(t, "busy", "one", "two words", "ü")
	p := listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{})
	if !strings.HasSuffix(strings.ToLower(p.Name), ".exe") || p.Ppid != uint32(os.Getpid()) {
		t.Errorf("name %q, parent %d, want that of a program and %d", p.Name, p.Ppid, os.Getpid())
	}
	if !strings.HasSuffix(p.CommandLine, ` one "two words" ü`) {
		t.Errorf("command line %q", p.CommandLine)
	}
	if !strings.EqualFold(p.WorkingDirectory, dir) {
		t.Errorf("working directory %q, want %q", p.WorkingDirectory, dir)
	}
	if at := p.StartedAt.AsTime(); at.Before(began.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) ||
		p.StartTicks == 0 {
		t.Errorf("started at %v, tick %d, want after %v", at, p.StartTicks, began)
	}
	if p.StartTicks >= 1<<53 {
		t.Errorf("start_ticks %d is no exact number in Lua", p.StartTicks)
	}
	if p.ThreadCount < 2 || p.MemoryBytes == 0 {
		t.Errorf("%d threads, %d bytes", p.ThreadCount, p.MemoryBytes)
	}
	if p.User == "" {
		t.Error("no user")
	}
	if p := listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{OmitArguments: true}); strings.Contains(p.CommandLine,
		"two words") || p.CommandLine == "" {
		t.Errorf("without arguments the line is %q", p.CommandLine)
	}
}

// A thread that is busy all the time uses a processor.
func TestUseOfProcessors(t *testing.T) {
	cmd, _ := start(t, "busy")
	listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{})
	deadline := time.Now().Add(20 * time.Second)
	for {
		if p := listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{}); p.CpuPercent > 5 && p.CpuPercent < 1000 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("it uses %g %%", p.CpuPercent)
		}
	}
}

// A filter, an order and a limit are kept, and threads follow their process.
func TestListIsFilteredSortedAndCut(t *testing.T) {
	cmd, _ := start(t, "idle")
	self := listed(t, os.Getpid(), &pb.ListProcessesRequest{})
	out, err := call(t.Context(), &builtins.Call{}, "list_processes",
		&pb.ListProcessesRequest{Filter: strings.ToUpper(self.Name), Sort: "started", Reverse: true})
	if err != nil {
		t.Fatal(err)
	}
	list := out.(*pb.ListProcessesResponse).Processes
	at := func(pid int) int {
		return slices.IndexFunc(list, func(p *pb.ProcessInfo) bool { return p.Pid == uint32(pid) })
	}
	if young, old := at(cmd.Process.Pid), at(os.Getpid()); young < 0 || old < 0 || young > old {
		t.Errorf("the child is at %d, and this process at %d", young, old)
	}
	for _, p := range list {
		if !strings.EqualFold(p.Name, self.Name) && !strings.Contains(strings.ToLower(p.Name), strings.ToLower(self.Name)) {
			t.Errorf("%q is listed", p.Name)
		}
	}
	out, err = call(t.Context(), &builtins.Call{}, "list_processes", &pb.ListProcessesRequest{MaxEntries: 1})
	if err != nil || len(out.(*pb.ListProcessesResponse).Processes) != 1 {
		t.Error(out, err)
	}
	out, err = call(t.Context(), &builtins.Call{}, "list_processes", &pb.ListProcessesRequest{Filter: self.Name,
		IncludeThreads: true})
	if err != nil {
		t.Fatal(err)
	}
	threads := 0
	for _, p := range out.(*pb.ListProcessesResponse).Processes {
		if p.ThreadOf == uint32(os.Getpid()) {
			threads++
		}
	}
	if threads < 2 {
		t.Errorf("this process has %d threads in the list", threads)
	}
}

func kill(pid uint32, start uint64, signal string) error {
	_, err := call(context.Background(), &builtins.Call{}, "kill_process",
		&pb.KillProcessRequest{Pid: pid, StartTicks: start, SignalName: signal})
	return err
}

// The process that is meant ends before the reply, and no other does.
func TestKillEndsTheProcessThatIsMeant(t *testing.T) {
	for _, signal := range []string{"KILL", "TERM", ""} {
		cmd, _ := start(t, "idle")
		p := listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{})
		if err := kill(p.Pid, p.StartTicks+1, signal); !errors.Is(err, fs.ErrNotExist) {
			t.Error("one that started at another time is ended:", err)
		}
		if err := kill(p.Pid+1, 0, signal); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a pid that no process has leads to its neighbour:", err)
		}
		if err := kill(p.Pid, p.StartTicks, "0"); err != nil {
			t.Error(err)
		}
		if err := kill(p.Pid, p.StartTicks, "HUP"); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		listed(t, cmd.Process.Pid, &pb.ListProcessesRequest{}) // it lives
		if err := kill(p.Pid, p.StartTicks, signal); err != nil {
			t.Fatal(signal, err)
		}
		if err := kill(p.Pid, p.StartTicks, "0"); !errors.Is(err, fs.ErrNotExist) {
			t.Error("it is there still, although the reply has come:", err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).ExitStatus() != killedCode {
			t.Error("it ended with", cmd.ProcessState)
		}
	}
}

func TestKillRefuses(t *testing.T) {
	for pid, want := range map[uint32]error{
		0: fault.ErrRefused, systemPID: fault.ErrRefused, uint32(os.Getpid()): fault.ErrRefused, 0xfffffff0: fs.ErrNotExist,
	} {
		if err := kill(pid, 0, "KILL"); !errors.Is(err, want) {
			t.Errorf("pid %d: %v, want %v", pid, err, want)
		}
	}
	if err := kill(8, 0, "NOSUCH"); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
}

// The kernel's own processes are not ended: without them Windows stops.
func TestCriticalProcessIsRefused(t *testing.T) {
	cmd, _ := start(t, "idle")
	on := uint32(1)
	handle := openAll(t, cmd.Process.Pid)
	if err := setBreakOnTermination(handle, &on); err != nil {
		t.Skip("Wine does not mark processes as critical:", err)
	}
	t.Cleanup(func() { on = 0; setBreakOnTermination(handle, &on) })
	if err := kill(uint32(cmd.Process.Pid), 0, "KILL"); !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
}

func openAll(t *testing.T, pid int) windows.Handle {
	t.Helper()
	handle, err := windows.OpenProcess(windows.PROCESS_ALL_ACCESS, false, uint32(pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.CloseHandle(handle) })
	return handle
}

func setBreakOnTermination(handle windows.Handle, on *uint32) error {
	err := windows.NtSetInformationProcess(handle, windows.ProcessBreakOnTermination, unsafe.Pointer(on),
		uint32(unsafe.Sizeof(*on)))
	if err != nil {
		return err
	}
	var set uint32
	if err := windows.NtQueryInformationProcess(handle, windows.ProcessBreakOnTermination, unsafe.Pointer(&set),
		uint32(unsafe.Sizeof(set)), nil); err != nil {
		return err
	}
	if set != *on {
		return errors.New("it is not kept")
	}
	return nil
}
