package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The test program is also the processes that are looked at: with one of these in the environment.
const (
	nameEnv    = "PROCESS_TEST_NAME"    // gives itself a name
	threadsEnv = "PROCESS_TEST_THREADS" // has this many threads more
	signalsEnv = "PROCESS_TEST_SIGNALS" // tells each signal that it gets
)

func TestMain(m *testing.M) {
	for env, role := range map[string]func(string){nameEnv: named, threadsEnv: threaded, signalsEnv: signalled} {
		if value, ok := os.LookupEnv(env); ok {
			role(value)
			fmt.Println("ready")
			os.Stdin.Read(make([]byte, 1)) // until the test ends
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func named(name string) {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		panic(err)
	}
}

func threaded(count string) {
	n, _ := strconv.Atoi(count)
	started := make(chan bool)
	for range n {
		go func() {
			runtime.LockOSThread()
			started <- true
			select {}
		}()
		<-started
	}
}

func signalled(string) {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals)
	go func() {
		for s := range signals {
			if s != syscall.SIGURG { // the runtime's own
				fmt.Println(int(s.(syscall.Signal)))
			}
		}
	}()
}

// child is a process that the test started.
type child struct {
	*exec.Cmd
	lines *bufio.Scanner
}

func (c *child) pid() uint32 { return uint32(c.Process.Pid) }

// start starts a program, or this one as env says. It ends with the test. One in a role is ready.
func start(t testing.TB, env string, argv ...string) *child {
	t.Helper()
	role := len(argv) == 0
	if role {
		argv = []string{"/proc/self/exe"}
	}
	c := &child{Cmd: exec.Command(argv[0], argv[1:]...)}
	if env != "" {
		c.Env = append(os.Environ(), env)
	}
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(stdout)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		c.Process.Kill()
		c.Wait()
	})
	if role && !c.lines.Scan() {
		t.Fatal("the process does not get ready")
	}
	return c
}

func newRoom(t testing.TB) *Room {
	t.Helper()
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return New(&guest.Guest{Files: root, Live: true}, nil)
}

func list(t testing.TB, r *Room, in *pb.ListProcessesRequest) []*pb.ProcessInfo {
	t.Helper()
	out, err := r.list(context.Background(), &builtins.Call{}, in)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Success {
		t.Error("a list without success")
	}
	return out.Processes
}

// find returns the process itself.
func find(t testing.TB, list []*pb.ProcessInfo, pid uint32) *pb.ProcessInfo {
	t.Helper()
	at := slices.IndexFunc(list, func(p *pb.ProcessInfo) bool { return p.Pid == pid })
	if at < 0 {
		t.Fatalf("%d is not in the list", pid)
	}
	return list[at]
}

// What is told of a process is what it is.
func TestAProcessAsItIs(t *testing.T) {
	r := newRoom(t)
	dir := t.TempDir()
	c := &exec.Cmd{Path: "/bin/sleep", Args: []string{"sleep", "100"}, Dir: dir}
	before := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	p := find(t, list(t, r, &pb.ListProcessesRequest{}), uint32(c.Process.Pid))
	if p.Ppid != uint32(os.Getpid()) || p.Name != "sleep" || p.CommandLine != "sleep 100" || p.State != "sleeping" ||
		p.StateCode != "S" || p.ThreadCount != 1 || p.ThreadOf != 0 || p.MemoryBytes == 0 || p.StartTicks == 0 || p.WorkingDirectory != dir {
		t.Error(p)
	}
	if own := r.accountName(t); p.User != own {
		t.Errorf("the user is %s, not %s", p.User, own)
	}
	if off := p.StartedAt.AsTime().Sub(before).Abs(); off > time.Second {
		t.Errorf("started %v off", off)
	}
	if p.CpuPercent > 20 {
		t.Errorf("a sleeping process uses %.1f %%", p.CpuPercent)
	}
	if again := find(t, list(t, r, &pb.ListProcessesRequest{}), p.Pid); again.StartTicks != p.StartTicks {
		t.Errorf("start_ticks were %d and are %d", p.StartTicks, again.StartTicks)
	}
}

func (r *Room) accountName(t *testing.T) string {
	accounts, err := r.guest.Files.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	return accounts.UserName(uint32(os.Geteuid()))
}

