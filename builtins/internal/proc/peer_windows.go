package proc

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Peer is this program once more, as another user and in the user's session, with one channel to it.
type Peer struct {
	// Channel is the agent's end of a pipe for both directions, which the process opens by OpenPeerChannel. Closing it asks the
	// process to end. It is the caller's.
	Channel *os.File
	// PID is the process.
	PID int
	// Done is closed when the process has ended; How then says how.
	Done <-chan struct{}

	process *os.Process
	how     string
}

// PeerSpec says how a Peer is started.
type PeerSpec struct {
	// Args are the arguments after the program's name.
	Args []string
	// Env is the whole environment.
	Env []string
	// Token is that of the user, in whose session the process is then; 0: the agent's own.
	Token windows.Token
	// Memory is the most that the process may use, in bytes; 0: as much as there is.
	Memory uint64
}

const (
	// peerVariable is the variable of the environment that has the name of the pipe.
	peerVariable = "QUANTIX_SESSION_PIPE"
	// peerDesktop is the one that the user sees. A process of a service has none that is seen.
	peerDesktop = `winsta0\default`
	// peerBuffer is how much one side of a channel may write before the other one reads, in bytes.
	peerBuffer = 1 << 20
	// peerWait is how long a process may take to open its channel.
	peerWait = 20 * time.Second
)

// StartPeer starts this program once more, and waits until it has opened its channel. It has no handle of the agent, and is in
// a job of its own: it starts no other process, and ends with the agent. The error is a *StartError.
func StartPeer(spec PeerSpec) (*Peer, error) {
	failed := func(stage string, err error) error { return &StartError{Stage: stage, Err: fault.Cause(err)} }
	pipe, name, err := peerPipe(spec.Token)
	if err != nil {
		return nil, failed("process", err)
	}
	job, err := peerJob(spec.Memory)
	if err != nil {
		windows.CloseHandle(pipe)
		return nil, failed("limits", err)
	}
	process, err := startInSession(spec, name, job)
	if err != nil {
		return nil, failed("user", errors.Join(err, windows.CloseHandle(pipe), windows.CloseHandle(job)))
	}
	done := make(chan struct{})
	p := &Peer{PID: process.Pid, Done: done, process: process}
	go func() {
		state, err := process.Wait()
		if p.how = fmt.Sprint(err); err == nil {
			p.how = state.String()
		}
		windows.CloseHandle(job)
		close(done)
	}()
	if err := awaitPeer(pipe, done); err != nil {
		p.Kill()
		<-done
		return nil, failed("process", errors.Join(err, windows.CloseHandle(pipe)))
	}
	p.Channel = os.NewFile(uintptr(pipe), "helper")
	return p, nil
}

// How says how the process ended, once Done is closed.
func (p *Peer) How() string { return p.how }

// Kill kills the process, if it runs still.
func (p *Peer) Kill() { p.process.Kill() } //nolint:errcheck // it may have ended

// peerPipe makes the pipe, which the user of a token alone may open, and once.
func peerPipe(token windows.Token) (pipe windows.Handle, name string, err error) {
	if token == 0 {
		token = windows.GetCurrentProcessToken()
	}
	user, err := token.GetTokenUser()
	if err != nil {
		return 0, "", os.NewSyscallError("GetTokenInformation", err)
	}
	descriptor, err := windows.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GRGW;;;" + user.User.Sid.String() + ")")
	if err != nil {
		return 0, "", os.NewSyscallError("ConvertStringSecurityDescriptorToSecurityDescriptor", err)
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	name = `\\.\pipe\quantix-kvm-session-` + rand.Text()
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, "", err
	}
	pipe, err = windows.CreateNamedPipe(text,
		windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_FIRST_PIPE_INSTANCE,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, 1, peerBuffer, peerBuffer, 0, attributes)
	return pipe, name, os.NewSyscallError("CreateNamedPipe", err)
}

