package port

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNow and writeNow are read(2) and write(2) of a descriptor that is in non-blocking mode, so that they never wait.
//
// The Go scheduler is not told of them. It would take the agent's one processor away from a call of more than 20 µs, which in
// an emulated guest each one is, and wake another thread for it; the first one then has to wait until that finds nothing to
// do. A call ends after a piece has been copied, of 32 KiB at most.
func readNow(fd uintptr, p []byte) (n int, err error) { return now(unix.SYS_READ, fd, p) }

func writeNow(fd uintptr, p []byte) (n int, err error) {
	return now(unix.SYS_WRITE, fd, p[:min(len(p), writeAtMost)])
}

// writeAtMost is what one write may copy, in bytes: a port takes no more.
const writeAtMost = 32 << 10

// now makes a call again that a signal interrupted. n is 0 where there is an error.
func now(call, fd uintptr, p []byte) (n int, err error) {
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
