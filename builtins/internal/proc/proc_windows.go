package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// platform is the state of a Runner that depends on the system: none, since each command gets its own job object.
type platform struct{}

func (*platform) init(*Config) {}

// login keeps nothing: LoginEnv reads no accounts.
type login struct{}

func (login) env(u *User) []string { return LoginEnv(u) }

// child is a started process, and the job object that holds its tree.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{}
	once   sync.Once
	job    windows.Handle
	shell  bool // it is a line of shell
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
	program := spec.Path
	if program == "" {
		program = spec.Argv[0]
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, &StartError{Stage: "program", Object: program, Err: err}
	}
	if err := checkBatch(path, spec.Argv[1:]); err != nil {
		return nil, &StartError{Stage: "program", Object: path, Err: err}
	}
	env, dir := spec.Env, spec.Dir
	if env == nil {
		env = LoginEnv(nil)
	}
	if dir == "" {
		dir = os.Getenv("SystemDrive") + string(os.PathSeparator)
	}
	job, err := newJob(spec.Tied || spec.streamed)
	if err != nil {
		return nil, &StartError{Stage: "process", Err: err}
	}
	c := &child{exited: make(chan struct{}), job: job, cmd: &exec.Cmd{Path: path, Args: spec.Argv, Env: env, Dir: dir,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
		SysProcAttr: &syscall.SysProcAttr{HideWindow: true,
			CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_SUSPENDED}}}
	c.cmd.SysProcAttr.CmdLine, c.shell = shellLine(spec.Argv)
	if err := c.cmd.Start(); err != nil {
		windows.CloseHandle(job)
		return nil, &StartError{Stage: "program", Object: path, Err: fault.Cause(err)}
	}
	var begun error
	err = c.cmd.Process.WithHandle(func(handle uintptr) { begun = c.begin(windows.Handle(handle)) })
	if err = errors.Join(err, begun); err != nil {
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

// shellLine returns the command line for a line of shell, cmd.exe /C with one argument. The interpreter reads it by rules of
// its own, which the usual quoting would spoil.
func shellLine(argv []string) (line string, ok bool) {
	if len(argv) != 3 || argv[0] != "cmd.exe" || argv[1] != "/C" {
		return "", false
	}
	return `cmd.exe /D /S /C "` + argv[2] + `"`, true
}

var getOEMCP = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetOEMCP")

// text returns an output of the command. That of a line of shell which is no UTF-8 is converted from the code page that a new
// console has. That of a program which was started by itself stays as it is: whoever wants the bytes of a line starts the
// interpreter by its arguments.
func (c *child) text(output []byte) []byte {
	if !c.shell || utf8.ValidString(text.TrimPartialRune(string(output))) {
		return output
	}
	page, _, _ := getOEMCP.Call()
	return fromCodePage(uint32(page), output)
}

// fromCodePage converts a text to UTF-8; it returns it as it is where Windows does not know the code page.
func fromCodePage(page uint32, raw []byte) []byte {
	if len(raw) == 0 {
		return raw
	}
	wide := make([]uint16, len(raw)) // never more units than bytes
	n, err := windows.MultiByteToWideChar(page, 0, &raw[0], int32(len(raw)), &wide[0], int32(len(wide)))
	if err != nil {
		return raw
	}
	return []byte(string(utf16.Decode(wide[:n])))
}

// checkBatch refuses arguments for a batch file that the command interpreter, which runs it, would take for more than text:
// the quoting that programs understand does not hold there.
func checkBatch(path string, args []string) error {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".bat", ".cmd":
	default:
		return nil
	}
	for _, arg := range args {
		if strings.ContainsAny(arg, "\"%!^&|<>()\r\n") {
			return fault.Refuse("argument %q of a batch file has a character that the command interpreter acts on", arg)
		}
	}
	return nil
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

var resumeProcess = windows.NewLazySystemDLL("ntdll.dll").NewProc("NtResumeProcess")

// begin puts a process that was started suspended into its job, so that all that it starts is in it too, and lets it run.
func (c *child) begin(process windows.Handle) error {
	if err := windows.AssignProcessToJobObject(c.job, process); err != nil {
		return os.NewSyscallError("AssignProcessToJobObject", err)
	}
	if status, _, _ := resumeProcess.Call(uintptr(process)); status != 0 {
		return os.NewSyscallError("NtResumeProcess", windows.NTStatus(status))
	}
	return nil
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

// errNoIdentities: LogonUser wants the user's password, which nobody gives the agent; and a token without one (S4U) cannot
// be used for a process with access to the network or to encrypted files. To run as somebody else silently as the agent
// would be worse than to refuse.
var errNoIdentities = fault.Unsupported("running as another user is not supported on Windows: it takes the user's password")

func checkIdentities() error { return &StartError{Stage: "user", Err: errNoIdentities} }

// systemEnv returns the variables without which hardly any program starts, and which are all that a command gets here.
func systemEnv() []string {
	var env []string
	for _, name := range []string{"SystemRoot", "SystemDrive", "ComSpec", "Path", "PATHEXT", "TEMP", "TMP", "ProgramData",
		"ProgramFiles", "ALLUSERSPROFILE", "USERPROFILE", "USERNAME", "APPDATA", "LOCALAPPDATA",
		"NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
