package telemetry

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	patience = 30 * time.Second // for what comes; that it comes within 2 s is seen in a guest of its own
	quiet    = 2 * time.Second  // in which something that is told would have come
)

// TestMain makes this program, started anew in namespaces of its own, the watcher of a test.
func TestMain(m *testing.M) {
	if os.Getenv("WATCH_CHILD") == "" {
		os.Exit(m.Run())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println("mount", err)
		os.Exit(1)
	}
	if err := watchChild(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("good")
	os.Exit(0)
}

// The kernel's own messages, in a network and a mount namespace of the test's: a change is told at once, a link that goes up
// and down all the time once a second at most, and what does not change anything that hosts see not at all.
func TestWatch(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for namespaces: run the test binary as root")
	}
	for _, tool := range []string{"ip", "unshare", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--net", "--mount", program)
	cmd.Env = append(os.Environ(), "WATCH_CHILD="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "good\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func watchChild() error {
	s := New("/")
	defer s.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	changed, _ := s.Watch(ctx)
	run := func(line string) error {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w %s", line, err, out)
		}
		return nil
	}
	told := func(within time.Duration) bool {
		select {
		case <-changed:
			return true
		case <-time.After(within):
			return false
		}
	}
	disk := filepath.Join(os.Getenv("WATCH_CHILD"), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	for _, step := range []struct {
		line string
		want bool
	}{
		{"ip link add lan0 type ifb", true},
		{"ip addr add 192.0.2.7/24 dev lan0", true},
		{"ip link set lan0 up", true},
		{"ip addr add 2001:db8::7/64 dev lan0 nodad", true},
		{"ip link set lan0 alias x", false},                     // hosts do not see it
		{"ip addr change 192.0.2.7/24 dev lan0", false},         // as it is
		{"ip link add veth77 type veth peer name other", false}, // of containers
		{"mount -t tmpfs none " + disk, false},                  // holds no data
		{"ip addr del 192.0.2.7/24 dev lan0", true},
		{"ip link set lan0 down", true},
	} {
		for told(1200 * time.Millisecond) { // such as the kernel's own address of the link
		}
		if err := run(step.line); err != nil {
			return err
		}
		wait := quiet
		if step.want {
			wait = patience
		}
		if told(wait) != step.want {
			return fmt.Errorf("%s: told is %t", step.line, !step.want)
		}
	}
	if err := flap(run, changed); err != nil {
		return err
	}
	stop() // the sources end with who watched last, and can start again
	s.watch.mu.Lock()
	ended := s.watch.ended
	s.watch.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the sources did not end\n%s", stacks())
	}
	again, end := context.WithCancel(context.Background())
	defer end()
	changed, _ = s.Watch(again)
	if err := run("ip addr add 192.0.2.8/24 dev lan0"); err != nil {
		return err
	}
	if !told(patience) {
		return fmt.Errorf("the second watch is not told")
	}
	return nil
}

// flap changes a link all the time. Who watches is told once a second at most.
func flap(run func(string) error, changed <-chan struct{}) error {
	for drained := false; !drained; {
		select {
		case <-changed:
		case <-time.After(1500 * time.Millisecond):
			drained = true
		}
	}
	begin, count, flaps := time.Now(), 0, 0
	for time.Since(begin) < 5*time.Second {
		state := [...]string{"up", "down"}[flaps%2]
		flaps++
		if err := run("ip link set lan0 " + state); err != nil {
			return err
		}
		select {
		case <-changed:
			count++
		default:
		}
	}
	most := int(time.Since(begin)/minimumGap) + 1
	if count > most || flaps < 2*most {
		return fmt.Errorf("told %d times of %d changes within %s", count, flaps, time.Since(begin))
	}
	return nil
}

func stacks() string {
	text := make([]byte, 64<<10)
	return string(text[:runtime.Stack(text, true)])
}

func TestParseKill(t *testing.T) {
	groups := map[string]string{}
	say := func(text string) *pb.ErrorEvent { return parseKill([]byte(text), groups) }
	const memcg = "6,1300,9000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a.slice,task_memcg=/a.slice/b,task=eat,pid=812,uid=0\n"
	if e := say(memcg); e != nil {
		t.Error(e)
	}
	e := say("3,1301,9000001,-;Memory cgroup out of memory: Killed process 812 (eat (1) \\x09) total-vm:104380kB, anon-rss:49988kB, file-rss:4kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0\n SUBSYSTEM=x\n")
	if e.GetCode() != "oom_kill" || e.Details["pid"] != "812" || e.Details["name"] != `eat (1) \x09` || e.Details["cgroup"] != "/a.slice/b" ||
		e.Details["anon_rss_kib"] != "49988" || !strings.Contains(e.Message, "process 812 (eat (1)") {
		t.Error(e)
	}
	e = say("3,5,1,-;Out of memory: Killed process 7 (python3) total-vm:1kB, anon-rss:2kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0\n")
	if e.GetDetails()["pid"] != "7" || e.GetDetails()["cgroup"] != "" {
		t.Error(e)
	}
	for _, text := range []string{
		"", ";", "x", "3,5;",
		"11,5,1,-;Out of memory: Killed process 7 (python3) total-vm:1kB, anon-rss:2kB\n", // of a process
		"6,5,1,-;oom_reaper: reaped process 7 (python3), now anon-rss:0kB, file-rss:0kB\n",
		"6,5,1,-;usb: Out of memory: Killed process 7 (python3) total-vm:1kB, anon-rss:2kB\n",
	} {
		if e := say(text); e != nil {
			t.Errorf("%q is %v", text, e)
		}
	}
}

// Without the kernel's log its counter tells; what was killed before is not told, and nothing twice. With the log, which comes
// right after the counter, a kill must be missing for a while.
func TestCountedKills(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.events")
	write := func(n int) {
		if err := os.WriteFile(file, []byte(fmt.Sprintf("oom 99\noom_kill %d\noom_group_kill 0\n", n)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(3)
	k := &killCounter{}
	k.init(true, filepath.Dir(file))
	var events []*pb.ErrorEvent
	listening := true
	count := func() int {
		events = nil
		k.count(func(e *pb.ErrorEvent) bool {
			if listening {
				events = append(events, e)
			}
			return listening
		})
		return len(events)
	}
	if n := count(); n != 0 {
		t.Error("told of what was killed before", events)
	}
	write(5)
	listening = false
	count()
	listening = true
	if n := count(); n != 1 || events[0].Code != "oom_kill" || events[0].Details["count"] != "2" {
		t.Error(events)
	}
	if n := count(); n != 0 {
		t.Error("told twice", events)
	}
	k.log = 0 // as if there were one; nothing reads it here
	write(6)
	if n := count(); n != 0 {
		t.Error("not waited for its name", events)
	}
	k.missing = k.missing.Add(-unnamedAfter)
	if n := count(); n != 1 {
		t.Error(events)
	}
	write(7)
	k.known++ // the log told
	if n := count(); n != 0 {
		t.Error(events)
	}
}

// Who does not read is told later how many kills there were that it had no room for, and others are told of each.
func TestKillsThatThereIsNoRoomFor(t *testing.T) {
	w := &watcher{subs: map[*subscription]bool{}}
	slow := &subscription{changed: make(chan struct{}, 1), events: make(chan *pb.ErrorEvent, eventRoom)}
	quick := &subscription{changed: make(chan struct{}, 1), events: make(chan *pb.ErrorEvent, 4*eventRoom)}
	w.subs[slow], w.subs[quick] = true, true
	for range eventRoom + 3 {
		if !w.tell(killEvent("one", nil)) {
			t.Error("nobody is told")
		}
	}
	w.tell(killsEvent(2))
	if len(quick.events) != eventRoom+4 || quick.missed != 0 {
		t.Error(len(quick.events), quick.missed)
	}
	w.countKills() // there is no room yet
	if len(slow.events) != eventRoom {
		t.Error(len(slow.events))
	}
	<-slow.events
	<-slow.events
	w.countKills()
	w.countKills()
	w.tell(killEvent("last", nil))
	var got []*pb.ErrorEvent
	for len(slow.events) > 0 {
		got = append(got, <-slow.events)
	}
	if n := len(got); n != eventRoom || got[n-2].Details["count"] != "5" || got[n-1].Message != "last" || got[0].Message != "one" {
		t.Error(got)
	}
}

// BenchmarkFingerprint is what a new session costs, and a change of something that nobody is told of.
func BenchmarkFingerprint(b *testing.B) {
	for b.Loop() {
		fingerprint(context.Background(), "/")
	}
}
