package proc

import (
	"cmp"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A command with a mount namespace or a root of its own needs setup between fork and exec, for which Go has no hook. So this
// program executes itself as a launcher, which does the setup and executes the command:
//
//	agent ── launchSpec on fd 3 ──► launcher: mounts, root, directory, user ──► exec
//	  ◄── launchError on fd 4, which exec closes ────────────────────────┘

// The hidden first arguments of this program.
const (
	argConfined = "exec-confined"
	argDrain    = "exec-drain"
)

// launchTimeout bounds the time of the launcher: it needs milliseconds, unless a file system hangs.
const launchTimeout = 20 * time.Second

// scratchDir is the mount point of a confined command's private tmpfs, which TMPDIR names. /tmp is the real one, read-only,
// since the files that the command works on may be there.
const scratchDir = "/run/quantix-kvm-tmp"

// launchSpec is the order for the launcher.
type launchSpec struct {
	Argv     []string
	Dir      string
	Env      []string
	Root     string
	User     *User
	Tied     bool
	Parent   int
	System   bool // give it a /proc and a /dev below its root
	Confined bool
	Writable []string
	Inodes   map[string]uint64
	PerMount bool
	Private  bool // see Confine
	Probe    bool // only set up the mounts, to see whether that works
}

// launchError is the encoded form of a StartError.
type launchError struct {
	Stage, Object, Text string
	Errno               int
}

// ChildMain runs the hidden sub-commands that this program executes itself with. main calls it before anything else, and
// returns if it returns true.
func ChildMain() bool {
	if len(os.Args) < 2 {
		return false
	}
	switch os.Args[1] {
	case argConfined:
		launcherMain()
	case argDrain:
		drainMain()
	default:
		return false
	}
	return true
}

// Confinement returns how commands are confined: Confined, or "none: " and the reason. The first call tries it, which takes
// milliseconds.
func (r *Runner) Confinement() string {
	if err := r.checkConfinement(); err != nil {
		return "none: " + err.Error()
	}
	return Confined
}

// checkConfinement returns why Spec.Confine does not work here; nil if it does.
func (r *Runner) checkConfinement() error {
	r.platform.confineOnce.Do(func() { r.platform.confineErr = r.probeConfinement() })
	return r.platform.confineErr
}

func (r *Runner) probeConfinement() error {
	if err := r.checkLauncher(); err != nil {
		return err
	}
	cmd := &exec.Cmd{SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	err := launch(cmd, &launchSpec{Probe: true, Confined: true})
	if err != nil {
		abandon(cmd, nil, -1)
		return err
	}
	cmd.Wait()
	return nil
}

// checkLauncher returns why the launcher does not work here; nil if it does.
func (r *Runner) checkLauncher() error {
	switch {
	case os.Geteuid() != 0:
		return fault.Unsupported("the agent is not root")
	case !r.config.Reexec:
		return fault.Unsupported("this program does not execute itself")
	}
	return nil
}

// startByLauncher starts a command by the launcher.
func (r *Runner) startByLauncher(cmd *exec.Cmd, spec *Spec, env []string) error {
	if err := r.checkLauncher(); err != nil {
		if spec.hasRoot() {
			err = fault.Unsupported("commands under --root need root: %v", err)
		}
		return &StartError{Stage: "confinement", Err: err}
	}
	p := &launchSpec{Argv: spec.Argv, Dir: spec.dir(), Env: env, Root: spec.Root, User: spec.User, Tied: spec.Tied || spec.streamed}
	p.System = spec.hasRoot() && r.checkConfinement() == nil // which reports whether mounts may be made
	if spec.Confine != nil {
		p.Confined, p.Writable, p.PerMount, p.Private = true, spec.Confine.Writable, r.platform.perMount, spec.Confine.Private
		p.Inodes = spec.Confine.Inodes
		if !slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, "TMPDIR=") }) {
			p.Env = append(env[:len(env):len(env)], "TMPDIR="+scratchDir)
		}
	}
	return launch(cmd, p)
}

// launch starts the launcher and waits until it has executed the command. On an error a launcher that was started is being
// killed, and is still to be waited for.
func launch(cmd *exec.Cmd, p *launchSpec) error {
	specRead, specWrite, err := os.Pipe()
	if err != nil {
		return &StartError{Stage: "process", Err: err}
	}
	defer specWrite.Close()
	errorRead, errorWrite, err := os.Pipe()
	if err != nil {
		specRead.Close()
		return &StartError{Stage: "process", Err: err}
	}
	defer errorRead.Close()
	p.Parent = os.Getpid()
	cmd.Path, cmd.Args = "/proc/self/exe", []string{os.Args[0], argConfined} // this program, even if its file was replaced
	cmd.Env, cmd.Dir = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}, "/"
	cmd.ExtraFiles = []*os.File{specRead, errorWrite}
	if p.Confined || p.System {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // Go then also makes mounts private, so none propagates back
	}
	err = cmd.Start()
	specRead.Close()
	errorWrite.Close()
	if err != nil {
		return &StartError{Stage: "confinement", Err: fault.Cause(err)}
	}
	err = sendSpec(specWrite, errorRead, p)
	if err != nil {
		cmd.Process.Kill()
	}
	return err
}

