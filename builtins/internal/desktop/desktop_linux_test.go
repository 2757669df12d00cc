package desktop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain is the helper as well: it answers a ProcessInfo with what it is, and does worse for other requests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Arg {
		os.Exit(helper.Main(register))
	}
	os.Exit(m.Run())
}

// The requests to the helper of the tests are messages of the contract, with a meaning of their own here.
func register(r *helper.Registry) {
	helper.Handle(r, func(context.Context, *pb.ListJobsRequest) (*pb.RunResult, error) { // who are you?
		status, err := os.ReadFile("/proc/thread-self/status")
		if err != nil {
			return nil, err
		}
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return nil, err
		}
		list := ""
		for _, fd := range fds {
			target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
			list += target + "\n"
		}
		return &pb.RunResult{Stdout: append(status, list...), Stderr: []byte(strings.Join(os.Environ(), "\n"))}, nil
	})
	helper.Handle(r, func(ctx context.Context, in *pb.FileWriteRequest) (*pb.FileWriteRequest, error) {
		if in.Path == "size" { // of an answer that is asked for
			return &pb.FileWriteRequest{Data: make([]byte, in.Offset)}, nil
		}
		return in, nil
	})
	helper.Handle(r, func(ctx context.Context, in *pb.PingRequest) (*pb.PongResponse, error) {
		if in.Sequence == 1 { // a compositor that is silent
			<-ctx.Done()
			return nil, ctx.Err()
		}
		unix.Kill(os.Getpid(), unix.SIGSTOP) // a helper that hangs; it may run on for a moment
		<-ctx.Done()
		return nil, ctx.Err()
	})
	helper.Handle(r, func(ctx context.Context, in *pb.ExecuteRequest) (*pb.PongResponse, error) { // eat memory
		var eaten [][]byte
		for range 1024 {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			eaten = append(eaten, b)
		}
		return &pb.PongResponse{Version: strconv.Itoa(len(eaten))}, nil
	})
	helper.Handle(r, func(ctx context.Context, in *pb.ThawFilesystemsRequest) (*pb.PongResponse, error) { // flood
		for i := range 1000 {
			if err := r.Emit(&pb.ErrorEvent{Message: strconv.Itoa(i)}); err != nil {
				return nil, err
			}
		}
		return &pb.PongResponse{}, nil
	})
}

const tester = 12345 // a user without an account

// isolated runs the test again in namespaces of its own: no other session of the machine is seen there, and the sockets of X
// servers are the test's.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv("QUANTIX_ISOLATED") != "" {
		if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777"); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", "/tmp")
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
		if err := errors.Join(os.Mkdir(xSockets, 0o700), os.Chmod(xSockets, 0o777|os.ModeSticky)); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces and to act as another user")
	}
	if _, err := exec.LookPath("Xvfb"); err != nil {
		t.Skip("needs Xvfb: apt-get install xvfb")
	}
	cmd := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "QUANTIX_ISOLATED=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// display starts an X server of a user, and a program that uses it. The result ends both.
func display(t *testing.T, uid uint32, number int) (end func()) {
	t.Helper()
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid, 777}}, Pdeathsig: unix.SIGKILL}
	name := fmt.Sprintf(":%d", number)
	server := exec.Command("Xvfb", name, "-screen", "0", "640x480x24", "-nolisten", "tcp")
	server.SysProcAttr = as
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	client := exec.Command("sleep", "1000")
	client.SysProcAttr = as
	client.Env = []string{"DISPLAY=" + name, "SECRET=1", "LD_PRELOAD=/x"}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return isSocket(xSocket(name), uid) })
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		for _, c := range []*exec.Cmd{client, server} {
			c.Process.Kill()
			c.Wait()
		}
		os.Remove(xSocket(name))
	}
	t.Cleanup(end)
	return end
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

func open(t *testing.T, told func(string)) *Desktop {
	t.Helper()
	files, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	d := New(Config{Files: files, Live: true, Warn: told})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		files.Close()
	})
	return d
}

