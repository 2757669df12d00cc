package proc

import (
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

// A command that gets a file system of its own needs work done after the fork that Go has no hook for. So this program
// starts itself, does it there, and becomes the command:
//
//	agent ── plan on fd 3 ──► stage: mounts, root, directory, user ──► exec
//	  ◄── fault on fd 4, which closes by itself when the command begins ──┘

// The hidden first arguments of this program.
const (
	stageConfined = "exec-confined"
	stageDrain    = "exec-drain"
)

// stageWait bounds the time that the stage takes: it is all work of milliseconds, but for a file system that hangs.
const stageWait = 20 * time.Second

// scratch is where a confined command finds a private tmpfs, through TMPDIR. Its /tmp is the real one, read-only: what it
// works on may be there.
const scratch = "/run/quantix-kvm-tmp"

// plan is what the stage does.
type plan struct {
	Argv     []string
	Dir      string
	Env      []string
	Root     string
	Become   *User
	Tied     bool
	Parent   int
	Confined bool
	Writable []string
	PerMount bool
	Probe    bool // only try
}

// failure is a StartError on its way back.
type failure struct {
	Stage, Object, Text string
	Errno               int
}

// ChildMain serves the hidden sub-commands that this program calls itself with. main calls it first of all; where it
// returns true, the work is done and main ends.
func ChildMain() bool {
	if len(os.Args) < 2 {
		return false
	}
	switch os.Args[1] {
	case stageConfined:
		stageMain()
	case stageDrain:
		drainMain()
	default:
		return false
	}
	return true
}

// Confinement says how commands are confined: Confined, or "none: " and why they are not. The first call tries it out.
func (r *Runner) Confinement() string {
	if err := r.confinable(); err != nil {
		return "none: " + err.Error()
	}
	return Confined
}

// confinable is nil where Spec.Confine works here.
func (r *Runner) confinable() error {
	r.system.trial.Do(func() { r.system.cannot = r.tryConfined() })
	return r.system.cannot
}

func (r *Runner) tryConfined() error {
	if err := r.stageable(); err != nil {
		return err
	}
	cmd := &exec.Cmd{SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	err := stageStart(cmd, &plan{Probe: true, Confined: true})
	if err == nil {
		cmd.Wait()
	}
	return err
}

// stageable is nil where the stage can do its work.
func (r *Runner) stageable() error {
	switch {
	case os.Geteuid() != 0:
		return fault.Unsupported("the agent is not root")
	case !r.config.Reexec:
		return fault.Unsupported("this program does not serve as its own child")
	}
	return nil
}

// startStaged starts a command by way of the stage.
func (r *Runner) startStaged(cmd *exec.Cmd, spec *Spec, env []string) error {
	if err := r.stageable(); err != nil {
		if spec.rooted() {
			err = fault.Unsupported("commands under --root need root: %v", err)
		}
		return &StartError{Stage: "confinement", Err: err}
	}
	p := &plan{Argv: spec.Argv, Dir: spec.dir(), Env: env, Root: spec.Root, Become: spec.User, Tied: spec.Tied || spec.served}
	if spec.Confine != nil {
		p.Confined, p.Writable, p.PerMount = true, spec.Confine.Writable, r.system.perMount
		if !slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, "TMPDIR=") }) {
			p.Env = append(env[:len(env):len(env)], "TMPDIR="+scratch)
		}
	}
	return stageStart(cmd, p)
}

// stageStart starts the stage and waits until it has become the command.
func stageStart(cmd *exec.Cmd, p *plan) error {
	planRead, planWrite, err := os.Pipe()
	if err != nil {
		return &StartError{Stage: "process", Err: err}
	}
	defer planWrite.Close()
	faultRead, faultWrite, err := os.Pipe()
	if err != nil {
		planRead.Close()
		return &StartError{Stage: "process", Err: err}
	}
	defer faultRead.Close()
	p.Parent = os.Getpid()
	cmd.Path, cmd.Args = "/proc/self/exe", []string{os.Args[0], stageConfined} // also after an update of the file
	cmd.Env, cmd.Dir = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}, "/"
	cmd.ExtraFiles = []*os.File{planRead, faultWrite}
	if p.Confined {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // and no mount goes back to the others
	}
	err = cmd.Start()
	planRead.Close()
	faultWrite.Close()
	if err != nil {
		return &StartError{Stage: "confinement", Err: fault.Cause(err)}
	}
	err = converse(planWrite, faultRead, p)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
	return err
}

// converse gives the plan to the stage and hears what became of it.
func converse(to, from *os.File, p *plan) error {
	to.SetWriteDeadline(time.Now().Add(stageWait))
	if err := gob.NewEncoder(to).Encode(p); err != nil { // not JSON: names need not be UTF-8
		return &StartError{Stage: "confinement", Err: fault.Cause(err)}
	}
	to.Close()
	from.SetReadDeadline(time.Now().Add(stageWait))
	var f failure
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
	return &StartError{Stage: f.Stage, Object: f.Object, Err: cause}
}

// stageMain is the stage. It returns only where it was merely tried out.
func stageMain() {
	runtime.LockOSThread() // what is said of the death of the parent is said to one thread, the one that becomes the command
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	var p plan
	err := gob.NewDecoder(os.NewFile(3, "plan")).Decode(&p)
	if err != nil {
		err = &StartError{Stage: "confinement", Err: err}
	} else {
		err = p.become()
	}
	if err == nil {
		return
	}
	f := failure{Stage: "confinement", Text: err.Error()}
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
	gob.NewEncoder(os.NewFile(4, "fault")).Encode(f)
	os.Exit(127)
}

// become does what the plan says, and does not return where that works.
func (p *plan) become() error {
	if err := p.view(); err != nil {
		return &StartError{Stage: "confinement", Err: err}
	}
	if p.Probe {
		return nil
	}
	if p.Become != nil {
		if err := p.Become.become(); err != nil {
			return &StartError{Stage: "user", Object: p.Become.Name, Err: err}
		}
	}
	if err := unix.Chdir(p.Dir); err != nil {
		return &StartError{Stage: "directory", Object: p.Dir, Err: err}
	}
	if p.Tied { // a change of identity takes this away
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return &StartError{Stage: "process", Err: err}
		}
		if os.Getppid() != p.Parent {
			os.Exit(127) // died before it could be said
		}
	}
	path, err := lookPath(p.Argv[0], p.Env, p.Dir)
	if err == nil {
		err = unix.Exec(path, p.Argv, p.Env)
	}
	return diagnose(&Spec{Dir: p.Dir, User: p.Become, Argv: p.Argv}, firstOf(path, p.Argv[0]), fault.Cause(err))
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// become makes this process run as u. Groups go first: afterwards it may not.
func (u *User) become() error {
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

// drainElsewhere hands output that is still open to a process that reads it to its end and drops it.
func (r *Runner) drainElsewhere(files []*os.File) error {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{os.Args[0], stageDrain, strconv.Itoa(len(files))},
		Env: []string{"GOMAXPROCS=1"}, Dir: "/", ExtraFiles: files, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if g, err := r.system.newGroup("job"); err == nil {
		defer g.close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, g.fd
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("output of commands that run on is lost: %w", err)
	}
	return cmd.Process.Release()
}

// drainMain reads what drainElsewhere handed over.
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