// sendSpec sends the spec to the launcher and waits for its error. The end of the stream without one means success.
func sendSpec(to, from *os.File, p *launchSpec) error {
	to.SetWriteDeadline(time.Now().Add(launchTimeout))
	if err := gob.NewEncoder(to).Encode(p); err != nil { // not JSON: paths need not be UTF-8
		return &StartError{Stage: "confinement", Err: fault.Cause(err)}
	}
	to.Close()
	from.SetReadDeadline(time.Now().Add(launchTimeout))
	var f launchError
	switch err := gob.NewDecoder(from).Decode(&f); {
	case err == io.EOF:
		return nil
	case err != nil:
		return &StartError{Stage: "confinement", Err: fault.Cause(err)}
	}
	cause := errors.New(f.Text)
	if f.Errno != 0 {
		cause = fault.Wrapf(syscall.Errno(f.Errno), "%s", f.Text)
	}
	return &StartError{Stage: f.Stage, Object: f.Object, Err: notStartable{cause}}
}

// launcherMain is the main function of the launcher. It returns only for a probe.
func launcherMain() {
	runtime.LockOSThread() // PR_SET_PDEATHSIG is per thread, and this one executes the command
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	var p launchSpec
	err := gob.NewDecoder(os.NewFile(3, "spec")).Decode(&p)
	if err != nil {
		err = &StartError{Stage: "confinement", Err: err}
	} else {
		err = p.setUpAndExec()
	}
	if err == nil {
		return
	}
	f := launchError{Stage: "confinement", Text: err.Error()}
	var start *StartError
	if errors.As(err, &start) {
		f.Stage, f.Object, f.Text = start.Stage, start.Object, start.Err.Error()
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
	case errors.Is(err, fs.ErrNotExist):
		errno = unix.ENOENT
	case errors.Is(err, fs.ErrPermission):
		errno = unix.EACCES
	case errors.Is(err, fs.ErrInvalid):
		errno = unix.EINVAL
	}
	f.Errno = int(errno)
	gob.NewEncoder(os.NewFile(4, "error")).Encode(f)
	os.Exit(127)
}

// setUpAndExec does the setup and executes the command. It returns only an error, or nil for a probe.
func (p *launchSpec) setUpAndExec() error {
	if err := p.setUpMounts(); err != nil {
		return &StartError{Stage: "confinement", Err: err}
	}
	if p.Confined {
		if err := dropCapabilities(); err != nil {
			return &StartError{Stage: "confinement", Err: err}
		}
	}
	if p.Probe {
		return nil
	}
	if p.User != nil {
		if err := p.User.setIdentity(); err != nil {
			return &StartError{Stage: "user", Object: p.User.Name, Err: err}
		}
	}
	if err := unix.Chdir(p.Dir); err != nil {
		return &StartError{Stage: "directory", Object: p.Dir, Err: err}
	}
	if p.Tied { // after the change of identity, which clears it
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return &StartError{Stage: "process", Err: err}
		}
		if os.Getppid() != p.Parent {
			os.Exit(127) // the parent died before the call
		}
	}
	path, err := lookPath(p.Argv[0], p.Env, p.Dir)
	if err == nil {
		err = unix.Exec(path, p.Argv, p.Env)
	}
	return startError(&Spec{Dir: p.Dir, User: p.User, Argv: p.Argv}, cmp.Or(path, p.Argv[0]), fault.Cause(err))
}

// setIdentity makes this process run as u. The groups are set first, while it still may.
func (u *User) setIdentity() error {
	groups := make([]int, len(u.Groups))
	for i, g := range u.Groups {
		groups[i] = int(g)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(int(u.GID), int(u.GID), int(u.GID)); err != nil {
		return err
	}
	return syscall.Setresuid(int(u.UID), int(u.UID), int(u.UID))
}

// startDrain passes open output streams to a process that reads them to their end and drops the data.
func (r *Runner) startDrain(files []*os.File) error {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{os.Args[0], argDrain, strconv.Itoa(len(files))},
		Env: []string{"GOMAXPROCS=1"}, Dir: "/", ExtraFiles: files, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if g, err := r.platform.newGroup("job"); err == nil {
		defer g.close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, g.fd
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start reader for the output of running commands: %w", err)
	}
	return cmd.Process.Release()
}

// drainMain is the main function of the process that startDrain starts.
func drainMain() {
	n := 0
	if len(os.Args) > 2 {
		n, _ = strconv.Atoi(os.Args[2])
	}
	var all sync.WaitGroup
	for fd := 3; fd < 3+n; fd++ {
		all.Add(1)
		go func() {
			defer all.Done()
			io.Copy(io.Discard, os.NewFile(uintptr(fd), "output"))
		}()
	}
	all.Wait()
}