func whoami(t *testing.T, d *Desktop) *pb.RunResult {
	t.Helper()
	reply, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestHelperHasTheRightsOfTheUserAlone(t *testing.T) {
	if !isolated(t) {
		return
	}
	display(t, tester, 7)
	d := open(t, nil)
	if s := d.Status(); s.HelperStarts != 0 {
		t.Errorf("a helper was started before it was needed: %v", s)
	}
	reply := whoami(t, d)
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0); errno == 0 { // else one thread alone has it: see openChannel
		if !strings.Contains(string(reply.Stdout), "\nNoNewPrivs:\t1\n") {
			t.Error("it may gain privileges")
		}
	}
	for _, line := range []string{
		"\nUid:\t12345\t12345\t12345\t12345\n", "\nGid:\t12345\t12345\t12345\t12345\n", "\nGroups:\t777 12345 \n",
		"\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nCapAmb:\t0000000000000000\n", "\nCapInh:\t0000000000000000\n",
	} {
		if !strings.Contains(string(reply.Stdout), line) {
			t.Errorf("%q is not in %s", line, reply.Stdout)
		}
	}
	if n := strings.Count(string(reply.Stdout), "socket:"); n != 1 {
		t.Errorf("%d sockets: %s", n, reply.Stdout)
	}
	env := "\n" + string(reply.Stderr) + "\n"
	for _, want := range []string{"\nDISPLAY=:7\n", "\nHOME=/\n", "\nXDG_SESSION_TYPE=x11\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("%q is not in %s", want, env)
		}
	}
	for _, forbidden := range []string{"SECRET", "LD_PRELOAD", "QUANTIX_ISOLATED"} {
		if strings.Contains(env, forbidden) {
			t.Errorf("%s is in %s", forbidden, env)
		}
	}
	s := d.Status()
	if s.Type != "x11" || s.Display != ":7" || s.HelperPid == 0 || s.Reason != "" {
		t.Errorf("status: %v", s)
	}
}

func TestHelperIsStartedAgain(t *testing.T) {
	if !isolated(t) {
		return
	}
	display(t, tester, 7)
	told := make(chan string, 10)
	d := open(t, func(words string) { told <- words })
	whoami(t, d)
	first := d.Status().HelperPid
	unix.Kill(int(first), unix.SIGKILL)
	if words := <-told; !strings.Contains(words, "killed") {
		t.Error(words)
	}
	waitFor(t, func() bool { pid := d.Status().HelperPid; return pid != 0 && pid != first }) // without another request
	whoami(t, d)

	// The fault of a helper that does not answer is the caller's error, and its end.
	second := d.Status().HelperPid
	_, err := Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.PingRequest{Sequence: 2}, Limit: 100 * time.Millisecond})
	if fault.Code(err) != "timeout" {
		t.Errorf("a helper that hangs: %v", err)
	}
	if words := <-told; !strings.Contains(words, "did not answer") {
		t.Error(words)
	}
	waitFor(t, func() bool { pid := d.Status().HelperPid; return pid != 0 && pid != second })
	whoami(t, d)

	// One that asks for more memory than it may have dies, and not the guest.
	_, err = Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.ExecuteRequest{}, Limit: time.Minute})
	if !errors.Is(err, os.ErrProcessDone) || fault.Code(err) != "busy" {
		t.Errorf("a helper without memory: %v", err)
	}
	<-told
	whoami(t, d)

	// One that dies at once, again and again, is started more and more seldom.
	d.mu.Lock()
	d.failures = 6
	d.mu.Unlock()
	unix.Kill(int(d.Status().HelperPid), unix.SIGKILL)
	<-told
	waitFor(t, func() bool {
		_, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{})
		return fault.Code(err) == "busy"
	})
	if reason := d.Status().Reason; !strings.Contains(reason, "again and again") {
		t.Errorf("the status says %q", reason)
	}
}