// peerJob makes the job of a process that starts no other and ends with its last handle.
func peerJob(memory uint64) (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, os.NewSyscallError("CreateJobObject", err)
	}
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
	info.BasicLimitInformation.ActiveProcessLimit = 1
	if memory != 0 {
		info.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_PROCESS_MEMORY
		info.ProcessMemoryLimit = uintptr(memory)
	}
	_, err = setJob(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		windows.CloseHandle(job)
		return 0, os.NewSyscallError("SetInformationJobObject", err)
	}
	return job, nil
}

// startInSession starts the process in its job, on the desktop that the user sees.
func startInSession(spec PeerSpec, pipe string, job windows.Handle) (*os.Process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	info := windows.StartupInfo{}
	info.Cb = uint32(unsafe.Sizeof(info))
	var path, line, dir *uint16
	for to, text := range map[**uint16]string{
		&path: program, &line: windows.ComposeCommandLine(append([]string{program}, spec.Args...)),
		&dir: os.Getenv("SystemDrive") + string(os.PathSeparator), &info.Desktop: peerDesktop,
	} {
		if *to, err = windows.UTF16PtrFromString(text); err != nil {
			return nil, err
		}
	}
	env, err := environmentBlock(append(spec.Env[:len(spec.Env):len(spec.Env)], peerVariable+"="+pipe))
	if err != nil {
		return nil, err
	}
	var started windows.ProcessInformation
	const flags = windows.CREATE_SUSPENDED | windows.CREATE_UNICODE_ENVIRONMENT | windows.CREATE_NO_WINDOW |
		windows.CREATE_NEW_PROCESS_GROUP
	if spec.Token == 0 {
		err = windows.CreateProcess(path, line, nil, nil, false, flags, env, dir, &info, &started)
	} else {
		err = windows.CreateProcessAsUser(spec.Token, path, line, nil, nil, false, flags, env, dir, &info, &started)
	}
	if err != nil {
		return nil, os.NewSyscallError("CreateProcessAsUser", err)
	}
	windows.CloseHandle(started.Thread)
	defer windows.CloseHandle(started.Process) // until then nobody else gets its number
	process, err := os.FindProcess(int(started.ProcessId))
	if err == nil {
		err = (&child{job: job}).begin(started.Process)
	}
	if err != nil {
		windows.TerminateProcess(started.Process, 1)
		return nil, err
	}
	return process, nil
}

// awaitPeer waits until the process has opened the pipe.
func awaitPeer(pipe windows.Handle, ended <-chan struct{}) error {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return os.NewSyscallError("CreateEvent", err)
	}
	defer windows.CloseHandle(event)
	overlapped := &windows.Overlapped{HEvent: event}
	err = windows.ConnectNamedPipe(pipe, overlapped)
	if err == nil || errors.Is(err, windows.ERROR_PIPE_CONNECTED) {
		return nil
	}
	if !errors.Is(err, windows.ERROR_IO_PENDING) {
		return os.NewSyscallError("ConnectNamedPipe", err)
	}
	opened := make(chan error, 1)
	go func() {
		var n uint32
		opened <- windows.GetOverlappedResult(pipe, overlapped, &n, true)
	}()
	select {
	case err := <-opened:
		return os.NewSyscallError("ConnectNamedPipe", err)
	case <-ended:
		err = fault.Wrapf(os.ErrProcessDone, "it ended before it had opened its channel")
	case <-time.After(peerWait):
		err = fault.Wrapf(os.ErrDeadlineExceeded, "it has not opened its channel within %v", peerWait)
	}
	_ = windows.CancelIoEx(pipe, overlapped)
	if <-opened == nil { // just now
		return nil
	}
	return err
}

// OpenPeerChannel returns the channel of a process that StartPeer has started.
func OpenPeerChannel() (*os.File, error) {
	name, err := windows.UTF16PtrFromString(os.Getenv(peerVariable))
	if err != nil || os.Getenv(peerVariable) == "" {
		return nil, fault.Invalid("this is started by the agent alone")
	}
	os.Unsetenv(peerVariable)
	pipe, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_OVERLAPPED|windows.SECURITY_SQOS_PRESENT|windows.SECURITY_ANONYMOUS, 0)
	if err != nil {
		return nil, os.NewSyscallError("CreateFile", err)
	}
	return os.NewFile(uintptr(pipe), "agent"), nil
}
