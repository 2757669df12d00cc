// Package desktoptest starts real display servers and compositors for tests, each without a screen and in a session of its own.
//
//	Sway, Mutter, KWin, Xvfb, Xorg ─► Session: its environment, programs run in it ─► ended with the test
//
// Where a server's program is not installed the test is skipped, with the name of the Debian package that has it. A compositor
// runs as an ordinary user: where the test is root's, as nobody.
//
// Not here: what a test does in a session.
package desktoptest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server has to come up: it may share the machine with other tests.
const patience = 30 * time.Second

// Session is a desktop that runs.
type Session struct {
	// Dir is a directory of the session's user: HOME, and XDG_RUNTIME_DIR as well.
	Dir string
	// UID and GID are the user's.
	UID, GID int

	mu  sync.Mutex
	env []string
}

// newSession makes a directory for a session. Its path is short, as that of a socket must be.
func newSession(t testing.TB) *Session {
	t.Helper()
	dir, err := os.MkdirTemp("", "desktop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Session{Dir: dir, UID: os.Getuid(), GID: os.Getgid()}
	if s.UID == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Skipf("a compositor runs as an ordinary user, and there is none: %v", err)
		}
		s.UID, _ = strconv.Atoi(nobody.Uid)
		s.GID, _ = strconv.Atoi(nobody.Gid)
	}
	if err := os.Chown(dir, s.UID, s.GID); err != nil {
		t.Fatal(err)
	}
	s.Set("PATH", os.Getenv("PATH"))
	s.Set("HOME", dir)
	s.Set("XDG_RUNTIME_DIR", dir)
	s.Set("LANG", "C.UTF-8")
	return s
}

// Set sets a variable of the session's environment.
func (s *Session) Set(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	s.env = append(s.env, name+"="+value)
}

// Getenv returns a variable of the session's environment; empty: it is not set.
func (s *Session) Getenv(name string) string {
	for _, v := range s.Env() {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// Env returns the session's environment.
func (s *Session) Env() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.env)
}

// Command returns a command in the session, as its user, that is killed when ctx ends.
func (s *Session) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = s.Env(), s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != s.UID {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}
	}
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs a program in the session and returns what it wrote to its standard output. One that fails ends the test.
func (s *Session) Run(t testing.TB, argv ...string) string {
	t.Helper()
	Need(t, argv[0], "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.Command(ctx, argv...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s%s", argv, err, out, &stderr)
	}
	return string(out)
}

// Need skips the test where a program is not installed. The package is Debian's that has it; empty: of the program's name.
func Need(t testing.TB, program, in string) {
	t.Helper()
	if in == "" {
		in = program
	}
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed (apt-get install --no-install-recommends %s)", program, in)
	}
}

// start runs a server until the test ends, and waits until ready says that it is up.
func (s *Session) start(t testing.TB, ready func() bool, argv ...string) *exec.Cmd {
	t.Helper()
	return s.startCommand(t, ready, s.Command(context.Background(), argv...))
}

func (s *Session) startCommand(t testing.TB, ready func() bool, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	output, err := os.Create(filepath.Join(s.Dir, filepath.Base(cmd.Path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(2 * time.Second):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("%s:\n%s", output.Name(), text[max(0, len(text)-4000):])
		}
	})
	for deadline := time.Now().Add(patience); !ready(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended:
			text, _ := os.ReadFile(output.Name())
			t.Fatalf("%q ended: %s", cmd.Args, text[max(0, len(text)-4000):])
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q did not come up", cmd.Args)
		}
	}
	return cmd
}

// socket returns a function that reports whether somebody listens at a path.
func socket(path string) func() bool {
	return func() bool {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
}

// Sway starts sway with outputs HEADLESS-1 and so on of 1024x768, drawn by pixman. SWAYSOCK is set in the session.
func Sway(t testing.TB, outputs int) *Session {
	t.Helper()
	Need(t, "sway", "")
	return sway(t, "", outputs)
}

// newSway is the variable with the directory of a newer Debian, in which sway is installed, such as mmdebstrap makes it.
const newSway = "QUANTIX_SWAY_ROOT"

// NewSway is Sway with the program of the system in the directory that QUANTIX_SWAY_ROOT names: sway speaks ext-data-control
// since 1.11, which Debian 12 does not have. Without that variable the test is skipped.
func NewSway(t testing.TB, outputs int) *Session {
	t.Helper()
	root := os.Getenv(newSway)
	if root == "" {
		t.Skip(newSway + " is not set (mmdebstrap --include=sway forky DIRECTORY)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for chroot(2)")
	}
	return sway(t, root, outputs)
}

// sway starts sway; root is the directory of the system that it is of, and empty for this one.
func sway(t testing.TB, root string, outputs int) *Session {
	t.Helper()
	s := newSession(t)
	if root != "" { // where the session's directory is there, too
		there := filepath.Join(root, s.Dir)
		if err := os.MkdirAll(there, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(there) })
		if err := syscall.Mount(s.Dir, there, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Unmount(there, syscall.MNT_DETACH) })
	}
	config := filepath.Join(s.Dir, "sway.conf")
	text := "xwayland disable\n"
	for i := range outputs {
		text += fmt.Sprintf("output HEADLESS-%d mode --custom 1024x768@60Hz\n", i+1)
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Set("WLR_BACKENDS", "headless")
	s.Set("WLR_RENDERER", "pixman")
	s.Set("WLR_LIBINPUT_NO_DEVICES", "1")
	s.Set("WLR_HEADLESS_OUTPUTS", strconv.Itoa(outputs))
	s.Set("SWAYSOCK", filepath.Join(s.Dir, "sway.sock"))
	cmd := s.Command(context.Background(), "sway", "-c", config)
	if root != "" {
		cmd.Path, cmd.Err = "/usr/bin/sway", nil
		cmd.SysProcAttr.Chroot = root
	}
	s.startCommand(t, func() bool { // it listens before it has outputs
		out, err := s.Command(t.Context(), "swaymsg", "-r", "-t", "get_outputs").Output()
		return err == nil && strings.Count(strings.ReplaceAll(string(out), " ", ""), `"width":1024,`) >= outputs
	}, cmd)
	s.Set("WAYLAND_DISPLAY", "wayland-1")
	s.Set("XDG_SESSION_TYPE", "wayland")
	return s
}
