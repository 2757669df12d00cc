package desktop

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// run starts a program as a user, with a display in its environment.
func run(t *testing.T, uid uint32, display string, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"DISPLAY=" + display, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: unix.SIGKILL, Setpgid: true,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(cmd) })
	return cmd
}

func stop(cmd *exec.Cmd) {
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	cmd.Wait()
}

func found(t *testing.T) string {
	t.Helper()
	s, err := findByProcesses(nil, func(uint32) bool { return true })
	if fault.Code(err) == "unsupported" {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.User.Name + s.Display
}

// A user who names the display of another one has no session by that, and takes none from the other.
func TestADisplayIsThatOfItsUser(t *testing.T) {
	if !isolated(t) {
		return
	}
	end := display(t, tester, 7)
	run(t, tester+1, ":7", "sleep", "1000")
	run(t, 0, ":7", "sleep", "1000")
	if s := found(t); s != "12345:7" {
		t.Errorf("found %q", s)
	}
	f := &finder{}
	if _, err := f.environment(&Session{Type: "x11", Display: ":7", User: &proc.User{Name: "b", UID: tester + 1}}); err == nil {
		t.Error("the display of another user is that of a session")
	}
	if _, err := f.environment(&Session{Type: "x11", Display: ":7", User: &proc.User{Name: "root"}}); fault.Code(err) != "unsupported" {
		t.Errorf("a session of root: %v", err)
	}
	if err := os.Symlink("X7", xSocket(":8")); err != nil {
		t.Fatal(err)
	}
	if isXServer(":8", tester) {
		t.Error("a link is a server")
	}
	end()
	if s := found(t); s != "" {
		t.Errorf("without a session: %q", s)
	}
}

// The environment of a set-uid program is its caller's: neither the caller nor the owner of the program has a session by it.
func TestSetUIDProgramsHaveNoSession(t *testing.T) {
	if !isolated(t) {
		return
	}
	listener, err := net.Listen("unix", xSocket(":9")) // a display of root
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	for name, owner := range map[string]int{"/tmp/roots": 0, "/tmp/others": tester + 1} {
		if err := errors.Join(os.WriteFile(name, program, 0o755), os.Chown(name, owner, owner), os.Chmod(name, 0o755|os.ModeSetuid)); err != nil {
			t.Fatal(err)
		}
		cmd := run(t, tester, ":9", name, "1000")
		if s := found(t); s != "" {
			t.Errorf("%s: found %q", name, s)
		}
		if s, err := sessionProcess(&Session{Type: "x11", User: &proc.User{UID: uint32(owner)}}); err == nil {
			t.Errorf("%s: a process of the session: %v", name, s)
		}
		if err := (member{pid: cmd.Process.Pid}).identify(&proc.User{UID: tester}); !errors.Is(err, errTwoUsers) {
			t.Errorf("%s: %v", name, err)
		}
	}
	run(t, tester, ":9", "sleep", "1000")
	if s := found(t); s != "12345:9" { // else the above says nothing
		t.Errorf("found %q", s)
	}
}

// A server of root, as display managers start it, is that of the user whom the same display manager has logged in.
func TestADisplayOfRootIsThatOfWhoLoggedIn(t *testing.T) {
	if !isolated(t) {
		return
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv: apt-get install util-linux")
	}
	run(t, 0, "", "sh", "-c", `Xvfb :9 -nolisten tcp & sleep 1000 & wait`)
	waitFor(t, func() bool { return isXServer(":9", 0) && parent(serverOf(":9")) > 1 })
	stranger := run(t, tester+1, ":9", "sleep", "1000")
	if s := found(t); s != "" {
		t.Errorf("while nobody has logged in: %q", s)
	}
	stop(stranger)

	run(t, 0, "", "sh", "-c", `Xvfb :10 -nolisten tcp & setpriv --reuid 12345 --regid 12345 --clear-groups env DISPLAY=:10 sleep 1000 & wait`)
	run(t, tester+1, ":10", "sleep", "1000")
	waitFor(t, func() bool { return found(t) == "12345:10" })
}

func TestParseIdentity(t *testing.T) {
	who, err := parseIdentity("Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t9 10 \n")
	if err != nil || who.uid != 7 || who.gid != 8 || len(who.groups) != 2 {
		t.Errorf("%v, %v", who, err)
	}
	for _, status := range []string{
		"", "Uid:\t7\t7\t7\t7\n", "Uid:\t7\t7\t7\nGid:\t8\t8\t8\t8\n", "Uid:\t7\t0\t0\t0\nGid:\t8\t8\t8\t8\n", "Uid:\t7\t7\t7\t0\nGid:\t8\t8\t8\t8\n",
		"Uid:\t7\t7\t7\t7\nGid:\t8\t0\t0\t0\n", "Uid:\t7\t7\t7\tx\nGid:\t8\t8\t8\t8\n", "Uid:\nGid:\n",
	} {
		if who, err := parseIdentity(status); err == nil {
			t.Errorf("%q: %v", status, who)
		}
	}
}

// Where logind lists who is at the seat, nobody else is in front.
func TestWhoIsInFrontByLogind(t *testing.T) {
	if !isolated(t) {
		return
	}
	display(t, tester, 7) // of somebody who is not at the seat, but where that is said
	graphical := seat{id: "1", user: "a", uid: 2000, seat: "seat0", kind: "wayland", class: "user", active: true, locked: true}
	greeter := seat{id: "c1", user: "gdm", uid: 120, seat: "seat0", kind: "wayland", class: "greeter", active: true}
	text := seat{id: "2", user: "b", uid: 2001, seat: "seat0", kind: "tty", class: "user", active: true}
	startx, behind, root, ending := text, graphical, graphical, graphical
	startx.uid, startx.user, startx.locked = tester, "t", true
	behind.active = false
	root.uid, root.user = 0, "root"
	ending.state = "closing"
	f := &finder{}
	for _, c := range []struct {
		name   string
		seated []seat
		want   string // user and number, or words of the error
		told   bool   // logind tells when it changes
	}{
		{"a session", []seat{behind, graphical}, "a 1", false},
		{"the login screen", []seat{greeter}, "nobody has logged in", true},
		{"the login screen, before a session", []seat{greeter, behind}, "in the background, or ending: wayland session of a", true},
		{"a session that ends", []seat{ending}, "in the background, or ending: wayland session of a", true},
		{"a text session", []seat{text}, "b is, with a text session", false},
		{"a text session that became a graphical one", []seat{behind, startx}, "t 2", false},
		{"root", []seat{root}, "desktop of root", true},
	} {
		s, err := f.choose(c.seated)
		if err != nil {
			if fault.Code(err) != "unsupported" || !strings.Contains(err.Error(), c.want) || errors.Is(err, errBackground) != c.told {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if got := s.User.Name + " " + s.ID; got != c.want || !s.Locked || s.Seat != "seat0" {
			t.Errorf("%s: %q, %+v", c.name, got, s)
		}
	}
}