// The user is the effective one, also of a process whose files in /proc belong to root because it may not be dumped.
func TestTheUserOfAProcessThatHidesItself(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a process of another user: run the test binary as root")
	}
	c := exec.Command("/bin/sleep", "100")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	if p := find(t, list(t, newRoom(t), &pb.ListProcessesRequest{}), uint32(c.Process.Pid)); p.User != "54321" {
		t.Error(p)
	}
}

// A program with many threads is one process that tells their number; they are listed on request alone.
func TestThreadsAreCounted(t *testing.T) {
	r := newRoom(t)
	c := start(t, threadsEnv+"=50")
	for _, p := range list(t, r, &pb.ListProcessesRequest{}) {
		if p.ThreadOf != 0 {
			t.Errorf("a thread: %v", p)
		}
		if p.Pid == c.pid() && p.ThreadCount < 51 {
			t.Errorf("%d threads of at least 51", p.ThreadCount)
		}
	}
	all := list(t, r, &pb.ListProcessesRequest{IncludeThreads: true})
	threads := 0
	for _, p := range all {
		if p.ThreadOf == c.pid() {
			threads++
			if p.CommandLine != "" || p.ThreadCount != 1 || p.StartTicks == 0 || p.User == "" {
				t.Error(p)
			}
		}
	}
	if whole := find(t, all, c.pid()); threads != int(whole.ThreadCount)-1 {
		t.Errorf("%d threads are listed beside a process with %d", threads, whole.ThreadCount)
	}
}

// The use of processors is the present one, in the first list too, and agrees with the kernel's own count.
func TestUseOfProcessors(t *testing.T) {
	busy := start(t, "", "/bin/sh", "-c", "while :; do :; done")
	time.Sleep(50 * time.Millisecond) // it is in its loop
	r := newRoom(t)
	for _, pause := range []time.Duration{0, time.Second, 0} {
		time.Sleep(pause)
		used, began := processTime(busy.Process.Pid), sinceBoot()
		if last := r.processes.last; last != nil {
			used, began = last.cpu[busy.Process.Pid], last.at
		}
		got := find(t, list(t, r, &pb.ListProcessesRequest{Sort: "cpu"}), busy.pid()).CpuPercent
		last := r.processes.last
		want := 100 * float64(last.cpu[busy.Process.Pid]-used) / float64(last.at-began)
		if most := processTime(busy.Process.Pid); last.cpu[busy.Process.Pid] > most || math.Abs(got-want) > 15 || got < 5 {
			t.Errorf("%.1f %%, by the count of the kernel, which is %v now, %.1f", got, most, want)
		}
	}
}

// A thread has a use of its own.
func TestUseOfProcessorsOfThreads(t *testing.T) {
	r := newRoom(t)
	c := start(t, threadsEnv+"=3")
	for _, p := range list(t, r, &pb.ListProcessesRequest{IncludeThreads: true}) {
		if p.ThreadOf == c.pid() && p.CpuPercent > 50 {
			t.Errorf("an idle thread uses %.1f %%", p.CpuPercent)
		}
	}
	before := &sample{at: time.Second, cpu: map[int]time.Duration{7: 100 * time.Millisecond}}
	now := &sample{at: 2 * time.Second}
	for _, c := range []struct {
		start uint64 // ticks
		tid   int
		cpu   time.Duration
		want  float64
	}{
		{10, 7, 600 * time.Millisecond, 50},  // half of the second
		{10, 7, 50 * time.Millisecond, 0},    // a clock that went back
		{150, 7, 250 * time.Millisecond, 50}, // the pid was another's before
		{150, 8, 250 * time.Millisecond, 50}, // started meanwhile
		{200, 8, 5 * time.Millisecond, 50},   // just now: over the least time
	} {
		if got := share(before, now, task{pid: 7, tid: c.tid, cpu: c.cpu}, time.Duration(c.start)*tick); math.Abs(got-c.want) > 0.01 {
			t.Errorf("%+v: %.2f", c, got)
		}
	}
}

