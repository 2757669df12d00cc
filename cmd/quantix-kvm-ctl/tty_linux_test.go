package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// desk is a terminal with somebody before it.
type desk struct {
	t             *testing.T
	master, slave *os.File
	mu            sync.Mutex
	seen          string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here; mount devpts at /dev/pts: %v", err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, master: master, slave: slave}
	d.resize(30, 100)
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			d.mu.Lock()
			d.seen += string(buf[:n])
			d.mu.Unlock()
			if err != nil { // the last slave is closed
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); <-read; master.Close() })
	return d
}

// ctl starts the program at the desk.
func (d *desk) ctl(args ...string) *exec.Cmd {
	d.t.Helper()
	binary, err := ctltest.Binary()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.slave, d.slave, d.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Env = append(os.Environ(), "TERM=dumb")
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cmd.Process.Kill() })
	return cmd
}

func (d *desk) types(text string) {
	d.t.Helper()
	if _, err := d.master.WriteString(text); err != nil {
		d.t.Fatal(err)
	}
}

// sees waits until a text stands on the screen, and forgets what came until then.
func (d *desk) sees(text string) {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		d.mu.Lock()
		_, rest, found := strings.Cut(d.seen, text)
		if found {
			d.seen = rest
		}
		seen := d.seen
		d.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%q does not come; on the screen is %q", text, seen)
		}
	}
}

func (d *desk) resize(rows, cols uint16) {
	if err := unix.IoctlSetWinsize(int(d.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) mode() unix.Termios {
	mode, err := unix.IoctlGetTermios(int(d.slave.Fd()), unix.TCGETS)
	if err != nil {
		d.t.Fatal(err)
	}
	return *mode
}

// ends waits for the program and gives its exit code.
func ends(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func TestShellAtATerminal(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	t.Cleanup(func() { a.Stop() }) // its commands end with it
	d := newDesk(t)
	before := d.mode()
	cmd := d.ctl("--socket", a.Socket, "exec", "-it", "-e", "PS1=", "-e", "ENV=", "--", "sh")
	d.types("echo ready $((6*7)) $TERM\r")
	d.sees("ready 42 dumb")
	if d.mode() == before {
		t.Error("keys do not go through as they are")
	}
	d.types("stty size\r")
	d.sees("30 100")
	d.resize(41, 120)
	d.types("while test \"$(stty size)\" != '41 120'; do sleep 0.1; done; echo larger $((1+1))\r")
	d.sees("larger 2")
	d.types("sh -c 'echo set $((2+3)); exec sleep 1000'\r")
	d.sees("set 5") // by what has the terminal by then
	d.types("\x03") // to the guest, and not to the program here
	d.sees("^C")
	d.types("echo went on $((3+4))\r")
	d.sees("went on 7")
	d.types("exit 3\r")
	if code := ends(t, cmd); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if d.mode() != before {
		t.Error("the terminal is not as it was")
	}
}

// However the program ends, the terminal is as it was.
func TestTerminalIsRestored(t *testing.T) {
	for _, test := range []struct {
		name    string
		signals []syscall.Signal
		guest   string // what runs there
	}{
		{"terminated", []syscall.Signal{syscall.SIGTERM}, "echo up; sleep 1000"},
		{"terminated twice", []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, "trap '' TERM; echo up; while :; do sleep 1; done"},
		{"hung up", []syscall.Signal{syscall.SIGHUP}, "echo up; sleep 1000"},
		{"guest gone", nil, "echo up; sleep 1000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := agenttest.Start(t, agenttest.Options{})
			t.Cleanup(func() { a.Stop() })
			d := newDesk(t)
			before := d.mode()
			cmd := d.ctl("--socket", a.Socket, "exec", "-it", "--shell", "--", test.guest)
			d.sees("up")
			if d.mode() == before {
				t.Error("keys do not go through as they are")
			}
			for i, signal := range test.signals {
				if i > 0 { // the first one has arrived
					for deadline := time.Now().Add(30 * time.Second); d.mode() != before; time.Sleep(5 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatal("the first signal restored nothing")
						}
					}
				}
				cmd.Process.Signal(signal)
			}
			if test.signals == nil {
				a.Kill()
			}
			if code := ends(t, cmd); code == 0 {
				t.Error("it ended as if all were well")
			}
			if d.mode() != before {
				t.Error("the terminal is not as it was")
			}
		})
	}
}

// A password is asked for twice, and not shown; an interrupt brings the terminal back.
func TestPasswordAtATerminal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("run as root: the agent reads /etc/shadow")
	}
	a := agenttest.Start(t, agenttest.Options{})
	t.Cleanup(func() { a.Stop() })
	d := newDesk(t)
	before := d.mode()
	hidden := func() {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); d.mode().Lflag&unix.ECHO != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("what is typed is shown")
			}
		}
	}
	for second, want := range map[string]struct {
		code int
		says string
	}{"to look for": {1, "there is no such user"}, "another": {2, "not the same"}} {
		cmd := d.ctl("--socket", a.Socket, "passwd", "no-such-user-here")
		d.sees("New password for no-such-user-here: ")
		hidden()
		d.types("to look for\r")
		d.sees("Once more: ")
		hidden()
		d.types(second + "\r")
		d.sees(want.says)
		if code := ends(t, cmd); code != want.code {
			t.Errorf("exit code %d", code)
		}
	}
	cmd := d.ctl("--socket", a.Socket, "passwd", "no-such-user-here")
	d.sees("New password for no-such-user-here: ")
	hidden()
	d.types("to look\x03")
	if code := ends(t, cmd); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	if d.mode() != before {
		t.Error("the terminal is not as it was")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if strings.Contains(d.seen, "to look") {
		t.Errorf("the password is shown: %q", d.seen)
	}
}
