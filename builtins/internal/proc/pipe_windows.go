package proc

import (
	"crypto/rand"
	"os"

	"golang.org/x/sys/windows"
)

// pipeBuffer is the size of the buffer of a pipe, in bytes.
const pipeBuffer = 64 << 10

// outputPipe makes a pipe of which the agent reads, with deadlines.
func outputPipe() (read, write *os.File, err error) {
	ours, theirs, err := newPipe(windows.PIPE_ACCESS_INBOUND, windows.GENERIC_WRITE|windows.FILE_READ_ATTRIBUTES)
	return ours, theirs, err
}

// inputPipe makes a pipe to which the agent writes, with deadlines.
func inputPipe() (read, write *os.File, err error) {
	ours, theirs, err := newPipe(windows.PIPE_ACCESS_OUTBOUND, windows.GENERIC_READ|windows.FILE_WRITE_ATTRIBUTES)
	return theirs, ours, err
}

// newPipe makes a pipe with a name that nobody can guess, since one without a name knows no deadlines: the end of the agent
// is overlapped, and that of the command is as commands expect it. Nobody else can open it: there is one instance, and it is
// taken. A command never waits for an agent that is gone, since the pipe breaks then.
func newPipe(direction, access uint32) (ours, theirs *os.File, err error) {
	name := `\\.\pipe\quantix-kvm-` + rand.Text()
	utf16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, nil, err
	}
	server, err := windows.CreateNamedPipe(utf16, direction|windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_FIRST_PIPE_INSTANCE,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, 1, pipeBuffer, pipeBuffer, 0, nil)
	if err != nil {
		return nil, nil, os.NewSyscallError("CreateNamedPipe", err)
	}
	client, err := windows.CreateFile(utf16, access, 0, nil, windows.OPEN_EXISTING,
		windows.SECURITY_SQOS_PRESENT|windows.SECURITY_ANONYMOUS, 0)
	if err != nil {
		windows.CloseHandle(server)
		return nil, nil, os.NewSyscallError("CreateFile", err)
	}
	return os.NewFile(uintptr(server), "command"), os.NewFile(uintptr(client), "command"), nil
}

// openNull opens the null device for a command to read.
func openNull() (*os.File, error) { return os.Open(os.DevNull) }