// A list is sorted before it is cut, so that a cut one is the beginning of a whole one, and the same each time.
func TestOrder(t *testing.T) {
	r := newRoom(t)
	for range 5 {
		start(t, "", "/bin/sleep", "100")
	}
	for key, less := range map[string]func(a, b *pb.ProcessInfo) bool{
		"":        func(a, b *pb.ProcessInfo) bool { return a.Pid < b.Pid },
		"pid":     func(a, b *pb.ProcessInfo) bool { return a.Pid < b.Pid },
		"name":    func(a, b *pb.ProcessInfo) bool { return strings.ToLower(a.Name) <= strings.ToLower(b.Name) },
		"started": func(a, b *pb.ProcessInfo) bool { return a.StartTicks <= b.StartTicks },
		"cpu":     func(a, b *pb.ProcessInfo) bool { return a.CpuPercent >= b.CpuPercent },
		"memory":  func(a, b *pb.ProcessInfo) bool { return a.MemoryBytes >= b.MemoryBytes },
	} {
		for _, reverse := range []bool{false, true} {
			all := list(t, r, &pb.ListProcessesRequest{Sort: key, Reverse: reverse})
			if reverse {
				slices.Reverse(all)
			}
			for i := range len(all) - 1 {
				if !less(all[i], all[i+1]) {
					t.Errorf("%q, reverse %v: %v before %v", key, reverse, all[i], all[i+1])
				}
			}
		}
	}
	first := list(t, r, &pb.ListProcessesRequest{MaxEntries: 5})
	again := list(t, r, &pb.ListProcessesRequest{MaxEntries: 5})
	for i, p := range first {
		if len(first) != 5 || len(again) != 5 || p.Pid != again[i].Pid || i == 0 && p.Pid != 1 {
			t.Fatalf("%v\n%v", first, again)
		}
	}
	sleepers := list(t, r, &pb.ListProcessesRequest{Filter: "SLEEP", Sort: "started", Reverse: true, MaxEntries: 3})
	if len(sleepers) != 3 || sleepers[0].Name != "sleep" {
		t.Error(sleepers)
	}
	if none := list(t, r, &pb.ListProcessesRequest{Filter: "no process has this name"}); len(none) != 0 {
		t.Error(none)
	}
	_, err := r.list(context.Background(), &builtins.Call{}, &pb.ListProcessesRequest{Sort: strings.Repeat("\n", 1000)})
	if !errors.Is(err, fs.ErrInvalid) || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

// Names and arguments may hold anything. None of it reaches a terminal as it is, and none of it is unbounded.
func TestHostileNamesAndArguments(t *testing.T) {
	r := newRoom(t)
	c := start(t, nameEnv+"=) S 1\n\x1b[2J(\xff")
	p := find(t, list(t, r, &pb.ListProcessesRequest{}), c.pid())
	if p.Name != `) S 1\n\x1b[2J(\xff` || p.Ppid != uint32(os.Getpid()) || p.StartTicks == 0 {
		t.Error(p)
	}
	long := start(t, "", "/bin/sh", "-c", "read x", strings.Repeat("ä\n", 20000), "--password=secret", "", "it's")
	p = find(t, list(t, r, &pb.ListProcessesRequest{}), long.pid())
	if line := p.CommandLine; !strings.HasPrefix(line, `/bin/sh -c 'read x' $'ä\nä\n`) || !strings.HasSuffix(line, "…") ||
		len(line) > maxText {
		t.Errorf("%d bytes: %.200s", len(p.CommandLine), p.CommandLine)
	}
	short := start(t, "", "/bin/sh", "-c", "read x", "--password=secret", "", "it's")
	p = find(t, list(t, r, &pb.ListProcessesRequest{}), short.pid())
	if p.CommandLine != `/bin/sh -c 'read x' --password=secret '' 'it'\''s'` {
		t.Error(p.CommandLine)
	}
	if p = find(t, list(t, r, &pb.ListProcessesRequest{OmitArguments: true}), short.pid()); p.CommandLine != "/bin/sh" {
		t.Error(p.CommandLine)
	}
	dir := filepath.Join(t.TempDir(), "a\xffb\n")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in := exec.Command("/bin/sleep", "100")
	in.Dir = dir
	if err := in.Start(); err != nil {
		t.Fatal(err)
	}
	defer in.Wait()
	defer in.Process.Kill()
	p = find(t, list(t, r, &pb.ListProcessesRequest{}), uint32(in.Process.Pid))
	if !strings.HasSuffix(p.WorkingDirectory, "a%FFb\n") {
		t.Errorf("%q", p.WorkingDirectory)
	}
	if err := proto.CheckInitialized(p); err != nil {
		t.Error(err)
	}
}

// A name that the kernel has cut is completed, so that a filter finds it: of a program, and of a script.
func TestLongNames(t *testing.T) {
	r := newRoom(t)
	const name = "a-program-with-a-long-name"
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho ready\nread x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := start(t, "", path)
	c.lines.Scan()
	p := list(t, r, &pb.ListProcessesRequest{Filter: "Long-Name"})
	if len(p) != 1 || p[0].Name != name || p[0].Pid != c.pid() {
		t.Error(p)
	}
}

// Zombies, stopped processes and kernel threads are what they are.
func TestStates(t *testing.T) {
	r := newRoom(t)
	zombie := exec.Command("/bin/true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	stopped := start(t, "", "/bin/sleep", "100")
	stopped.Process.Signal(syscall.SIGSTOP)
	for pid, state := range map[int]string{zombie.Process.Pid: ") Z ", stopped.Process.Pid: ") T "} {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(stat), state) {
				break
			}
		}
	}
	all := list(t, r, &pb.ListProcessesRequest{})
	if p := find(t, all, uint32(zombie.Process.Pid)); p.State != "zombie" || p.CommandLine != "" || p.MemoryBytes != 0 {
		t.Error(p)
	}
	if p := find(t, all, stopped.pid()); p.State != "stopped" {
		t.Error(p)
	}
	at := slices.IndexFunc(all, func(p *pb.ProcessInfo) bool { return p.Name == "kthreadd" })
	if at >= 0 && all[at].CommandLine != "" {
		t.Error(all[at])
	}
	for code, want := range map[byte]string{
		'R': "running", 'D': "sleeping", 't': "stopped", 'I': "idle", 'X': "dead", '?': "unknown", 0: "unknown",
	} {
		if got := stateName(code); got != want {
			t.Errorf("%c is %s", code, got)
		}
	}
}

