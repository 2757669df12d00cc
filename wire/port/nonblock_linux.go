package port

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNonblock and writeNonblock are read(2) and write(2) of a descriptor that is in non-blocking mode, so that they never
// wait.
//
// They bypass the Go scheduler. It would take the agent's one processor away from a call of more than 20 µs, which in
// an emulated guest each one is, and wake another thread for it; the first one then has to wait until that finds nothing to
// do. A call ends after a piece has been copied, of 32 KiB at most, and to a socket of one chunk of a file.
func readNonblock(fd uintptr, p []byte) (n int, err error) { return rawIO(unix.SYS_READ, fd, p) }

func writeNonblock(fd uintptr, p []byte) (n int, err error) {
	return rawIO(unix.SYS_WRITE, fd, p[:min(len(p), maxWrite)])
}

// maxWrite is the largest write, in bytes: a port takes no more at a time.
const maxWrite = 32 << 10

// rawIO makes a system call, again where a signal interrupted it. n is 0 where there is an error.
func rawIO(call, fd uintptr, p []byte) (n int, err error) {
	for {
		r, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}
