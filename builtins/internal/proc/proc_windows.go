package proc

import (
	"cmp"
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

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// platform is the state of a Runner that depends on the system: none, since each command gets its own job object.
type platform struct {
	logon func(name string) (*logon, error) // who a command for another user runs as
}

func (p *platform) endSpares(int) {}

func (p *platform) init(*Config) { p.logon = logonWithoutPassword }

// login keeps nothing: LoginEnv reads no accounts.
type login struct{}

func (login) env(u *User) []string { return LoginEnv(u) }

// child is a started process, and the job object that holds its tree.
type child struct {
	process *os.Process
	state   *os.ProcessState // once it has exited
	exited  chan struct{}
	once    sync.Once
	job     windows.Handle
	logon   *logon // nil: the agent's own
	shell   bool   // it is a line of shell
}

func (r *Runner) start(spec *Spec, stdin, stdout, stderr *os.File) (*child, error) {
	switch {
	case len(spec.Argv) == 0 || spec.Argv[0] == "":
		return nil, &StartError{Stage: "program", Err: fault.Invalid("no command")}
	case spec.Confine != nil, spec.Root != "" && spec.Root != "/":
		return nil, &StartError{Stage: "confinement", Err: fault.Unsupported("commands are not confined on Windows")}
	}
	cmd := &exec.Cmd{Args: spec.Argv, Env: spec.Env, Dir: spec.Dir, Stdin: stdin, Stdout: stdout, Stderr: stderr,
		SysProcAttr: &syscall.SysProcAttr{HideWindow: true,
			CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_SUSPENDED}}
	c := &child{exited: make(chan struct{})}
	cmd.SysProcAttr.CmdLine, c.shell = shellLine(spec.Argv)
	if cmd.Env == nil {
		cmd.Env = LoginEnv(spec.User)
	}
	if err := r.prepare(spec, cmd, c); err != nil {
		c.close()
		return nil, err
	}
	if err := c.start(spec, cmd); err != nil {
		c.close()
		return nil, err
	}
	go func() {
		defer close(c.exited)
		c.state, _ = c.process.Wait()
	}()
	return c, nil
}

// prepare fills in what a command is started with: who, in which directory, which program, in which job.
func (r *Runner) prepare(spec *Spec, cmd *exec.Cmd, c *child) (err error) {
	if spec.User != nil {
		if c.logon, err = r.platform.logon(spec.User.Name); err != nil {
			return &StartError{Stage: "user", Object: spec.User.Name, Err: err}
		}
		cmd.Env = c.logon.environment(cmd.Env)
		cmd.SysProcAttr.Token = syscall.Token(c.logon.token)
		cmd.Dir = cmp.Or(cmd.Dir, c.logon.home)
	}
	if cmd.Dir == "" {
		cmd.Dir = os.Getenv("SystemDrive") + string(os.PathSeparator)
	}
	if info, err := os.Stat(cmd.Dir); err != nil {
		return &StartError{Stage: "directory", Object: cmd.Dir, Err: fault.Cause(err)}
	} else if !info.IsDir() {
		return &StartError{Stage: "directory", Object: cmd.Dir, Err: syscall.ENOTDIR}
	}
	program := cmp.Or(spec.Path, spec.Argv[0])
	if cmd.Path, err = exec.LookPath(program); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = notInPath(program)
		}
		return &StartError{Stage: "program", Object: program, Err: err}
	}
	if err := checkBatch(cmd.Path, spec.Argv[1:]); err != nil {
		return &StartError{Stage: "program", Object: cmd.Path, Err: err}
	}
	if c.job, err = newJob(spec.Tied || spec.streamed, spec.Limits); err != nil {
		return &StartError{Stage: "limits", Err: err}
	}
	return nil
}

// start starts the process, puts it into its job and lets it run.
func (c *child) start(spec *Spec, cmd *exec.Cmd) (err error) {
	if spec.terminal != nil {
		c.process, err = spec.terminal.start(cmd, windows.Token(cmd.SysProcAttr.Token), c.begin)
	} else if err = cmd.Start(); err == nil {
		c.process = cmd.Process
	}
	if err != nil {
		return &StartError{Stage: "program", Object: cmd.Path, Err: fault.Cause(err)}
	}
	if spec.terminal != nil {
		return nil
	}
	var begun error
	err = c.process.WithHandle(func(handle uintptr) { begun = c.begin(windows.Handle(handle)) })
	if err = errors.Join(err, begun); err != nil {
		_ = c.process.Kill()
		_, _ = c.process.Wait()
		return &StartError{Stage: "process", Object: cmd.Path, Err: err}
	}
	return nil
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

func (c *child) pid() int { return c.process.Pid }

// terminate ends the job at once: Windows has no SIGTERM.
func (c *child) terminate(_, wait time.Duration) error {
	if err := windows.TerminateJobObject(c.job, 1); err != nil {
		_ = c.process.Kill()
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(wait):
		return fault.Wrapf(fault.ErrBusy, "process %d does not end", c.pid())
	}
}

func (c *child) reap() (int, syscall.Signal) { return c.state.ExitCode(), 0 }

func (c *child) close() {
	c.once.Do(func() {
		if c.job != 0 {
			windows.CloseHandle(c.job)
		}
		if c.logon != nil {
			ended := c.process == nil
			select {
			case <-c.exited:
				ended = true
			default:
			}
			c.logon.close(ended)
		}
	})
}

func (r *Runner) removeGroup(*child) {}

func (r *Runner) leaveGroup(*child) {}

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

// systemEnv returns the variables without which hardly any program starts, and which are all that a command gets here. For
// another user they are those of the logon, which are not known yet.
func systemEnv(u *User) []string {
	env := []string{}
	if u != nil {
		return env
	}
	for _, name := range []string{"SystemRoot", "SystemDrive", "ComSpec", "Path", "PATHEXT", "TEMP", "TMP", "ProgramData",
		"ProgramFiles", "ALLUSERSPROFILE", "USERPROFILE", "USERNAME", "APPDATA", "LOCALAPPDATA",
		"NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
