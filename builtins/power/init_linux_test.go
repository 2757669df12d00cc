package power

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// actEnv makes the test program the agent of a machine of its own, below an init in a namespace: it asks that for what the
// variable says. The namespace in which it must not be comes with it.
const actEnv = "POWER_TEST_ACT"

func TestMain(m *testing.M) {
	what, outside, ok := strings.Cut(os.Getenv(actEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	here, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || here == outside || outside == "" {
		fmt.Println("it is not in a namespace of its own:", here, err)
		os.Exit(1)
	}
	kind, err := findInit("/")
	if err == nil && kind != busyboxInit {
		err = fmt.Errorf("process 1 is %s", kind)
	}
	if err == nil {
		err = kind.act(context.Background(), nil, what)
	}
	fmt.Println("asked:", err)
	os.Exit(0)
}

func TestFindInit(t *testing.T) {
	for want, tree := range map[initKind]map[string]string{
		systemdInit: {"run/systemd/system/": ""}, busyboxInit: {"proc/1/exe": "/bin/busybox"}, openrcInit: {"proc/1/exe": "/sbin/openrc-init"},
		sysvInit: {"proc/1/exe": "/usr/sbin/init", "run/initctl": "/nothing", "dev/initctl/": ""}, runitInit: {"proc/1/exe": "/sbin/runit"},
		otherInit: {"proc/1/exe": "/sbin/init (deleted)"}, "": {"proc/1/exe": "/usr/bin/process_api"},
	} {
		root := t.TempDir()
		for name, link := range tree {
			path := filepath.Join(root, name)
			err := os.MkdirAll(filepath.Dir(path), 0o755)
			if strings.HasSuffix(name, "/") {
				err = errors.Join(err, os.MkdirAll(path, 0o755))
			} else {
				err = errors.Join(err, os.Symlink(link, path))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		kind, err := findInit(root)
		if kind != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q %v", want, kind, err)
		}
		if want == "" && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		for _, what := range types {
			known := kind == systemdInit && systemdUnits[what] != "" && logindMethods[what] != "" || kind == busyboxInit && busyboxSignals[what] != 0 ||
				len(commands[kind][what]) > 0
			if want != "" && !known {
				t.Errorf("%s is not known of %s", what, kind)
			}
		}
	}
	if _, err := findInit(t.TempDir()); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// A real init of BusyBox, process 1 of a namespace, shuts down in order and in the way that was asked for.
func TestBusyBoxInit(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and the package busybox-static")
	}
	if program, err := elf.Open("/proc/self/exe"); err != nil || slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("needs a test program without libraries: CGO_ENABLED=0 ", err)
	}
	outside, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	// The kernel tells the parent how a namespace ended by the signal that process 1 died of (reboot(2)).
	for what, want := range map[string]syscall.Signal{"reboot": syscall.SIGHUP, "poweroff": syscall.SIGINT, "halt": syscall.SIGINT} {
		root := t.TempDir()
		copyTo := func(from, to string) {
			t.Helper()
			data, err := os.ReadFile(from)
			path := filepath.Join(root, to)
			if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		copyTo(busybox, "bin/busybox")
		copyTo("/proc/self/exe", "agent")
		if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
			t.Fatal(err)
		}
		inittab := "::sysinit:/bin/busybox mount -t proc proc /proc\n" +
			"::once:/bin/busybox env '" + actEnv + "=" + what + " " + outside + "' /agent\n::shutdown:/bin/busybox touch /orderly\n"
		err := errors.Join(os.MkdirAll(filepath.Join(root, "etc"), 0o755), os.MkdirAll(filepath.Join(root, "proc"), 0o755), os.MkdirAll(filepath.Join(root, "dev"), 0o755),
			os.WriteFile(filepath.Join(root, "etc/inittab"), []byte(inittab), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, "/bin/busybox", "init")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Chroot: root, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
			Setsid: true,
		}
		cmd.WaitDelay = time.Second
		err = cmd.Run()
		cancel()
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || !status.Signaled() || status.Signal() != want {
			t.Errorf("%s: %v\n%s", what, err, &out)
		}
		if _, err := os.Stat(filepath.Join(root, "orderly")); err != nil {
			t.Errorf("%s: the init did not stop in order: %v\n%s", what, err, &out)
		}
	}
}

// openTerminal makes a terminal and returns what is shown on it, and its name below /dev.
func openTerminal(t *testing.T) (shown *os.File, line string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("needs /dev/ptmx: ", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	shown = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { shown.Close() })
	line = fmt.Sprintf("pts/%d", n)
	user, err := os.OpenFile(filepath.Join("/dev", line), os.O_RDWR|unix.O_NOCTTY, 0) // a terminal that nobody has open takes nothing
	if err != nil {
		t.Skip("needs /dev/pts: ", err)
	}
	t.Cleanup(func() { user.Close() })
	return shown, line
}

// record is one of utmp.
func record(kind uint16, line string) []byte {
	r := make([]byte, utmpRecord())
	binary.NativeEndian.PutUint16(r, kind)
	copy(r[lineAt:lineAt+lineSize], line)
	return r
}

// Who is logged in by utmp(5) is written to; what is no terminal is not, nor is what a broken file names.
func TestTellUsers(t *testing.T) {
	shown, line := openTerminal(t)
	file := filepath.Join(t.TempDir(), "utmp")
	text := slices.Concat(record(2, "~"), record(userProcess, line), record(8, "pts/9999"), record(userProcess, "../tmp/x"), []byte("torn"))
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	lines := utmpLines(file)
	if !slices.Equal(lines, []string{line, "../tmp/x"}) {
		t.Fatalf("%q", lines)
	}
	ordinary := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(ordinary, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, l := range append(lines, "null", "../"+ordinary, "..", "") {
		writeTerminal(l, "going down\r\n")
	}
	if got, err := os.ReadFile(ordinary); err != nil || len(got) > 0 {
		t.Errorf("%q %v", got, err)
	}
	if err := shown.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := shown.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "going down") {
		t.Errorf("%q %v", buf[:n], err)
	}
	if utmpLines(filepath.Join(t.TempDir(), "none")) != nil {
		t.Error("a file that is not there has lines")
	}
}

// A terminal that takes nothing, since its user has stopped it and it is full, holds up nobody.
func TestTellUsersDoesNotWait(t *testing.T) {
	_, line := openTerminal(t)
	for range 200 {
		writeTerminal(line, strings.Repeat("x", 4096))
	}
}