// Processes that come and go are no error, and requests at the same time do not disturb each other.
func TestListsWhileProcessesEnd(t *testing.T) {
	r := newRoom(t)
	ctx, stop := context.WithCancel(context.Background())
	churned := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			exec.Command("/bin/true").Run()
		}
		churned <- n
	}()
	failed := make(chan error, 4)
	for i := range 4 {
		go func() {
			var err error
			for range 3 {
				_, e := r.list(ctx, &builtins.Call{}, &pb.ListProcessesRequest{IncludeThreads: i%2 == 0})
				err = errors.Join(err, e)
			}
			failed <- err
		}()
	}
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	stop()
	t.Logf("%d processes came and went", <-churned)
	if _, err := newRoom(t).list(ctx, &builtins.Call{}, &pb.ListProcessesRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, cancelled", err)
	}
}

func kill(r *Room, in *pb.KillProcessRequest) error {
	_, err := r.kill(context.Background(), &builtins.Call{}, in)
	return err
}

// The signal that is asked for arrives, by number and by name, and no other.
func TestTheSignalThatWasAskedFor(t *testing.T) {
	r := newRoom(t)
	c := start(t, signalsEnv+"=")
	for _, in := range []struct {
		number int32
		name   string
		want   string
	}{
		{10, "", "10"}, {0, "", "15"}, {15, "", "15"}, {1, "", "1"}, {2, "", "2"}, {12, "", "12"},
		{0, "USR1", "10"}, {0, "sigusr2", "12"}, {0, "SIGHUP", "1"}, {0, "28", "28"}, {10, "USR1", "10"}, {40, "", "40"}, {64, "", "64"},
	} {
		if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), Signal: in.number, SignalName: in.name}); err != nil {
			t.Errorf("%+v: %v", in, err)
			continue
		}
		if c.lines.Scan(); c.lines.Text() != in.want {
			t.Errorf("%+v: %s arrived", in, c.lines.Text())
		}
	}
	// None of these arrives.
	for _, in := range []*pb.KillProcessRequest{
		{Signal: -1}, {Signal: 65}, {Signal: math.MaxInt32}, {SignalName: "NOPE"}, {SignalName: "SIG"}, {SignalName: "65"},
		{SignalName: "-1"}, {SignalName: "TERM\n"}, {SignalName: strings.Repeat("x", 4096)}, {Signal: 9, SignalName: "TERM"},
	} {
		in.Pid = c.pid()
		if err := kill(r, in); !errors.Is(err, fs.ErrInvalid) || len(err.Error()) > 200 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", in, err)
		}
	}
	if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), SignalName: "0"}); err != nil {
		t.Error(err)
	}
	if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), Signal: 17}); err != nil {
		t.Error(err)
	}
	if c.lines.Scan(); c.lines.Text() != "17" {
		t.Errorf("%s arrived", c.lines.Text())
	}
	// It has outlived TERM: that does not become KILL.
	if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), Signal: 9}); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
}

