package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// container is this machine's own system, booted once more by systemd over a file system that is dropped.
type container struct {
	t    *testing.T
	init int // the pid of its systemd
}

func bootContainer(t *testing.T) *container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for program, in := range map[string]string{
		"systemd-nspawn": "systemd-container", "Xvfb": "xvfb", "xclip": "xclip", "nsenter": "util-linux", "/lib/systemd/systemd-logind": "systemd",
		"/usr/bin/dbus-send": "dbus", "useradd": "passwd",
	} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install --no-install-recommends %s", program, in)
		}
	}
	if found, _ := filepath.Glob("/lib/*/security/pam_systemd.so"); found == nil {
		t.Skip("needs pam_systemd: apt-get install --no-install-recommends libpam-systemd")
	}
	agent, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	upper, root := filepath.Join(dir, "upper"), filepath.Join(dir, "root")
	mount := func(kind, at, options string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount(kind, at, kind, 0, options)); err != nil {
			t.Skipf("cannot mount %s: %v", kind, err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount("tmpfs", upper, "")
	if err := errors.Join(os.Mkdir(upper+"/new", 0o755), os.Mkdir(upper+"/work", 0o755)); err != nil {
		t.Fatal(err)
	}
	mount("overlay", root, "lowerdir=/,upperdir="+upper+"/new,workdir="+upper+"/work")
	if err := os.WriteFile(filepath.Join(root, "opt", "agent"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command("systemd-nspawn", "-D", root, "--register=no", "--keep-unit", "--private-network",
		fmt.Sprintf("--machine=desktop-%d", os.Getpid()), "-b", "systemd.unit=basic.target")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &container{t: t}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		if c.init != 0 {
			if err := unix.Kill(c.init, unix.SIGKILL); err != nil { // and all in it with it
				t.Errorf("the container %d: %v", c.init, err)
			}
		}
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s", said.Bytes())
		}
	})
	within(t, func() bool {
		select {
		case <-ended:
			t.Skipf("systemd-nspawn does not work here: %s", said.Bytes())
		default:
		}
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		fmt.Sscan(string(text), &c.init)
		return c.init != 0 && c.try("systemctl", "is-active", "basic.target") == nil
	})
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.init)); err != nil || !strings.Contains(string(text), "\t1\n") {
		t.Fatalf("%d is no systemd of a container: %v\n%s", c.init, err, text)
	}
	c.run("systemctl", "start", "dbus", "systemd-logind")
	return c
}

func (c *container) command(argv ...string) *exec.Cmd {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	c.t.Cleanup(stop)
	args := append([]string{"-t", fmt.Sprint(c.init), "-m", "-u", "-i", "-n", "-p"}, argv...)
	return exec.CommandContext(ctx, "nsenter", args...)
}

func (c *container) try(argv ...string) error { return c.command(argv...).Run() }

