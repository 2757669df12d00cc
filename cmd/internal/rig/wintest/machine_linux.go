package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// recipe is the version of what openMachine makes: another number makes prefixes of before be made anew.
const recipe = "1"

// loaders are where Wine's 64-bit loader and server may be: Debian's own place first, since its /usr/bin/wine wants the
// 32-bit part as well.
var (
	loaders = []string{"/usr/lib/wine/wine64", "wine64", "wine"}
	servers = []string{"/usr/lib/wine/wineserver64", "wineserver64", "wineserver"}
)

func first(names []string) string {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func loader() string { return first(loaders) }

// missing returns the Debian packages that are still to be installed.
func missing() []string {
	var packages []string
	if loader() == "" || first(servers) == "" {
		packages = append(packages, "wine64", "wine")
	}
	for _, name := range []string{"as", "dlltool", "ld"} {
		if _, err := exec.LookPath("x86_64-w64-mingw32-" + name); err != nil {
			packages = append(packages, "binutils-mingw-w64-x86-64")
			break
		}
	}
	for program, name := range map[string]string{
		"wixl": "wixl", "msibuild": "msitools", "Xvfb": "xvfb", "xrandr": "x11-xserver-utils",
	} {
		if _, err := exec.LookPath(program); err != nil {
			packages = append(packages, name)
		}
	}
	return packages
}

// machine is a Wine prefix of this checkout, held by a lock while it is in use.
type machine struct {
	module  string // its directory
	dir     string // .build/wine there
	overlay string // for go build -overlay
	lock    *os.File
	session io.Closer // the input of a program that waits for it
	screen  *exec.Cmd // the X server; nil: none
	display string    // its name
}

// openMachine returns the checkout's prefix, made if it is not there, with its server running.
func openMachine(ctx context.Context) (*machine, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	m := &machine{module: filepath.Dir(strings.TrimSpace(string(mod)))}
	m.dir = filepath.Join(m.module, ".build", "wine")
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return nil, err
	}
	if m.lock, err = os.OpenFile(filepath.Join(m.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	err = m.startDisplay(ctx)
	if err == nil {
		err = m.start(ctx)
	}
	if err != nil {
		m.stopDisplay()
		m.lock.Close()
		return nil, err
	}
	return m, nil
}

// startDisplay starts an X server, so that there are displays with modes and a clipboard. Programs that run in the prefix
// already keep the one that they have.
func (m *machine) startDisplay(ctx context.Context) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	m.screen = exec.CommandContext(ctx, "Xvfb", "-displayfd", "3", "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-noreset")
	m.screen.ExtraFiles = []*os.File{write}
	m.screen.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = m.screen.Start()
	write.Close()
	if err != nil {
		m.screen = nil
		return err
	}
	number, err := io.ReadAll(read) // it closes its end when it is ready, or ends
	if m.display = ":" + strings.TrimSpace(string(number)); err != nil || m.display == ":" {
		return fmt.Errorf("no display of Xvfb: %w", errors.Join(err, m.screen.Wait()))
	}
	for _, mode := range modes { // by itself it has one alone
		name := fmt.Sprintf("%sx%s", mode[1], mode[5])
		for _, args := range [][]string{append([]string{"--newmode", name}, mode...), {"--addmode", "screen", name}} {
			if err := m.quiet(ctx, "xrandr", args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// modes are the timings of the modes of the display beside its own, 1280x1024, as xrandr takes them.
var modes = [][]string{
	strings.Fields("40.00 800 840 968 1056 600 601 605 628"),
	strings.Fields("65.00 1024 1048 1184 1344 768 771 777 806"),
}

// stopDisplay ends the X server.
func (m *machine) stopDisplay() {
	if m.screen != nil {
		_ = m.screen.Process.Kill()
		_ = m.screen.Wait()
	}
}

// start makes what is not there and starts the server, which stays: with one that ends with the last process, each test
// binary would take a second longer to start. An exclusive lock makes those who come at the same time wait.
func (m *machine) start(ctx context.Context) error {
	if err := syscall.Flock(int(m.lock.Fd()), syscall.LOCK_SH); err != nil {
		return err
	}
	stamp := filepath.Join(m.dir, "recipe")
	if have, err := os.ReadFile(stamp); err != nil || string(have) != recipe {
		if err := syscall.Flock(int(m.lock.Fd()), syscall.LOCK_EX); err != nil {
			return err
		}
		if have, err := os.ReadFile(stamp); err != nil || string(have) != recipe {
			if err := m.make(ctx); err != nil {
				return err
			}
			m.stop()
			if err := os.WriteFile(stamp, []byte(recipe), 0o644); err != nil {
				return err
			}
		}
		if err := syscall.Flock(int(m.lock.Fd()), syscall.LOCK_SH); err != nil {
			return err
		}
	}
	if err := m.makeOverlay(ctx); err != nil {
		return err
	}
	// The server says so by its status where another one serves the prefix already.
	server := exec.CommandContext(ctx, first(servers), "-p60")
	server.Env = m.env()
	if err := server.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return err
		}
	}
	return m.startSession(ctx)
}

// startSession starts a program that stays, and waits until the services run. Wine's services run for as long as any program
// does. Without it they would be children of a test, hold its output open, and be started again for the next one.
func (m *machine) startSession(ctx context.Context) error {
	cmd := exec.Command(loader(), "cmd")
	cmd.Env = m.env()
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.session = in
	go func() { _ = cmd.Wait() }()
	return m.quiet(ctx, loader(), "net", "start") // which asks the service manager what runs
}

// stop ends all that runs in the prefix, and waits for it. A program that starts while the services of one before are still
// ending would have a second service manager beside the first, and tests would ask now the one, now the other.
func (m *machine) stop() {
	server := exec.Command(first(servers), "-k")
	server.Env = m.env()
	_ = server.Run() // nothing runs: it says so by its status
}

// close stops all that still runs in the prefix, unless another run uses it.
func (m *machine) close() {
	defer m.lock.Close()
	defer m.stopDisplay()
	m.session.Close()
	if syscall.Flock(int(m.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return
	}
	m.stop()
}

// env returns the environment of programs under Wine: without its messages, and without its offers to install .NET and
// a browser.
func (m *machine) env() []string {
	return append(os.Environ(), "DISPLAY="+m.display, "WINEPREFIX="+filepath.Join(m.dir, "prefix"), "WINEARCH=win64",
		"WINELOADER="+loader(), "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=")
}

// wine runs a program under Wine with this process' standard streams.
func (m *machine) wine(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, loader(), args...)
	cmd.Env = m.env()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// quiet runs a program; what it wrote is part of the error.
func (m *machine) quiet(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = m.env()
	// A file and not a pipe: Wine's services keep it open, and would be waited for.
	out, err := os.CreateTemp("", "wintest")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(said))
	}
	return nil
}

// make makes the prefix.
func (m *machine) make(ctx context.Context) error {
	prefix := filepath.Join(m.dir, "prefix")
	if err := os.RemoveAll(prefix); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "wintest: making a Wine prefix in", m.dir)
	if err := m.quiet(ctx, loader(), "wineboot", "--init"); err != nil {
		return err
	}
	if err := m.quiet(ctx, loader(), "winecfg", "-v", "win10"); err != nil {
		return err
	}
	return m.makeForwarder(ctx, filepath.Join(prefix, "drive_c", "windows", "system32", "bcryptprimitives.dll"))
}

// makeForwarder makes bcryptprimitives.dll with the one function that Go's runtime takes from it.
func (m *machine) makeForwarder(ctx context.Context, path string) error {
	dir, err := os.MkdirTemp("", "wintest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	entry := ".globl DllMainCRTStartup\nDllMainCRTStartup:\n\tmovl $1, %eax\n\tret\n"
	exports := "LIBRARY bcryptprimitives.dll\nEXPORTS\nProcessPrng = advapi32.SystemFunction036\n"
	if err := errors.Join(os.WriteFile(in("entry.s"), []byte(entry), 0o644),
		os.WriteFile(in("exports.def"), []byte(exports), 0o644)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"as", "-o", in("entry.o"), in("entry.s")},
		{"dlltool", "-d", in("exports.def"), "-e", in("exports.o")},
		{"ld", "--shared", "-s", "-o", path, in("entry.o"), in("exports.o")},
	} {
		if err := m.quiet(ctx, "x86_64-w64-mingw32-"+args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// makeOverlay makes the file for -overlay: Wine answers STATUS_NOT_IMPLEMENTED (0xC0000002) to the newest way of deleting
// a file, where the standard library falls back to the older way on STATUS_INVALID_INFO_CLASS alone.
func (m *machine) makeOverlay(ctx context.Context) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	const anchor = "case STATUS_INVALID_INFO_CLASS,"
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "internal", "syscall", "windows", "at_windows.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if bytes.Count(text, []byte(anchor)) != 1 {
		return fmt.Errorf("%s of %s has changed: the place to patch is not there", source, runtime.Version())
	}
	patched := filepath.Join(m.dir, "at_windows.go")
	m.overlay = filepath.Join(m.dir, "overlay.json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{source: patched}})
	if err != nil {
		return err
	}
	text = bytes.Replace(text, []byte(anchor), []byte("case NTStatus(0xC0000002), STATUS_INVALID_INFO_CLASS,"), 1)
	return errors.Join(replace(patched, text), replace(m.overlay, list))
}

// replace writes a file if it has other content: a new time would make Go build the standard library again.
func replace(path string, content []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		return nil
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
