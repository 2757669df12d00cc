package proc

import (
	"cmp"
	"errors"
	"math"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"unicode/utf16"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// endOfInput is what ends the input of a program at a console: Ctrl-Z and Enter.
const endOfInput = "\x1a\r"

// pseudoTerminal is the pseudo console of a command: Windows turns what the command writes into escape sequences.
type pseudoTerminal struct {
	in, out *os.File    // our ends
	streams [3]*os.File // none: the command gets the console itself

	mu      sync.Mutex
	console windows.Handle // 0: closed
	size    windows.Coord
	once    sync.Once
}

// createPseudoConsole is missing before Windows 10 1809.
var createPseudoConsole = windows.NewLazySystemDLL("kernel32.dll").NewProc("CreatePseudoConsole")

// openTerminal makes a pseudo console. Whose it is does not matter: the user's process gets it when it is started.
func openTerminal(t *Terminal, _ *User) (*pseudoTerminal, error) {
	if createPseudoConsole.Find() != nil {
		return nil, fault.Unsupported("this version of Windows has no pseudo consoles")
	}
	theirIn, in, err := inputPipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := outputPipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), in.Close())
	}
	// The console has handles of its own to these.
	defer theirIn.Close()
	defer theirOut.Close()
	console := &pseudoTerminal{in: in, out: out, size: coord(cmp.Or(t.Rows, 24), cmp.Or(t.Cols, 80))}
	err = windows.CreatePseudoConsole(console.size, windows.Handle(theirIn.Fd()), windows.Handle(theirOut.Fd()), 0, &console.console)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("CreatePseudoConsole", err), in.Close(), out.Close())
	}
	return console, nil
}

func coord(rows, cols uint16) windows.Coord {
	return windows.Coord{X: int16(min(cols, math.MaxInt16)), Y: int16(min(rows, math.MaxInt16))}
}

func (t *pseudoTerminal) resize(rows, cols uint16) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.console == 0 {
		return errEnded
	}
	size := coord(cmp.Or(rows, uint16(t.size.Y)), cmp.Or(cols, uint16(t.size.X)))
	if err := windows.ResizePseudoConsole(t.console, size); err != nil {
		return os.NewSyscallError("ResizePseudoConsole", err)
	}
	t.size = size
	return nil
}

// hangUp closes the console, which ends what is still in it, and our output once all is read. It returns at once: older
// versions of Windows wait in the call until the output is read.
func (t *pseudoTerminal) hangUp() {
	t.once.Do(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		console := t.console
		t.console = 0
		go func() {
			windows.ClosePseudoConsole(console)
			t.in.Close()
		}()
	})
}

// start starts a suspended process in the console, by a token; 0: the agent's own. begin lets it run; where it fails there is
// no process.
func (t *pseudoTerminal) start(cmd *exec.Cmd, token windows.Token, begin func(windows.Handle) error) (*os.Process, error) {
	attributes, err := windows.NewProcThreadAttributeList(1)
	if err != nil {
		return nil, err
	}
	defer attributes.Delete()
	// What is given is the value of the handle, and not where it is.
	value := *(*unsafe.Pointer)(unsafe.Pointer(&t.console))
	if err := attributes.Update(windows.PROC_THREAD_ATTRIBUTE_PSEUDOCONSOLE, value, unsafe.Sizeof(t.console)); err != nil {
		return nil, os.NewSyscallError("UpdateProcThreadAttribute", err)
	}
	info := windows.StartupInfoEx{ProcThreadAttributeList: attributes.List()}
	info.Cb = uint32(unsafe.Sizeof(info))
	info.Flags = windows.STARTF_USESTDHANDLES // with none: those of the agent would be taken instead of the console's
	line := cmd.SysProcAttr.CmdLine
	if line == "" {
		line = windows.ComposeCommandLine(cmd.Args)
	}
	var path, text, dir *uint16
	for text16, s := range map[**uint16]string{&path: cmd.Path, &text: line, &dir: cmd.Dir} {
		if *text16, err = windows.UTF16PtrFromString(s); err != nil {
			return nil, err
		}
	}
	env, err := environmentBlock(cmd.Environ())
	if err != nil {
		return nil, err
	}
	var started windows.ProcessInformation
	const flags = windows.CREATE_SUSPENDED | windows.CREATE_UNICODE_ENVIRONMENT | windows.EXTENDED_STARTUPINFO_PRESENT
	if token == 0 {
		err = windows.CreateProcess(path, text, nil, nil, false, flags, env, dir, &info.StartupInfo, &started)
	} else {
		err = windows.CreateProcessAsUser(token, path, text, nil, nil, false, flags, env, dir, &info.StartupInfo, &started)
	}
	if err != nil {
		return nil, err
	}
	windows.CloseHandle(started.Thread)
	defer windows.CloseHandle(started.Process) // until then nobody else gets its number
	process, err := os.FindProcess(int(started.ProcessId))
	if err == nil {
		err = begin(started.Process)
	}
	if err != nil {
		windows.TerminateProcess(started.Process, 1)
		return nil, err
	}
	return process, nil
}

// environmentBlock returns an environment as CreateProcess takes it.
func environmentBlock(env []string) (*uint16, error) {
	var block []uint16
	for _, entry := range env {
		text, err := windows.UTF16FromString(entry)
		if err != nil {
			return nil, err
		}
		block = append(block, text...)
	}
	if len(block) == 0 {
		block = utf16.AppendRune(block, 0)
	}
	return &append(block, 0)[0], nil
}

// isBrokenPipe reports whether nobody reads any more.
func isBrokenPipe(err error) bool {
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA)
}

// signal ends the job on SIGKILL and SIGTERM; Windows has no other signals.
func (c *child) signal(signal syscall.Signal) error {
	if signal != syscall.SIGKILL && signal != syscall.SIGTERM {
		return fault.Unsupported("signal %s is not supported on Windows", signal)
	}
	return c.terminate(0, killWait)
}