// run runs a program in the container and returns what it says.
func (c *container) run(argv ...string) string {
	c.t.Helper()
	out, err := c.command(argv...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// session begins a graphical session of a new user on the seat, and returns its number in logind.
func (c *container) session(user, display string) string {
	c.t.Helper()
	c.run("useradd", "-m", "-G", "audio", user)
	unit := fmt.Sprintf(`[Service]
User=%s
PAMName=login
Environment=XDG_SESSION_TYPE=x11 XDG_SEAT=seat0 XDG_SESSION_CLASS=user DISPLAY=%s
ExecStart=/bin/sh -c 'Xvfb %s -screen 0 640x480x24 -nolisten tcp & sleep 100000'
`, user, display, display)
	path := fmt.Sprintf("/proc/%d/root/etc/systemd/system/desktop-%s.service", c.init, user)
	if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.run("systemctl", "daemon-reload")
	c.run("systemctl", "start", "desktop-"+user)
	within(c.t, func() bool { return c.try("test", "-S", "/tmp/.X11-unix/X"+strings.TrimPrefix(display, ":")) == nil })
	for line := range strings.Lines(c.run("loginctl", "--no-legend", "list-sessions")) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == user {
			return fields[0]
		}
	}
	c.t.Fatalf("logind has no session of %s", user)
	return ""
}

// paste returns what a program of a user pastes.
func (c *container) paste(user, display string) string {
	c.t.Helper()
	return c.run("setpriv", "--reuid", user, "--regid", user, "--init-groups", "env", "DISPLAY="+display, "xclip", "-selection", "clipboard", "-t", "UTF8_STRING", "-o")
}

func (c *container) lock(session string, locked bool) {
	c.t.Helper()
	path := c.run("busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "GetSession", "s", session)
	path = strings.Trim(strings.TrimPrefix(path, "o "), `"`)
	c.run("dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.login1", path, "org.freedesktop.login1.Session.SetLockedHint",
		fmt.Sprintf("boolean:%v", locked))
}

// The agent is a service, and the sessions are real ones of logind: the clipboard is that of whoever is in front.
func TestClipboardFollowsTheUserInFront(t *testing.T) {
	c := bootContainer(t)
	c.run("mkdir", "-p", "-m", "1777", "/tmp/.X11-unix")
	c.run("systemd-run", "--unit=agent", "/opt/agent", "--device", "unix:/run/a.sock", "--state", "/var/lib/agent-test", "--config", "/none")
	socket := fmt.Sprintf("/proc/%d/root/run/a.sock", c.init)
	within(t, func() bool { _, err := os.Stat(socket); return err == nil })
	ctx := ctxFor(t, 2*time.Minute)
	options, changes := changesOf()
	host, err := client.Dial(ctx, socket, options)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	desktop := func() *pb.DesktopStatus {
		t.Helper()
		s, err := client.Call[*pb.GetStatusResponse](ctx, host, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Desktop
	}
	set := func(text string) error { return host.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte(text)}) }
	if err := set("x"); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "no graphical session") {
		t.Errorf("nobody is logged in: %v", err)
	}

	first := c.session("alice", ":7")
	if err := set("for alice"); err != nil {
		t.Fatal(err)
	}
	if got := c.paste("alice", ":7"); got != "for alice" {
		t.Errorf("alice has %q", got)
	}
	ofAlice := desktop()
	if ofAlice.User != "alice" || ofAlice.Session != first || ofAlice.Seat != "seat0" || ofAlice.Display != ":7" || ofAlice.HelperPid == 0 {
		t.Errorf("in front: %v", ofAlice)
	}
	groups := strings.Fields(c.run("sh", "-c", "getent group audio alice | cut -d: -f3"))
	status := strings.Fields(c.run("grep", "Groups:", fmt.Sprintf("/proc/%d/status", ofAlice.HelperPid)))
	for _, group := range groups {
		if !slices.Contains(append(status, "Gid"), group) && group != groups[len(groups)-1] {
			t.Errorf("the helper has the groups %v, without %s", status, group)
		}
	}
	if err := host.WatchClipboard(ctx); err != nil {
		t.Fatal(err)
	}

	// Another user comes to the front.
	second := c.session("bob", ":8")
	c.run("loginctl", "activate", second)
	within(t, func() bool { now := desktop(); return now.User == "bob" && now.HelperPid != 0 }) // by signals: nobody asked for it
	if c.try("test", "-d", fmt.Sprintf("/proc/%d", ofAlice.HelperPid)) == nil {
		t.Error("the helper of alice runs")
	}
	if err := set("for bob"); err != nil {
		t.Fatal(err)
	}
	if got := c.paste("bob", ":8"); got != "for bob" {
		t.Errorf("bob has %q", got)
	}
	copying := c.command("setpriv", "--reuid", "bob", "--regid", "bob", "--clear-groups", "env", "DISPLAY=:8", "xclip", "-quiet", "-selection", "clipboard", "-i")
	copying.Stdin = strings.NewReader("of bob")
	if err := copying.Start(); err != nil {
		t.Fatal(err)
	}
	defer copying.Wait()
	defer copying.Process.Kill()
	if change := told(t, changes); string(change.Data) != "of bob" {
		t.Errorf("told: %v", change)
	}

	// His screen is locked, and unlocked again.
	c.lock(second, true)
	if err := set("x"); fault.Code(err) != "refused" || !strings.Contains(err.Error(), "session of bob is locked") {
		t.Errorf("set in a locked session: %v", err)
	}
	if _, err := host.Clipboard(ctx, &pb.ClipboardGetRequest{}); fault.Code(err) != "refused" {
		t.Errorf("get in a locked session: %v", err)
	}
	c.lock(second, false)
	if got, err := host.Clipboard(ctx, &pb.ClipboardGetRequest{}); err != nil || string(got.GetData()) != "of bob" {
		t.Errorf("get in a session that was unlocked: %v", err)
	}

	// Alice is back, and what she had was hers: her helper has ended meanwhile.
	c.run("loginctl", "activate", first)
	within(t, func() bool { now := desktop(); return now.User == "alice" && now.HelperPid != 0 })
	if err := set("again for alice"); err != nil || c.paste("alice", ":7") != "again for alice" {
		t.Errorf("alice again: %v", err)
	}

	// All sessions end.
	c.run("systemctl", "stop", "desktop-alice", "desktop-bob")
	defer func() {
		if t.Failed() {
			t.Log(desktop(), c.run("loginctl", "--no-pager", "list-sessions"), c.run("sh", "-c", "loginctl show-session "+first+" "+second+"; ps -ef"))
		}
	}()
	within(t, func() bool { return desktop().HelperPid == 0 })
	if err := set("x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("nobody is logged in any more: %v", err)
	}
}