// Nothing is sent to what keeps the guest or the agent alive, nor to what is not there.
func TestWhatGetsNoSignal(t *testing.T) {
	r := newRoom(t)
	for _, pid := range []uint32{0, 1, uint32(os.Getpid())} {
		if err := kill(r, &pb.KillProcessRequest{Pid: pid, Signal: 9}); !errors.Is(err, fault.ErrRefused) {
			t.Errorf("%d: %v", pid, err)
		}
	}
	all := list(t, r, &pb.ListProcessesRequest{})
	if at := slices.IndexFunc(all, func(p *pb.ProcessInfo) bool { return p.Name == "kthreadd" }); at >= 0 {
		err := kill(r, &pb.KillProcessRequest{Pid: all[at].Pid, Signal: 9})
		if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "kthreadd") {
			t.Error(err)
		}
	}
	ended := exec.Command("/bin/true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []uint32{uint32(ended.Process.Pid), 1<<22 + 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32} {
		err := kill(r, &pb.KillProcessRequest{Pid: pid})
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprintf("%d: no such process", pid)) {
			t.Errorf("%d: %v", pid, err)
		}
	}
	threads := start(t, threadsEnv+"=2")
	for _, p := range list(t, r, &pb.ListProcessesRequest{IncludeThreads: true}) {
		if p.ThreadOf == threads.pid() {
			err := kill(r, &pb.KillProcessRequest{Pid: p.Pid, Signal: 9})
			if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprint("thread of process ", threads.pid())) {
				t.Error(err)
			}
		}
	}
}

// A process whose pid is another's by now is not mistaken for it.
func TestStartOfTheProcess(t *testing.T) {
	r := newRoom(t)
	c := start(t, "", "/bin/sleep", "100")
	p := find(t, list(t, r, &pb.ListProcessesRequest{Filter: "sleep"}), c.pid())
	for _, ticks := range []uint64{p.StartTicks - 1, p.StartTicks + 1, math.MaxUint64} {
		if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), Signal: 9, StartTicks: ticks}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := kill(r, &pb.KillProcessRequest{Pid: c.pid(), SignalName: "KILL", StartTicks: p.StartTicks}); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
}

// A user without rights is told so.
func TestWithoutRights(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may signal everything: run the test binary as another user")
	}
	all := list(t, newRoom(t), &pb.ListProcessesRequest{})
	at := slices.IndexFunc(all, func(p *pb.ProcessInfo) bool { return p.User == "root" && p.Pid != 1 && p.CommandLine != "" })
	if at < 0 {
		t.Skip("needs a process of root other than 1")
	}
	err := kill(newRoom(t), &pb.KillProcessRequest{Pid: all[at].Pid, SignalName: "0"})
	if !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

// What policies and the audit see, and what a host is told that this guest can do.
func TestRows(t *testing.T) {
	live := newRoom(t).Room()
	tree := New(&guest.Guest{Dir: t.TempDir()}, nil).Room()
	for i, name := range []string{"process_list", "process_kill"} {
		if got := live.Ops[2+i].Capability; got != name {
			t.Errorf("%s announces %q", live.Ops[2+i].Name, got)
		}
	}
	for _, op := range tree.Ops {
		_, err := op.Call(context.Background(), &builtins.Call{}, op.In.ProtoReflect().New().Interface())
		if !errors.Is(err, errors.ErrUnsupported) || op.Capability != "" {
			t.Errorf("%s below a root: %v, announces %q", op.Name, err, op.Capability)
		}
	}
	op := live.Ops[3]
	if got := op.AccessOf(&pb.KillProcessRequest{Pid: 4711}).Objects; len(got) != 1 || got[0].String() != "process:4711" {
		t.Error(got)
	}
	got := live.Ops[2].AccessOf(&pb.ListProcessesRequest{Filter: "nginx"}).Objects
	if len(got) != 1 || got[0].String() != "process:nginx" {
		t.Error(got)
	}
	if !op.Changes(&pb.KillProcessRequest{}) || !op.Changes(&pb.KillProcessRequest{SignalName: "USR1"}) ||
		op.Changes(&pb.KillProcessRequest{SignalName: "0"}) || live.Ops[2].Mutates {
		t.Error("what changes the guest is not told right")
	}
	if live.Features()["process_kill"] == "" || tree.Features != nil {
		t.Error("the features are not those of the guest")
	}
}

