package proc

import (
	"os"

	"golang.org/x/sys/unix"
)

// outputPipe makes a pipe of which the agent reads, with deadlines. The other end blocks, as commands expect it, and is none of
// the runtime's poller, which costs more calls than the pipe.
func outputPipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
}

// inputPipe makes a pipe to which the agent writes, with deadlines.
func inputPipe() (read, write *os.File, err error) { return os.Pipe() }

// openNull opens the null device for a command to read. It blocks, as each file that a command gets.
func openNull() (*os.File, error) {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	return os.NewFile(uintptr(fd), os.DevNull), nil
}
