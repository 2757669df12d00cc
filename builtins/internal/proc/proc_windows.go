package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// platform is the state of a Runner that depends on the system: none, since each command gets its own job object.
type platform struct{}

func (*platform) init(*Config) {}

// child is a started process, and the job object that holds its tree.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{}
	once   sync.Once
	job    windows.Handle
}

func (r *Runner) start(spec *Spec, stdin, stdout, stderr *os.File) (*child, error) {
	switch {
	case len(spec.Argv) == 0 || spec.Argv[0] == "":
		return nil, &StartError{Stage: "program", Err: fault.Invalid("no command")}
	case spec.User != nil:
		return nil, &StartError{Stage: "user", Object: spec.User.Name, Err: errNoIdentities}
	case spec.Confine != nil, spec.Root != "" && spec.Root != "/":
		return nil, &StartError{Stage: "confinement", Err: fault.Unsupported("commands are not confined on Windows")}
	}
	path, err := exec.LookPath(spec.Argv[0])
	if err != nil {
		return nil, &StartError{Stage: "program", Object: spec.Argv[0], Err: err}
	}
	env := spec.Env
	if env == nil {
		env = LoginEnv(nil)
	}
	job, err := newJob(spec.Tied)
	if err != nil {
		return nil, &StartError{Stage: "process", Err: err}
	}
	c := &child{exited: make(chan struct{}), job: job, cmd: &exec.Cmd{Path: path, Args: spec.Argv, Env: env, Dir: spec.Dir,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
		SysProcAttr: &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP, HideWindow: true}}}
	if argv := spec.Argv; len(argv) == 3 && argv[0] == "cmd.exe" && argv[1] == "/C" {
		// cmd reads its line by rules of its own, which the usual quoting of arguments would spoil.
		c.cmd.SysProcAttr.CmdLine = `cmd.exe /S /C "` + argv[2] + `"`
	}
	if err := c.cmd.Start(); err != nil {
		windows.CloseHandle(job)
		return nil, &StartError{Stage: "program", Object: path, Err: fault.Cause(err)}
	}
	if err := c.assignToJob(); err != nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
		windows.CloseHandle(job)
		return nil, &StartError{Stage: "process", Object: path, Err: err}
	}
	go func() {
		defer close(c.exited)
		c.cmd.Wait()
	}()
	return c, nil
}

// newJob makes a job object. That of a tied command kills its processes when the agent ends, which has the only handle.
func newJob(tied bool) (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil || !tied {
		return job, err
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	if err != nil {
		windows.CloseHandle(job)
		return 0, err
	}
	return job, nil
}

// assignToJob assigns the process to its job. A process that it started before that would not be in the job.
func (c *child) assignToJob() error {
	handle, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(c.cmd.Process.Pid))
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return nil // it ended already
	}
	if err != nil {
		return err
	}
	defer windows.CloseHandle(handle)
	return windows.AssignProcessToJobObject(c.job, handle)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// terminate ends the job at once: Windows has no SIGTERM.
func (c *child) terminate(_, wait time.Duration) error {
	if err := windows.TerminateJobObject(c.job, 1); err != nil {
		c.cmd.Process.Kill()
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(wait):
		return fault.Wrapf(fault.ErrBusy, "process %d does not end", c.pid())
	}
}

func (c *child) reap() (int, syscall.Signal) { return c.cmd.ProcessState.ExitCode(), 0 }

func (c *child) close() { c.once.Do(func() { windows.CloseHandle(c.job) }) }

func (r *Runner) removeGroup(*child) {}

// OwnerOf knows of nothing: nobody asks here.
func (r *Runner) OwnerOf(int) (owner string, ok bool) { return "", false }

// Sweep has nothing to do: a job object ends what is in it when the agent ends.
func (r *Runner) Sweep(context.Context) error { return nil }

// Confinement returns "none: " and the reason: commands are not confined on Windows.
func (r *Runner) Confinement() string { return "none: not on Windows" }

// startDrain does nothing: what outlives the agent writes into a closed pipe.
func (r *Runner) startDrain([]*os.File) error { return nil }

// ChildMain returns false: there are no hidden sub-commands on Windows.
func ChildMain() bool { return false }

var errNoIdentities = fault.Unsupported("running as another user is not supported on Windows")

func checkIdentities() error { return &StartError{Stage: "user", Err: errNoIdentities} }

// systemEnv returns the variables without which hardly any program starts.
func systemEnv() []string {
	var env []string
	for _, name := range []string{"SystemRoot", "SystemDrive", "ComSpec", "Path", "PATHEXT", "TEMP", "TMP", "ProgramData",
		"ProgramFiles", "ALLUSERSPROFILE", "USERPROFILE", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