func TestCallsOfTheHelper(t *testing.T) {
	if !isolated(t) {
		return
	}
	end := display(t, tester, 7)
	d := open(t, nil)
	events := make(chan string, 2000)
	OnEvent(d, func(s *Session, e *pb.ErrorEvent) { events <- s.User.Name + e.Message })

	// A compositor that does not answer is an error, and no reason to end the helper.
	_, err := Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.PingRequest{Sequence: 1}, Limit: 50 * time.Millisecond})
	if fault.Code(err) != "timeout" || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("silence: %v", err)
	}
	if s := d.Status(); s.HelperStarts != 1 {
		t.Errorf("the helper was started %d times", s.HelperStarts)
	}
	if _, err := Call[*pb.PongResponse](t.Context(), d, &pb.GetCapabilitiesRequest{}); fault.Code(err) != "unsupported" {
		t.Errorf("an unknown request: %v", err)
	}
	if _, err := Call[*pb.PongResponse](t.Context(), d, &pb.ListJobsRequest{}); fault.Code(err) != "internal" {
		t.Errorf("a reply of another type: %v", err)
	}
	_, err = Do[*pb.RunResult](t.Context(), d, Request{Message: &pb.ListJobsRequest{}, Allow: func(*Session) error { return fault.Refuse("no") }})
	if fault.Code(err) != "refused" {
		t.Errorf("a session that is not allowed: %v", err)
	}

	large := &pb.FileWriteRequest{Data: make([]byte, ipc.MaxContent)}
	copied, err := Call[*pb.FileWriteRequest](t.Context(), d, large)
	if err != nil || len(copied.Data) != ipc.MaxContent {
		t.Errorf("the largest content: %v", err)
	}
	large.Data = make([]byte, ipc.MaxFrame)
	if _, err := Call[*pb.FileWriteRequest](t.Context(), d, large); fault.Code(err) != "too_large" {
		t.Errorf("larger content: %v", err)
	}
	if s := d.Status(); s.HelperStarts != 1 {
		t.Errorf("the helper was started %d times", s.HelperStarts)
	}

	// A helper that floods the agent with events is read slowly, and answered all the same.
	if _, err := Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.ThawFilesystemsRequest{}, Limit: time.Minute}); err != nil {
		t.Error(err)
	}
	if e := <-events; e != "123450" {
		t.Errorf("the first event: %q", e)
	}

	// The session ends in mid-call.
	failed := make(chan error)
	go func() {
		_, err := Do[*pb.PongResponse](t.Context(), d, Request{Message: &pb.PingRequest{Sequence: 1}, Limit: time.Minute})
		failed <- err
	}()
	waitFor(t, func() bool {
		d.mu.Lock()
		l := d.link
		d.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting) > 0
	})
	end()
	d.wake() // as logind does
	if err := <-failed; fault.Code(err) != "busy" || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("a session that ends: %v", err)
	}
	_, err = Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{})
	if fault.Code(err) != "unsupported" || !strings.Contains(err.Error(), "no graphical session") {
		t.Errorf("without a session: %v", err)
	}
	if s := d.Status(); s.HelperPid != 0 || s.Type != "" || !strings.Contains(s.Reason, "no graphical session") {
		t.Errorf("status: %v", s)
	}
}

func TestTheHelperFollowsTheSession(t *testing.T) {
	if !isolated(t) {
		return
	}
	d := open(t, nil)
	d.Keep(&pb.ListJobsRequest{}) // from now on there is a helper wherever there is a session
	end := display(t, tester, 7)
	waitFor(t, func() bool { return d.Status().HelperPid != 0 })
	first := d.Status()
	display(t, tester+1, 8)
	_, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{})
	if fault.Code(err) != "unsupported" || !strings.Contains(err.Error(), "2 users") {
		t.Errorf("two sessions, and nobody who knows which is in front: %v", err)
	}
	end()
	reply := whoami(t, d)
	if !strings.Contains(string(reply.Stdout), "\nUid:\t12346\t") || !strings.Contains(string(reply.Stderr), "DISPLAY=:8") {
		t.Errorf("the helper is %s %s", reply.Stdout, reply.Stderr)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(int(first.HelperPid))); err == nil {
		t.Error("the helper of the former session runs")
	}
}

func TestTheHelperEndsWithTheAgent(t *testing.T) {
	if os.Getenv("QUANTIX_AGENT") != "" { // the agent, which is killed
		p, err := proc.StartPeer(proc.PeerSpec{Args: []string{Arg}, Env: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("helper", p.PID)
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "QUANTIX_AGENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "helper %d", &pid); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	waitFor(t, func() bool { _, err := os.Stat("/proc/" + strconv.Itoa(pid)); return err != nil || isZombie(pid) })
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestATreeHasNoDesktop(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	if _, err := Call[*pb.RunResult](t.Context(), d, &pb.ListJobsRequest{}); fault.Code(err) != "unsupported" {
		t.Error(err)
	}
	if _, err := d.Front(t.Context()); fault.Code(err) != "unsupported" {
		t.Error(err)
	}
}

// What is no helper, or one that was taken over, must cost the agent neither memory nor a call for ever.
func TestFramesOfAHelperAreBounded(t *testing.T) {
	for name, content := range map[string]string{
		"a length beyond all bounds": "\xff\xff\xff\xff",
		"no frame":                   "\x00\x00\x00\x04\xff\xff\xff\xff",
		"a frame that is cut":        "\x00\x00\x00\x40abc",
		"too many elements":          "\x00\x01\x38\x80" + strings.Repeat("\x08\x01", 40000),
	} {
		if _, err := ipc.Read(strings.NewReader(content)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
