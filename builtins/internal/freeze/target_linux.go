package freeze

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of include/uapi/linux/fs.h, which are the same on all processors that the agent is built for.
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
	fitrim   = 0xC0185879
)

// Target is an open file system. Its methods may hang for as long as its disk does.
type Target struct{ fd int }

// Open opens the file system at a path.
func Open(path string) (*Target, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Target{fd}, nil
}

// Sync writes what waits to be written.
func (t *Target) Sync() error { return unix.Syncfs(t.fd) }

// Freeze freezes the file system. Nothing but its end or its failure ends the call. unix.EBUSY: it is frozen already;
// unix.EOPNOTSUPP: its type cannot be frozen.
func (t *Target) Freeze() error { return unix.IoctlSetInt(t.fd, fifreeze, 0) }

// Thaw thaws the file system. It returns false if it was not frozen.
func (t *Target) Thaw() (bool, error) {
	err := unix.IoctlSetInt(t.fd, fithaw, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) && unix.Geteuid() != 0 {
		return false, nil // an agent that may not thaw could not freeze
	}
	return err == nil, err
}

// Trim discards the unused blocks on the disk, in runs of at least minimum bytes, and returns how many bytes these had.
func (t *Target) Trim(minimum uint64) (uint64, error) {
	rang := struct{ start, length, minimum uint64 }{0, ^uint64(0), minimum} // struct fstrim_range
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.fd), fitrim, uintptr(unsafe.Pointer(&rang))); errno != 0 {
		return 0, errno
	}
	return rang.length, nil
}

// Mount returns the id of the mount that the file system was opened by.
func (t *Target) Mount() (uint64, error) {
	var x unix.Statx_t
	if err := unix.Statx(t.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &x); err != nil {
		return 0, os.NewSyscallError("statx", err)
	}
	return x.Mnt_id, nil
}

// Close closes it. What is frozen stays so.
func (t *Target) Close() { unix.Close(t.fd) }

// lockFile locks a file for this process; false if another one has.
func lockFile(file *os.File) bool {
	return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