// journal notes what it is told. Only what a signal needs of it is there.
type journal struct {
	builtins.Tx
	t    *testing.T
	of   *child
	told []string
	err  error
}

func (j *journal) Irreversible(_ context.Context, change *pb.Change) error {
	if err := j.of.Process.Signal(syscall.Signal(0)); err != nil {
		j.t.Error("the process has got its signal before the journal was told:", err)
	}
	j.told = append(j.told, change.Action+" "+change.Target)
	return j.err
}

func (j *journal) NotBegun() { j.told = append(j.told, "not begun") }

// A script's signal is told to the journal first, and named among the changes after it was sent.
func TestSignalsOfScripts(t *testing.T) {
	r := newRoom(t)
	c := start(t, "", "/bin/sleep", "100")
	j := &journal{t: t, of: c}
	var changes []*pb.Change
	call := &builtins.Call{Tx: j, Changed: func(c *pb.Change) { changes = append(changes, c) }}
	kill := func(in *pb.ProcessKillArgs) error {
		in.Pid = c.pid()
		_, err := r.scriptKill(context.Background(), call, in)
		return err
	}
	for _, in := range []*pb.ProcessKillArgs{{Signal: "NOPE"}, {StartTicks: 1}, {Signal: "KILL", StartTicks: 1}} {
		if err := kill(in); err == nil {
			t.Errorf("%v was taken", in)
		}
	}
	if err := kill(&pb.ProcessKillArgs{Signal: "0"}); err != nil || len(j.told)+len(changes) != 0 {
		t.Error(err, j.told, changes)
	}
	call.DryRun = &builtins.DryRun{}
	if err := kill(&pb.ProcessKillArgs{Signal: "KILL"}); err == nil || call.DryRun.Ended == nil || len(j.told) != 0 ||
		len(changes) != 1 || changes[0].State != pb.ChangeState_CHANGE_STATE_UNKNOWN {
		t.Error(err, j.told, changes)
	}
	call.DryRun, changes = nil, nil
	j.err = fault.ErrBusy
	if err := kill(&pb.ProcessKillArgs{Signal: "KILL"}); !errors.Is(err, fault.ErrBusy) || len(changes) != 0 {
		t.Error(err, changes)
	}
	j.err, j.told = nil, nil
	if err := kill(&pb.ProcessKillArgs{Signal: "kill"}); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if want := fmt.Sprintf("%d (sleep)", c.pid()); len(j.told) != 1 || j.told[0] != "signalled "+want || len(changes) != 1 ||
		changes[0].Target != want || changes[0].Reversible {
		t.Error(j.told, changes)
	}
	args := &pb.ProcessListArgs{Sort: "cpu", Reverse: true, Max: 2, OmitArguments: true}
	listed, err := r.scriptList(context.Background(), call, args)
	if err != nil || len(listed.Processes) != 2 || listed.Processes[0].Pid == 0 || listed.Processes[0].Started < 1e9 {
		t.Error(listed, err)
	}
}

// What came by a port others need not be able to end: neither a host nor a script. What nobody began is anybody's.
func TestKillOfWhatCameByAnotherPort(t *testing.T) {
	start := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sleep", "300")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	theirs, free := start(), start()
	r := New(&guest.Guest{Live: true}, func(pid int) (string, bool) { return "tools", pid == theirs.Process.Pid })
	other := &builtins.Call{Port: "daemon", Sees: func(port string) bool { return port == "daemon" }}
	pid := uint32(theirs.Process.Pid)
	_, native := r.kill(t.Context(), other, &pb.KillProcessRequest{Pid: pid, Signal: 9})
	_, script := r.scriptKill(t.Context(), other, &pb.ProcessKillArgs{Pid: pid})
	for _, err := range []error{native, script} {
		if !errors.Is(err, builtins.ErrPolicy) {
			t.Error(err)
		}
	}
	if err := theirs.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("it was ended: ", err)
	}
	for _, c := range []struct {
		cmd  *exec.Cmd
		call *builtins.Call
	}{{free, other}, {theirs, &builtins.Call{Port: "tools", Sees: func(port string) bool { return port == "tools" }}}} {
		if _, err := r.kill(t.Context(), c.call, &pb.KillProcessRequest{Pid: uint32(c.cmd.Process.Pid), Signal: 9}); err != nil {
			t.Error(err)
		}
		if err := c.cmd.Wait(); err == nil {
			t.Error("it ended by itself")
		}
	}
}
